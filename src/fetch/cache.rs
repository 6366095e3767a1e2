//! `Cache`: the folder where fetched models stay, and how files get into it whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Variable that names another cache folder.
pub(crate) const CACHE_VARIABLE: &str = "KVANT_CACHE";

/// The cache folder; made when something is put into it.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$KVANT_CACHE`, or `.cache/kvant` in the home folder.
    pub(super) fn locate() -> Result<Self> {
        if let Some(root) = std::env::var_os(CACHE_VARIABLE).filter(|root| !root.is_empty()) {
            return Ok(Self::at(PathBuf::from(root)));
        }
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let home = home.with_context(|| {
            format!("there is no home folder to keep models in; set {CACHE_VARIABLE} to a folder")
        })?;
        Ok(Self::at(home.join(".cache/kvant")))
    }

    /// At a given place.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Folder of a model, there or not.
    pub(super) fn model(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// Folder of compiled device kernels, made if it is not there.
    pub(super) fn kernels(&self) -> Result<PathBuf> {
        let path = self.root.join("kernels");
        fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(path)
    }

    /// A fresh folder beside the models, so that a rename into place cannot cross file systems.
    pub(super) fn workshop(&self, name: &str) -> Result<Workshop> {
        let path = self.root.join("models").join(format!(".{name}-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| {
            format!("cannot make the folder {}; set {CACHE_VARIABLE} to another", path.display())
        })?;
        Ok(Workshop { path })
    }
}

/// A folder that is gone when dropped.
#[derive(Debug)]
pub(super) struct Workshop {
    path: PathBuf,
}

impl Workshop {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Moves a finished file to its place; another process that was faster does no harm.
pub(super) fn put(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))
}
