//! Tests of model names: what is a path, what is a hub name, and what is kept in the cache.

use super::*;

fn scratch(name: &str) -> (Cache, PathBuf) {
    let root = std::env::temp_dir().join(format!("kvant-fetch-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    (Cache::at(root.clone()), root)
}

#[test]
fn missing_paths_are_errors_at_once_and_names_are_no_paths() {
    for name in ["/no/model", "./model", "../m", "~/m", "a/b/c", "m.gguf", "a/m.gguf", "a\\b", "a/"]
    {
        assert!(is_path(name), "{name}");
    }
    for name in ["smollm2-135m-instruct", "org/name", "org/name:file.gguf", "org/name:sub/f.gguf"] {
        assert!(!is_path(name), "{name}");
    }
    let (cache, _) = scratch("paths");
    let error = resolve_in(&cache, "./no-such-model", "main").unwrap_err().to_string();
    assert!(error.starts_with("./no-such-model: no such file or folder; "), "{error}");
    let error = resolve_in(&cache, "no-such-model", "main").unwrap_err().to_string();
    assert!(error.contains("there are tiny and smollm2-135m-instruct"), "{error}");
}

#[test]
fn hub_names() {
    for name in ["org/name", "org/name:model.Q4_K_M.gguf", "org/name:sub/model.gguf"] {
        assert!(HubName::parse(name).is_some(), "{name}");
    }
    for name in [
        "name",
        "org/",
        "/name",
        "a/b/c",
        "org/na me",
        "org/name:",
        "org/name:x.bin",
        "org/name:../x.gguf",
        "../name",
        "org/name:a//x.gguf",
        "org/name?x",
    ] {
        assert!(HubName::parse(name).is_none(), "{name}");
    }
}

#[test]
fn tiny_is_unpacked_once_and_mended_when_damaged() {
    let (cache, root) = scratch("tiny");
    let fetched = resolve_in(&cache, TINY, "main").unwrap();
    assert_eq!(fetched.name.as_deref(), Some(TINY));
    let weights = fetched.path.join("model.safetensors");
    let written = std::fs::read(&weights).unwrap();
    let time = std::fs::metadata(&weights).unwrap().modified().unwrap();
    resolve_in(&cache, TINY, "main").unwrap();
    assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), time);
    std::fs::write(&weights, &written[..100]).unwrap();
    resolve_in(&cache, TINY, "main").unwrap();
    assert_eq!(std::fs::read(&weights).unwrap(), written);
    let left: Vec<_> = std::fs::read_dir(root.join("models")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_file_in_the_cache_needs_no_network() {
    let (cache, root) = scratch("cached");
    let path = cache.model(DEFAULT_MODEL).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"GGUF").unwrap();
    let fetched = resolve_in(&cache, DEFAULT_MODEL, "main").unwrap();
    assert_eq!(fetched, Fetched { path, name: Some(DEFAULT_MODEL.to_owned()) });
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn another_content_than_the_pinned_one_is_refused() {
    let (cache, _) = scratch("hash");
    let workshop = cache.workshop("hash").unwrap();
    let path = workshop.path().join("abc");
    std::fs::write(&path, "abc").unwrap();
    // The published test vector of SHA-256.
    let good = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    wheel::check(&path, good).unwrap();
    std::fs::write(&path, "abd").unwrap();
    let error = wheel::check(&path, good).unwrap_err().to_string();
    assert!(error.starts_with("abc: SHA-256 is "), "{error}");
}
