//! The checks on a GPU, where there is one: the portable text, and the text with the GPU's own
//! `attend`.

#![expect(unsafe_code, reason = "launches of kernels")]

use std::sync::{Arc, LazyLock, Mutex};

use cudarc::driver::{CudaSlice, CudaStream};
use kvant_kernels::device::cuda::{CudaBuffer, CudaProgram, compile, first_gpu};
use kvant_kernels::device::{
    Activations, DENSE_FEW, Kernel, Params, Spec, has_wgmma, ops_program, override_program,
    program, with_dense_override, with_skinny, with_wgmma_override,
};

use crate::machine::{Buffer, Machine, covered};
use crate::random::widths;
use crate::{append, attend, dense, encode, ops, rotate, sample, skinny};

static GPU: LazyLock<Option<Arc<CudaStream>>> = LazyLock::new(|| {
    let gpu = first_gpu();
    match &gpu {
        Some(stream) => eprintln!("on {}", stream.context().name().unwrap()),
        None => eprintln!("skipped: no CUDA driver or no GPU"),
    }
    gpu
});

/// One check at a time has the GPU.
pub(crate) static TURN: Mutex<()> = Mutex::new(());

struct Gpu {
    stream: Arc<CudaStream>,
    program: CudaProgram,
    /// How often a launch is made: each time it must write the same.
    times: usize,
}

impl Gpu {
    fn new(stream: &Arc<CudaStream>, spec: &Spec, portable: bool) -> Self {
        let program = CudaProgram::new(stream, spec, portable, None).unwrap();
        Self { stream: stream.clone(), program, times: 1 }
    }
}

impl Machine for Gpu {
    const COMPILES_BESIDE: bool = true;
    /// The GPU's own kernel takes queries of 15 bits and weights of 16.
    const ATTEND_ERROR: f64 = 1e-3;

    /// The GPU's own kernel takes weights of 11 bits, and for chunks of prompts queries of 11.
    fn dense_error(block: usize) -> f64 {
        if block == DENSE_FEW { 1e-3 } else { 2e-3 }
    }

    fn attend_combines(&self) -> bool {
        self.program.attend_combines()
    }

    fn run(
        &self,
        (kernel, grid): (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
    ) -> Vec<Vec<u8>> {
        let _turn = TURN.lock();
        let put = |buffer: &Buffer<'_>| match buffer {
            Buffer::Input([]) => self.stream.alloc_zeros(1).unwrap(),
            Buffer::Input(bytes) | Buffer::Changed(bytes) => {
                self.stream.clone_htod(*bytes).unwrap()
            }
            Buffer::Output(size) => self.stream.clone_htod(&vec![0xFF_u8; *size]).unwrap(),
            Buffer::Zeroed(size) => self.stream.alloc_zeros(*size).unwrap(),
        };
        let mut on_gpu: Vec<CudaSlice<u8>> = buffers.iter().map(put).collect();
        let each = on_gpu.iter_mut().zip(buffers).map(|(slice, buffer)| match buffer {
            Buffer::Input(_) => CudaBuffer::Input(slice),
            Buffer::Output(_) | Buffer::Changed(_) | Buffer::Zeroed(_) => CudaBuffer::Output(slice),
        });
        let mut arguments: Vec<_> = each.collect();
        let mut launch = || {
            // SAFETY: the checks size their buffers by the kernels' comments, which the emulator
            // holds them to.
            unsafe { self.program.launch(kernel, grid, &mut arguments, params).unwrap() };
            self.stream.synchronize().unwrap();
            let outputs = arguments.iter().filter_map(|argument| match argument {
                CudaBuffer::Input(_) => None,
                CudaBuffer::Output(slice) => Some(self.stream.clone_dtoh(&**slice).unwrap()),
            });
            outputs.collect::<Vec<_>>()
        };
        let written = launch();
        for time in 1..self.times {
            assert!(launch() == written, "{}: another result at time {time}", kernel.name());
        }
        covered("cuda", kernel.name());
        written
    }
}

/// Runs a check with the portable text and with the GPU's own `attend`.
fn on_gpu(check: impl Fn(&(dyn Fn(&Spec) -> Gpu + Sync))) {
    with_text(true, &check);
    with_text(false, &check);
}

fn with_text(portable: bool, check: impl Fn(&(dyn Fn(&Spec) -> Gpu + Sync))) {
    if let Some(stream) = &*GPU {
        check(&|spec| Gpu::new(stream, spec, portable));
    }
}

