//! `Linear` in every format: against f64, by parts, at odd addresses, and rows alone against rows
//! together.

use candle_core::Device;
use candle_core::quantized::QTensor;

use super::*;
use crate::gpu::StepRoom;

/// A matrix in -1..1 that no format holds exactly, as stored and as it reads back.
fn matrix(dtype: WeightDtype, shape: [usize; 2], seed: usize) -> (TensorView, Vec<f32>) {
    let count = shape[0] * shape[1];
    let element = |i: usize| (((i + seed) * 7919 % 10_007) as f32 - 5003.0) / 5003.0;
    let values: Vec<f32> = (0..count).map(element).collect();
    let values = Tensor::from_vec(values, (shape[0], shape[1]), &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&values, dtype.ggml()).unwrap();
    let exact = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
    let bytes = stored.data().unwrap().to_vec().into();
    (TensorView { dtype, shape: shape.to_vec(), bytes }, exact.to_vec1().unwrap())
}

fn run(linear: &Linear, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / linear.input;
    let x = Tensor::from_slice(x, (rows, linear.input), &Device::Cpu).unwrap();
    let out = Tensor::full(f32::NAN, (rows, linear.output), &Device::Cpu).unwrap();
    linear.forward(&out, &x).unwrap();
    out.flatten_all().unwrap().to_vec1().unwrap()
}

fn activations(rows: usize, input: usize) -> Vec<f32> {
    (0..rows * input).map(|i| ((i * 6007 % 4001) as f32 - 2000.0) / 2000.0).collect()
}

#[test]
fn every_format_agrees_with_f64_and_keeps_rows_apart() {
    let (rows, input) = (37, 512);
    for dtype in WeightDtype::ALL {
        for output in [1, 16, 35] {
            let (view, exact) = matrix(dtype, [output, input], 11);
            let linear = Linear::new(&view, None).unwrap();
            let x = activations(rows, input);
            let out = run(&linear, &x);
            // Products of blocks also round the activations, to 8 bits.
            let bound = if dtype.is_quantized() { 0.3 } else { 1e-4 };
            for (x, out) in x.chunks(input).zip(out.chunks(output)) {
                assert_eq!(run(&linear, x), out, "{dtype:?}: a row alone differs");
                for (weights, out) in exact.chunks(input).zip(out) {
                    let products =
                        x.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let error = (products.sum::<f64>() - f64::from(*out)).abs();
                    assert!(error < bound, "{dtype:?}: {out} is {error} off");
                }
            }
        }
    }
}

#[test]
fn joined_matrices_give_their_results_side_by_side() {
    let formats = [
        [WeightDtype::F16; 3],
        [WeightDtype::Q4K; 3],
        [WeightDtype::Q4K, WeightDtype::Q4K, WeightDtype::Q6K],
        [WeightDtype::F32, WeightDtype::BF16, WeightDtype::F32],
    ];
    let (input, rows) = (256, 3);
    let x = activations(rows, input);
    let bias: Vec<f32> = (0..12).map(|i| i as f32 / 4.0).collect();
    for formats in formats {
        let outputs = [4, 6, 2];
        let views = [0, 1, 2].map(|i| matrix(formats[i], [outputs[i], input], i).0);
        let joined = Linear::joined(&views, Some(bias.clone())).unwrap();
        let out = run(&joined, &x);
        let mut first = 0;
        for (view, output) in views.iter().zip(outputs) {
            let alone = run(&Linear::new(view, None).unwrap(), &x);
            for row in 0..rows {
                for column in 0..output {
                    let expected = alone[row * output + column] + bias[first + column];
                    assert_eq!(out[row * 12 + first + column], expected, "{formats:?}");
                }
            }
            first += output;
        }
        let bytes = views.iter().map(|view| view.bytes.len() as u64).sum::<u64>() + 48;
        if formats.iter().any(|format| format.is_quantized()) {
            // Blocks are kept for whole tiles of sixteen rows.
            assert!(joined.bytes() > bytes && joined.bytes() < 8 * bytes, "{formats:?}");
        } else {
            assert_eq!(joined.bytes(), bytes, "{formats:?}");
        }
    }
}

