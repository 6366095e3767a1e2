//! Packing: from the file's rows of blocks to tiles of sixteen rows.

use half::f16;
use rayon::prelude::*;

use super::format::{BLOCK, BlockFormat, Codes, six_bit_pairs};
use super::lanes::LANES;
use super::layout::{Layout, Line, Nested, Offset, Plain};

/// Weights of a file, repacked for the product: as many bytes as in the file, in Q4_K and Q5_K 4
/// more for 256 weights, and rows up to a multiple of sixteen.
pub struct PackedWeights {
    pub(super) format: BlockFormat,
    /// `[tile][block][line]`.
    pub(super) lines: Vec<Line>,
    /// `[tile][group of blocks]` of records.
    pub(super) scales: Vec<u8>,
    pub(super) input: usize,
    pub(super) output: usize,
}

impl PackedWeights {
    /// From the bytes of a matrix `[output, input]`, in the file's order.
    ///
    /// # Panics
    /// If a row is not whole blocks or `bytes` is not as long as the sizes say.
    pub fn new(format: BlockFormat, bytes: &[u8], input: usize, output: usize) -> Self {
        assert!(input > 0 && input.is_multiple_of(format.block_elements()), "rows of whole blocks");
        let row_bytes = input / format.block_elements() * format.block_bytes();
        assert_eq!(bytes.len(), row_bytes * output, "weights are not [output, input]");
        let tiles = output.div_ceil(LANES);
        let (lines, scales) = (format.tile_lines(input), format.tile_scale_bytes(input));
        let mut packed = Self {
            format,
            lines: vec![Line([0; 64]); tiles * lines],
            scales: vec![0; tiles * scales],
            input,
            output,
        };
        let rows = bytes.par_chunks(LANES * row_bytes);
        let tiles = packed.lines.par_chunks_mut(lines).zip(packed.scales.par_chunks_mut(scales));
        tiles.zip(rows).for_each(|((lines, scales), rows)| {
            for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                pack_row(format, bytes, row, (lines, scales));
            }
        });
        packed
    }

    /// Inputs.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Outputs.
    pub fn output(&self) -> usize {
        self.output
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + self.scales.len()
    }
}

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { format, lines: _, scales: _, input, output } = self;
        write!(f, "PackedWeights {format:?} [{output}, {input}]")
    }
}

impl BlockFormat {
    /// Lines of a tile.
    pub(super) fn tile_lines(self, input: usize) -> usize {
        input / BLOCK * self.bits()
    }

    /// Bytes of the scales of a tile.
    pub(super) fn tile_scale_bytes(self, input: usize) -> usize {
        input / self.block_elements() * self.record()
    }

    fn record(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => Plain::<4, 8>::RECORD,
            Self::Q4_1 | Self::Q5_1 => Offset::<4>::RECORD,
            Self::Q4K | Self::Q5K => Nested::<4>::RECORD,
            Self::Q6K => super::layout::Halves::RECORD,
        }
    }
}

fn pack_row(
    format: BlockFormat,
    bytes: &[u8],
    row: usize,
    (lines, scales): (&mut [Line], &mut [u8]),
) {
    let parts = format.block_elements() / BLOCK;
    let blocks = bytes.chunks_exact(format.block_bytes());
    let groups = lines.chunks_exact_mut(parts * format.bits());
    let records = scales.chunks_exact_mut(format.record());
    for ((block, lines), record) in blocks.zip(groups).zip(records) {
        for (part, lines) in lines.chunks_exact_mut(format.bits()).enumerate() {
            pack_codes(format.codes(block, part), row, lines);
        }
        pack_scales(format, block, row, record);
    }
}

/// See [`super::layout`].
fn pack_codes(codes: Codes, row: usize, lines: &mut [Line]) {
    let bits = lines.len();
    let above = |steps: &[u32], width: usize| {
        let mask = if width == 1 { 0x0101_0101 } else { 0x0303_0303 };
        let words = steps.iter().enumerate();
        words.fold(0, |word, (step, code)| word | ((code >> 4) & mask) << (step * width))
    };
    let word = |line: usize| match (bits, line) {
        (8, _) => codes[line],
        (_, 0..4) => (codes[line] & 0x0f0f_0f0f) | (codes[line + 4] & 0x0f0f_0f0f) << 4,
        (5, _) => above(&codes, 1),
        (_, _) => above(&codes[4 * (line - 4)..][..4], 2),
    };
    for (line, bytes) in lines.iter_mut().enumerate() {
        bytes.0[4 * row..][..4].copy_from_slice(&word(line).to_le_bytes());
    }
}

/// Into column `row` of a record of scales.
fn pack_scales(format: BlockFormat, block: &[u8], row: usize, record: &mut [u8]) {
    let mut half = |at: usize, value: f16| {
        record[at + 2 * row..][..2].copy_from_slice(&value.to_le_bytes());
    };
    let stored = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => half(0, stored(0)),
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            half(0, stored(0));
            half(2 * LANES, stored(2));
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            half(0, stored(0));
            half(2 * LANES, -stored(2));
            let pairs = record[4 * LANES..].as_chunks_mut::<LANES>().0;
            let own = six_bit_pairs(&block[4..16]);
            pairs.iter_mut().zip(own.as_flattened()).for_each(|(lanes, own)| lanes[row] = *own);
        }
        BlockFormat::Q6K => {
            half(0, stored(208));
            let lanes = record[2 * LANES..].as_chunks_mut::<LANES>().0;
            lanes.iter_mut().zip(&block[192..208]).for_each(|(lanes, own)| lanes[row] = *own);
        }
    }
}
