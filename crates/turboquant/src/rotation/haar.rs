//! A dense rotation drawn from the uniform (Haar) distribution.

use crate::signs::normals;

/// Rows of a random orthogonal matrix, `[dim, dim]`.
///
/// Gram-Schmidt on a matrix of normal numbers is its QR decomposition with a positive diagonal,
/// which makes Q uniform. Each row is cleared of the earlier ones twice: after that it is
/// orthogonal to the last bits of an f64.
pub(super) fn rotation(dim: usize, number: u64) -> Vec<f32> {
    assert!(dim > 0, "a vector has at least one coordinate");
    let mut rows = normals(number, dim * dim);
    for index in 0..dim {
        let (earlier, rest) = rows.split_at_mut(index * dim);
        let row = &mut rest[..dim];
        for _ in 0..2 {
            for other in earlier.chunks_exact(dim) {
                let along: f64 = other.iter().zip(&*row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
            }
        }
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in row {
            *x /= length;
        }
    }
    rows.into_iter().map(|x| x as f32).collect()
}
