//! What is behind `Gpu` on GPUs of Apple: candle's command encoder, memory of its device, and its
//! matrix products.
//!
//! Candle's encoder orders launches by what it is told: every buffer that a kernel writes goes in
//! as an output, every other one as an input.

#![expect(unsafe_code, reason = "reads memory that the GPU wrote")]

mod absent;
mod memory;
mod results;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, MetalDevice};
use candle_metal_kernels::metal::{Buffer, ComputePipeline, Library};
use candle_metal_kernels::{
    BufferOffset, GemmDType, MetalKernelError, call_cast_contiguous, call_mlx_gemm,
};
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState, MTLDevice, MTLSize};

use super::{
    Activations, Arg, GpuError, GpuMatmul, Kernel, Params, Place, PlaceParams, Spec, ops_program,
    program,
};

pub(in crate::device) use absent::{Mark, Recording};
pub(in crate::device) use memory::{Memory, PlaceMemory};
pub(in crate::device) use results::Results;

/// Threads of a simd, which the kernels count on.
const SIMD_THREADS: usize = 32;

/// The most that writes hold beside what they write to.
const HELD_BYTES: usize = 256 << 20;

/// Candle's device with its one queue.
pub(in crate::device) struct Queue {
    device: Arc<MetalDevice>,
    name: String,
    /// Of the kernels of a model: for products between other columns.
    place: OnceLock<ComputePipeline>,
    /// Bytes of writes since the last wait.
    held: AtomicUsize,
}

/// Entry points of a text.
#[derive(Debug)]
pub(in crate::device) struct Program(HashMap<Kernel, ComputePipeline>);

impl Queue {
    pub(in crate::device) fn new(device: &Device) -> Result<Self, GpuError> {
        let Device::Metal(device) = device else {
            return Err(GpuError::NoKernels(format!("{:?}", device.location())));
        };
        let name = device.metal_device().as_ref().name().to_string();
        let device = Arc::new(device.clone());
        Ok(Self { device, name, place: OnceLock::new(), held: AtomicUsize::new(0) })
    }

    pub(in crate::device) fn name(&self) -> &str {
        &self.name
    }

    /// Of the memory that Metal advises to use at most.
    #[expect(clippy::unnecessary_wraps, reason = "other GPUs ask their driver")]
    pub(in crate::device) fn free_bytes(&self) -> Result<u64, GpuError> {
        let device = self.device.metal_device();
        let most = device.recommended_max_working_set_size();
        Ok(most.saturating_sub(device.current_allocated_size()) as u64)
    }

    pub(in crate::device) fn alloc(&self, bytes: usize) -> Result<Memory, GpuError> {
        Memory::new(&self.device, bytes)
    }

    pub(in crate::device) fn alloc_results(&self, count: usize) -> Result<Results, GpuError> {
        Results::new(&self.device, count)
    }

    pub(in crate::device) fn write(
        &self,
        to: &Memory,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        // A buffer of its own, since earlier copies may not have run yet.
        let from = self.device.new_buffer_with_data(bytes)?;
        let mut blit = self.device.blit_command_encoder()?;
        blit.copy_from_buffer(&from, 0, &to.buffer, at, bytes.len());
        drop((blit, from));
        // Candle gives such buffers back when it waits.
        let held = self.held.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if held > HELD_BYTES { self.synchronize() } else { Ok(()) }
    }

