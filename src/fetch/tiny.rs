//! The built-in model `tiny`: a trained Llama of one million parameters for tests, smoke runs and
//! demos.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::TINY;
use super::cache::{Cache, put};

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_bytes!(concat!("../../models/tiny-llama-1m/", $name)).as_slice())),+]
    };
}

const FILES: [(&str, &[u8]); 5] = built_in![
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
];

/// Writes the files into the cache, unless they are there already, and returns their folder.
pub(super) fn unpack(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.model(TINY);
    let mut workshop = None;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        if workshop.is_none() {
            workshop = Some(cache.workshop(TINY)?);
        }
        let written = workshop.as_ref().expect("made above").path().join(name);
        fs::write(&written, bytes)
            .with_context(|| format!("cannot write {}", written.display()))?;
        put(&written, &path)?;
    }
    Ok(folder)
}
