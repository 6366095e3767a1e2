//! Encoding, decoding, scoring and summing, one vector at a time: the definition that kernels are
//! tested against.

use half::f16;

use crate::codebook::Codebook;
use crate::error::NonFinite;
use crate::rotation::{Rotated, Rotation};
use crate::scale::{ScaleRule, Sums};
use crate::width::Width;

/// Sums over coordinates are kept in so many lanes: lane l takes coordinates l, l + 16, …; then
/// halves are added to halves. It makes the result the same for every register length.
const LANES: usize = 16;
/// Numbers of a vector whose levels need no memory of their own.
const SHORT: usize = 256;
/// A larger coordinate scales its vector down first: its scale is past the 16-bit range anyway.
const LARGE: f32 = 1_099_511_627_776.0;
/// A vector without a larger coordinate is stored as zeros: its scale would round to 0.
const SMALL: f32 = 9.094_947e-13;

/// A vector in the cache: `scale` times the levels of `codes`, in rotated space.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Length of one unit of the levels.
    pub scale: f16,
    /// One code a coordinate; 8-bit codes are signed integers.
    pub codes: Vec<u8>,
}

/// Rotation, table and scale rule of one side of one layer.
#[derive(Clone, Debug)]
pub struct Codec {
    rotation: Rotation,
    book: Codebook,
    rule: ScaleRule,
}

impl Codec {
    /// The codec of a width with any rule.
    pub fn new(rotation: Rotation, width: Width, rule: ScaleRule) -> Self {
        Self { rotation, book: Codebook::new(width), rule }
    }

    /// Where its codes live.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// Its table.
    pub fn book(&self) -> &Codebook {
        &self.book
    }

    /// Encodes one vector.
    ///
    /// # Panics
    /// If `x` is not one vector.
    pub fn encode(&self, x: &[f32]) -> Result<Encoded, NonFinite> {
        assert_eq!(x.len(), self.rotation.dim(), "one vector at a time");
        let mut y = x.to_vec();
        let mut codes = vec![0; x.len()];
        let scale = self.encode_slice(&mut y, &mut codes)?;
        Ok(Encoded { scale, codes })
    }

    /// Encodes the vector in `x`, which is left rotated, into `codes` and returns the scale. A
    /// vector that is not finite gets the codes and the scale of a zero vector, and is reported as
    /// vector 0.
    pub fn encode_slice(&self, x: &mut [f32], codes: &mut [u8]) -> Result<f16, NonFinite> {
        let largest = largest(x);
        if !largest.is_finite() {
            let coordinate = x.iter().position(|x| !x.is_finite()).unwrap_or_default();
            x.fill(0.0);
            self.zero(codes);
            return Err(NonFinite { vector: 0, coordinate });
        }
        if largest < SMALL {
            x.fill(0.0);
            self.zero(codes);
            return Ok(f16::ZERO);
        }
        let shrink = if largest > LARGE { LARGE / largest } else { 1.0 };
        if shrink != 1.0 {
            for x in x.iter_mut() {
                *x *= shrink;
            }
        }
        self.rotation.rotate_slice(x);
        Ok(self.quantize(x, codes))
    }

    /// Codes and scale of a rotated vector.
    fn quantize(&self, y: &[f32], codes: &mut [u8]) -> f16 {
        let yy = lanes(y, y);
        let unit = self.book.unit((yy / y.len() as f32).sqrt(), self::largest(y));
        let mut short = [0.0; SHORT];
        let mut long = Vec::new();
        let levels = if let Some(levels) = short.get_mut(..y.len()) {
            levels
        } else {
            long.resize(y.len(), 0.0);
            &mut long
        };
        self.book.encode(y, unit, codes, levels);
        if self.rule == ScaleRule::Plain {
            return half(unit);
        }
        let (yc, cc) = (lanes(y, levels), lanes(levels, levels));
        half(self.rule.factor(unit, Sums { yy, yc, cc }))
    }

    /// The codes of a zero vector.
    fn zero(&self, codes: &mut [u8]) {
        let zeros = vec![0.0; codes.len()];
        self.book.encode(&zeros, 0.0, codes, &mut vec![0.0; zeros.len()]);
    }

    /// The vector that the codes stand for.
    pub fn decode(&self, encoded: &Encoded) -> Vec<f32> {
        self.rotation.restore(self.weighted_sum(&[1.0], std::slice::from_ref(encoded)))
    }

    /// Product of a rotated query with an encoded vector, without decoding it.
    pub fn score(&self, query: &Rotated, encoded: &Encoded) -> f32 {
        let levels = encoded.codes.iter().map(|code| self.book.level(*code));
        let sum: f32 = query.as_slice().iter().zip(levels).map(|(q, level)| q * level).sum();
        sum * encoded.scale.to_f32()
    }

    /// Sum of encoded vectors times weights, in rotated space.
    pub fn weighted_sum(&self, weights: &[f32], encoded: &[Encoded]) -> Rotated {
        let mut sum = vec![0.0; self.rotation.dim()];
        for (weight, encoded) in weights.iter().zip(encoded) {
            let factor = weight * encoded.scale.to_f32();
            for (sum, code) in sum.iter_mut().zip(&encoded.codes) {
                *sum += factor * self.book.level(*code);
            }
        }
        self.rotation.adopt(sum)
    }
}

/// The largest magnitude; NaN if there is one.
fn largest(x: &[f32]) -> f32 {
    // The bits of magnitudes are ordered as integers, infinity and NaN above all.
    f32::from_bits(x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7FFF_FFFF)))
}

/// Rounded to nearest even, at most the largest finite half.
fn half(scale: f32) -> f16 {
    f16::from_f32(scale.min(f16::MAX.to_f32()))
}

/// Sum of products.
fn lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(rest_a).zip(rest_b) {
        *sum += a * b;
    }
    let mut count = LANES / 2;
    while count > 0 {
        for lane in 0..count {
            sums[lane] += sums[lane + count];
        }
        count /= 2;
    }
    sums[0]
}
