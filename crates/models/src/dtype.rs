//! `WeightDtype`: number formats of stored weights, their block sizes, and their ids in files.

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use kvant_kernels::cpu::BlockFormat;
use kvant_kernels::device::Activations;

/// Number format of a stored weight. Quantized formats keep blocks of elements of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the formats")]
pub enum WeightDtype {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl WeightDtype {
    /// All formats, in the order in which messages list them.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Elements of a block; a row is whole blocks.
    pub fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
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

    /// Bytes of `elements` elements; `None` if they are no whole blocks or too many to address.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// False for the plain floats.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    /// Plain floats, little endian at any address, to f32; blocks stay as they are.
    pub(crate) fn widen(self, out: &mut [f32], bytes: &[u8]) {
        let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        let brain = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).to_f32();
        let size = self.block_bytes();
        let pairs = out.iter_mut().zip(bytes.chunks_exact(size));
        match self {
            Self::F32 => pairs.for_each(|(out, bytes)| *out = four(bytes)),
            Self::F16 => pairs.for_each(|(out, bytes)| *out = half(bytes)),
            Self::BF16 => pairs.for_each(|(out, bytes)| *out = brain(bytes)),
            _ => {}
        }
    }

    /// The same format in candle's quantized tensors.
    pub fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// The same format in the product with quantized weights; `None` for the plain floats.
    pub(crate) fn block_format(self) -> Option<BlockFormat> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q4_0 => Some(BlockFormat::Q4_0),
            Self::Q4_1 => Some(BlockFormat::Q4_1),
            Self::Q5_0 => Some(BlockFormat::Q5_0),
            Self::Q5_1 => Some(BlockFormat::Q5_1),
            Self::Q8_0 => Some(BlockFormat::Q8_0),
            Self::Q4K => Some(BlockFormat::Q4K),
            Self::Q5K => Some(BlockFormat::Q5K),
            Self::Q6K => Some(BlockFormat::Q6K),
        }
    }

    /// The plain floats as a GPU's kernels know them; `None` for blocks.
    pub(crate) fn numbers(self) -> Option<Activations> {
        match self {
            Self::F32 => Some(Activations::F32),
            Self::F16 => Some(Activations::F16),
            Self::BF16 => Some(Activations::BF16),
            _ => None,
        }
    }

    /// Id of the format in a GGUF tensor list.
    pub(crate) fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    /// Format of a GGUF id, if served.
    pub(crate) fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.gguf_id() == id)
    }

    /// The served formats, for messages.
    pub(crate) fn served() -> String {
        Self::ALL.map(|dtype| format!("{dtype:?}")).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_large_as_in_candle() {
        for dtype in WeightDtype::ALL {
            assert_eq!(dtype.block_elements(), dtype.ggml().block_size(), "{dtype:?}");
            assert_eq!(dtype.block_bytes(), dtype.ggml().type_size(), "{dtype:?}");
            assert_eq!(WeightDtype::from_gguf_id(dtype.gguf_id()), Some(dtype));
            if let Some(format) = dtype.block_format() {
                assert_eq!(format.block_elements(), dtype.block_elements(), "{dtype:?}");
                assert_eq!(format.block_bytes(), dtype.block_bytes(), "{dtype:?}");
            }
        }
        assert_eq!(WeightDtype::from_gguf_id(4), None);
    }

    #[test]
    fn bytes_need_whole_blocks() {
        let cases = [
            (WeightDtype::F32, 3, Some(12)),
            (WeightDtype::Q4_0, 64, Some(36)),
            (WeightDtype::Q4_0, 63, None),
            (WeightDtype::Q6K, 256, Some(210)),
            (WeightDtype::F32, usize::MAX, None),
        ];
        for (dtype, elements, expected) in cases {
            assert_eq!(dtype.bytes(elements), expected, "{dtype:?} {elements}");
        }
    }
}
