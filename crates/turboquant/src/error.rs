//! What the codec refuses.

use std::fmt;

/// An input with NaN or infinity. Nothing of such a vector is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Index of the vector among those given.
    pub vector: usize,
    /// First coordinate that is not finite.
    pub coordinate: usize,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, coordinate } = self;
        write!(f, "vector {vector} is not finite at coordinate {coordinate}")
    }
}

impl std::error::Error for NonFinite {}

/// A width that no table exists for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not 1 to 8, or for a pair not a multiple of one half.
    Width(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Width(asked) => write!(
                f,
                "{asked} bits: the codec has 1 to 8, and n.5 for keys of n and values of n + 1"
            ),
        }
    }
}

impl std::error::Error for Error {}
