//! From numbers to codes and back: the table of one width.

use crate::tables::{LEVELS, UNITS};
use crate::width::Width;

/// The largest level of an 8-bit code.
const LARGEST: f32 = 127.0;

/// Levels, the borders between them, and how a device stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    width: Width,
    /// Ascending, by code; empty for 8 bits, whose codes are signed integers themselves.
    levels: Vec<f32>,
    /// Midpoints of neighbours.
    borders: Vec<f32>,
}

impl Codebook {
    /// The table of a width.
    pub fn new(width: Width) -> Self {
        let half = LEVELS.get(width.bits() - 1).copied().unwrap_or_default();
        let levels: Vec<f32> = half.iter().rev().map(|x| -x).chain(half.iter().copied()).collect();
        let borders = levels.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Self { width, levels, borders }
    }

    /// Bits of a code.
    pub fn width(&self) -> Width {
        self.width
    }

    /// The level that a code stands for, in units.
    pub fn level(&self, code: u8) -> f32 {
        match self.width.bits() {
            8 => f32::from(code as i8),
            _ => self.levels[usize::from(code)],
        }
    }

    /// Midpoints of neighbouring levels, ascending; empty for 8 bits.
    pub fn borders(&self) -> &[f32] {
        &self.borders
    }

    /// What a kernel's table holds for a code, as one byte: the level plus `offset`. Empty for 7
    /// bits, whose levels need 16, and for 8, which need no table.
    pub fn bytes(&self) -> Vec<i8> {
        let levels = if self.width.bits() < 7 { &self.levels[..] } else { &[] };
        levels.iter().map(|level| (level + self.offset()) as i8).collect()
    }

    /// 63.5 for 4 bits, whose bytes are thereby unsigned and of seven bits; otherwise 0.
    pub fn offset(&self) -> f32 {
        if self.width.bits() == 4 { 63.5 } else { 0.0 }
    }

    /// The length of one unit for a rotated vector with this root mean square and largest
    /// coordinate.
    pub fn unit(&self, root_mean_square: f32, largest: f32) -> f32 {
        match self.width.bits() {
            8 => largest / LARGEST,
            bits => root_mean_square * UNITS[bits - 1],
        }
    }

    /// Codes of `y / unit` and the levels they stand for: the nearest level, of two equally near
    /// ones the lower (8 bits: the even one). A unit of 0 gives every coordinate the code next to
    /// 0.
    pub fn encode(&self, y: &[f32], unit: f32, codes: &mut [u8], levels: &mut [f32]) {
        let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
        if self.width.bits() == 8 {
            for ((code, level), y) in codes.iter_mut().zip(levels).zip(y) {
                *level = (y * inverse).clamp(-LARGEST, LARGEST).round_ties_even();
                *code = *level as i8 as u8;
            }
            return;
        }
        let outputs = codes.chunks_mut(BLOCK).zip(levels.chunks_mut(BLOCK));
        for ((codes, levels), y) in outputs.zip(y.chunks(BLOCK)) {
            self.encode_block(y, inverse, codes, levels);
        }
    }

    /// The table is symmetric: magnitudes are compared with the borders of its positive half.
    fn encode_block(&self, y: &[f32], inverse: f32, codes: &mut [u8], levels: &mut [f32]) {
        let half = self.levels.len() / 2;
        let (mut z, mut size) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (z, y) in z.iter_mut().zip(y) {
            *z = y * inverse;
        }
        for (size, z) in size.iter_mut().zip(&z) {
            // A negative number on a border belongs to the larger magnitude: one step up.
            *size = f32::from_bits(z.abs().to_bits() + u32::from(*z <= 0.0));
        }
        let mut above = [0_i32; BLOCK];
        let mut level = [self.levels[half]; BLOCK];
        for (border, pair) in self.borders[half..].iter().zip(self.levels[half..].windows(2)) {
            let gap = pair[1] - pair[0];
            for ((above, level), size) in above.iter_mut().zip(&mut level).zip(&size) {
                let passed = size > border;
                *above += i32::from(passed);
                *level += if passed { gap } else { 0.0 };
            }
        }
        let half = half as i32;
        for ((code, above), z) in codes.iter_mut().zip(above).zip(&z) {
            *code = if *z > 0.0 { half + above } else { half - 1 - above } as u8;
        }
        for ((out, level), z) in levels.iter_mut().zip(level).zip(&z) {
            *out = if *z > 0.0 { level } else { -level };
        }
    }
}

/// Coordinates that are compared with the borders together.
const BLOCK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_nearest_levels() {
        for width in Width::ALL {
            let book = Codebook::new(width);
            let step = if width.bits() == 7 { 26.37 } else { 0.1037 };
            let y: Vec<f32> = (-1400..=1400).map(|i| i as f32 * step).collect();
            let mut codes = vec![0; y.len()];
            let mut levels = vec![0.0; y.len()];
            book.encode(&y, 1.0, &mut codes, &mut levels);
            let all: Vec<u8> = match width.bits() {
                8 => (-127..=127).map(|level: i8| level as u8).collect(),
                _ => (0..width.codes()).map(|code| code as u8).collect(),
            };
            for ((y, code), level) in y.iter().zip(codes).zip(levels) {
                assert_eq!(book.level(code), level);
                let found = (book.level(code) - y).abs();
                let best = all.iter().map(|c| (book.level(*c) - y).abs()).fold(f32::MAX, f32::min);
                assert!(found <= best, "{width} bits: {y} got level {}", book.level(code));
            }
        }
    }

    #[test]
    fn ties_and_zeros_go_to_the_lower_code() {
        for width in &Width::ALL[..7] {
            let book = Codebook::new(*width);
            let mut codes = [9; 4];
            book.encode(&[0.0, -0.0, book.borders[0], -0.0], 1.0, &mut codes, &mut [0.0; 4]);
            let below = (width.codes() / 2 - 1) as u8;
            assert_eq!(codes, [below, below, 0, below], "{width} bits");
            book.encode(&[5.0; 4], 0.0, &mut codes, &mut [0.0; 4]);
            assert_eq!(codes, [below; 4], "{width} bits");
        }
    }

    #[test]
    fn tables_are_symmetric_and_fit_their_bytes() {
        for width in &Width::ALL[..7] {
            let book = Codebook::new(*width);
            let bytes = book.bytes();
            assert_eq!(bytes.len(), if width.bits() < 7 { width.codes() } else { 0 });
            for code in 0..width.codes() {
                let mirror = book.level((width.codes() - 1 - code) as u8);
                assert_eq!(book.level(code as u8), -mirror, "{width} bits");
            }
            for (code, byte) in bytes.iter().enumerate() {
                assert_eq!(f32::from(*byte) - book.offset(), book.level(code as u8));
                assert!(width.bits() != 4 || *byte >= 0, "4-bit bytes have bit 7 clear");
            }
        }
    }
}
