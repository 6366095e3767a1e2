//! Kernels for a GPU: one source for Metal and CUDA, specialised by a `Spec`, under `device/`.
//!
//! A program is text: definitions made here from the codec's tables and layout, then the files of
//! the dialect. `docs/kernels.md` explains the dialect and says which check each kernel has passed.

#[cfg(not(any(feature = "cuda", feature = "metal")))]
mod absent;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dense;
mod gpu;
#[cfg(all(feature = "metal", not(feature = "cuda")))]
mod metal;
mod params;
mod parts;
mod skinny;
mod spec;

use kvant_turboquant::Widths;

pub use dense::{
    BULK_GROUPS, BULK_SHARED_BYTES, FEW_GROUPS, dense_block, dense_parts, dense_shared_bytes,
    few_shared_bytes, has_bulk, has_wgmma, wgmma_shared_bytes,
};
pub use gpu::{
    Arg, Gpu, GpuBuffer, GpuError, GpuFew, GpuMark, GpuMatmul, GpuProgram, GpuRecording,
    GpuResults, Place,
};
pub use params::{
    AnglesParams, AppendParams, AttendParams, BiasParams, CastParams, DenseParams, DenseRowParams,
    GateParams, LookupParams, MatvecParams, NormParams, PagesParams, Params, PartParams,
    PickParams, PlaceParams, RotateParams, RowParams, SampleParams, SampleRowParams, SkinnyParams,
    SoftCapParams, SplitParams, rule_code, sign_words,
};
pub use parts::{AttendRow, Cut, NO_MASK, parts_of};
pub use skinny::{SKINNY_SHARED_BYTES, SkinnyCut};
pub use spec::{Activations, MAX_QUERIES, Spec, Unsupported};

/// Threads of a group, of most kernels.
const GROUP_THREADS: usize = 128;
/// Threads of a group that has a long row to itself.
const ROW_THREADS: usize = 512;
/// Threads of a group of the `attend_dense` of [`with_wgmma_override`].
pub const WGMMA_THREADS: usize = 384;
/// 16-bit numbers of a row that the copy engine takes at once: 128 bytes, whose pieces it mixes.
pub const TENSOR_BOX: usize = 64;
/// Vectors that a group of `rotate` and `restore` takes.
pub const GROUP_VECTORS: usize = 8;
/// Rows that `matvec` takes at most.
pub const MATVEC_ROWS: usize = 4;
/// Columns of the matrix that a group of it takes.
pub const MATVEC_COLUMNS: usize = 4;
/// Rows that `skinny` takes at most.
pub const SKINNY_ROWS: usize = 32;
/// Numbers of keys, and as many of values, that a group of `append` takes.
pub const APPEND_NUMBERS: usize = 1024;
/// Numbers of a row that a group of `gate` takes.
pub const GATE_NUMBERS: usize = 2048;
/// The place of a token that `append` does not keep; else it is page times `PAGE_TOKENS` plus slot.
pub const NOWHERE: u32 = u32::MAX;
/// What `lookup` takes in place of an id, with the word of the same list where the id lies: what
/// another kernel has left there is not known when a step is queued.
pub const ELSEWHERE: u32 = 1 << 31;
/// Query vectors of a group of `attend_dense` for decode steps.
pub const DENSE_FEW: usize = 16;
/// The same for chunks of prompts; half as many for heads of more than 128 numbers.
pub const DENSE_MANY: usize = 128;

/// An entry point of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Vectors to rotated space.
    Rotate,
    /// Vectors back to the space of the model.
    Restore,
    /// Dense pages to tiles.
    Encode,
    /// Tiles to dense pages.
    Gather,
    /// Attention over packed pages and 16-bit tails, in parts.
    Attend,
    /// Parts to results.
    Combine,
    /// Keys and values of new tokens to 16-bit pages.
    Append,
    /// Attention over 16-bit pages.
    AttendDense,
    /// The same for blocks of at most [`DENSE_FEW`] query vectors.
    AttendFew,
    /// Parts of it to results.
    Merge,
    /// Rows of an embedding by token.
    Lookup,
    /// The sum of a stream and what is added to it, and its norm.
    Norm,
    /// Cosines and sines of positions.
    Angles,
    /// q, k and v out of their joined product, normed and turned.
    Split,
    /// The gated product of an MLP.
    Gate,
    /// A few rows times a matrix.
    Matvec,
    /// At most [`SKINNY_ROWS`] rows times a matrix; of [`with_skinny`] alone.
    Skinny,
    /// Rows by number.
    Pick,
    /// Rows into columns of longer rows.
    Place,
    /// Rows times weights, added to rows by number.
    Weigh,
    /// f32 to 16 bits.
    Cast,
    /// A bias added to rows.
    Bias,
    /// Logits below a cap.
    SoftCap,
    /// Logits to tokens.
    Sample,
}

