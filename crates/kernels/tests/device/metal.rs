//! The checks through `Gpu` on candle's Metal device: a Mac's, or what `scripts/check-metal` puts
//! in its place. There few sizes are taken, since each is a text to compile, and launches that
//! nothing orders are faults.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use kvant_kernels::device::{
    Activations, Arg, Gpu, GpuBuffer, GpuError, GpuMatmul, GpuProgram, Kernel, Params, Place,
    RotateParams, Spec, sign_words,
};
use kvant_turboquant::Side;

use crate::machine::{Buffer, Machine, bytes_of_floats, covered, floats};
use crate::random::{Random, rotation, spec};
use crate::{append, attend, dense, encode, ops, rotate, sample};

static DEVICE: LazyLock<(Device, Gpu)> = LazyLock::new(|| {
    let device = Device::new_metal(0).unwrap();
    let gpu = Gpu::new(&device, None).unwrap();
    eprintln!("on {}", gpu.name());
    (device, gpu)
});

/// One check at a time has the GPU.
static TURN: Mutex<()> = Mutex::new(());

fn is_fake() -> bool {
    DEVICE.1.name() == "fakemetal"
}

/// What `scripts/kernel-table` calls it.
fn check_name() -> &'static str {
    if is_fake() { "fakemetal" } else { "metal" }
}

/// A program; none stands for the kernels of a model.
struct OnMetal(Option<Arc<GpuProgram>>);

impl OnMetal {
    fn new(spec: &Spec) -> Self {
        Self(Some(DEVICE.1.program(spec).unwrap()))
    }
}

/// Metal copies whole words; an odd number of halves gets one more.
fn uploaded(gpu: &Gpu, bytes: &[u8]) -> GpuBuffer {
    let mut words = bytes.to_vec();
    words.resize(bytes.len().next_multiple_of(4), 0);
    let buffer = gpu.alloc(words.len()).unwrap();
    gpu.write(&buffer, 0, &words).unwrap();
    buffer
}

fn downloaded(gpu: &Gpu, memory: &GpuBuffer, size: usize) -> Vec<u8> {
    let mut bytes = gpu.read(memory, 0..memory.bytes()).unwrap();
    bytes.truncate(size);
    bytes
}

impl Machine for OnMetal {
    fn run(
        &self,
        (kernel, grid): (Kernel, [usize; 3]),
        buffers: &[Buffer<'_>],
        params: &impl Params,
    ) -> Vec<Vec<u8>> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = &DEVICE.1;
        let put = |buffer: &Buffer<'_>| match buffer {
            Buffer::Input(bytes) | Buffer::Changed(bytes) => uploaded(gpu, bytes),
            Buffer::Zeroed(size) => gpu.alloc(size.next_multiple_of(4)).unwrap(),
            Buffer::Output(size) => uploaded(gpu, &vec![0xFF_u8; *size]),
        };
        let on_gpu: Vec<GpuBuffer> = buffers.iter().map(put).collect();
        let args = on_gpu.iter().zip(buffers).map(|(memory, buffer)| {
            let place = Place::buffer(memory, 0).unwrap();
            if matches!(buffer, Buffer::Input(_)) { Arg::In(place) } else { Arg::Out(place) }
        });
        let args: Vec<_> = args.collect();
        let program = self.0.as_deref().unwrap_or(gpu.ops());
        gpu.launch((program, kernel), grid, &args, params).unwrap();
        gpu.synchronize().unwrap();
        covered(check_name(), kernel.name());
        let read = |(memory, buffer): (&GpuBuffer, &Buffer<'_>)| match buffer {
            Buffer::Input(_) => None,
            Buffer::Changed(bytes) => Some(downloaded(gpu, memory, bytes.len())),
            Buffer::Output(size) | Buffer::Zeroed(size) => Some(downloaded(gpu, memory, *size)),
        };
        on_gpu.iter().zip(buffers).filter_map(read).collect()
    }
}

