//! What runs kernels: the emulator, or a GPU. Checks are written once and run on either.

use kvant_kernels::device::{Kernel, Params};

/// A buffer of a launch: contents, or the size of an output in bytes.
pub(crate) enum Buffer<'a> {
    Input(&'a [u8]),
    Output(usize),
}

/// One program somewhere.
pub(crate) trait Machine {
    /// The largest relative error of a vector of `attend`: what queries and weights as f32 leave.
    const ATTEND_ERROR: f64 = 1e-4;

    /// Runs a kernel and gives its outputs; bytes that it does not write are 0xFF.
    fn run(
        &self,
        launch: (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
    ) -> Vec<Vec<u8>>;
}

pub(crate) fn bytes_of_words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub(crate) fn bytes_of_floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect()
}