#[test]
fn any_address_will_do() {
    for dtype in WeightDtype::ALL {
        let (view, _) = matrix(dtype, [5, 256], 3);
        let mut shifted = vec![0];
        shifted.extend_from_slice(&view.bytes);
        let end = shifted.len();
        let bytes = Bytes::from(shifted).slice(1..end).unwrap();
        let odd = TensorView { bytes, ..view.clone() };
        let x = activations(2, 256);
        let run = |view| run(&Linear::new(view, None).unwrap(), &x);
        assert_eq!(run(&odd), run(&view), "{dtype:?}");
    }
}

#[test]
fn aligned_floats_are_not_copied() {
    let (view, _) = matrix(WeightDtype::F16, [5, 64], 3);
    let linear = Linear::new(&view, None).unwrap();
    let Stored::Float(_, bytes) = &linear.parts[0].weights else { panic!("not kept as floats") };
    assert_eq!(bytes.as_ptr(), view.bytes.as_ptr());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (view, _) = matrix(WeightDtype::F32, [4, 64], 0);
    let (other, _) = matrix(WeightDtype::F32, [4, 32], 0);
    assert!(Linear::new(&view, Some(vec![0.0; 3])).is_err());
    assert!(Linear::joined(&[view.clone(), other], None).is_err());
    assert!(Linear::joined(&[], None).is_err());
    let wrong = [
        TensorView { shape: vec![256], ..view.clone() },
        TensorView { shape: vec![4, 65], ..view.clone() },
        TensorView { dtype: WeightDtype::Q4K, ..view.clone() },
    ];
    assert!(wrong.iter().all(|view| Linear::new(view, None).is_err()));
    let linear = Linear::new(&view, None).unwrap();
    let zeros =
        |shape| Tensor::zeros::<(usize, usize)>(shape, candle_core::DType::F32, &Device::Cpu);
    let out = zeros((1, 4)).unwrap();
    assert!(linear.forward(&out, &zeros((1, 65)).unwrap()).is_err());
    assert!(linear.forward(&out, &zeros((2, 64)).unwrap()).is_err());
    assert!(linear.forward(&out, &zeros((1, 64)).unwrap()).is_ok());
}

/// Where there is a GPU. Floats take activations of their own kind, candle's products with blocks
/// take them to 8 bits; few rows, some, and many have kernels of their own.
#[test]
fn every_format_agrees_with_f64_on_a_gpu() {
    let site = match Site::cuda(0, None).or_else(|_| Site::metal(0, None)) {
        Ok(site) => site,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let room = StepRoom { tokens: 200, input: 2048, context: 256, experts: 0 };
    let step = GpuStep::new(site.gpu().unwrap(), room, &[]).unwrap();
    let mut wrong = Vec::new();
    for dtype in WeightDtype::ALL {
        let bound = match dtype {
            WeightDtype::F32 => 1e-5,
            WeightDtype::F16 => 1e-3,
            WeightDtype::BF16 => 5e-3,
            _ => 3e-2,
        };
        for input in [dtype.block_elements().max(32) * 3, 256, 768, 2048] {
            for output in [35, 200] {
                let (view, exact) = matrix(dtype, [output, input], 11);
                let linear = Linear::joined_at(&site, &[view], None).unwrap();
                for rows in [1, 2, 5, 8, 9, 64, 200] {
                    let x = activations(rows, input);
                    let on_gpu = Tensor::from_slice(&x, (rows, input), site.device()).unwrap();
                    let out = Tensor::full(f32::NAN, (rows, output), site.device()).unwrap();
                    linear.apply(&out, &on_gpu, Some(&step)).unwrap();
                    let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let error = relative_error(&out, (&x, &exact), input);
                    if error.is_nan() || error > bound {
                        wrong.push(format!("{dtype:?} {rows} x {input} x {output}: {error:.1e}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Of a product, against f64: errors over what the sums of its terms are like where signs are
/// random, since these sums cancel by chance and their terms' roundings do not.
fn relative_error(found: &[f32], (x, weights): (&[f32], &[f32]), input: usize) -> f64 {
    let (mut rest, mut own) = (0.0, 0.0);
    let mut found = found.iter();
    for x in x.chunks(input) {
        for weights in weights.chunks(input) {
            let products = x.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let exact: f64 = products.clone().sum();
            rest += (f64::from(*found.next().unwrap()) - exact).powi(2);
            own += products.map(|product| product * product).sum::<f64>();
        }
    }
    (rest / own).sqrt()
}
