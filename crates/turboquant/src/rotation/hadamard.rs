//! Orthonormal Hadamard transforms of D = m·2^k numbers, m of 1, 12, 20, 28: the Kronecker product
//! of a Hadamard matrix of order m (Paley's constructions) and Sylvester's of order 2^k. Coordinate
//! a·2^k + b belongs to a of m and b of 2^k.
//!
//! The order of additions is part of the format: butterflies of distance 1, 2, 4 … within each run
//! of 2^k, then the sums over m in ascending order, then one factor 1/√D. No fused multiply-add.

/// Orders with their Paley prime: 12 and 20 are q + 1 for q = 3 mod 4, 28 is 2(q + 1) for q = 1 mod
/// 4.
const ORDERS: [(usize, usize); 3] = [(12, 11), (20, 19), (28, 13)];

/// The transform of one size.
#[derive(Clone, Debug)]
pub(super) struct Hadamard {
    /// Length of the power-of-two runs.
    run: usize,
    /// Matrix of order m, row by row; empty for m = 1.
    mixing: Vec<f32>,
    /// m
    order: usize,
    factor: f32,
}

impl Hadamard {
    /// None if no transform of this size is known here.
    pub(super) fn new(dim: usize) -> Option<Self> {
        let factor = (1.0 / (dim as f64).sqrt()) as f32;
        if dim.is_power_of_two() {
            return Some(Self { run: dim, mixing: Vec::new(), order: 1, factor });
        }
        let fits =
            |order: usize| dim > 0 && dim.is_multiple_of(order) && (dim / order).is_power_of_two();
        let (order, prime) = ORDERS.into_iter().find(|(order, _)| fits(*order))?;
        Some(Self { run: dim / order, mixing: paley(order, prime), order, factor })
    }

    /// The matrix of order m, row by row; empty for m = 1.
    pub(super) fn mixing(&self) -> &[f32] {
        &self.mixing
    }

    pub(super) fn apply(&self, x: &mut [f32]) {
        x.chunks_exact_mut(self.run).for_each(butterflies);
        if self.order > 1 {
            self.mix(x, |row, column| row * self.order + column);
        }
        for x in x {
            *x *= self.factor;
        }
    }

    pub(super) fn apply_transposed(&self, y: &mut [f32]) {
        if self.order > 1 {
            self.mix(y, |row, column| column * self.order + row);
        }
        y.chunks_exact_mut(self.run).for_each(butterflies);
        for y in y {
            *y *= self.factor;
        }
    }

    fn mix(&self, x: &mut [f32], at: impl Fn(usize, usize) -> usize) {
        let before = x.to_vec();
        for (row, into) in x.chunks_exact_mut(self.run).enumerate() {
            into.fill(0.0);
            for (column, from) in before.chunks_exact(self.run).enumerate() {
                let sign = self.mixing[at(row, column)];
                into.iter_mut().zip(from).for_each(|(into, from)| *into += sign * from);
            }
        }
    }
}

/// Unnormalized Walsh-Hadamard transform in natural order.
fn butterflies(x: &mut [f32]) {
    let mut distance = 1;
    let (eights, rest) = x.as_chunks_mut::<8>();
    if rest.is_empty() && !eights.is_empty() {
        eights.iter_mut().for_each(butterflies_of_8);
        distance = 8;
    }
    while distance < x.len() {
        for pair in x.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
}

/// Distances 1, 2 and 4.
#[inline]
fn butterflies_of_8(x: &mut [f32; 8]) {
    let [a, b, c, d, e, f, g, h] = *x;
    let [a, b, c, d, e, f, g, h] = [a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h];
    let [a, b, c, d, e, f, g, h] = [a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h];
    *x = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
}

/// A Hadamard matrix from the quadratic residues modulo `prime`, row by row.
fn paley(order: usize, prime: usize) -> Vec<f32> {
    let residue = |x: usize| match x % prime {
        0 => 0.0,
        x if (1..prime).any(|root| root * root % prime == x) => 1.0,
        _ => -1.0,
    };
    // The bordered residue matrix of order prime + 1; `corner` is the sign of its first column.
    let bordered = |corner: f32, row: usize, column: usize| match (row, column) {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => corner,
        _ => residue(prime + row - column),
    };
    let entry = |row: usize, column: usize| {
        if order == prime + 1 {
            return bordered(-1.0, row, column) + f32::from(u8::from(row == column));
        }
        // Symmetric case: 0 becomes [[1, -1], [-1, -1]], ±1 becomes ±[[1, 1], [1, -1]].
        let both_odd = row % 2 == 1 && column % 2 == 1;
        match bordered(1.0, row / 2, column / 2) {
            0.0 if row.is_multiple_of(2) && column.is_multiple_of(2) => 1.0,
            0.0 => -1.0,
            sign if both_odd => -sign,
            sign => sign,
        }
    };
    (0..order * order).map(|at| entry(at / order, at % order)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_orthogonal() {
        for dim in
            [1, 2, 4, 8, 12, 16, 20, 24, 28, 40, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
        {
            let transform = Hadamard::new(dim).unwrap();
            let unit = |at: usize| {
                let mut x = vec![0.0; dim];
                x[at] = 1.0;
                transform.apply(&mut x);
                x
            };
            let columns: Vec<Vec<f32>> = (0..dim).map(unit).collect();
            for (i, a) in columns.iter().enumerate() {
                for x in a {
                    assert!((x.abs() - transform.factor).abs() < 1e-7, "order {dim}: {x}");
                }
                for (j, b) in columns.iter().enumerate() {
                    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                    let want = f64::from(u8::from(i == j));
                    assert!((dot - want).abs() < 1e-5, "order {dim}: {i} and {j} give {dot}");
                }
            }
        }
    }

    #[test]
    fn other_sizes_have_none() {
        for dim in [0, 3, 6, 10, 14, 18, 36, 60, 72, 100, 120, 129] {
            assert!(Hadamard::new(dim).is_none(), "{dim}");
        }
    }
}
