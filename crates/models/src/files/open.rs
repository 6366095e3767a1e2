//! From a path to `ModelFiles`: which files make up the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ModelFiles;
use super::weights::{GgufWeights, Shards, Weights};
use crate::safetensors::{Safetensors, UniqueKeys};
use crate::{Bytes, Error, Gguf, HfConfig, gguf, hf_config};

/// Largest config.json or generation_config.json, bytes: some have lists of layers.
pub(super) const CONFIG_BYTES: u64 = 1 << 20;
/// Largest model.safetensors.index.json, bytes: a line a tensor.
pub(super) const INDEX_BYTES: u64 = 64 << 20;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(super) fn open(path: &Path) -> Result<ModelFiles, Error> {
    let found = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    if found.is_file() {
        return if is_gguf(path) { open_gguf(path) } else { none(path, "is no .gguf file") };
    }
    if path.join(CONFIG).is_file() {
        if path.join(SINGLE).is_file() {
            return open_folder(path, Shards::single(shard(path, SINGLE)?));
        }
        if path.join(INDEX).is_file() {
            return open_folder(path, indexed(path)?);
        }
    }
    let ggufs = ggufs_in(path)?;
    match ggufs.as_slice() {
        [only] => open_gguf(only),
        [] if path.join(CONFIG).is_file() => none(path, "has config.json but no weights"),
        [] => none(path, "has neither config.json with safetensors nor a .gguf file"),
        _ => none(path, &format!("has {} .gguf files, name the one you mean", ggufs.len())),
    }
}

pub(super) fn config_only(path: &Path) -> Result<ModelFiles, Error> {
    let folder = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
    if path.is_file() && !path.ends_with(CONFIG) {
        return none(path, "is no config.json, which made-up weights need");
    }
    let file = folder.join(CONFIG).display().to_string();
    from_folder(folder, Weights::None { file })
}

fn open_folder(folder: &Path, shards: Shards) -> Result<ModelFiles, Error> {
    let mut files = from_folder(folder, Weights::Shards(shards))?;
    // What the configuration leaves open, the weights say.
    let head = files.has("lm_head.weight");
    files.config.output.tie_word_embeddings.get_or_insert(!head);
    Ok(files)
}

/// Configuration and end tokens of a folder.
fn from_folder(folder: &Path, weights: Weights) -> Result<ModelFiles, Error> {
    let path = folder.join(CONFIG);
    let config_file = path.display().to_string();
    let text = text(&path, CONFIG_BYTES)?;
    let config = HfConfig::from_json(&text, &config_file)?;
    let mut eos: BTreeSet<u32> = hf_config::end_tokens(&text, &config_file)?.into_iter().collect();
    let path = folder.join(GENERATION);
    if path.is_file() {
        let text = self::text(&path, CONFIG_BYTES)?;
        eos.extend(hf_config::end_tokens(&text, &path.display().to_string())?);
    }
    Ok(ModelFiles {
        name: name_of(folder),
        folder: folder.to_owned(),
        config,
        config_file,
        eos_tokens: eos.into_iter().collect(),
        weights,
    })
}

fn open_gguf(path: &Path) -> Result<ModelFiles, Error> {
    let file = path.display().to_string();
    let gguf = Gguf::parse(Bytes::map(path)?, &file)?;
    let config = gguf::hf_config(&gguf)?;
    let eos_tokens = gguf::end_tokens(&gguf);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let weights = Weights::Gguf(GgufWeights::new(gguf, &config)?);
    Ok(ModelFiles { name, folder, config, config_file: file, eos_tokens, weights })
}

/// Part of model.safetensors.index.json.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueKeys<String>,
}

fn indexed(folder: &Path) -> Result<Shards, Error> {
    let path = folder.join(INDEX);
    let file = path.display().to_string();
    let Index { weight_map: UniqueKeys(shard_of) } =
        serde_json::from_str(&text(&path, INDEX_BYTES)?).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            Error::malformed(&file, place, error.to_string())
        })?;
    let names: BTreeSet<&String> = shard_of.values().collect();
    let mut shards = BTreeMap::new();
    for name in names {
        if !plain(name) {
            let what = format!("{name:?} is not the plain name of a .safetensors file");
            return Err(Error::malformed(&file, "weight_map", what));
        }
        shards.insert(name.clone(), shard(folder, name)?);
    }
    Shards::indexed(&file, shards, shard_of)
}

/// A file name that stays in its folder.
fn plain(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    name.ends_with(".safetensors") && !name.contains(odd) && !name.contains("..")
}

fn shard(folder: &Path, name: &str) -> Result<Safetensors, Error> {
    let path = folder.join(name);
    Safetensors::parse(Bytes::map(&path)?, &path.display().to_string())
}

/// A text file of bounded size.
fn text(path: &Path, most: u64) -> Result<String, Error> {
    let file = File::open(path).map_err(|source| unreadable(path, source))?;
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text);
    if read.map_err(|source| unreadable(path, source))? as u64 > most {
        let what = format!("has more than {most} bytes");
        return Err(Error::malformed(&path.display().to_string(), "end of file", what));
    }
    Ok(text)
}

fn ggufs_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| unreadable(folder, source))? {
        let path = entry.map_err(|source| unreadable(folder, source))?.path();
        if is_gguf(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Last part of a folder's real path, so that `.` and links have a name too.
fn name_of(folder: &Path) -> String {
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

fn none<T>(path: &Path, found: &str) -> Result<T, Error> {
    Err(Error::NoModel { path: path.to_owned(), found: found.to_owned() })
}
