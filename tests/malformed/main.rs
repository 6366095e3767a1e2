//! Damaged model files, by the hundred and by seed: each is opened on the road that `kvant serve`
//! takes, down to a first token. No panic, no hang, memory within a bound, and an error is one line
//! that names the file.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod draw;
mod gguf;
mod road;
mod safetensors;

#[path = "../../src/facts.rs"]
#[expect(dead_code, reason = "the same source as the binary's, of which a part is used here")]
mod facts;
#[path = "../../crates/models/src/gguf/build.rs"]
#[expect(dead_code, reason = "as above")]
mod gguf_file;
#[path = "../../crates/models/src/safetensors/build.rs"]
#[expect(dead_code, reason = "as above")]
mod safetensors_file;
#[path = "../../src/words.rs"]
mod words;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use draw::Draw;
use peak_alloc::PeakAlloc;
use road::Wrong;

/// Files of every kind of damage.
const EACH: u64 = 40;
/// Most that a small file may take while it is opened, loaded and asked for a token.
const BYTES: usize = 64 << 20;
/// Longest that this may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The counter of memory is one for the process, so the files take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Forgets the peak; returns the bytes that are taken now.
fn mark() -> usize {
    ALLOCATOR.reset_peak_usage();
    ALLOCATOR.current_usage()
}

/// What became of a corpus.
#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    /// By the step of the road that refused.
    refused: [usize; 2],
    /// A few refused files, for the command line.
    kept: Vec<PathBuf>,
}

/// Walks the road with a model and checks what is promised of every file; `name` says which it is.
fn check(path: &Path, name: &str, tally: &mut Tally) {
    let _turn = turn();
    let (start, before) = (Instant::now(), mark());
    let walked = catch_unwind(AssertUnwindSafe(|| road::walk(path)));
    let (time, taken) = (start.elapsed(), ALLOCATOR.peak_usage().saturating_sub(before));
    let Ok(walked) = walked else { panic!("{name}: a panic; {} is kept", path.display()) };
    assert!(taken <= BYTES, "{name}: {taken} bytes were taken");
    assert!(time <= PATIENCE, "{name}: {time:?}");
    match walked {
        Ok(()) => tally.accepted += 1,
        Err(Wrong { text, of_file }) => {
            assert!(!text.contains(char::is_control) && text.len() < 2000, "{name}: {text:?}");
            let named = text.starts_with(path.to_str().unwrap());
            assert!(!of_file || named, "{name}: the file is not named: {text}");
            tally.refused[usize::from(of_file)] += 1;
        }
    }
}

/// A folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The command line says one line and exits with 1.
fn refused_by_inspect(path: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvant"));
    let output = command.arg("inspect").arg(path).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}: {stderr}", path.display());
    assert_eq!((output.stdout.len(), stderr.lines().count()), (0, 1), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
}

#[test]
fn memory_is_counted() {
    let _turn = turn();
    let before = mark();
    drop(std::hint::black_box(vec![1_u8; BYTES]));
    assert!(ALLOCATOR.peak_usage() - before >= BYTES);
}

#[test]
fn valid_files_go_all_the_way() {
    let (_turn, folder) = (turn(), folder("malformed-none"));
    for (number, file) in gguf::valid().iter().enumerate() {
        let path = folder.join(format!("valid-{number}.gguf"));
        fs::write(&path, file.bytes()).unwrap();
        road::walk(&path).unwrap_or_else(|wrong| panic!("{number}: {}", wrong.text));
    }
    safetensors::write(&folder, safetensors::CONFIG.as_bytes(), &safetensors::valid().bytes());
    road::walk(&folder).unwrap_or_else(|wrong| panic!("{}", wrong.text));
}

#[test]
fn damaged_gguf_files_are_harmless() {
    let folder = folder("malformed-gguf");
    let mut tally = Tally::default();
    for (kind, damage) in gguf::KINDS {
        for seed in 0..EACH {
            let mut draw = Draw::new(kind, seed);
            let path = folder.join(format!("gguf-{kind}-{seed}.gguf"));
            fs::write(&path, gguf::damaged(damage, &mut draw)).unwrap();
            let refused = tally.refused[1];
            check(&path, &format!("{kind} {seed}"), &mut tally);
            if seed == 0 && tally.refused[1] > refused {
                tally.kept.push(path);
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
    }
    assert!(tally.accepted > 50 && tally.refused[1] > 200, "{tally:?}");
    assert!(tally.kept.len() > 5, "{tally:?}");
    tally.kept.iter().for_each(|path| refused_by_inspect_or_later(path));
}

#[test]
fn damaged_safetensors_files_are_harmless() {
    let parent = folder("malformed-safetensors");
    let mut tally = Tally::default();
    for (kind, damage) in safetensors::KINDS {
        for seed in 0..EACH {
            let mut draw = Draw::new(kind, seed);
            let folder = parent.join(format!("safetensors-{kind}-{seed}"));
            let (config, weights) = safetensors::damaged(damage, &mut draw);
            safetensors::write(&folder, &config, &weights);
            let refused = tally.refused[1];
            check(&folder, &format!("{kind} {seed}"), &mut tally);
            if seed == 0 && tally.refused[1] > refused {
                tally.kept.push(folder);
            } else {
                fs::remove_dir_all(&folder).unwrap();
            }
        }
    }
    assert!(tally.accepted > 20 && tally.refused[1] > 200, "{tally:?}");
    assert!(tally.kept.len() > 5, "{tally:?}");
    tally.kept.iter().for_each(|path| refused_by_inspect_or_later(path));
}

/// `inspect` reads headers only: a file that fails later must pass it.
fn refused_by_inspect_or_later(path: &Path) {
    if road::headers(path).is_err() {
        refused_by_inspect(path);
    }
}
