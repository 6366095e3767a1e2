//! The opponent that decodes first: all pages of a call to 16-bit tiles, then the 16-bit kernel.
//!
//! Written as one would write it for use, in plain Rust for the compiler's vectors: codes come out
//! of whole words, levels from a table, and tiles go to all threads.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvant_kernels::PAGE_TOKENS;
use kvant_turboquant::{Codec, PageLayout, Rotation};
use rayon::prelude::*;

use super::pool::{DensePool, PackedPool, PageSets};

/// Decodes the pages of the next set to the first pages of `into`, in order. The last page of a row
/// is its 16-bit tail, which is copied. Gives the number of pages.
pub(super) fn decode(
    into: &mut DensePool,
    packed: &PackedPool,
    dense: &DensePool,
    sets: &mut PageSets,
) -> usize {
    let row_pages = sets.row_pages();
    let pages = sets.take();
    let (kv_heads, dim) = (dense.tiles().kv_heads, dense.tiles().dim);
    let sides = (Side::new(&packed.codecs.0), Side::new(&packed.codecs.1));
    let (keys, values) = into.first_mut(pages.len());
    let keys = keys.par_chunks_exact_mut(PAGE_TOKENS * dim);
    let values = values.par_chunks_exact_mut(PAGE_TOKENS * dim);
    let buffers = || (vec![0; PAGE_TOKENS * dim], Vec::new());
    keys.zip(values).enumerate().for_each_init(buffers, |(codes, numbers), (index, to)| {
        let (at, head) = (index / kv_heads, index % kv_heads);
        let tile = pages[at] as usize * kv_heads + head;
        if (at + 1).is_multiple_of(row_pages) {
            let (keys, values) = dense.tile(tile);
            to.0.copy_from_slice(keys);
            to.1.copy_from_slice(values);
            return;
        }
        let (layout, tile) = (&packed.layout, packed.tile(tile));
        unpack_keys(layout, tile, codes);
        sides.0.decode(to.0, codes, |token| layout.key_scale(tile, token), numbers);
        unpack_values(layout, tile, codes);
        sides.1.decode(to.1, codes, |token| layout.value_scale(tile, token), numbers);
    });
    pages.len()
}

/// What decodes keys or values.
struct Side<'a> {
    levels: [f32; 256],
    rotation: &'a Rotation,
}

impl<'a> Side<'a> {
    fn new(codec: &'a Codec) -> Self {
        let codes = codec.book().width().codes();
        let level = |code| if code < codes { codec.book().level(code as u8) } else { 0.0 };
        Self { levels: std::array::from_fn(level), rotation: codec.rotation() }
    }

    /// Codes and `numbers` are `[PAGE_TOKENS, dim]`; `numbers` only saves an allocation.
    fn decode(
        &self,
        to: &mut [f16],
        codes: &[u8],
        scale: impl Fn(usize) -> f16,
        numbers: &mut Vec<f32>,
    ) {
        numbers.clear();
        for (token, codes) in codes.chunks_exact(self.rotation.dim()).enumerate() {
            let scale = scale(token).to_f32();
            numbers.extend(codes.iter().map(|code| scale * self.levels[usize::from(*code)]));
        }
        *numbers = self.rotation.restore(self.rotation.adopt(std::mem::take(numbers)));
        to.convert_from_f32_slice(numbers);
    }
}

/// Codes of a tile's keys, `[PAGE_TOKENS, dim]`.
fn unpack_keys(layout: &PageLayout, tile: &[u8], codes: &mut [u8]) {
    codes.fill(0);
    for plane in layout.key_planes() {
        let rows = tile[plane.offset..].chunks_exact(plane.row_bytes);
        for (row, codes) in rows.zip(codes.chunks_exact_mut(layout.dim())) {
            let codes = &mut codes[plane.first_dim..][..plane.dims];
            match plane.bits {
                8 => codes.copy_from_slice(&row[..plane.dims]),
                4 => unpack_row::<4>(row, codes, plane.low),
                2 => unpack_row::<2>(row, codes, plane.low),
                _ => unpack_row::<1>(row, codes, plane.low),
            }
        }
    }
}