impl Kernel {
    /// Threads of a group.
    pub fn threads(self) -> usize {
        match self {
            Self::Norm | Self::Sample => ROW_THREADS,
            _ => GROUP_THREADS,
        }
    }

    /// Those of a program of the cache, [`program`].
    pub const ALL: [Self; 10] = [
        Self::Rotate,
        Self::Restore,
        Self::Encode,
        Self::Gather,
        Self::Attend,
        Self::Combine,
        Self::Append,
        Self::AttendDense,
        Self::Merge,
        Self::AttendFew,
    ];
    /// Those of a model, [`ops_program`].
    pub const OPS: [Self; 13] = [
        Self::Lookup,
        Self::Norm,
        Self::Angles,
        Self::Split,
        Self::Gate,
        Self::Pick,
        Self::Place,
        Self::Weigh,
        Self::Cast,
        Self::Bias,
        Self::SoftCap,
        Self::Sample,
        Self::Matvec,
    ];

    /// Name of the entry point.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotate => "kv_rotate",
            Self::Restore => "kv_restore",
            Self::Encode => "kv_encode",
            Self::Gather => "kv_gather",
            Self::Attend => "kv_attend",
            Self::Combine => "kv_combine",
            Self::Append => "kv_append",
            Self::AttendDense => "kv_attend_dense",
            Self::AttendFew => "kv_attend_few",
            Self::Merge => "kv_merge",
            Self::Lookup => "kv_lookup",
            Self::Norm => "kv_norm",
            Self::Angles => "kv_angles",
            Self::Split => "kv_split",
            Self::Gate => "kv_gate",
            Self::Matvec => "kv_matvec",
            Self::Skinny => "kv_skinny",
            Self::Pick => "kv_pick",
            Self::Place => "kv_place",
            Self::Weigh => "kv_weigh",
            Self::Cast => "kv_cast",
            Self::Bias => "kv_bias",
            Self::SoftCap => "kv_soft_cap",
            Self::Sample => "kv_sample",
        }
    }
}

/// The files of the dialect in the order of a program, by name.
pub const FILES: [(&str, &str); 12] = [
    ("compat.h", include_str!("../device/compat.h")),
    ("params.h", include_str!("../device/params.h")),
    ("rotation.h", include_str!("../device/rotation.h")),
    ("tile.h", include_str!("../device/tile.h")),
    ("rotate.h", include_str!("../device/rotate.h")),
    ("pack.h", include_str!("../device/pack.h")),
    ("encode.h", include_str!("../device/encode.h")),
    ("gather.h", include_str!("../device/gather.h")),
    ("attend.h", include_str!("../device/attend.h")),
    ("combine.h", include_str!("../device/combine.h")),
    ("append.h", include_str!("../device/append.h")),
    ("attend_dense.h", include_str!("../device/attend_dense.h")),
];

/// What takes the place of `attend.h`'s entry on NVIDIA GPUs from sm_90 on.
const OVERRIDE: [&str; 5] = [
    include_str!("../device/cuda/barriers.cuh"),
    include_str!("../device/cuda/int8.cuh"),
    include_str!("../device/cuda/merge.cuh"),
    include_str!("../device/cuda/dense.cuh"),
    include_str!("../device/cuda/attend.cuh"),
];

/// What takes the place of `attend_dense.h`'s entry on NVIDIA GPUs from sm_80 on.
const DENSE_OVERRIDE: [&str; 3] = [
    include_str!("../device/cuda/barriers.cuh"),
    include_str!("../device/cuda/flash.cuh"),
    include_str!("../device/cuda/attend_dense.cuh"),
];

