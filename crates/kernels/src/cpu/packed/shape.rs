//! What a tile is unpacked to: lines of 64 signed levels, in an order that needs no shuffle.
//!
//! Codes of fewer than 8 bits come apart by the parity of their index, because a byte holds two
//! nibbles: a chunk of more than 64 dimensions gives two lines a token (even dimensions, odd ones),
//! a smaller one gives one line of two halves. Queries are put into the same order. Values keep
//! their blocks of 8 dimensions: a line is 8 dimensions of two times 4 tokens, eight lines a block.

use kvant_turboquant::{Codebook, KeyPlane, PAGE_TOKENS, PageLayout, ValuePlane, Width};

/// 64 bytes in one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

pub(super) const EMPTY: Line = Line([0; 64]);

/// Lines of a block of values.
pub(super) const BLOCK_LINES: usize = 8;

/// How the codes of one plane come apart into a line of sixteen words.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "plain Rust counts by itself"))]
pub(super) struct Spread {
    /// For each word, the word of the source it comes from.
    pub(super) from: [u32; 16],
    /// For each word, how far to the right its elements are.
    pub(super) shift: [u32; 16],
    /// Where the source begins.
    pub(super) begin: usize,
    /// Bytes to the next source.
    pub(super) stride: usize,
    /// Bits of an element.
    pub(super) bits: usize,
    /// Position of these bits in a code.
    pub(super) low: usize,
}

/// One line a token: codes from the planes of a chunk.
#[derive(Clone, Debug)]
pub(super) struct KeyPiece {
    pub(super) planes: Vec<KeyPlane>,
    /// One a plane; sources are the tokens' rows.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "as Spread"))]
    pub(super) spreads: Vec<Spread>,
    /// Which elements of each pair.
    pub(super) half: Half,
}

/// Which elements of a chunk a line holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// All, one a byte.
    Whole,
    /// Those of even index.
    Even,
    /// Those of odd index.
    Odd,
    /// The even ones in the first 32 bytes, the odd ones in the others.
    Both,
}

/// Levels of codes as signed bytes.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    /// By code; for 4 bits twice the level, so that it is an integer. Unused for 8 bits.
    pub(super) table: Line,
    /// Bits of a code.
    pub(super) bits: usize,
    /// What a table entry times the scale has to be multiplied by.
    pub(super) factor: f32,
}

/// Everything that is the same for all tiles of a layout.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) tile_bytes: usize,
    pub(super) keys: Vec<KeyPiece>,
    pub(super) key_levels: Levels,
    /// Byte of a token's lines, for each dimension.
    pub(super) positions: Vec<usize>,
    pub(super) values: Vec<ValuePlane>,
    /// For each line of a block, one a plane; sources are blocks.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "as Spread"))]
    pub(super) value_spreads: [Vec<Spread>; BLOCK_LINES],
    pub(super) value_levels: Levels,
    /// Blocks of 8 dimensions that a tile has.
    pub(super) blocks: usize,
    /// Of every 16 weights the even ones come first, as the values' lines have them.
    pub(super) weights_apart: bool,
}

impl KeyPiece {
    fn new(planes: &[KeyPlane], half: Half) -> Self {
        let spreads = planes.iter().map(|plane| Spread::of_keys(plane, half)).collect();
        Self { planes: planes.to_vec(), spreads, half }
    }
}

impl Spread {
    fn of_keys(plane: &KeyPlane, half: Half) -> Self {
        let KeyPlane { bits, low, offset, row_bytes, .. } = *plane;
        // Words of 8 elements that a word of the plane holds.
        let fields = (4 / bits).max(1);
        let words: [_; 16] = std::array::from_fn(|word| match half {
            Half::Both => (word % 8, word / 8),
            Half::Whole | Half::Even => (word, 0),
            Half::Odd => (word, 1),
        });
        let from = words.map(|(word, _)| (word / fields) as u32);
        let shift = words.map(|(word, odd)| (bits * (word % fields) + 4 * odd) as u32);
        Self { from, shift, begin: offset, stride: row_bytes, bits, low }
    }

    fn of_values(plane: &ValuePlane, line: usize) -> Self {
        let ValuePlane { bits, low, offset, block_bytes } = *plane;
        let fields = (4 / bits).max(1);
        // Lines of 8 bits are the plane itself; else two lines, even and odd, of two groups each.
        let (group, odd) = if bits == 8 { (2 * line, 0) } else { (line / 2 * 2, line % 2) };
        // Sources are loaded 64 bytes at a time.
        let begin = group / fields / 2 * 2;
        let groups: [_; 16] = std::array::from_fn(|word| group + word / 8);
        let source = |word: usize| (groups[word] / fields - begin) * 8 + word % 8;
        let from = std::array::from_fn(|word| source(word) as u32);
        let shift = groups.map(|group| (bits * (group % fields) + 4 * odd) as u32);
        Self { from, shift, begin: offset + 32 * begin, stride: block_bytes, bits, low }
    }
}

impl Shape {
    pub(super) fn new(layout: &PageLayout) -> Self {
        let widths = layout.widths();
        let mut keys = Vec::new();
        let mut positions = Vec::new();
        let planes = layout.key_planes();
        for chunk in planes.chunk_by(|a, b| a.first_dim == b.first_dim) {
            let dims = chunk[0].dims;
            let halves: &[Half] = match (widths.keys.bits(), dims) {
                (8, _) => &[Half::Whole],
                (_, 0..=64) => &[Half::Both],
                _ => &[Half::Even, Half::Odd],
            };
            let first = 64 * keys.len();
            positions.extend((0..dims).map(|d| match halves {
                [Half::Whole] => first + d,
                [Half::Both] => first + d % 2 * 32 + d / 2,
                _ => first + d % 2 * 64 + d / 2,
            }));
            keys.extend(halves.iter().map(|half| KeyPiece::new(chunk, *half)));
        }
        Self {
            tile_bytes: layout.tile_bytes(),
            keys,
            key_levels: Levels::new(widths.keys),
            positions,
            values: layout.value_planes().to_vec(),
            value_spreads: std::array::from_fn(|line| {
                layout.value_planes().iter().map(|plane| Spread::of_values(plane, line)).collect()
            }),
            value_levels: Levels::new(widths.values),
            blocks: layout.dim().div_ceil(8),
            weights_apart: widths.values.bits() < 8,
        }
    }
}

impl Levels {
    fn new(width: Width) -> Self {
        let book = Codebook::new(width);
        let twice = book.offset() != 0.0;
        let mut table = EMPTY;
        assert!(width.bits() == 8 || width.codes() <= 64, "{width} bits have no kernel");
        let codes = if width.bits() == 8 { 0 } else { width.codes() };
        for (code, entry) in table.0[..codes].iter_mut().enumerate() {
            let level = book.level(code as u8);
            *entry = (if twice { 2.0 * level } else { level }) as i8 as u8;
        }
        // Short look-ups read sixteen entries of every sixteen.
        for at in codes..64 * usize::from(codes > 0) {
            table.0[at] = table.0[at % codes];
        }
        Self { table, bits: width.bits(), factor: if twice { 0.5 } else { 1.0 } }
    }
}

/// Lines of the keys of a tile, `[pieces][PAGE_TOKENS]`.
pub(super) fn key_lines(shape: &Shape) -> usize {
    shape.keys.len() * PAGE_TOKENS
}

/// Lines of the values of a tile, `[blocks][BLOCK_LINES]`, blocks rounded up to an even number.
pub(super) fn value_lines(shape: &Shape) -> usize {
    shape.blocks.next_multiple_of(2) * BLOCK_LINES
}
