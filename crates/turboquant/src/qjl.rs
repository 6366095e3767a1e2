//! The codec with a one-bit sketch of the residual ("Prod"), for study: unbiased, but at equal bits
//! its error is more than twice that of the plain codec. The cache never uses it.

use crate::codec::{Codec, Encoded};
use crate::error::NonFinite;
use crate::rotation::{Rotated, Rotation};
use crate::scale::ScaleRule;
use crate::signs::{Key, normals};
use crate::width::Width;

/// An encoder of `bits - 1` bits and a sketch of one.
#[derive(Clone, Debug)]
pub struct Qjl {
    codec: Codec,
    /// Standard normal numbers, `[dim, dim]`.
    sketch: Vec<f32>,
}

/// An encoded vector with the signs of its residual's sketch.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketched {
    /// What the plain codec keeps.
    pub encoded: Encoded,
    /// Length of the residual.
    pub residual: f32,
    /// Whether each sketched number is at least 0.
    pub signs: Vec<bool>,
}

/// A query rotated and sketched.
#[derive(Clone, Debug)]
pub struct SketchedQuery {
    rotated: Rotated,
    sketch: Vec<f32>,
}

impl Qjl {
    /// Of 2 to 9 bits in all: `width` for the codes and one for the sketch.
    pub fn new(rotation: Rotation, width: Width) -> Self {
        let Key { layer, side, seed } = rotation.key();
        // Another stream than the rotation's own.
        let number = Key { layer, side, seed: !seed }.number();
        let dim = rotation.dim();
        let sketch = normals(number, dim * dim).into_iter().map(|x| x as f32).collect();
        Self { codec: Codec::new(rotation, width, ScaleRule::Plain), sketch }
    }

    /// Encodes one vector.
    pub fn encode(&self, x: &[f32]) -> Result<Sketched, NonFinite> {
        let encoded = self.codec.encode(x)?;
        let rotated = self.codec.rotation().rotate(x.to_vec());
        let known = self.codec.weighted_sum(&[1.0], std::slice::from_ref(&encoded));
        let pairs = rotated.as_slice().iter().zip(known.as_slice());
        let rest: Vec<f32> = pairs.map(|(y, known)| y - known).collect();
        let residual = rest.iter().map(|r| r * r).sum::<f32>().sqrt();
        let signs = self.project(&rest).into_iter().map(|z| z >= 0.0).collect();
        Ok(Sketched { encoded, residual, signs })
    }

    /// Prepares a query for `score`.
    pub fn query(&self, q: &[f32]) -> SketchedQuery {
        let rotated = self.codec.rotation().rotate(q.to_vec());
        let sketch = self.project(rotated.as_slice());
        SketchedQuery { rotated, sketch }
    }

    /// An unbiased estimate of the product of query and vector, the mean being over sketches.
    pub fn score(&self, query: &SketchedQuery, sketched: &Sketched) -> f32 {
        let signed = query.sketch.iter().zip(&sketched.signs);
        let sum: f32 = signed.map(|(q, sign)| if *sign { *q } else { -q }).sum();
        let factor = std::f32::consts::FRAC_PI_2.sqrt() / sketched.signs.len() as f32;
        self.codec.score(&query.rotated, &sketched.encoded) + factor * sketched.residual * sum
    }

    fn project(&self, y: &[f32]) -> Vec<f32> {
        let rows = self.sketch.chunks_exact(y.len());
        rows.map(|row| row.iter().zip(y).map(|(s, y)| s * y).sum()).collect()
    }
}