/// What takes the place of both entries there on compute capability 9.0; of that for steps where
/// heads have 128 numbers.
const WGMMA_OVERRIDE: [&str; 3] = [
    include_str!("../device/cuda/wgmma.cuh"),
    include_str!("../device/cuda/attend_wgmma.cuh"),
    include_str!("../device/cuda/attend_bulk.cuh"),
];

/// What the model's kernels have besides on compute capability 9.0.
const SKINNY: [&str; 2] =
    [include_str!("../device/cuda/barriers.cuh"), include_str!("../device/cuda/skinny.cuh")];

/// The text of all kernels for one specification, for Metal or CUDA.
pub fn program(spec: &Spec) -> String {
    let mut text = spec.definitions();
    for (_, file) in FILES {
        text.push_str(file);
    }
    text
}

/// Files of the model's kernels behind `compat.h` and `params.h`, by name.
pub const OPS_FILES: [(&str, &str); 9] = [
    ("fours.h", include_str!("../device/fours.h")),
    ("reduce.h", include_str!("../device/reduce.h")),
    ("norm.h", include_str!("../device/norm.h")),
    ("split.h", include_str!("../device/split.h")),
    ("gate.h", include_str!("../device/gate.h")),
    ("matvec.h", include_str!("../device/matvec.h")),
    ("rows.h", include_str!("../device/rows.h")),
    ("each.h", include_str!("../device/each.h")),
    ("sample.h", include_str!("../device/sample.h")),
];

/// The text of the model's kernels, for Metal or CUDA.
pub fn ops_program() -> String {
    let shared = FILES[..2].iter();
    let files = shared.chain(&OPS_FILES).map(|(_, file)| *file);
    ["#define KV_TYPE 0\n#define KV_OPS\n"].into_iter().chain(files).collect()
}

/// A text of [`ops_program`] with products of up to [`SKINNY_ROWS`] rows, for compute capability
/// 9.0.
pub fn with_skinny(text: &str) -> String {
    format!("{text}{}", SKINNY.concat())
}

/// The text with `attend` for NVIDIA GPUs from sm_90 on, which merges the parts of a row itself;
/// `None` where the specification has only the portable one: it wants heads of 64, 128 or 256, and
/// no dense rotation.
pub fn override_program(spec: &Spec) -> Option<String> {
    if spec.is_dense() || ![64, 128, 256].contains(&spec.layout().dim()) {
        return None;
    }
    Some(format!("#define KV_ATTEND_OVERRIDE\n{}{}", program(spec), OVERRIDE.concat()))
}

/// A text of [`program`] or [`override_program`] with `attend_dense` for NVIDIA GPUs from sm_80 on.
pub fn with_dense_override(text: &str) -> String {
    format!("#define KV_FLASH_OVERRIDE\n{text}{}", DENSE_OVERRIDE.concat())
}

/// The same with chunks of prompts by products of warpgroups, for compute capability 9.0 and heads
/// that have them, [`has_wgmma`]. Groups of `attend_dense` have [`WGMMA_THREADS`] then.
pub fn with_wgmma_override(text: &str) -> String {
    format!("#define KV_WGMMA\n{}{}", with_dense_override(text), WGMMA_OVERRIDE.concat())
}

/// Dynamic shared memory of a group of that `attend`: a stage a warp, later its sums.
pub fn override_shared_bytes(spec: &Spec) -> u32 {
    let sums = 4 * if spec.queries() <= 4 { 4 } else { 8 } * (spec.layout().dim() + 4);
    4 * spec.layout().tile_bytes().max(sums) as u32
}

/// How many groups of that `attend` a multiprocessor takes.
pub fn override_occupancy(spec: &Spec) -> usize {
    let Widths { keys, values } = spec.layout().widths();
    match spec.layout().dim() {
        256 if spec.layout().tile_bytes() > 24_000 => 1,
        256 => 2,
        _ if keys.bits() > 4 || values.bits() > 4 => 3,
        _ => 4,
    }
}