#[test]
fn kernels_of_the_cache() {
    encode::check_strange(OnMetal::new);
    encode::check_one(OnMetal::new);
    attend::check_options(OnMetal::new, 64, (4, 3));
    attend::check_sharp(OnMetal::new, 64);
    append::check_sizes(OnMetal::new, &[(64, 2)]);
    dense::check_sharp(OnMetal::new, 64);
    if !is_fake() {
        rotate::check(OnMetal::new);
        encode::check(OnMetal::new);
        encode::check_dense(OnMetal::new);
        attend::check_shapes(OnMetal::new);
        append::check(OnMetal::new);
        dense::check_shapes(OnMetal::new);
    }
}

#[test]
fn kernels_of_a_model() {
    ops::check(&OnMetal(None));
    sample::check(&OnMetal(None));
}

/// Vectors that go through `rotate` and back with `times` launches of each, all at once in the
/// queue; whether `rotate` says that it writes the rotated ones.
fn there_and_back(says: bool, times: usize) -> Result<(), GpuError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (dim, vectors, gpu) = (64, 40, &DEVICE.1);
    let program = gpu.program(&spec(dim, 3, 6))?;
    let rotation = rotation(dim, Side::Keys);
    let x = Random(8).floats(vectors * dim);
    let params = RotateParams { signs: sign_words(&rotation), vectors: vectors as u32 };
    let grid = [vectors.div_ceil(8), 1, 1];
    let mut now = uploaded(gpu, &bytes_of_floats(&x));
    let [mut next, between] = [gpu.alloc(4 * x.len())?, gpu.alloc(4 * x.len() + 64)?];
    for _ in 0..times {
        let rotated = Place::buffer(&between, 64)?;
        let rotated = if says { Arg::Out(rotated) } else { Arg::In(rotated) };
        let args = [Arg::In(Place::buffer(&now, 0)?), rotated];
        gpu.launch((&program, Kernel::Rotate), grid, &args, &params)?;
        let args = [Arg::In(Place::buffer(&between, 64)?), Arg::Out(Place::buffer(&next, 0)?)];
        gpu.launch((&program, Kernel::Restore), grid, &args, &params)?;
        (now, next) = (next, now);
    }
    let found = floats(&gpu.read(&now, 0..4 * x.len())?);
    let expected = (0..times).fold(x, |x, _| rotation.restore(rotation.rotate(x)));
    assert_eq!(found, expected);
    for kernel in [Kernel::Rotate, Kernel::Restore] {
        covered(check_name(), kernel.name());
    }
    Ok(())
}

#[test]
fn launches_of_one_queue_see_what_earlier_ones_wrote() {
    // More than candle puts into one command buffer.
    there_and_back(true, 40).unwrap();
}

/// Where it runs on a GPU this is a race that may go unnoticed.
#[test]
fn a_written_buffer_that_is_bound_as_an_input_is_caught() {
    if is_fake() {
        let error = there_and_back(false, 1).unwrap_err().to_string();
        assert!(error.contains("kv_restore uses a buffer that kv_rotate writes"), "{error}");
        there_and_back(true, 1).unwrap();
    }
}

#[test]
fn memory_is_zeroed_and_copies_keep_their_order() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = &DEVICE.1;
    let [a, b] = [gpu.alloc(1001).unwrap(), gpu.alloc(16).unwrap()];
    assert_eq!(a.bytes(), 1001);
    assert_eq!(gpu.read(&a, 0..1001).unwrap(), [0; 1001]);
    for round in 0..3_u8 {
        let mut bytes: Vec<u8> = (0..16).map(|at| at + 16 * round).collect();
        gpu.write(&b, 0, &bytes).unwrap();
        bytes.fill(0xEE);
        gpu.copy((&a, 100 + 32 * round as usize), (&b, 4), 8).unwrap();
    }
    assert_eq!(gpu.read(&a, 99..109).unwrap(), [0, 4, 5, 6, 7, 8, 9, 10, 11, 0]);
    assert_eq!(gpu.read(&a, 163..165).unwrap(), [0, 36]);
    assert!(gpu.read(&a, 3..3).unwrap().is_empty());
    let before = gpu.free_bytes().unwrap();
    drop((a, b));
    let again = gpu.alloc(4 << 20).unwrap();
    assert!(gpu.free_bytes().unwrap() < before);
    drop(again);
    assert!(gpu.free_bytes().unwrap() >= before);
    let error = Gpu::new(&Device::Cpu, None).unwrap_err().to_string();
    assert_eq!(error, "there are no device kernels for Cpu");
}

