//! Texts of the user's that measurements read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Largest text, bytes.
const TEXT_BYTES: u64 = 64 << 20;

/// The text of a file. What cannot be read, or is no UTF-8, is an error that names the file.
pub(crate) fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    if size > TEXT_BYTES {
        bail!("{}: has more than {TEXT_BYTES} bytes", path.display());
    }
    let text = fs::read_to_string(path);
    text.with_context(|| format!("{}: cannot be read as UTF-8", path.display()))
}
