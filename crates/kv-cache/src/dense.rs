//! `DensePages`: 16-bit keys and values of one layer, in pages.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::DenseTiles;

use crate::format::LayerShape;
use crate::pages::PageId;

/// Memory of one layer, `[page][kv_heads][PAGE_TOKENS][dim]` for keys and for values.
#[derive(Debug)]
pub(crate) struct DensePages {
    shape: LayerShape,
    keys: Vec<f16>,
    values: Vec<f16>,
}

impl DensePages {
    pub(crate) fn new(shape: LayerShape, pages: usize) -> Self {
        let len = shape.page_len() * pages;
        Self { shape, keys: zeros(len), values: zeros(len) }
    }

    /// Writes one token. k, v: `[kv_heads, dim]`.
    pub(crate) fn write(&mut self, page: PageId, slot: usize, k: &[f32], v: &[f32]) {
        assert!(slot < PAGE_TOKENS, "slot {slot} is not in a page of {PAGE_TOKENS} tokens");
        let LayerShape { kv_heads, dim } = self.shape;
        for head in 0..kv_heads {
            let at = ((page as usize * kv_heads + head) * PAGE_TOKENS + slot) * dim;
            round(&mut self.keys[at..at + dim], &k[head * dim..(head + 1) * dim]);
            round(&mut self.values[at..at + dim], &v[head * dim..(head + 1) * dim]);
        }
    }

    /// Copies a page out of `source`, which has the same shape.
    pub(crate) fn copy_from(&mut self, page: PageId, source: &Self, source_page: PageId) {
        assert_eq!(self.shape, source.shape, "pages of different shapes cannot be copied");
        let len = self.shape.page_len();
        let (to, from) = (page as usize * len, source_page as usize * len);
        self.keys[to..to + len].copy_from_slice(&source.keys[from..from + len]);
        self.values[to..to + len].copy_from_slice(&source.values[from..from + len]);
    }

    /// Copies a page within.
    pub(crate) fn copy_within(&mut self, page: PageId, source: PageId) {
        let len = self.shape.page_len();
        let (to, from) = (page as usize * len, source as usize * len);
        self.keys.copy_within(from..from + len, to);
        self.values.copy_within(from..from + len, to);
    }

    /// A page's tokens in order: keys and values, each `[PAGE_TOKENS, kv_heads, dim]`.
    pub(crate) fn read(&self, page: PageId) -> (Vec<f32>, Vec<f32>) {
        let LayerShape { kv_heads, dim } = self.shape;
        let read = |from: &[f16]| {
            let mut into = vec![0.0; self.shape.page_len()];
            for (head, rows) in from.chunks_exact(PAGE_TOKENS * dim).enumerate() {
                for (slot, row) in rows.chunks_exact(dim).enumerate() {
                    let at = (slot * kv_heads + head) * dim;
                    row.convert_to_f32_slice(&mut into[at..at + dim]);
                }
            }
            into
        };
        let range = self.range(page);
        (read(&self.keys[range.clone()]), read(&self.values[range]))
    }

    /// One token: keys and values, each `[kv_heads, dim]`.
    pub(crate) fn token(&self, page: PageId, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let dim = self.shape.dim;
        let read = |from: &[f16]| {
            let heads = from.chunks_exact(PAGE_TOKENS * dim);
            heads.flat_map(|head| head[slot * dim..][..dim].to_f32_vec()).collect()
        };
        let range = self.range(page);
        (read(&self.keys[range.clone()]), read(&self.values[range]))
    }

    /// Bytes allocated for all pages.
    pub(crate) fn bytes(&self) -> u64 {
        let numbers = self.keys.capacity() + self.values.capacity();
        (numbers * size_of::<f16>()) as u64
    }

    /// Bytes of one page of keys and values.
    pub(crate) fn page_bytes(&self) -> usize {
        4 * self.shape.page_len()
    }

    /// Appends a page's keys, then its values, little endian. Slots from `tokens` on are written as
    /// zeros: what memory holds there is of another sequence.
    pub(crate) fn export(&self, page: PageId, tokens: usize, bytes: &mut Vec<u8>) {
        let range = self.range(page);
        let dim = self.shape.dim;
        for side in [&self.keys[range.clone()], &self.values[range]] {
            for head in side.chunks_exact(PAGE_TOKENS * dim) {
                let own = head[..tokens.min(PAGE_TOKENS) * dim].iter();
                bytes.extend(own.flat_map(|number| number.to_le_bytes()));
                let others = PAGE_TOKENS.saturating_sub(tokens) * dim;
                bytes.resize(bytes.len() + others * size_of::<f16>(), 0);
            }
        }
    }

