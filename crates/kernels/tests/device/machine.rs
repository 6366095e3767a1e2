//! What runs kernels: the emulator, or a GPU. Checks are written once and run on either.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use kvant_kernels::device::{Kernel, Params};
use rayon::prelude::*;

/// A buffer of a launch: contents, the size of an output in bytes, or both.
#[derive(Clone, Copy)]
pub(crate) enum Buffer<'a> {
    Input(&'a [u8]),
    Output(usize),
    /// Contents that the kernel changes.
    Changed(&'a [u8]),
    /// An output that is zeros before.
    Zeroed(usize),
}

/// One program somewhere.
pub(crate) trait Machine {
    /// Whether programs are compiled beside each other, where compiling takes most of the time.
    const COMPILES_BESIDE: bool = false;

    /// The largest relative error of a vector of `attend`: what queries and weights as f32 leave.
    const ATTEND_ERROR: f64 = 1e-4;

    /// The same of `attend_dense` with blocks of so many query vectors.
    fn dense_error(_block: usize) -> f64 {
        1e-4
    }

    /// Whether its `attend` writes results, so that `combine` has nothing to do.
    fn attend_combines(&self) -> bool {
        false
    }

    /// Runs a kernel and gives its outputs; bytes of an `Output` that it does not write are
    /// 0xFF.
    fn run(
        &self,
        launch: (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
    ) -> Vec<Vec<u8>>;
}

/// Notes that a check has run a kernel, for `scripts/kernel-table`.
pub(crate) fn covered(check: &str, kernel: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("covered").join(check);
    let note = folder.join(kernel);
    if !note.exists() {
        fs::create_dir_all(folder).unwrap();
        fs::write(note, "").unwrap();
    }
}

pub(crate) fn bytes_of_words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub(crate) fn bytes_of_floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|x| u32::from_ne_bytes(*x)).collect()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect()
}

/// Results of a kernel as f32 (0), f16 (1) or bf16 (2), which are at the start of the bytes.
pub(crate) fn results(bytes: &[u8], numbers: u32) -> Vec<f32> {
    if numbers == 0 {
        return floats(bytes);
    }
    let narrow = bytes[..bytes.len() / 2].as_chunks().0.iter();
    narrow
        .map(|x| match numbers {
            1 => f16::from_ne_bytes(*x).to_f32(),
            _ => bf16::from_ne_bytes(*x).to_f32(),
        })
        .collect()
}

/// Numbers as f16 (1) or bf16 (2) hold them.
pub(crate) fn rounded(x: &[f32], numbers: u32) -> Vec<f32> {
    x.iter()
        .map(|x| match numbers {
            1 => f16::from_f32(*x).to_f32(),
            _ => bf16::from_f32(*x).to_f32(),
        })
        .collect()
}

/// A check of each of some programs.
pub(crate) fn each<M: Machine, T: Sync>(programs: &[T], check: impl Fn(&T) + Sync) {
    if M::COMPILES_BESIDE {
        programs.par_iter().for_each(&check);
    } else {
        programs.iter().for_each(check);
    }
}