    pub(in crate::device) fn read(
        &self,
        from: &Memory,
        range: Range<usize>,
    ) -> Result<Vec<u8>, GpuError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let start = range.start / 4 * 4;
        let bytes = (range.end - start).next_multiple_of(4);
        let to = self.device.new_buffer_builder().with_size(bytes).build()?;
        self.device.blit_command_encoder()?.copy_from_buffer(&from.buffer, start, &to, 0, bytes);
        self.synchronize()?;
        // SAFETY: the copy is done, and nothing else has this buffer.
        let all = unsafe { std::slice::from_raw_parts(to.contents(), bytes) };
        Ok(all[range.start - start..range.end - start].to_vec())
    }

    pub(in crate::device) fn copy(
        &self,
        to: (&Memory, usize),
        from: (&Memory, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        if bytes > 0 {
            let mut blit = self.device.blit_command_encoder()?;
            blit.copy_from_buffer(&from.0.buffer, from.1, &to.0.buffer, to.1, bytes);
        }
        Ok(())
    }

    /// The driver keeps compiled text on disk itself.
    pub(in crate::device) fn ops(&self, _compiled: Option<&Path>) -> Result<Program, GpuError> {
        let program = self.compile(&ops_program(), &Kernel::OPS)?;
        self.place.get_or_init(|| program.0[&Kernel::Place].clone());
        Ok(program)
    }

    pub(in crate::device) fn program(
        &self,
        spec: &Spec,
        _compiled: Option<&Path>,
    ) -> Result<Program, GpuError> {
        self.compile(&program(spec), &Kernel::ALL)
    }

    fn compile(&self, text: &str, kernels: &[Kernel]) -> Result<Program, GpuError> {
        let options = MTLCompileOptions::new();
        #[expect(deprecated, reason = "its successor is unknown to macOS 14")]
        options.setFastMathEnabled(false);
        let device = self.device.metal_device();
        let library = device.new_library_with_source(text, Some(&options));
        let library = library.map_err(|error| match error {
            MetalKernelError::LoadLibraryError(said) => GpuError::Compile(said),
            other => refused(&other),
        })?;
        let pipeline = |kernel: &Kernel| Ok((*kernel, self.pipeline(&library, *kernel)?));
        kernels.iter().map(pipeline).collect::<Result<_, _>>().map(Program)
    }

    fn pipeline(&self, library: &Library, kernel: Kernel) -> Result<ComputePipeline, GpuError> {
        let function = library.get_function(kernel.name(), None).map_err(|e| refused(&e))?;
        let device = self.device.metal_device();
        let pipeline = device.new_compute_pipeline_state_with_function(&function);
        let pipeline = pipeline.map_err(|error| refused(&error))?;
        let most = pipeline.max_total_threads_per_threadgroup();
        runs(&self.name, kernel, most, pipeline.as_ref().threadExecutionWidth())?;
        Ok(pipeline)
    }

    pub(in crate::device) fn launch(
        &self,
        (program, kernel): (&Program, Kernel),
        grid: [usize; 3],
        args: &[Arg<'_>],
        words: &[u32],
    ) -> Result<(), GpuError> {
        let buffers = args.iter().map(|arg| {
            let PlaceMemory { buffer, at, .. } = &arg.place().memory;
            (buffer, *at, matches!(arg, Arg::Out(_)))
        });
        let launch = (&program.0[&kernel], kernel.threads(), grid);
        self.dispatch(launch, &buffers.collect::<Vec<_>>(), words)
    }

    /// A pipeline in groups of so many threads. buffers: each with its first byte, and whether the
    /// kernel writes it.
    fn dispatch(
        &self,
        (pipeline, threads, grid): (&ComputePipeline, usize, [usize; 3]),
        buffers: &[(&Buffer, usize, bool)],
        words: &[u32],
    ) -> Result<(), GpuError> {
        let commands = self.device.command_encoder()?;
        let encoder = commands.as_ref();
        encoder.set_compute_pipeline_state(pipeline);
        for (index, (buffer, at, written)) in buffers.iter().enumerate() {
            if *written {
                encoder.set_output_buffer(index, Some(buffer), *at);
            } else {
                encoder.set_input_buffer(index, Some(buffer), *at);
            }
        }
        encoder.set_bytes_directly(buffers.len(), size_of_val(words), words.as_ptr().cast());
        let [width, height, depth] = grid;
        let group = MTLSize { width: threads, height: 1, depth: 1 };
        encoder.dispatch_thread_groups(MTLSize { width, height, depth }, group);
        Ok(())
    }

    /// Whether a product of a few rows is for `matvec`; never: candle's is Apple's own way.
    #[expect(clippy::unused_self, reason = "as on other GPUs")]
    pub(in crate::device) fn takes_matvec(&self, _: [&Place<'_>; 2], _: GpuMatmul) -> bool {
        false
    }

    /// Whether a product is for `skinny`; never.
    #[expect(clippy::unused_self, reason = "as on other GPUs")]
    pub(in crate::device) fn takes_skinny(&self, _: [&Place<'_>; 2], _: GpuMatmul) -> bool {
        false
    }

    #[expect(clippy::unused_self, reason = "as on other GPUs")]
    pub(in crate::device) fn skinny(
        &self,
        _: &Program,
        _: [&Place<'_>; 3],
        _: (GpuMatmul, Option<u32>),
    ) -> Result<(), GpuError> {
        Err(GpuError::NotBuilt)
    }

    pub(in crate::device) fn matmul(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        let GpuMatmul { rows, output, stride, numbers, .. } = shape;
        let count = rows * output;
        let (out, at) = (&out.memory.buffer, out.memory.at);
        // Candle's product is as wide as its operands, and dense from the start of a buffer on.
        let dense = at == 0 && (stride == output || rows == 1);
        let (kind, cast) = match numbers {
            Activations::F32 if dense => return self.product(out, x, weights, shape),
            Activations::F32 => (DType::F32, None),
            Activations::F16 => (DType::F16, Some("cast_f16_f32")),
            Activations::BF16 => (DType::BF16, Some("cast_bf16_f32")),
        };
        let product = self.device.new_buffer(count, kind, "")?;
        self.product(&product, x, weights, shape)?;
        let Some(cast) = cast else { return self.place(&product, out, at, shape) };
        if dense {
            return self.cast(cast, &product, out, count);
        }
        let wide = self.device.new_buffer(count, DType::F32, "")?;
        self.cast(cast, &product, &wide, count)?;
        self.place(&wide, out, at, shape)
    }

    /// 16-bit numbers to f32.
    fn cast(
        &self,
        kernel: &'static str,
        from: &Buffer,
        to: &Buffer,
        count: usize,
    ) -> Result<(), GpuError> {
        let commands = self.device.command_encoder()?;
        let (device, kernels) = (self.device.metal_device(), self.device.kernels());
        let from = BufferOffset::zero_offset(from);
        call_cast_contiguous(device, &commands, kernels, kernel, 2, count, from, to)
            .map_err(|error| refused(&error))
    }

    /// Rows of f32 into longer rows, from a byte on.
    fn place(
        &self,
        from: &Buffer,
        to: &Buffer,
        at: usize,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        let place =
            self.place.get().ok_or_else(|| GpuError::Driver("kv_place is not made".into()))?;
        let GpuMatmul { rows, output, stride, .. } = shape;
        let params = PlaceParams { width: output as u32, stride: stride as u32, first: 0 };
        let grid = [output.div_ceil(512), rows, 1];
        let launch = (place, Kernel::Place.threads(), grid);
        self.dispatch(launch, &[(from, 0, false), (to, at, true)], &params.words())
    }

    /// A product into the start of a buffer, of the kind of the operands.
    fn product(
        &self,
        out: &Buffer,
        x: &Place<'_>,
        weights: &Place<'_>,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        let GpuMatmul { rows, input, output, numbers, .. } = shape;
        let numbers = match numbers {
            Activations::F32 => GemmDType::F32,
            Activations::F16 => GemmDType::F16,
            Activations::BF16 => GemmDType::BF16,
        };
        let commands = self.device.command_encoder()?;
        call_mlx_gemm(
            self.device.metal_device(),
            &commands,
            self.device.kernels(),
            numbers,
            (1, rows, output, input),
            &[input, 1],
            x.memory.at,
            &x.memory.buffer,
            &[1, input],
            weights.memory.at,
            &weights.memory.buffer,
            out,
        )
        .map_err(|error| refused(&error))
    }

    pub(in crate::device) fn synchronize(&self) -> Result<(), GpuError> {
        self.held.store(0, Ordering::Relaxed);
        // Candle's wait for the last command buffer alone hides an error of an earlier one.
        Ok(self.device.wait_until_completed()?)
    }
}

impl Program {
    /// The portable kernel leaves parts.
    pub(in crate::device) fn attend_combines(&self) -> bool {
        !self.0.contains_key(&Kernel::Combine)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queue").field(&self.name).finish()
    }
}

/// An error where a GPU cannot run a kernel in the groups that it is written for.
fn runs(gpu: &str, kernel: Kernel, most: usize, simd: usize) -> Result<(), GpuError> {
    let wanted = kernel.threads();
    if most >= wanted && simd == SIMD_THREADS {
        return Ok(());
    }
    let kernel = kernel.name();
    Err(GpuError::NoKernels(format!(
        "{gpu}: {kernel} wants groups of {wanted} threads in simds of {SIMD_THREADS}, and \
         gets {most} at most in simds of {simd}; use --device cpu"
    )))
}

fn refused(error: &MetalKernelError) -> GpuError {
    GpuError::Driver(error.to_string())
}

impl From<candle_core::Error> for GpuError {
    fn from(error: candle_core::Error) -> Self {
        Self::Driver(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_with_too_small_groups_are_refused() {
        assert_eq!(runs("M", Kernel::Encode, 128, 32), Ok(()));
        assert!(runs("M", Kernel::Norm, 128, 32).is_err(), "a row to itself");
        let error = runs("M", Kernel::Encode, 96, 32).unwrap_err().to_string();
        assert!(error.contains("M: kv_encode wants groups of 128 threads"), "{error}");
        assert!(runs("M", Kernel::Encode, 1024, 64).is_err());
    }
}
