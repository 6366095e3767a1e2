//! How the weights of sixteen rows lie in memory, a `Layout` for each kind of scales, and how a
//! kernel reads them.
//!
//! A block of 32 inputs of the sixteen rows is a few lines of 64 bytes; byte `4 * row + i` of one
//! belongs to the inputs `4 * step + i` of a row, so that one instruction multiplies four inputs of
//! all sixteen rows. Codes of 4 bits: line s holds step s in the low halves of its bytes and step
//! s + 4 in the high ones. Codes of 5 bits: one more line, bit s of it the fifth bits of step s.
//! Codes of 6 bits: two more lines, two bits for each of four steps. Codes of 8 bits: eight lines.

#![expect(clippy::inline_always, reason = "instructions must land where they are enabled")]

use super::lanes::{LANES, Lanes};

/// One instruction's worth of codes, of one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Steps of four inputs in a block.
pub(super) const STEPS: usize = 8;

/// Scales of one block of sixteen rows: an element is `scale * (code - zero) + offset`.
pub(super) struct Scales<F> {
    /// Of the block, or of its first half.
    pub first: F,
    /// Of the second half, if it has its own.
    pub second: F,
    /// Zero where a format has none.
    pub offset: F,
}

/// A kind of blocks.
pub(super) trait Layout {
    /// Bits of a code.
    const BITS: u32;
    /// The code that stands for zero.
    const ZERO: i32;
    /// Whether each 16 elements have a scale of their own.
    const HALVES: bool = false;
    /// Whether elements have an offset.
    const OFFSET: bool = false;
    /// Blocks that share a record of scales.
    const GROUP: usize = 1;
    /// Bytes of a record of scales.
    const RECORD: usize;

    /// Scales of the block with this number among those that share a record.
    fn scales<I: Lanes>(lanes: I, record: &[u8], block: usize) -> Scales<I::Floats>;
}

/// An f16 scale a block: Q4_0, Q5_0, Q8_0.
pub(super) struct Plain<const BITS: u32, const ZERO: i32>;

/// An f16 scale and an f16 offset a block: Q4_1, Q5_1.
pub(super) struct Offset<const BITS: u32>;

/// f16 scale and offset of 256 elements, times six bits for each block: Q4_K, Q5_K. The offset's
/// sign is turned.
pub(super) struct Nested<const BITS: u32>;

/// f16 scale of 256 elements, times an i8 for each half of a block: Q6_K.
pub(super) struct Halves;

impl<const BITS: u32, const ZERO: i32> Layout for Plain<BITS, ZERO> {
    const BITS: u32 = BITS;
    const ZERO: i32 = ZERO;
    const RECORD: usize = 2 * LANES;

    #[inline(always)]
    fn scales<I: Lanes>(lanes: I, record: &[u8], _: usize) -> Scales<I::Floats> {
        let first = lanes.load_f16(part(record, 0));
        Scales { first, second: first, offset: lanes.splat(0.0) }
    }
}

impl<const BITS: u32> Layout for Offset<BITS> {
    const BITS: u32 = BITS;
    const ZERO: i32 = 0;
    const OFFSET: bool = true;
    const RECORD: usize = 4 * LANES;

    #[inline(always)]
    fn scales<I: Lanes>(lanes: I, record: &[u8], _: usize) -> Scales<I::Floats> {
        let first = lanes.load_f16(part(record, 0));
        Scales { first, second: first, offset: lanes.load_f16(part(record, 2 * LANES)) }
    }
}

impl<const BITS: u32> Layout for Nested<BITS> {
    const BITS: u32 = BITS;
    const ZERO: i32 = 0;
    const OFFSET: bool = true;
    const GROUP: usize = 8;
    const RECORD: usize = 4 * LANES + 8 * 2 * LANES;

    #[inline(always)]
    fn scales<I: Lanes>(lanes: I, record: &[u8], block: usize) -> Scales<I::Floats> {
        let own = 4 * LANES + block * 2 * LANES;
        let (whole, offset) =
            (lanes.load_f16(part(record, 0)), lanes.load_f16(part(record, 2 * LANES)));
        let first = lanes.times(whole, lanes.load_u8(part(record, own)));
        let offset = lanes.times(offset, lanes.load_u8(part(record, own + LANES)));
        Scales { first, second: first, offset }
    }
}

impl Layout for Halves {
    const BITS: u32 = 6;
    const ZERO: i32 = 32;
    const HALVES: bool = true;
    const GROUP: usize = 8;
    const RECORD: usize = 2 * LANES + 16 * LANES;

    #[inline(always)]
    fn scales<I: Lanes>(lanes: I, record: &[u8], block: usize) -> Scales<I::Floats> {
        let own = 2 * LANES + block * 2 * LANES;
        let whole = lanes.load_f16(part(record, 0));
        Scales {
            first: lanes.times(whole, lanes.load_i8(part(record, own))),
            second: lanes.times(whole, lanes.load_i8(part(record, own + LANES))),
            offset: lanes.splat(0.0),
        }
    }
}

#[inline(always)]
fn part<const N: usize>(record: &[u8], at: usize) -> &[u8; N] {
    record[at..].first_chunk().expect("a record is as long as its layout says")
}

/// Codes of a block, one byte each, by steps.
#[inline(always)]
pub(super) fn unpack<I: Lanes, L: Layout>(lanes: I, lines: &[Line]) -> [I::Codes; STEPS] {
    // No closures here: one is a function of its own, in which instructions are not enabled.
    let [a, b, c, d] = [
        lanes.load(&lines[0]),
        lanes.load(&lines[1]),
        lanes.load(&lines[2]),
        lanes.load(&lines[3]),
    ];
    if L::BITS == 8 {
        let [e, f] = [lanes.load(&lines[4]), lanes.load(&lines[5])];
        let [g, h] = [lanes.load(&lines[6]), lanes.load(&lines[7])];
        return [a, b, c, d, e, f, g, h];
    }
    let [e, f, g, h] = [lanes.high(a), lanes.high(b), lanes.high(c), lanes.high(d)];
    let [a, b, c, d] = [lanes.low(a), lanes.low(b), lanes.low(c), lanes.low(d)];
    match L::BITS {
        4 => [a, b, c, d, e, f, g, h],
        5 => {
            let more = lanes.load(&lines[4]);
            [
                lanes.merge::<4, 0, 0x10>(a, more),
                lanes.merge::<3, 0, 0x10>(b, more),
                lanes.merge::<2, 0, 0x10>(c, more),
                lanes.merge::<1, 0, 0x10>(d, more),
                lanes.merge::<0, 0, 0x10>(e, more),
                lanes.merge::<0, 1, 0x10>(f, more),
                lanes.merge::<0, 2, 0x10>(g, more),
                lanes.merge::<0, 3, 0x10>(h, more),
            ]
        }
        _ => {
            let (more, rest) = (lanes.load(&lines[4]), lanes.load(&lines[5]));
            [
                lanes.merge::<4, 0, 0x30>(a, more),
                lanes.merge::<2, 0, 0x30>(b, more),
                lanes.merge::<0, 0, 0x30>(c, more),
                lanes.merge::<0, 2, 0x30>(d, more),
                lanes.merge::<4, 0, 0x30>(e, rest),
                lanes.merge::<2, 0, 0x30>(f, rest),
                lanes.merge::<0, 0, 0x30>(g, rest),
                lanes.merge::<0, 2, 0x30>(h, rest),
            ]
        }
    }
}
