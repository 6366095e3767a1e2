//! Bits of a code: one width, and the pair of a cache.

use std::fmt;

use crate::Error;

/// Bits of one code, 1 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Width(u8);

impl Width {
    /// All widths, ascending.
    pub const ALL: [Self; 8] =
        [Self(1), Self(2), Self(3), Self(4), Self(5), Self(6), Self(7), Self(8)];
    /// The widths that a cache offers: each has fused kernels.
    pub const CACHE: [Self; 5] = [Self(2), Self(3), Self(4), Self(6), Self(8)];

    /// The width of so many bits.
    pub fn new(bits: usize) -> Result<Self, Error> {
        match bits {
            1..=8 => Ok(Self(bits as u8)),
            _ => Err(Error::Width(bits.to_string())),
        }
    }

    /// Bits of one code.
    pub const fn bits(self) -> usize {
        self.0 as usize
    }

    /// Number of codes.
    pub const fn codes(self) -> usize {
        1 << self.0
    }

    /// The planes that make up a code, as (bits, position in the code): powers of two, the widest
    /// holds the low bits.
    pub fn planes(self) -> impl Iterator<Item = (usize, usize)> {
        let bits = self.bits();
        let widths = [8, 4, 2, 1].into_iter().filter(move |plane| bits & plane != 0);
        widths.scan(0, |low, plane| {
            let at = *low;
            *low += plane;
            Some((plane, at))
        })
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Widths of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Widths {
    /// Of a key's codes.
    pub keys: Width,
    /// Of a value's codes.
    pub values: Width,
}

impl Widths {
    /// From an average: n gives n and n, n.5 gives keys of n bits and values of n + 1.
    pub fn from_average(bits: f64) -> Result<Self, Error> {
        let refused = || Error::Width(bits.to_string());
        if (2.0 * bits).fract() != 0.0 || !(1.0..=8.0).contains(&bits) {
            return Err(refused());
        }
        let width = |bits: f64| Width::new(bits as usize).map_err(|_| refused());
        Ok(Self { keys: width(bits.floor())?, values: width(bits.ceil())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_powers_of_two_with_the_widest_low() {
        let planes = |bits| Width::new(bits).unwrap().planes().collect::<Vec<_>>();
        assert_eq!(planes(1), [(1, 0)]);
        assert_eq!(planes(3), [(2, 0), (1, 2)]);
        assert_eq!(planes(4), [(4, 0)]);
        assert_eq!(planes(6), [(4, 0), (2, 4)]);
        assert_eq!(planes(7), [(4, 0), (2, 4), (1, 6)]);
        assert_eq!(planes(8), [(8, 0)]);
    }

    #[test]
    fn halves_give_the_values_one_bit_more() {
        let pair = |bits| Widths::from_average(bits).map(|w| (w.keys.bits(), w.values.bits())).ok();
        assert_eq!(pair(3.5), Some((3, 4)));
        assert_eq!(pair(1.0), Some((1, 1)));
        assert_eq!(pair(7.5), Some((7, 8)));
        assert_eq!(pair(8.0), Some((8, 8)));
        for bits in [0.0, 0.5, 8.5, 3.25, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(pair(bits), None, "{bits}");
        }
        let error = Width::new(9).unwrap_err().to_string();
        assert!(error.starts_with("9 bits: the codec has 1 to 8"), "{error}");
        assert!(Width::new(0).is_err());
    }
}
