//! Numbers to test with.

use kvant_kernels::device::{Activations, Spec};
use kvant_turboquant::{Codec, Key, Rotation, ScaleRule, Side, Width, Widths};

use crate::machine::{Buffer, bytes_of_floats};

/// Sizes of heads that are tested: powers of two, 20·4, 12·8.
pub(crate) const DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Roughly normal numbers from a counter.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 27)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 2.0 * (self.uniform() + self.uniform() + self.uniform())).collect()
    }
}

pub(crate) fn widths(keys: usize, values: usize) -> Widths {
    Widths { keys: Width::new(keys).unwrap(), values: Width::new(values).unwrap() }
}

/// Width of values beside keys of the width at `at` of the cache's widths, for the size of a head
/// at `index`: every width on both sides, and over all sizes most pairs.
pub(crate) fn paired(index: usize, at: usize) -> Width {
    Width::CACHE[(at + index) % Width::CACHE.len()]
}

pub(crate) fn spec(dim: usize, keys: usize, values: usize) -> Spec {
    Spec::new(dim, widths(keys, values), Activations::F32).unwrap()
}

pub(crate) fn rotation(dim: usize, side: Side) -> Rotation {
    Rotation::new(dim, Key { layer: 3, side, seed: 11 })
}

/// The rotation of the kind that a specification has.
pub(crate) fn rotation_of(spec: &Spec, side: Side) -> Rotation {
    let dim = spec.layout().dim();
    if spec.is_dense() {
        return Rotation::dense(dim, Key { layer: 3, side, seed: 11 });
    }
    rotation(dim, side)
}

/// Buffers of a kernel that rotates, with what it has of matrices.
pub(crate) fn turning<'a, const N: usize>(
    buffers: [Buffer<'a>; N],
    matrices: &'a [u8],
) -> Vec<Buffer<'a>> {
    let more = Some(Buffer::Input(matrices)).filter(|_| !matrices.is_empty());
    buffers.into_iter().chain(more).collect()
}

/// The bytes of the matrices of dense rotations; nothing of others.
pub(crate) fn matrices(rotations: [&Rotation; 2]) -> Vec<u8> {
    bytes_of_floats(
        &rotations.iter().filter_map(|of| of.matrix()).flatten().copied().collect::<Vec<_>>(),
    )
}

/// Codecs of keys and values, each with the scale rule of its side and width or the one asked for.
pub(crate) fn codecs(spec: &Spec, rule: Option<ScaleRule>) -> (Codec, Codec) {
    let Widths { keys, values } = spec.layout().widths();
    let codec = |side, width| {
        let rule = rule.unwrap_or(ScaleRule::for_side(side, width));
        Codec::new(rotation_of(spec, side), width, rule)
    };
    (codec(Side::Keys, keys), codec(Side::Values, values))
}
