//! Rules of the tree: who may depend on whom, sizes of files, names, links, and nothing of one
//! machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES: usize = 400;
const LINE_COLUMNS: usize = 100;

/// Every package and exactly what its `[dependencies]` may name: ours, then others. A new edge is a
/// change here.
const DEPENDENCIES: [(&str, &[&str], &[&str]); 9] = [
    (
        ".",
        &["bench", "engine", "kv-cache", "models", "server", "text"],
        &[
            "anyhow",
            "clap",
            "core_affinity",
            "getrandom",
            "hf-hub",
            "indicatif",
            "rayon",
            "rustyline",
            "serde",
            "serde_json",
            "sha2",
            "tokio",
            "toml",
            "tracing",
            "tracing-subscriber",
            "ureq",
        ],
    ),
    (
        "crates/bench",
        &["engine", "kernels", "kv-cache", "models", "turboquant"],
        &["anyhow", "half", "rayon", "serde", "serde_json"],
    ),
    (
        "crates/server",
        &["engine", "text"],
        &[
            "axum",
            "futures-core",
            "http-body",
            "hyper",
            "hyper-util",
            "serde",
            "serde_json",
            "sha2",
            "socket2",
            "subtle",
            "thiserror",
            "tokio",
            "tokio-rustls",
            "tracing",
        ],
    ),
    (
        "crates/engine",
        &["kernels", "kv-cache", "models"],
        &["candle-core", "rayon", "thiserror", "tokio", "tracing"],
    ),
    ("crates/kv-cache", &["kernels", "turboquant"], &["half", "thiserror", "tracing"]),
    (
        "crates/models",
        &["kernels"],
        &[
            "candle-core",
            "half",
            "memmap2",
            "rayon",
            "serde",
            "serde_json",
            "thiserror",
            "zerocopy",
        ],
    ),
    (
        "crates/kernels",
        &["turboquant"],
        &["candle-core", "candle-metal-kernels", "cudarc", "half", "objc2-metal", "rayon", "wide"],
    ),
    ("crates/turboquant", &[], &["half"]),
    (
        "crates/text",
        &[],
        &[
            "llguidance",
            "minijinja",
            "minijinja-contrib",
            "serde",
            "serde_json",
            "thiserror",
            "tokenizers",
        ],
    ),
];

/// The only files that may hold `unsafe`, each with a reason beside it.
const UNSAFE_FILES: [&str; 23] = [
    "crates/kernels/benches/device/cases.rs",
    "crates/kernels/benches/device/dense.rs",
    "crates/kernels/benches/device/products.rs",
    "crates/kernels/src/cpu/packed/avx2.rs",
    "crates/kernels/src/cpu/packed/avx512.rs",
    "crates/kernels/src/cpu/packed/machine.rs",
    "crates/kernels/src/cpu/packed/neon.rs",
    "crates/kernels/src/cpu/quant_matmul.rs",
    "crates/kernels/src/cpu/quant_matmul/avx2.rs",
    "crates/kernels/src/cpu/quant_matmul/avx512.rs",
    "crates/kernels/src/cpu/quant_matmul/neon.rs",
    "crates/kernels/src/device/cuda.rs",
    "crates/kernels/src/device/cuda/library.rs",
    "crates/kernels/src/device/cuda/maps.rs",
    "crates/kernels/src/device/cuda/module.rs",
    "crates/kernels/src/device/cuda/queue.rs",
    "crates/kernels/src/device/cuda/results.rs",
    "crates/kernels/src/device/cuda/staging.rs",
    "crates/kernels/src/device/metal.rs",
    "crates/kernels/src/device/metal/results.rs",
    "crates/kernels/tests/device/cuda.rs",
    "crates/kernels/tests/device/skinny.rs",
    "crates/models/src/bytes.rs",
];

/// Words that say nothing; not in names of files, functions and types.
const BANNED: [&str; 11] = [
    "manager", "handler", "helper", "helpers", "utils", "misc", "common", "info", "data", "base",
    "process",
];

