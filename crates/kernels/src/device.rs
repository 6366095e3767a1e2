//! Kernels for a GPU: one source for Metal and CUDA, specialised by a `Spec`, under `device/`.
//!
//! A program is text: definitions made here from the codec's tables and layout, then the files of
//! the dialect. `docs/kernels.md` explains the dialect and says which check each kernel has passed.

#[cfg(feature = "cuda")]
pub mod cuda;
mod params;
mod spec;

use kvant_turboquant::{Width, Widths};

pub use params::{
    AttendParams, CombineParams, PagesParams, Params, RotateParams, RowParams, rule_code,
    sign_words,
};
pub use spec::{Activations, MAX_QUERIES, Spec, Unsupported};

/// Threads of a group, of every kernel.
pub const GROUP_THREADS: usize = 128;
/// Vectors that a group of `rotate` and `restore` takes.
pub const GROUP_VECTORS: usize = 8;

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
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Rotate, Self::Restore, Self::Encode, Self::Gather, Self::Attend, Self::Combine];

    /// Name of the entry point.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotate => "kv_rotate",
            Self::Restore => "kv_restore",
            Self::Encode => "kv_encode",
            Self::Gather => "kv_gather",
            Self::Attend => "kv_attend",
            Self::Combine => "kv_combine",
        }
    }
}

/// The files of the dialect in the order of a program, by name.
pub const FILES: [(&str, &str); 9] = [
    ("compat.h", include_str!("../device/compat.h")),
    ("params.h", include_str!("../device/params.h")),
    ("rotation.h", include_str!("../device/rotation.h")),
    ("tile.h", include_str!("../device/tile.h")),
    ("rotate.h", include_str!("../device/rotate.h")),
    ("encode.h", include_str!("../device/encode.h")),
    ("gather.h", include_str!("../device/gather.h")),
    ("attend.h", include_str!("../device/attend.h")),
    ("combine.h", include_str!("../device/combine.h")),
];

/// What takes the place of `attend.h`'s entry on NVIDIA GPUs from sm_90 on.
const OVERRIDE: [&str; 2] =
    [include_str!("../device/cuda/int8.cuh"), include_str!("../device/cuda/attend.cuh")];

/// The text of all kernels for one specification, for Metal or CUDA.
pub fn program(spec: &Spec) -> String {
    let mut text = spec.definitions();
    for (_, file) in FILES {
        text.push_str(file);
    }
    text
}

/// The text with `attend` for NVIDIA GPUs from sm_90 on; `None` where the specification has only
/// the portable one: it wants heads of 128 and codes of 2, 3, 4 or 8 bits.
pub fn override_program(spec: &Spec) -> Option<String> {
    let Widths { keys, values } = spec.layout().widths();
    let bytes = |width: Width| width.bits() != 6;
    if spec.layout().dim() != 128 || !bytes(keys) || !bytes(values) {
        return None;
    }
    Some(format!("#define KV_ATTEND_OVERRIDE\n{}{}", program(spec), OVERRIDE.concat()))
}

/// Dynamic shared memory of a group of that `attend`: a stage a warp.
pub fn override_shared_bytes(spec: &Spec) -> u32 {
    4 * spec.layout().tile_bytes() as u32
}
