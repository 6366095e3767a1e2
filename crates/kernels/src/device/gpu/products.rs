//! Products of activations and weights: which way they go, and that their places hold them.

use super::{Arg, Gpu, GpuError, Place, backend};
use crate::device::{Activations, Kernel, MATVEC_COLUMNS, MATVEC_ROWS, MatvecParams};

/// Sizes of [`Gpu::matmul`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMatmul {
    /// Rows of activations.
    pub rows: usize,
    /// Numbers of a row.
    pub input: usize,
    /// Results of a row.
    pub output: usize,
    /// Numbers from one row of results to the next, at least `output`.
    pub stride: usize,
    /// Of activations and weights.
    pub numbers: Activations,
    /// Of results: f32, or where [`Gpu::narrow_products`] those of the weights.
    pub results: Activations,
}

/// A product of [`Gpu::matmul_few`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuFew {
    /// Its sizes.
    pub shape: GpuMatmul,
    /// Whether activations are f32, which are rounded to the weights' numbers.
    pub wide: bool,
    /// The activation, as in `GateParams`, of a gated product: weights are `[2 * output, input]`,
    /// gates first.
    pub gate: Option<u32>,
}

impl Gpu {
    /// Puts the product `x · weightsᵀ` into the queue, written into out. x: `[rows, input]` and
    /// weights: `[output, input]` of the same kind of numbers; out: `[rows, output]` f32, rows at
    /// every `stride`.
    pub fn matmul(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        let GpuMatmul { rows, input, output, stride, numbers, results } = shape;
        if rows == 0 || output == 0 {
            return Ok(());
        }
        if self.takes_skinny([x, weights], shape) {
            return self.matmul_skinny(out, x, weights, (shape, None));
        }
        if self.takes_few([x, weights], shape) {
            return self.matmul_few(out, x, weights, GpuFew { shape, wide: false, gate: None });
        }
        let bytes = |numbers| if numbers == Activations::F32 { 4 } else { 2 };
        let sizes = [
            ("results", out, ((rows - 1) * stride + output) * bytes(results)),
            ("activations", x, rows * input * bytes(numbers)),
            ("weights", weights, output * input * bytes(numbers)),
        ];
        for (what, place, bytes) in sizes {
            place.holds(what, bytes)?;
        }
        self.0.queue.matmul(out, x, weights, shape)
    }

    /// Whether a product has few enough rows for [`Self::matmul_few`], and the GPU's library is
    /// slower. ends: activations and weights.
    pub fn takes_few(&self, ends: [&Place<'_>; 2], shape: GpuMatmul) -> bool {
        self.0.queue.takes_matvec(ends, shape)
    }

    /// The same product of a few rows, by a kernel that can do more with them.
    pub fn matmul_few(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        few: GpuFew,
    ) -> Result<(), GpuError> {
        let GpuMatmul { rows, input, output, stride, numbers, .. } = few.shape;
        if !(1..=MATVEC_ROWS).contains(&rows) || numbers == Activations::F32 {
            return Err(GpuError::Room(format!("{rows} rows of {numbers:?} for a few")));
        }
        let matrix = if few.gate.is_some() { 2 * output } else { output };
        out.holds("results", ((rows - 1) * stride + output) * 4)?;
        x.holds("activations", rows * input * if few.wide { 4 } else { 2 })?;
        weights.holds("weights", matrix * input * 2)?;
        let args = [Arg::In(x.clone()), Arg::In(weights.clone()), Arg::Out(out.clone())];
        let grid = [matrix.div_ceil(MATVEC_COLUMNS), 1, 1];
        let [rows, input, output, stride] = [rows, input, output, stride].map(|n| n as u32);
        let (numbers, wide) = (numbers as u32, u32::from(few.wide));
        let gate = few.gate.map_or(0, |activation| activation + 1);
        let params = MatvecParams { rows, input, output, stride, numbers, wide, gate };
        self.launch((self.ops(), Kernel::Matvec), grid, &args, &params)
    }

    /// Whether a product has few enough rows for [`Self::matmul_skinny`], and the GPU has a kernel
    /// for them. ends: activations and weights.
    pub fn takes_skinny(&self, ends: [&Place<'_>; 2], shape: GpuMatmul) -> bool {
        self.0.queue.takes_skinny(ends, shape)
    }

    /// The same product of at most [`SKINNY_ROWS`](crate::device::SKINNY_ROWS) rows, with results
    /// of either kind; with a gate, as of [`GpuFew`], the gated one.
    pub fn matmul_skinny(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        (shape, gate): (GpuMatmul, Option<u32>),
    ) -> Result<(), GpuError> {
        let GpuMatmul { rows, input, output, stride, results, .. } = shape;
        if !self.takes_skinny([x, weights], shape) {
            return Err(GpuError::Room(format!("{shape:?} for a product of few rows")));
        }
        let matrix = if gate.is_some() { 2 * output } else { output };
        let bytes = if results == Activations::F32 { 4 } else { 2 };
        out.holds("results", ((rows - 1) * stride + output) * bytes)?;
        x.holds("activations", rows * input * 2)?;
        weights.holds("weights", matrix * input * 2)?;
        self.0.queue.skinny(&self.ops().0, [out, x, weights], (shape, gate))
    }

    /// Whether results of [`Self::matmul`] may be of 16 bits.
    pub fn narrow_products(&self) -> bool {
        backend::Queue::NARROW_PRODUCTS
    }
}
