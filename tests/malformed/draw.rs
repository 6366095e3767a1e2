//! `Draw`: random choices that a name and a seed repeat, and the numbers that files break on.

/// Numbers at which counts, sizes and offsets go wrong.
const ODD: [u64; 26] = [
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    255,
    1 << 16,
    1 << 20,
    (1 << 24) + 1,
    i32::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    (1 << 32) + 1,
    1 << 40,
    1 << 56,
    1 << 60,
    1 << 61,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 31,
    u64::MAX - 1,
    u64::MAX,
];

/// Xorshift.
#[derive(Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let hashed = name.bytes().fold(seed + 1, |h, b| (h ^ u64::from(b)).wrapping_mul(0x1_b3));
        let mut draw = Self(hashed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Seeds that are near each other begin near each other.
        for _ in 0..16 {
            draw.next();
        }
        draw
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    pub(crate) fn odd(&mut self) -> u64 {
        ODD[self.below(ODD.len())]
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Flips one to eight bits within the first `length` bytes.
    pub(crate) fn flip(&mut self, bytes: &mut [u8], length: usize) {
        for _ in 0..=self.below(8) {
            let at = self.below(length.min(bytes.len()));
            bytes[at] ^= 1 << self.below(8);
        }
    }
}
