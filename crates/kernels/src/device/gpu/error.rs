//! `GpuError`: why a GPU did not do what it was asked.

use std::fmt;

/// Why a program cannot be had, or a call did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuError {
    /// This build has no code for any GPU.
    NotBuilt,
    /// The device has no kernels: what it is.
    NoKernels(String),
    /// The compiler of the device refused the text; what it said.
    Compile(String),
    /// The driver refused a call; what it said.
    Driver(String),
    /// A place or a copy is larger than what it lies in.
    Room(String),
    /// A tensor that kernels cannot reach: why.
    Tensor(String),
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => write!(
                f,
                "this build runs on the CPU only; build with --features cuda or --features metal"
            ),
            Self::NoKernels(what) => write!(f, "there are no device kernels for {what}"),
            Self::Compile(said) => write!(f, "the compiler refused the device kernels: {said}"),
            Self::Driver(said) => write!(f, "the GPU's driver refused a call: {said}"),
            Self::Room(what) => write!(f, "out of bounds on the GPU: {what}"),
            Self::Tensor(why) => write!(f, "a tensor cannot be given to a device kernel: {why}"),
        }
    }
}

impl std::error::Error for GpuError {}
