//! Numbers from a seed, and layers to use them on.

use kvant_kv_cache::{CacheLayer, CacheShape, Format, LayerShape, Reason};
use kvant_turboquant::{Width, Widths};

/// splitmix64
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Uniform in ±scale.
    pub(crate) fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        let unit = |word: u64| (word >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..count).map(|_| unit(self.next()) * scale).collect()
    }
}

/// A layer by heads, size, and bits of keys and values; 16 is dense.
pub(crate) fn layer(kv_heads: usize, dim: usize, (keys, values): (usize, usize)) -> CacheLayer {
    let width = |bits| Width::new(bits).unwrap();
    let format = if keys == 16 {
        Format::Dense
    } else {
        Format::TurboQuant(Widths { keys: width(keys), values: width(values) })
    };
    CacheLayer { shape: LayerShape { kv_heads, dim }, format, reasons: vec![Reason::Asked] }
}

pub(crate) fn shape(layers: &[(usize, usize, (usize, usize))]) -> CacheShape {
    let layers = layers.iter().map(|l| layer(l.0, l.1, l.2)).collect();
    CacheShape { layers, scale_rule: None }
}
