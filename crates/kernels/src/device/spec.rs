//! What a program is specialised by, and the definitions that follow from it.

use std::fmt::{self, Write};

use kvant_turboquant::{Codebook, Key, PageLayout, Rotation, Side, Width, Widths};

/// The largest head that has kernels.
const MAX_DIM: usize = 256;
/// Lanes that hold a vector.
const LANES: usize = 16;
/// The most query vectors that share one read of keys and values.
pub const MAX_QUERIES: usize = 8;

/// Type of activations on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of IEEE 754.
    F16,
    /// 16-bit floats with the exponent of f32.
    BF16,
}

/// One specialisation of all kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    layout: PageLayout,
    activations: Activations,
    queries: usize,
    /// Whether the rotation is a full matrix.
    dense: bool,
}

/// A specification without kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// A head of so many numbers.
    Dim(usize),
    /// Codes of these widths.
    Widths(Widths),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dim(dim) => write!(
                f,
                "head_dim {dim} has no device kernels: they take multiples of {LANES} up to \
                 {MAX_DIM}; use a 16-bit cache"
            ),
            Self::Widths(Widths { keys, values }) => {
                let offered: Vec<String> = Width::CACHE.iter().map(Width::to_string).collect();
                write!(
                    f,
                    "keys of {keys} and values of {values} bits have no device kernels: take {}",
                    offered.join(", ")
                )
            }
        }
    }
}

impl std::error::Error for Unsupported {}

impl Spec {
    /// The kernels of heads of `dim` numbers, or why there are none.
    pub fn new(dim: usize, widths: Widths, activations: Activations) -> Result<Self, Unsupported> {
        let fits = dim > 0 && dim <= MAX_DIM && dim.is_multiple_of(LANES);
        if !fits {
            return Err(Unsupported::Dim(dim));
        }
        if ![widths.keys, widths.values].iter().all(|width| Width::CACHE.contains(width)) {
            return Err(Unsupported::Widths(widths));
        }
        let dense = any_rotation(dim).is_dense();
        Ok(Self { layout: PageLayout::new(dim, widths), activations, queries: MAX_QUERIES, dense })
    }

    /// With a full matrix for a rotation whatever the size: [`Rotation::dense`].
    #[must_use]
    pub fn with_dense_rotation(self) -> Self {
        Self { dense: true, ..self }
    }

    /// Whether the rotation is a full matrix. Then kernels that rotate have one buffer more in
    /// front of their arguments: `[2, dim, dim]` f32, the keys' rows and the values' (`rotate`
    /// and `restore`: `[dim, dim]`).
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// With so many query vectors of a key head sharing one read of its keys and values in
    /// `attend`: the group of a decode step, or more where a row has several tokens.
    ///
    /// # Panics
    /// If it is not 1 to `MAX_QUERIES`.
    #[must_use]
    pub fn with_queries(self, queries: usize) -> Self {
        assert!((1..=MAX_QUERIES).contains(&queries), "{queries} query vectors a group");
        Self { queries, ..self }
    }

    /// Query vectors that share one read.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// What a tile looks like.
    pub fn layout(&self) -> &PageLayout {
        &self.layout
    }

