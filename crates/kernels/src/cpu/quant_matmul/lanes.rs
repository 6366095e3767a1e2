//! `Lanes`: what a kernel needs of a processor, sixteen rows of weights side by side; and the same
//! in plain Rust.
//!
//! Sums of codes are exact, and every float operation is one rounding in one lane: all
//! implementations give the same bits.

use half::f16;

use super::activations::Cell;
use super::layout::{Layout, Line};
use super::tile::{Tile, multiply};

/// Rows of weights side by side.
pub(super) const LANES: usize = 16;

/// Sums of sixteen rows of weights.
pub(super) type Sums = [f32; LANES];

/// Instructions of a processor. A value is the proof that they are there.
pub(super) trait Lanes: Copy + Send + Sync {
    /// Four codes for each lane, never negative.
    type Codes: Copy;
    /// An i32 for each lane.
    type Ints: Copy;
    /// An f32 for each lane.
    type Floats: Copy;

    fn load(self, line: &Line) -> Self::Codes;

    /// Asks for a line that is to be read soon; of any address, and changes nothing.
    fn prefetch(self, _line: *const Line) {}

    /// Low halves of the bytes.
    fn low(self, codes: Self::Codes) -> Self::Codes;

    /// High halves of the bytes.
    fn high(self, codes: Self::Codes) -> Self::Codes;

    /// `codes | (more << LEFT >> RIGHT) & MASK` by bytes; no bit within the mask comes from another
    /// byte.
    fn merge<const LEFT: i32, const RIGHT: i32, const MASK: u8>(
        self,
        codes: Self::Codes,
        more: Self::Codes,
    ) -> Self::Codes;

    /// `Σ (codes - ZERO) * (256 * high + low)` over `N` steps, `BITS` bits a code, where `start` is
    /// `-ZERO * Σ (256 * high + low)`; high and low are four i8 a step within ±127.
    fn dot<const BITS: u32, const N: usize>(
        self,
        start: i32,
        codes: [Self::Codes; N],
        x: [[i32; N]; 2],
    ) -> Self::Ints;

    fn to_floats(self, ints: Self::Ints) -> Self::Floats;

    fn splat(self, value: f32) -> Self::Floats;

    fn times(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a * b + c`, rounded once.
    fn times_plus(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> Self::Floats;

    fn load_u8(self, bytes: &[u8; LANES]) -> Self::Floats;

    fn load_i8(self, bytes: &[u8; LANES]) -> Self::Floats;

    fn load_sums(self, sums: &Sums) -> Self::Floats;

    fn store_sums(self, floats: Self::Floats, sums: &mut Sums);

    /// [`multiply`], compiled for these instructions.
    fn tile<L: Layout>(self, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]);
}

/// No instructions in particular.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

impl Lanes for Portable {
    type Codes = [u8; 64];
    type Ints = [i32; LANES];
    type Floats = Sums;

    fn load(self, line: &Line) -> [u8; 64] {
        line.0
    }

    fn low(self, codes: [u8; 64]) -> [u8; 64] {
        codes.map(|byte| byte & 15)
    }

    fn high(self, codes: [u8; 64]) -> [u8; 64] {
        codes.map(|byte| byte >> 4)
    }

    fn merge<const LEFT: i32, const RIGHT: i32, const MASK: u8>(
        self,
        codes: [u8; 64],
        more: [u8; 64],
    ) -> [u8; 64] {
        std::array::from_fn(|i| codes[i] | (more[i] << LEFT >> RIGHT) & MASK)
    }

    fn dot<const BITS: u32, const N: usize>(
        self,
        start: i32,
        codes: [[u8; 64]; N],
        [high, low]: [[i32; N]; 2],
    ) -> [i32; LANES] {
        let mut sums = [start; LANES];
        for (codes, (high, low)) in codes.iter().zip(high.into_iter().zip(low)) {
            let (high, low) = (high.to_le_bytes(), low.to_le_bytes());
            let x = |i: usize| 256 * i32::from(high[i] as i8) + i32::from(low[i] as i8);
            let x: [i32; 4] = std::array::from_fn(x);
            for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                *sum += codes.iter().zip(x).map(|(code, x)| i32::from(*code) * x).sum::<i32>();
            }
        }
        sums
    }

    fn to_floats(self, ints: [i32; LANES]) -> Sums {
        ints.map(|int| int as f32)
    }

    fn splat(self, value: f32) -> Sums {
        [value; LANES]
    }

    fn times(self, a: Sums, b: Sums) -> Sums {
        std::array::from_fn(|i| a[i] * b[i])
    }

    fn times_plus(self, a: Sums, b: Sums, c: Sums) -> Sums {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> Sums {
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    fn load_u8(self, bytes: &[u8; LANES]) -> Sums {
        bytes.map(f32::from)
    }

    fn load_i8(self, bytes: &[u8; LANES]) -> Sums {
        bytes.map(|byte| f32::from(byte as i8))
    }

    fn load_sums(self, sums: &Sums) -> Sums {
        *sums
    }

    fn store_sums(self, floats: Sums, sums: &mut Sums) {
        *sums = floats;
    }

    fn tile<L: Layout>(self, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
        multiply::<Self, L>(self, tile, cells, sums);
    }
}
