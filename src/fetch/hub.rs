//! Models on the hub, through hf-hub and its own cache.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use crate::progress;

/// How long the hub may take for its first answer: name look-up, connection and list of files
/// together.
const FIRST_ANSWER: Duration = Duration::from_secs(6);
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Small files that a model may have; fetched before the weights, so that a folder with weights is
/// complete.
const SMALL: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    CONFIG,
];

/// `org/name`, or `org/name:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubName {
    repo: String,
    file: Option<String>,
}

impl HubName {
    /// `None` if the text has another form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        let word = |word: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !word.is_empty() && word.chars().all(plain) && !word.starts_with('.')
        };
        let (org, name) = repo.split_once('/')?;
        let good =
            word(org) && word(name) && file.is_none_or(|f| is_gguf(f) && f.split('/').all(word));
        good.then(|| Self { repo: repo.to_owned(), file: file.map(str::to_owned) })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }
}

/// The model in hf-hub's cache, if every file is there.
pub(super) fn cached(name: &HubName, revision: &str) -> Option<PathBuf> {
    let repo = Cache::from_env().repo(name.repo(revision));
    if let Some(file) = &name.file {
        return repo.get(file);
    }
    let folder = repo.get(CONFIG)?.parent()?.to_owned();
    let shards = if folder.join(INDEX).exists() {
        shards(&folder.join(INDEX)).ok()?
    } else {
        vec![SINGLE.to_owned()]
    };
    shards.iter().all(|shard| folder.join(shard).exists()).then_some(folder)
}

/// Downloads the model and returns its folder, or its .gguf file.
pub(super) fn fetch(name: &HubName, revision: &str) -> Result<PathBuf> {
    eprintln!("asking the hub for {} ({revision})", name.repo);
    let api = ApiBuilder::from_env().with_progress(progress::shown()).build();
    let api = api.map_err(|error| anyhow!("the hub's client: {}", one_line(&error)))?;
    let files = list(&api, name, revision)?;
    let repo = api.repo(name.repo(revision));
    if let Some(file) = &name.file {
        if !files.contains(file) {
            bail!("{} on the hub has no {file}; it has: {}", name.repo, ggufs(&files));
        }
        return download(&repo, file);
    }
    let has = |file: &str| files.iter().any(|known| known == file);
    if !has(CONFIG) || !(has(SINGLE) || has(INDEX)) {
        bail!(
            "{} on the hub has no config.json with safetensors; name one of its .gguf files as \
             {0}:FILE; it has: {}",
            name.repo,
            ggufs(&files)
        );
    }
    for file in SMALL.into_iter().filter(|file| has(file)) {
        download(&repo, file)?;
    }
    let index = if has(INDEX) { Some(download(&repo, INDEX)?) } else { None };
    let shards = index.map_or_else(|| Ok(vec![SINGLE.to_owned()]), |index| shards(&index))?;
    let mut folder = PathBuf::new();
    for shard in &shards {
        folder = download(&repo, shard)?;
        folder.pop();
    }
    Ok(folder)
}

/// Files of the repository. The request runs on its own thread because hf-hub sets no time limit.
fn list(api: &Api, name: &HubName, revision: &str) -> Result<Vec<String>> {
    let (sender, receiver) = mpsc::channel();
    let repo = api.repo(name.repo(revision));
    std::thread::spawn(move || sender.send(repo.info()));
    match receiver.recv_timeout(FIRST_ANSWER) {
        Ok(Ok(found)) => Ok(found.siblings.into_iter().map(|file| file.rfilename).collect()),
        Ok(Err(error)) => bail!("{} cannot be had from the hub: {}", name.repo, one_line(&error)),
        Err(_) => bail!("the hub did not answer within {} s", FIRST_ANSWER.as_secs()),
    }
}

fn download(repo: &ApiRepo, file: &str) -> Result<PathBuf> {
    if !progress::shown() {
        eprintln!("fetching {file}");
    }
    repo.get(file).map_err(|error| anyhow!("cannot fetch {file}: {}", one_line(&error)))
}

/// File names in a safetensors index, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let place = || format!("{} is no index of safetensors", index.display());
    let index: Index =
        serde_json::from_slice(&std::fs::read(index).with_context(place)?).with_context(place)?;
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    let names: Vec<String> = names.into_iter().collect();
    match names.iter().find(|name| name.contains(['/', '\\']) || name.contains("..")) {
        Some(name) => bail!("{}: {name:?} is not a plain file name", place()),
        None => Ok(names),
    }
}

fn ggufs(files: &[String]) -> String {
    let found: Vec<&str> = files.iter().filter(|file| is_gguf(file)).map(String::as_str).collect();
    if found.is_empty() { "no .gguf files".to_owned() } else { found.join(", ") }
}

fn one_line(error: &impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_gguf(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "gguf")
}