#[test]
fn kernels_of_a_model() {
    if let Some(stream) = &*GPU {
        let program = CudaProgram::ops(stream, None).unwrap();
        let gpu = Gpu { stream: stream.clone(), program, times: 1 };
        ops::check(&gpu);
        sample::check(&gpu);
    }
}

/// A kernel of compute capability 9.0.
fn with_skinny_products(check: impl Fn(&Arc<CudaStream>)) {
    let Some(stream) = &*GPU else { return };
    if stream.context().compute_capability().unwrap() == (9, 0) {
        check(stream);
    } else {
        eprintln!("skipped: not of compute capability 9.0");
    }
}

#[test]
fn products_of_few_rows_at_the_edges() {
    with_skinny_products(|stream| skinny::check_shapes(stream, &skinny::EDGES));
}

#[test]
fn products_of_few_rows_of_models() {
    with_skinny_products(|stream| skinny::check_shapes(stream, &skinny::MODELS));
}

#[test]
fn products_behind_norms() {
    with_skinny_products(skinny::check_queue);
}

#[test]
fn rotations() {
    on_gpu(|make| rotate::check(make));
}

#[test]
fn tiles() {
    on_gpu(|make| encode::check(make));
    on_gpu(|make| encode::check_dense(make));
}

#[test]
fn strange_vectors() {
    on_gpu(|make| encode::check_strange(make));
}

#[test]
fn new_tokens() {
    on_gpu(|make| append::check(make));
}

#[test]
fn attention_of_all_shapes() {
    on_gpu(|make| attend::check_shapes(make));
    with_text(false, |make| attend::check_own_widths(make));
}

#[test]
fn sizes_by_bits_by_groups() {
    on_gpu(|make| attend::check_table(make, |_, keys| keys));
}

#[test]
fn attention_options() {
    for bits in [(4, 3), (4, 4), (3, 8), (8, 2)] {
        on_gpu(|make| attend::check_options(make, 128, bits));
    }
}

#[test]
fn attention_of_sharp_scores() {
    on_gpu(|make| attend::check_sharp(make, 64));
    on_gpu(|make| attend::check_sharp(make, 128));
}

#[test]
fn attention_of_long_contexts() {
    on_gpu(|make| attend::check_long(make));
}

#[test]
fn dense_attention_of_all_shapes() {
    on_gpu(|make| dense::check_shapes(make));
}

#[test]
fn dense_attention_options() {
    for dim in [64, 80, 128, 256] {
        on_gpu(|make| dense::check_options(make, dim));
    }
}

#[test]
fn dense_attention_of_sharp_scores() {
    for dim in [64, 128, 224] {
        on_gpu(|make| dense::check_sharp(make, dim));
    }
}

#[test]
fn dense_attention_of_long_contexts() {
    on_gpu(|make| dense::check_long(make));
}

/// What happens once in a hundred thousand groups.
#[test]
fn dense_attention_of_many_groups_many_times() {
    with_text(false, |make| {
        dense::check_many(|spec| Gpu { times: 500, ..make(spec) });
    });
}

/// Needs the run-time compiler and no GPU; where the compiler is not installed it says so.
#[test]
fn every_text_compiles() {
    let ready = std::panic::catch_unwind(|| compile("", "sm_90").is_ok());
    if !ready.unwrap_or(false) {
        eprintln!("skipped: no run-time compiler of CUDA");
        return;
    }
    compile(&with_skinny(&ops_program()), "sm_90a").unwrap_or_else(|e| panic!("{e}"));
    for architecture in ["sm_80", "sm_90a"] {
        compile(&ops_program(), architecture).unwrap_or_else(|e| panic!("{e}"));
    }
    for (dim, keys, values, activations) in [
        (64, 4, 4, Activations::F32),
        (80, 3, 4, Activations::F16),
        (128, 4, 4, Activations::BF16),
        (128, 8, 3, Activations::F16),
        (128, 2, 8, Activations::F32),
        (256, 8, 6, Activations::BF16),
    ] {
        let spec = Spec::new(dim, widths(keys, values), activations).unwrap();
        let portable = program(&spec);
        compile(&portable, "sm_80").unwrap_or_else(|e| panic!("{e}"));
        compile(&with_dense_override(&portable), "sm_80").unwrap_or_else(|e| panic!("{e}"));
        for queries in [4, 8] {
            if let Some(text) = override_program(&spec.clone().with_queries(queries)) {
                compile(&with_dense_override(&text), "sm_90").unwrap_or_else(|e| panic!("{e}"));
                if has_wgmma(dim) {
                    let text = with_wgmma_override(&text);
                    compile(&text, "sm_90a").unwrap_or_else(|e| panic!("{e}"));
                }
            }
        }
    }
}
