//! Codes to planes: every word is built from its elements and written once.

use super::{BLOCK, KeyPlane, PAGE_TOKENS, ValuePlane};

/// Rows of one plane; `codes` is `[PAGE_TOKENS, dim]` of the whole head.
pub(super) fn keys(rows: &mut [u8], plane: &KeyPlane, codes: &[u8]) {
    let dim = codes.len() / PAGE_TOKENS;
    for (row, codes) in rows.chunks_exact_mut(plane.row_bytes).zip(codes.chunks_exact(dim)) {
        let codes = &codes[plane.first_dim..][..plane.dims];
        if plane.bits == 8 {
            row[..codes.len()].copy_from_slice(codes);
            row[codes.len()..].fill(0);
            continue;
        }
        let per_word = 32 / plane.bits;
        for (word, codes) in row.chunks_exact_mut(4).zip(codes.chunks(per_word)) {
            let eights = codes.chunks(8).enumerate();
            let packed = eights.fold(0, |packed, (field, codes)| {
                packed | nibbles(eight(codes), plane.bits, plane.low) << (plane.bits * field)
            });
            word.copy_from_slice(&packed.to_le_bytes());
        }
    }
}

/// All blocks of one plane; `codes` is `[PAGE_TOKENS, dim]`.
pub(super) fn values(blocks: &mut [u8], plane: &ValuePlane, codes: &[u8], dim: usize) {
    for (index, block) in blocks.chunks_exact_mut(plane.block_bytes).enumerate() {
        let first = index * BLOCK;
        let dims = BLOCK.min(dim - first);
        // Eight tokens of eight dimensions at a time, turned so that a word's tokens lie together.
        let mut turned = [[0_u64; BLOCK]; PAGE_TOKENS / 8];
        for (turned, rows) in turned.iter_mut().zip(codes.chunks_exact(8 * dim)) {
            let mut rows = rows.chunks_exact(dim).map(|row| eight(&row[first..first + dims]));
            *turned = transposed(std::array::from_fn(|_| rows.next().unwrap_or_default()));
        }
        if plane.bits == 8 {
            for (group, words) in block.chunks_exact_mut(4 * BLOCK).enumerate() {
                for (word, tokens) in words.chunks_exact_mut(4).zip(turned[group / 2]) {
                    word.copy_from_slice(&tokens.to_le_bytes()[group % 2 * 4..][..4]);
                }
            }
            continue;
        }
        let fields = 4 / plane.bits;
        for (group, words) in block.chunks_exact_mut(4 * BLOCK).enumerate() {
            for (at, word) in words.chunks_exact_mut(4).enumerate() {
                let packed = (0..fields).fold(0, |packed, field| {
                    let tokens = turned[group * fields + field][at];
                    packed | nibbles(tokens, plane.bits, plane.low) << (plane.bits * field)
                });
                word.copy_from_slice(&packed.to_le_bytes());
            }
        }
    }
}

/// Up to eight bytes, the first in the low bits.
fn eight(codes: &[u8]) -> u64 {
    if let Ok(codes) = codes.try_into() {
        return u64::from_le_bytes(codes);
    }
    codes.iter().rev().fold(0, |word, code| word << 8 | u64::from(*code))
}

/// `bits` bits at `low` of each byte, one a nibble.
fn nibbles(codes: u64, bits: usize, low: usize) -> u32 {
    let ones = 0x0101_0101_0101_0101 * ((1 << bits) - 1);
    let x = codes >> low & ones;
    let x = (x | x >> 4) & 0x00FF_00FF_00FF_00FF;
    let x = (x | x >> 8) & 0x0000_FFFF_0000_FFFF;
    (x | x >> 16) as u32
}

/// The transpose of an 8 x 8 matrix of bytes.
fn transposed(mut rows: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in
        [(4, 0x0000_0000_FFFF_FFFF), (2, 0x0000_FFFF_0000_FFFF), (1, 0x00FF_00FF_00FF_00FF_u64)]
    {
        for low in (0..8).filter(|row| row & distance == 0) {
            let high = low + distance;
            let bits = 8 * distance;
            let moved = (rows[low] >> bits ^ rows[high]) & mask;
            rows[low] ^= moved << bits;
            rows[high] ^= moved;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_transposed() {
        let at = |row: usize, column: usize| (8 * row + column) as u64;
        let rows = |at: &dyn Fn(usize, usize) -> u64| {
            std::array::from_fn(|row| (0..8).map(|c| at(row, c) << (8 * c)).sum())
        };
        assert_eq!(transposed(rows(&at)), rows(&|row, column| at(column, row)));
    }
}