/// Products of all kinds, one row and more, into a whole tensor and into some of its columns.
#[test]
fn products_agree_with_plain_loops() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (device, gpu) = &*DEVICE;
    for (numbers, bound) in
        [(Activations::F32, 1e-5), (Activations::F16, 2e-3), (Activations::BF16, 2e-2)]
    {
        for rows in [1, 19] {
            let (input, output) = (80, 36);
            let put = |count: usize, seed| {
                let x = Random(seed).floats(count);
                let x: Vec<f32> = match numbers {
                    Activations::F32 => x,
                    Activations::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
                    Activations::BF16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
                };
                let bytes: Vec<u8> = match numbers {
                    Activations::F32 => bytes_of_floats(&x),
                    Activations::F16 => {
                        x.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect()
                    }
                    Activations::BF16 => {
                        x.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect()
                    }
                };
                (x, uploaded(gpu, &bytes))
            };
            let ((x, on_x), (weights, on_weights)) = (put(rows * input, 1), put(output * input, 2));
            for skipped in [0, 4] {
                let stride = output + 2 * skipped;
                let all = Tensor::full(7.0_f32, (rows, stride), device).unwrap();
                let place = Place::tensor(&all).unwrap().skip(4 * skipped).unwrap();
                let [px, pw] = [&on_x, &on_weights].map(|b| Place::buffer(b, 0).unwrap());
                let shape =
                    GpuMatmul { rows, input, output, stride, numbers, results: Activations::F32 };
                gpu.matmul(&place, &px, &pw, shape).unwrap();
                let mut found = Vec::new();
                for row in all.to_vec2::<f32>().unwrap() {
                    let (outside, inside): (Vec<_>, Vec<_>) = row
                        .iter()
                        .enumerate()
                        .partition(|(column, _)| !(skipped..skipped + output).contains(column));
                    assert!(outside.iter().all(|(_, x)| **x == 7.0));
                    found.extend(inside.iter().map(|(_, x)| **x));
                }
                for (at, found) in found.iter().enumerate() {
                    let (row, column) = (at / output * input, at % output * input);
                    let pairs = x[row..].iter().zip(&weights[column..]).take(input);
                    let exact: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let gap = (f64::from(*found) - exact).abs();
                    assert!(gap < bound * exact.abs().max(4.0), "{numbers:?} {rows}: {gap}");
                }
            }
        }
    }
}

/// Blocks of GGUF files through candle's products, one row and several, which are kernels apart.
#[test]
fn products_with_blocks_agree_with_plain_loops() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (input, output) = (256, 40);
    let put = |rows: usize, seed| {
        Tensor::from_vec(Random(seed).floats(rows * input), (rows, input), &Device::Cpu).unwrap()
    };
    for dtype in [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let blocks = QTensor::quantize(&put(output, 2), dtype).unwrap();
        let stored = Cow::Owned(blocks.data().unwrap().into_owned());
        let stored = QStorage::from_data(stored, &DEVICE.0, dtype).unwrap();
        let on_gpu = QTensor::new(stored, (output, input)).unwrap();
        let weights = blocks.dequantize(&Device::Cpu).unwrap().t().unwrap();
        for rows in [1, 19] {
            let x = put(rows, 1);
            let found = x.to_device(&DEVICE.0).unwrap().apply_op1_no_bwd(&on_gpu).unwrap();
            let found = found.to_vec2::<f32>().unwrap().concat();
            let exact = x.matmul(&weights).unwrap().to_vec2::<f32>().unwrap().concat();
            for (found, exact) in found.iter().zip(exact) {
                let gap = (found - exact).abs();
                assert!(gap < 1e-2 * exact.abs().max(4.0), "{dtype:?} {rows}: {found} {exact}");
            }
        }
    }
}
