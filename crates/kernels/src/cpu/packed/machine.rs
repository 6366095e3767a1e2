//! One choice between the instruction sets for the four integer steps of a page.

use kvant_turboquant::PAGE_TOKENS;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
use super::shape::{Line, Shape};
use super::{Query, Weights};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::Path;

/// Asks for a tile that comes next: tiles are scattered, so the machine cannot guess them.
pub(super) fn prefetch(tile: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    avx2::prefetch(tile);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = tile;
}

/// Levels of the keys of a tile, in the form that `score` of the same path takes.
pub(super) fn unpack_keys(path: Path, lines: &mut [Line], tile: &[u8], shape: &Shape) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => avx512::unpack_keys(lines, tile, shape),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::unpack_keys(lines, tile, shape),
        _ => scalar::unpack_keys(lines, tile, shape),
    }
}

/// Levels of the values of a tile, in the form that `accumulate` of the same path takes.
pub(super) fn unpack_values(path: Path, lines: &mut [Line], tile: &[u8], shape: &Shape) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => avx512::unpack_values(lines, tile, shape),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::unpack_values(lines, tile, shape),
        _ => scalar::unpack_values(lines, tile, shape),
    }
}

/// Integer products of a query with the keys of a page.
pub(super) fn score(path: Path, scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => avx512::score(scores, keys, query),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::score(scores, keys, query),
        #[cfg(target_arch = "aarch64")]
        Path::Neon => neon::score(scores, keys, query),
        _ => scalar::score(scores, keys, query),
    }
}

/// Adds weighted sums of values to the states of queries.
pub(super) fn accumulate(
    path: Path,
    states: &mut [&mut [f32]],
    values: &[Line],
    weights: &[Weights],
) {
    let one = match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => return avx512::accumulate(states, values, weights),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::accumulate,
        #[cfg(target_arch = "aarch64")]
        Path::Neon => neon::accumulate,
        _ => scalar::accumulate,
    };
    for (state, weights) in states.iter_mut().zip(weights) {
        one(state, values, weights);
    }
}
