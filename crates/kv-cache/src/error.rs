//! What can be refused. What can only be our own error (a page released twice, slices of wrong
//! length) is asserted.

use kvant_kernels::device::{GpuError, Unsupported};

/// A refusal; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The prompt does not fit beside those in prefill.
    #[error(
        "staging has no room for a prompt of {tokens} tokens: it needs {needed} tiles and \
         {free} of {capacity} are free; wait for another prompt to complete, or raise \
         staging_tokens"
    )]
    StagingFull {
        /// Tokens asked for.
        tokens: usize,
        /// Tiles asked for.
        needed: usize,
        /// Tiles free.
        free: usize,
        /// All tiles.
        capacity: usize,
    },
    /// The key is in use.
    #[error("sequence {key} is open in staging already; close it first")]
    Open {
        /// The sequence.
        key: u64,
    },
    /// The key is not in use.
    #[error("sequence {key} is not open in staging; open it first")]
    Closed {
        /// The sequence.
        key: u64,
    },
    /// Tokens would be left out.
    #[error(
        "layer {layer} of sequence {key} has {length} staged tokens; appending at {start} \
         leaves a gap"
    )]
    Gap {
        /// The sequence.
        key: u64,
        /// The layer.
        layer: usize,
        /// Tokens present.
        length: usize,
        /// Where the append begins.
        start: usize,
    },
    /// More tokens than were reserved.
    #[error("sequence {key} has staging for {tokens} tokens; appending up to {end} goes past them")]
    PastEnd {
        /// The sequence.
        key: u64,
        /// Tokens reserved.
        tokens: usize,
        /// Where the append ends.
        end: usize,
    },
    /// A prompt's layer is not complete.
    #[error(
        "layer {layer} of sequence {key} has {length} staged tokens; {wanted} are to be ingested"
    )]
    Incomplete {
        /// The sequence.
        key: u64,
        /// The layer.
        layer: usize,
        /// Tokens present.
        length: usize,
        /// Tokens wanted.
        wanted: usize,
    },
    /// A call of the GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A layer that has no kernels.
    #[error(transparent)]
    NoKernels(#[from] Unsupported),
    /// Bytes that no export wrote, or not all of them.
    #[error("{bytes} bytes are no exported sequence, or a part of one; compute it again")]
    Damaged {
        /// How many there are.
        bytes: usize,
    },
    /// Pages of another model, format or version.
    #[error(
        "the exported sequence has the signature {theirs:016x}, this cache {ours:016x}; compute it \
         again"
    )]
    OtherSignature {
        /// Of the bytes.
        theirs: u64,
        /// Of the store.
        ours: u64,
    },
}
