//! An emulated program: the text that a device gets, compiled by the C++ compiler with the engine,
//! in a process of its own that takes launches over pipes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvant_kernels::device::{Kernel, Params, Spec, ops_program, program};

use crate::machine::{Buffer, Machine, covered};

/// Orders of threads and groups that every launch runs under; 0 is the natural one.
const SEEDS: [u32; 2] = [0, 7];

/// A compiled program.
pub(crate) struct Emulator {
    program: PathBuf,
}

/// What a launch did under one schedule.
pub(crate) struct Outcome {
    pub(crate) faults: String,
    pub(crate) outputs: Vec<Vec<u8>>,
}

/// Where compiled programs are kept, under names made from their text.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device");
    fs::create_dir_all(&folder).unwrap();
    folder
});

/// The engine, compiled without the callbacks that it answers, and its text.
static ENGINE: LazyLock<(PathBuf, String)> = LazyLock::new(|| {
    let read = |name| fs::read_to_string(host().join(name)).unwrap();
    let text = ["engine.h", "engine.cpp", "metal/metal_stdlib", "emulator.cpp"].map(read).concat();
    let object = kept("engine", &text, |path| {
        compile(&["-c"], &host().join("engine.cpp"), path);
    });
    (object, text)
});

/// A file made once for a text; a half-made one is never found under its name.
fn kept(name: &str, text: &str, make: impl Fn(&Path)) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let path = FOLDER.join(format!("{name}-{:016x}", hasher.finish()));
    if !path.exists() {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let fresh = FOLDER.join(format!("fresh-{}-{count}", std::process::id()));
        make(&fresh);
        fs::rename(&fresh, &path).unwrap();
    }
    path
}

fn host() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("device/host")
}

/// Runs the C++ compiler.
fn compile(flags: &[&str], source: &Path, output: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(&compiler);
    // No contraction: the dialect says so to both device compilers.
    command.args(["-std=c++17", "-O1", "-w", "-ffp-contract=off"]).args(flags).arg(source);
    command.arg("-o").arg(output);
    let run = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(run.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&run.stderr));
}

impl Emulator {
    pub(crate) fn new(spec: &Spec) -> Self {
        Self::of_text(&program(spec))
    }

    /// The kernels of a model.
    pub(crate) fn ops() -> Self {
        Self::of_text(&ops_program())
    }

    /// The program of a text that may be a changed one.
    pub(crate) fn of_text(text: &str) -> Self {
        let (engine, shim) = &*ENGINE;
        let program = kept("program", &format!("{text}{shim}"), |path| {
            let end = fs::read_to_string(host().join("emulator.cpp")).unwrap();
            let (source, object) = (path.with_extension("cpp"), path.with_extension("o"));
            fs::write(&source, format!("#define __METAL_VERSION__ 310\n{text}\n{end}")).unwrap();
            let include = format!("-I{}", host().join("metal").display());
            compile(&["-c", "-fsanitize=thread", &include], &source, &object);
            compile(&[engine.to_str().unwrap(), "-lm"], &object, path);
            for made in [source, object] {
                fs::remove_file(made).unwrap();
            }
        });
        Self { program }
    }

    /// What the program says of its structs: lines of struct, field, offset, size.
    pub(crate) fn layout(&self) -> String {
        let run = Command::new(&self.program).arg("layout").output().unwrap();
        String::from_utf8(run.stdout).unwrap()
    }

    /// Runs a kernel; the parameters are its last buffer.
    pub(crate) fn launch(
        &self,
        (kernel, grid): (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
        seed: u32,
    ) -> Outcome {
        let mut input = Vec::new();
        let place = |kernels: &[Kernel]| kernels.iter().position(|k| *k == kernel);
        let index = place(&Kernel::ALL).or(place(&Kernel::OPS)).unwrap() as u32;
        let [x, y, z] = grid.map(|n| n as u32);
        let threads = kernel.threads() as u32;
        words(&mut input, &[index, seed, x, y, z, threads, buffers.len() as u32 + 1]);
        let mut sizes = Vec::new();
        for buffer in buffers {
            match buffer {
                Buffer::Input(bytes) => {
                    words(&mut input, &[bytes.len() as u32, 0]);
                    input.extend_from_slice(bytes);
                }
                Buffer::Output(size) => {
                    words(&mut input, &[*size as u32, 1]);
                    sizes.push(*size);
                }
                Buffer::Changed(bytes) => {
                    words(&mut input, &[bytes.len() as u32, 2]);
                    input.extend_from_slice(bytes);
                    sizes.push(bytes.len());
                }
                Buffer::Zeroed(size) => {
                    words(&mut input, &[*size as u32, 3]);
                    sizes.push(*size);
                }
            }
        }
        let params = params.words();
        words(&mut input, &[4 * params.len() as u32, 0]);
        words(&mut input, &params);
        let output = self.exchange(&input);
        let word = |at: usize| u32::from_ne_bytes(output[at..at + 4].try_into().unwrap()) as usize;
        let mut at = 8 + word(4);
        let faults = String::from_utf8_lossy(&output[8..at]).into_owned();
        assert_eq!(word(0) == 0, faults.is_empty());
        let outputs = sizes.into_iter().map(|size| {
            at += size;
            output[at - size..at].to_vec()
        });
        Outcome { faults, outputs: outputs.collect() }
    }

    fn exchange(&self, input: &[u8]) -> Vec<u8> {
        let piped =
            Command::new(&self.program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child: Child = piped.unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        drop(stdin);
        let mut output = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{}: {status}", self.program.display());
        output
    }
}

impl Machine for Emulator {
    /// Under every schedule: no faults, and the same outputs.
    fn run(
        &self,
        (kernel, grid): (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
    ) -> Vec<Vec<u8>> {
        let mut first: Option<Vec<Vec<u8>>> = None;
        for seed in SEEDS {
            let outcome = self.launch((kernel, grid), buffers, params, seed);
            assert_eq!(outcome.faults, "", "{kernel:?}, seed {seed}, {}", self.program.display());
            match &first {
                Some(first) => {
                    assert!(*first == outcome.outputs, "{kernel:?}: seed {seed} differs");
                }
                None => first = Some(outcome.outputs),
            }
        }
        covered("emulated", kernel.name());
        first.unwrap()
    }
}

fn words(into: &mut Vec<u8>, words: &[u32]) {
    into.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}
