//! Orthogonal rotations and the type of what has been rotated: only `Rotation::restore` leaves
//! rotated space.

mod haar;
mod hadamard;

use crate::signs::Key;
use hadamard::Hadamard;

/// A random orthogonal matrix: Hadamard with random signs where the size allows it, else dense.
#[derive(Clone, Debug)]
pub struct Rotation {
    dim: usize,
    key: Key,
    matrix: Matrix,
}

#[derive(Clone, Debug)]
enum Matrix {
    /// y = H (s ∘ x) / √D
    Hadamard { signs: Vec<f32>, transform: Hadamard },
    /// y = Q x, rows of Q one after the other.
    Dense(Vec<f32>),
}

/// Vectors in the space of one rotation, `[count, dim]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotated {
    values: Vec<f32>,
    key: Key,
    dense: bool,
}

impl Rotated {
    /// The coordinates.
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// The coordinates, given up as plain numbers.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

impl Rotation {
    /// The rotation of vectors of `dim` numbers: Hadamard if dim is m·2^k with m of 1, 12, 20, 28,
    /// else dense.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn new(dim: usize, key: Key) -> Self {
        match Hadamard::new(dim) {
            Some(transform) => {
                let matrix = Matrix::Hadamard { signs: key.signs(dim), transform };
                Self { dim, key, matrix }
            }
            None => Self::dense(dim, key),
        }
    }

    /// A dense rotation whatever the size: the control of the Hadamard one.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn dense(dim: usize, key: Key) -> Self {
        Self { dim, key, matrix: Matrix::Dense(haar::rotation(dim, key.number())) }
    }

    /// Size of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What it was drawn from.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Whether it is a full matrix.
    pub fn is_dense(&self) -> bool {
        matches!(self.matrix, Matrix::Dense(_))
    }

    /// Signs of the Hadamard rotation, 1 or -1 a dimension; `None` if it is a full matrix.
    pub fn signs(&self) -> Option<&[f32]> {
        match &self.matrix {
            Matrix::Hadamard { signs, .. } => Some(signs),
            Matrix::Dense(_) => None,
        }
    }

    /// The full matrix, row by row; `None` of a Hadamard rotation.
    pub fn matrix(&self) -> Option<&[f32]> {
        match &self.matrix {
            Matrix::Hadamard { .. } => None,
            Matrix::Dense(rows) => Some(rows),
        }
    }

    /// The matrix of order m in the transform of m·2^k numbers, `[m, m]` of 1 and -1, empty for
    /// m = 1; `None` if the rotation is a full matrix.
    pub fn mixing(&self) -> Option<&[f32]> {
        match &self.matrix {
            Matrix::Hadamard { transform, .. } => Some(transform.mixing()),
            Matrix::Dense(_) => None,
        }
    }

    /// Rotates each vector of `x`, `[count, dim]`.
    pub fn rotate(&self, mut x: Vec<f32>) -> Rotated {
        self.rotate_slice(&mut x);
        self.adopt(x)
    }

    /// Rotates in place, for kernels that work in buffers of their own.
    ///
    /// # Panics
    /// If `x` does not hold whole vectors.
    pub fn rotate_slice(&self, x: &mut [f32]) {
        assert_eq!(x.len() % self.dim, 0, "not whole vectors of {}", self.dim);
        match &self.matrix {
            Matrix::Hadamard { signs, transform } => {
                for x in x.chunks_exact_mut(self.dim) {
                    x.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
                    transform.apply(x);
                }
            }
            Matrix::Dense(rows) => {
                for x in x.chunks_exact_mut(self.dim) {
                    let y: Vec<f32> = rows.chunks_exact(self.dim).map(|row| dot(row, x)).collect();
                    x.copy_from_slice(&y);
                }
            }
        }
    }

    /// Takes sums that were formed in this rotation's space.
    ///
    /// # Panics
    /// If `values` does not hold whole vectors.
    pub fn adopt(&self, values: Vec<f32>) -> Rotated {
        assert_eq!(values.len() % self.dim, 0, "not whole vectors of {}", self.dim);
        Rotated { values, key: self.key, dense: self.is_dense() }
    }

    /// Back to the space of the model: the only way out.
    ///
    /// # Panics
    /// If another rotation made `rotated`.
    pub fn restore(&self, rotated: Rotated) -> Vec<f32> {
        let Rotated { mut values, key, dense } = rotated;
        assert_eq!((key, dense), (self.key, self.is_dense()), "rotated by another rotation");
        match &self.matrix {
            Matrix::Hadamard { signs, transform } => {
                for y in values.chunks_exact_mut(self.dim) {
                    transform.apply_transposed(y);
                    y.iter_mut().zip(signs).for_each(|(y, sign)| *y *= sign);
                }
            }
            Matrix::Dense(rows) => {
                for y in values.chunks_exact_mut(self.dim) {
                    let mut x = vec![0.0; self.dim];
                    for (row, y) in rows.chunks_exact(self.dim).zip(&*y) {
                        x.iter_mut().zip(row).for_each(|(x, r)| *x += r * y);
                    }
                    y.copy_from_slice(&x);
                }
            }
        }
        values
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
