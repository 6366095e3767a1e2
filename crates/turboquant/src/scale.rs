//! Which number is stored beside the codes of a vector.

use std::fmt;

use crate::{Side, Width};

/// Factor of the levels `c` that stand for the vector `y`; both in rotated space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// What the codes were chosen by: the root mean square times the table's unit; for 8 bits the
    /// largest over 127.
    Plain,
    /// ‖y‖ / ‖c‖: keeps the length.
    Matched,
    /// ⟨y, c⟩ / ⟨c, c⟩: the smallest error.
    LeastSquares,
    /// ⟨y, y⟩ / ⟨y, c⟩: products with other vectors keep their size on average.
    Unbiased,
}

impl ScaleRule {
    /// All rules.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Matched, Self::LeastSquares, Self::Unbiased];

    /// The rule that the cache uses where nothing else is asked for.
    ///
    /// A softmax takes the noise of its scores for size, so keys do best with the smallest error;
    /// the noise of values averages out over tokens, a wrong length does not.
    pub fn for_side(side: Side, width: Width) -> Self {
        match (side, width.bits()) {
            (_, 8) => Self::Plain,
            (Side::Values, 1..=4) => Self::Unbiased,
            _ => Self::LeastSquares,
        }
    }

    /// The factor from `plain` and the sums of squares and products.
    pub fn factor(self, plain: f32, sums: Sums) -> f32 {
        let Sums { yy, yc, cc } = sums;
        match self {
            Self::Plain => plain,
            Self::Matched => (yy / cc).sqrt(),
            Self::LeastSquares => yc / cc,
            Self::Unbiased => yy / yc,
        }
    }
}

impl fmt::Display for ScaleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Matched => "matched",
            Self::LeastSquares => "least_squares",
            Self::Unbiased => "unbiased",
        })
    }
}

/// Sums over the coordinates of a rotated vector y and its levels c.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// ⟨y, y⟩
    pub yy: f32,
    /// ⟨y, c⟩
    pub yc: f32,
    /// ⟨c, c⟩
    pub cc: f32,
}