    /// Type of activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Lines of `#define` for the files of the dialect.
    pub(super) fn definitions(&self) -> String {
        let dim = self.layout.dim();
        let widths = self.layout.widths();
        let mut text = String::new();
        let mut define = |name: &str, value: String| {
            writeln!(text, "#define {name} {value}").expect("a string takes all text");
        };
        define("KV_TYPE", (self.activations as usize).to_string());
        define("KV_D", dim.to_string());
        define("KV_QUERIES", self.queries.to_string());
        let rotation = any_rotation(dim);
        let mixing = rotation.mixing().filter(|_| !self.dense).unwrap_or_default();
        let order = if self.dense { 0 } else { mixing.len().isqrt().max(1) };
        define("KV_ORDER", order.to_string());
        match dim.checked_div(order) {
            Some(run) => define("KV_RUN", run.to_string()),
            None => define("KV_DENSE", String::new()),
        }
        if order > 1 {
            let minus = |at: usize| u32::from(mixing[at] < 0.0);
            let row = |a: usize| (0..order).map(|c| minus(a * order + c) << c).sum::<u32>();
            let column = |a: usize| (0..order).map(|c| minus(c * order + a) << c).sum::<u32>();
            define("KV_MIX_ROWS", list((0..order).map(|a| format!("{}u", row(a)))));
            define("KV_MIX_COLUMNS", list((0..order).map(|a| format!("{}u", column(a)))));
        }
        define("KV_FACTOR", float((1.0 / (dim as f64).sqrt()) as f32));
        for (side, width) in [("K", widths.keys), ("V", widths.values)] {
            let book = Codebook::new(width);
            define(&format!("KV_{side}_BITS"), width.to_string());
            define(&format!("KV_{side}_UNIT"), float(book.unit(1.0, 0.0)));
            // 8 bits have no table; the language wants one of at least one entry.
            let half = if width.bits() == 8 { 0 } else { width.codes() / 2 };
            let levels = (half..2 * half).map(|code| float(book.level(code as u8)));
            let borders = book.borders().iter().skip(half).map(|border| float(*border));
            let end = std::iter::once(float(0.0));
            // Four words at least: so many does a kernel take.
            let mut bytes = book.bytes();
            bytes.resize(bytes.len().max(16), 0);
            let words = bytes.as_chunks::<4>().0.iter();
            let words = words.map(|b| format!("{}u", u32::from_le_bytes(b.map(|b| b as u8))));
            define(&format!("KV_{side}_BYTES"), list(words));
            define(&format!("KV_{side}_LEVELS"), list(levels.chain(end.clone())));
            define(&format!("KV_{side}_BORDERS"), list(borders.chain(end)));
        }
        define("KV_VALUES_AT", (self.layout.values_at() / 4).to_string());
        define("KV_TILE_WORDS", (self.layout.tile_bytes() / 4).to_string());
        text
    }
}

/// A rotation of the size; those of one size differ in their signs alone.
fn any_rotation(dim: usize) -> Rotation {
    Rotation::new(dim, Key { layer: 0, side: Side::Keys, seed: 0 })
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
}

/// A literal that reads back as the same bits.
fn float(x: f32) -> String {
    format!("{x:?}f")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(keys: usize, values: usize) -> Widths {
        Widths { keys: Width::new(keys).unwrap(), values: Width::new(values).unwrap() }
    }

    #[test]
    fn what_has_no_kernels_is_refused_with_what_has() {
        let spec = |dim, keys, values| Spec::new(dim, widths(keys, values), Activations::F32);
        for dim in [0, 8, 24, 100, 120, 272, 320, 512] {
            let text = spec(dim, 4, 4).unwrap_err().to_string();
            assert!(text.contains(&format!("head_dim {dim} ")), "{text}");
        }
        for dim in (16..=256).step_by(16) {
            let hadamard = [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256].contains(&dim);
            assert_eq!(spec(dim, 4, 4).unwrap().is_dense(), !hadamard, "{dim}");
        }
        for (keys, values) in [(1, 4), (4, 5), (7, 7)] {
            let text = spec(128, keys, values).unwrap_err().to_string();
            assert!(text.ends_with("take 2, 3, 4, 6, 8"), "{text}");
        }
    }

    #[test]
    fn literals_read_back_as_the_same_bits() {
        for x in [0.0, 0.051_118_716, 1.0 / 3.0, 9.094_947e-13, 1.0, 106.0] {
            let text = float(x);
            let digits = text.strip_suffix('f').unwrap();
            assert!(digits.contains(['.', 'e']), "{text} would be an integer");
            assert_eq!(digits.parse::<f32>().unwrap().to_bits(), x.to_bits());
        }
    }
}