/// Adds the elements of a row of words, `BITS` bits each, to codes.
fn unpack_row<const BITS: usize>(row: &[u8], codes: &mut [u8], low: usize) {
    let (words, _) = row.as_chunks::<4>();
    for (word, codes) in words.iter().zip(codes.chunks_mut(32 / BITS)) {
        let word = u32::from_le_bytes(*word);
        let (eights, rest) = codes.as_chunks_mut::<8>();
        let whole = eights.len();
        for (field, codes) in eights.iter_mut().enumerate() {
            let word = word >> (BITS * field);
            for (n, code) in codes.iter_mut().enumerate() {
                *code |= ((word >> (4 * n)) as u8 & ((1 << BITS) - 1)) << low;
            }
        }
        for (n, code) in rest.iter_mut().enumerate() {
            *code |= ((word >> (4 * n + BITS * whole)) as u8 & ((1 << BITS) - 1)) << low;
        }
    }
}

/// Codes of a tile's values, `[PAGE_TOKENS, dim]`.
fn unpack_values(layout: &PageLayout, tile: &[u8], codes: &mut [u8]) {
    codes.fill(0);
    let dim = layout.dim();
    for plane in layout.value_planes() {
        let blocks = tile[plane.offset..].chunks_exact(plane.block_bytes);
        for (first, block) in (0..dim).step_by(8).zip(blocks) {
            match plane.bits {
                8 => unpack_block::<8>(block, codes, (dim, first), plane.low),
                4 => unpack_block::<4>(block, codes, (dim, first), plane.low),
                2 => unpack_block::<2>(block, codes, (dim, first), plane.low),
                _ => unpack_block::<1>(block, codes, (dim, first), plane.low),
            }
        }
    }
}

/// Adds the elements of the 8 dimensions from `first` on to codes, `[PAGE_TOKENS, dim]`.
fn unpack_block<const BITS: usize>(
    block: &[u8],
    codes: &mut [u8],
    (dim, first): (usize, usize),
    low: usize,
) {
    let (words, _) = block.as_chunks::<4>();
    let mut tokens = codes.chunks_exact_mut(dim);
    for words in words.as_chunks::<8>().0 {
        let words = words.map(u32::from_le_bytes);
        for (element, codes) in tokens.by_ref().take(32 / BITS).enumerate() {
            let shift =
                if BITS == 8 { 8 * element } else { 4 * (element % 8) + element / 8 * BITS };
            let mask = ((1_u32 << BITS) - 1) as u8;
            let found = words.map(|word| ((word >> shift) as u8 & mask) << low);
            let codes = &mut codes[first..];
            if let Some(codes) = codes.first_chunk_mut::<8>() {
                *codes = (u64::from_le_bytes(*codes) | u64::from_le_bytes(found)).to_le_bytes();
            } else {
                codes.iter_mut().zip(found).for_each(|(code, found)| *code |= found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kvant_turboquant::width_pairs;

    use super::*;
    use crate::random::next;

    #[test]
    fn codes_come_out_as_the_layout_has_them() {
        for (dim, widths) in
            [12, 64, 80, 100, 128, 256].into_iter().flat_map(|d| width_pairs().map(move |w| (d, w)))
        {
            let layout = PageLayout::new(dim, widths);
            let mut state = dim as u64;
            let tile: Vec<u8> = (0..layout.tile_bytes()).map(|_| next(&mut state) as u8).collect();
            let (mut keys, mut values) = (vec![9; PAGE_TOKENS * dim], vec![9; PAGE_TOKENS * dim]);
            unpack_keys(&layout, &tile, &mut keys);
            unpack_values(&layout, &tile, &mut values);
            for (index, (key, value)) in keys.into_iter().zip(values).enumerate() {
                let (token, d) = (index / dim, index % dim);
                assert_eq!(key, layout.key_code(&tile, token, d), "{dim} {widths:?} {token} {d}");
                let expected = layout.value_code(&tile, token, d);
                assert_eq!(value, expected, "{dim} {widths:?} {token} {d}");
            }
        }
    }
}