    /// Reads a page that `export` wrote and returns what comes after it.
    pub(crate) fn import<'a>(&mut self, page: PageId, bytes: &'a [u8]) -> &'a [u8] {
        let (own, rest) = bytes.split_at(self.page_bytes());
        let (keys, values) = own.split_at(own.len() / 2);
        let range = self.range(page);
        for (into, from) in [(&mut self.keys, keys), (&mut self.values, values)] {
            for (into, from) in into[range.clone()].iter_mut().zip(from.chunks_exact(2)) {
                *into = f16::from_le_bytes([from[0], from[1]]);
            }
        }
        rest
    }

    fn range(&self, page: PageId) -> std::ops::Range<usize> {
        let len = self.shape.page_len();
        page as usize * len..(page as usize + 1) * len
    }

    pub(crate) fn shape(&self) -> LayerShape {
        self.shape
    }

    pub(crate) fn tiles(&self) -> DenseTiles<'_> {
        let LayerShape { kv_heads, dim } = self.shape;
        DenseTiles { keys: &self.keys, values: &self.values, kv_heads, dim }
    }
}

/// Zeros that the system maps when they are first written: an unused page costs no memory.
fn zeros(len: usize) -> Vec<f16> {
    vec![0_u16; len].reinterpret_into()
}

/// To nearest, ties to even. Beyond ±65504 the result is ±65504: an infinity would turn a row's
/// scores into NaN.
fn round(into: &mut [f16], from: &[f32]) {
    const LANES: usize = 64;
    let (low, high) = (f16::MIN.to_f32(), f16::MAX.to_f32());
    for (into, from) in into.chunks_mut(LANES).zip(from.chunks(LANES)) {
        let mut clamped = [0.0; LANES];
        for (clamped, value) in clamped.iter_mut().zip(from) {
            *clamped = value.clamp(low, high);
        }
        into.convert_from_f32_slice(&clamped[..from.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_nearest_even_and_saturate() {
        for (value, want) in [
            (0.0, 0x0000),
            (1.0, 0x3C00),
            (1.0 + 1.0 / 2048.0, 0x3C00), // half way, even below
            (1.0 + 3.0 / 2048.0, 0x3C02), // half way, even above
            (65504.0, 0x7BFF),
            (65519.0, 0x7BFF),
            (65520.0, 0x7BFF), // would round to infinity
            (1e30, 0x7BFF),
            (f32::INFINITY, 0x7BFF),
            (-65520.0, 0xFBFF),
            (f32::NEG_INFINITY, 0xFBFF),
            (5.96e-8, 0x0001), // the smallest subnormal
            (2.9e-8, 0x0000),
        ] {
            let mut got = [f16::ONE; 1];
            round(&mut got, &[value]);
            assert_eq!(got[0].to_bits(), want, "{value}");
        }
        let mut got = [f16::ONE; 1];
        round(&mut got, &[f32::NAN]);
        assert!(got[0].is_nan());
    }

    #[test]
    fn a_token_lands_in_its_slot_of_every_head() {
        let mut pages = DensePages::new(LayerShape { kv_heads: 2, dim: 3 }, 2);
        pages.write(1, 63, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[7.0; 6]);
        let written: Vec<_> =
            (0..pages.keys.len()).filter(|i| pages.keys[*i] != f16::ZERO).collect();
        let head = |head: usize| ((2 + head) * 64 + 63) * 3;
        let want: Vec<_> = (head(0)..head(0) + 3).chain(head(1)..head(1) + 3).collect();
        assert_eq!(written, want);
        assert_eq!(pages.keys[head(1)..head(1) + 3], [4.0, 5.0, 6.0].map(f16::from_f32));
    }

    #[test]
    #[should_panic(expected = "slot 64 is not in a page of 64 tokens")]
    fn a_slot_past_the_page_is_refused() {
        DensePages::new(LayerShape { kv_heads: 1, dim: 1 }, 2).write(0, 64, &[0.0], &[0.0]);
    }
}
