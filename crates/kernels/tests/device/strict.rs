//! The Metal spelling under a front end that has Metal's address spaces: clang's C++ for OpenCL,
//! from the Python package libclang. Where the package registry cannot be reached, it says so and
//! ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvant_kernels::device::{Activations, Kernel, Spec, ops_program, program};

use crate::machine::covered;
use crate::random::{spec, widths};

/// The check stands for one version of the front end.
const LIBCLANG: &str = "libclang==18.1.1";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("strict")
}

/// The folder of the package; `None` where it cannot be had.
fn libclang() -> Option<PathBuf> {
    let into = folder().join(LIBCLANG);
    if into.join("clang").exists() {
        return Some(into);
    }
    let fresh = folder().join(format!("fresh-{}", std::process::id()));
    let run = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--target".as_ref(), fresh.as_os_str(), LIBCLANG.as_ref()])
        .output()
        .unwrap();
    if !run.status.success() {
        let why = String::from_utf8_lossy(&run.stderr).into_owned();
        let absent = ["onnection", "timed out", "name resolution", "o matching distribution"];
        assert!(absent.iter().any(|text| why.contains(text)), "{why}");
        eprintln!("strict check skipped: {LIBCLANG} cannot be fetched");
        return None;
    }
    // Another process may have been faster; its folder is as good.
    let _ = fs::rename(&fresh, &into);
    Some(into)
}

/// What the check says of programs.
fn complaints(libclang: &Path, name: &str, texts: &[String]) -> String {
    let strict = Path::new(env!("CARGO_MANIFEST_DIR")).join("device/strict");
    let mut command = Command::new("python3");
    command.args([strict.join("check.py").as_path(), libclang, &strict]);
    for (index, text) in texts.iter().enumerate() {
        let path = folder().join(format!("{name}-{index}.h"));
        fs::write(&path, text).unwrap();
        command.arg(path);
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn every_program_has_its_types_and_address_spaces_right() {
    fs::create_dir_all(folder()).unwrap();
    let Some(libclang) = libclang() else { return };
    let of = |dim, keys, values, activations| {
        program(&Spec::new(dim, widths(keys, values), activations).unwrap())
    };
    let texts = [
        of(64, 2, 3, Activations::F32),
        of(80, 3, 4, Activations::F16),
        of(96, 4, 6, Activations::BF16),
        of(128, 6, 8, Activations::F16),
        of(192, 3, 3, Activations::F32),
        of(256, 8, 2, Activations::BF16),
        of(144, 4, 4, Activations::F16),
        ops_program(),
    ];
    assert_eq!(complaints(&libclang, "program", &texts), "");
    for kernel in Kernel::ALL.into_iter().chain(Kernel::OPS) {
        assert!(texts.iter().any(|text| text.contains(&format!("KV_KERNEL({}, ", kernel.name()))));
        covered("strict", kernel.name());
    }

    // What is planted is found, by the words that name it.
    let text = program(&spec(64, 4, 4));
    let end = |added: &str| format!("{text}\n{added}\n");
    for (index, (planted, words)) in [
        (end("KV_FN float f(KV_THREAD float* v) { return v[0] * 0.5; }"), "double"),
        (end("KV_FN void f(KV_CONSTANT float* v) { v[0] = 1.0f; }"), "read-only"),
        (
            end("KV_FN float f(KV_GROUP float* v) { return v[0]; }\n\
                 KV_FN float g(KV_DEVICE float* v) { return f(v); }"),
            "no matching function",
        ),
        (end("KV_FN void f() { KV_SHARED(float, v, 4); v[0] = 1.0f; }"), "local address space"),
        (end("KV_FN float f(const float* v) { return v[0]; }"), "without an address space"),
    ]
    .into_iter()
    .enumerate()
    {
        let found = complaints(&libclang, &format!("planted-{index}"), &[planted]);
        assert!(found.contains(words), "{words}: {found}");
    }
}