/// Names of what holds nothing of ours.
const SKIPPED: [&str; 5] = [".git", "target", ".venv", "__pycache__", "tiny-llama-1m"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files, paths relative to the root.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // Where the checkout is one of several of a repository, .git is a file.
            if SKIPPED.contains(&name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the walk found {} files", found.len());
    found
}

/// Path and text of every file with the extension.
fn texts(extension: &str) -> Vec<(String, String)> {
    let wanted =
        files().into_iter().filter(|path| path.extension().is_some_and(|e| e == extension));
    let read = |path: PathBuf| {
        (path.display().to_string(), fs::read_to_string(root().join(&path)).unwrap())
    };
    let texts: Vec<_> = wanted.map(read).collect();
    assert!(!texts.is_empty(), "no .{extension} files");
    texts
}

fn none_of(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn each_package_names_only_its_dependencies() {
    let mut known = BTreeSet::new();
    for (folder, ours, others) in DEPENDENCIES {
        known.insert(folder.to_owned());
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        let found = manifest["dependencies"].as_table().unwrap().keys().cloned();
        let ours = ours.iter().map(|name| format!("kvant-{name}"));
        let expected: BTreeSet<String> =
            ours.chain(others.iter().map(|name| (*name).to_owned())).collect();
        assert_eq!(found.collect::<BTreeSet<_>>(), expected, "{folder}/Cargo.toml");
    }
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&format!("crates/{name}")), "crates/{name} is not in the table");
    }
}

#[test]
fn source_files_open_with_their_purpose_and_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in texts("rs") {
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}: does not open with //!"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES {
            wrong.push(format!("{path}: {lines} lines, {FILE_LINES} at most"));
        }
        for (index, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS {
                wrong.push(format!("{path}:{}: {columns} columns", index + 1));
            }
        }
    }
    none_of("source files", &wrong);
}

#[test]
fn unsafe_code_is_where_it_is_allowed() {
    let mut wrong = Vec::new();
    for (path, text) in texts("rs") {
        let starts = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
        let code = text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let has = code.into_iter().any(|line| starts.iter().any(|start| line.contains(start)));
        let quoted = path == "tests/integration/tidy.rs";
        if has && !quoted && !UNSAFE_FILES.contains(&path.as_str()) {
            wrong.push(path);
        }
    }
    none_of("unsafe outside the list", &wrong);
}

#[test]
fn names_say_something() {
    let mut wrong = Vec::new();
    for path in files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.split(['_', '-', '.']).any(|word| BANNED.contains(&word)) {
            wrong.push(path.display().to_string());
        }
    }
    for (path, text) in texts("rs") {
        for name in defined(&text) {
            let banned = words(name).iter().any(|word| BANNED.contains(&word.as_str()));
            if banned || name.starts_with("do_") {
                wrong.push(format!("{path}: {name}"));
            }
        }
    }
    none_of("names that say nothing", &wrong);
}

/// Names of functions and types that a source text defines.
fn defined(text: &str) -> Vec<&str> {
    let kinds = ["fn ", "struct ", "enum ", "trait ", "type "];
    // An indented `type` has the name that somebody else's trait gave it.
    let lines = text.lines().filter(|line| !line.starts_with("    type "));
    let lines = lines.map(str::trim_start).filter(|line| !line.starts_with("//"));
    let found = lines.filter_map(|line| {
        let after = line.strip_prefix("pub ").unwrap_or(line);
        let after = after.strip_prefix("pub(crate) ").unwrap_or(after);
        let after = after.strip_prefix("async ").unwrap_or(after);
        kinds.iter().find_map(|kind| after.strip_prefix(kind))
    });
    let end = |c: char| !c.is_alphanumeric() && c != '_';
    found.map(|rest| rest.split(end).next().unwrap_or(rest)).collect()
}

/// Words of a snake_case or CamelCase name, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
    }
    words
}

#[test]
fn words_of_names() {
    assert_eq!(words("do_it"), ["do", "it"]);
    assert_eq!(words("PageManager"), ["", "page", "manager"]);
    assert_eq!(defined("    pub(crate) fn run_it(x: u8) {}\n// fn no\n"), ["run_it"]);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in texts("md") {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or(link);
            let outside = link.contains("://") || link.starts_with("mailto:");
            let folder = root().join(Path::new(&path).parent().unwrap());
            if !outside && !target.is_empty() && !folder.join(target).exists() {
                wrong.push(format!("{path}: {link}"));
            }
        }
    }
    none_of("links to nothing", &wrong);
}

#[test]
fn nothing_names_a_path_of_one_machine() {
    // Spelled in parts, so that this file does not find itself.
    let places =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"]].map(|p| p.concat());
    let mut wrong = Vec::new();
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (index, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                wrong.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    none_of("machine paths", &wrong);
}
