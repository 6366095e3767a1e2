//! `BlockFormat`: the quantized formats of GGUF files, and the codes and scales in their blocks.

/// Elements that share a scale in every format but Q6_K, where they are two halves of 16.
pub(super) const BLOCK: usize = 32;

/// Codes of a block, four to a word, in the order of the elements from the lowest byte on.
pub(super) type Codes = [u32; BLOCK / 4];

/// A format of blocks, as in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the formats")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 8] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Elements of a block of the file.
    pub fn block_elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block of the file.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bits of a code.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// Codes of the elements `32 * part ..` of one block of the file, never negative.
    pub(super) fn codes(self, block: &[u8], part: usize) -> Codes {
        match self {
            Self::Q4_0 => nibbles(&block[2..]),
            Self::Q4_1 => nibbles(&block[4..]),
            Self::Q5_0 => with_bits(nibbles(&block[6..]), word(&block[2..], 0)),
            Self::Q5_1 => with_bits(nibbles(&block[8..]), word(&block[4..], 0)),
            Self::Q8_0 => std::array::from_fn(|i| word(&block[2..], i) ^ 0x8080_8080),
            Self::Q4K => half_bytes(&block[16 + part / 2 * 32..], part % 2),
            Self::Q5K => {
                let low = half_bytes(&block[48 + part / 2 * 32..], part % 2);
                let high = |i| (word(&block[16..], i) >> part) & 0x0101_0101;
                std::array::from_fn(|i| low[i] | high(i) << 4)
            }
            Self::Q6K => {
                let (half, quarter) = (part / 4, part % 4);
                let low = half_bytes(&block[64 * half + quarter % 2 * 32..], quarter / 2);
                let high = |i| (word(&block[128 + 32 * half..], i) >> (2 * quarter)) & 0x0303_0303;
                std::array::from_fn(|i| low[i] | high(i) << 4)
            }
        }
    }
}

fn word(bytes: &[u8], index: usize) -> u32 {
    let bytes = &bytes[4 * index..][..4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// 16 bytes: first the elements in the low halves, then those in the high ones.
fn nibbles(bytes: &[u8]) -> Codes {
    std::array::from_fn(|i| (word(bytes, i % 4) >> (i / 4 * 4)) & 0x0f0f_0f0f)
}

/// 32 bytes, of which the low halves (0) or the high ones (1) are meant.
fn half_bytes(bytes: &[u8], half: usize) -> Codes {
    std::array::from_fn(|i| (word(bytes, i) >> (4 * half)) & 0x0f0f_0f0f)
}

/// The fifth bits, one an element.
fn with_bits(low: Codes, bits: u32) -> Codes {
    let spread = |four: u32| (four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21;
    std::array::from_fn(|i| low[i] | spread(bits >> (4 * i)) << 4)
}

/// Scale and minimum of the eight parts of a Q4_K or Q5_K block, six bits each, of 12 bytes.
pub(super) fn six_bit_pairs(packed: &[u8]) -> [[u8; 2]; 8] {
    std::array::from_fn(|part| {
        if part < 4 {
            return [packed[part] & 63, packed[part + 4] & 63];
        }
        let low = packed[part + 4];
        [low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4]
    })
}
