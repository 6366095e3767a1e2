//! Products of few rows, and gates.

use half::{bf16, f16};
use kvant_kernels::device::{GATE_NUMBERS, GateParams, Kernel, MATVEC_COLUMNS, MatvecParams};

use super::{narrow_copy, narrowed, near, numbers, run};
use crate::machine::{Buffer, Machine, bytes_of_floats, floats};
use crate::random::Random;

pub(super) fn check_gates(machine: &impl Machine) {
    let sizes = [(1, 1), (7, 2), (8, 2), (129, 3), (520, 2), (1032, 2), (2048, 1), (2049, 2)];
    for (width, tokens) in sizes.into_iter().chain([(3080, 1), (4104, 2)]) {
        let mut x = numbers(2 * tokens * width, 9);
        (x[0], x[width]) = (-60.0, 3.0);
        for which in 0..2 {
            let bytes = bytes_of_floats(&x);
            let numbers = 2 * which;
            let narrow = Buffer::Output(if numbers == 0 { 4 } else { bytes.len() / 4 });
            let buffers = [Buffer::Input(&bytes), Buffer::Output(bytes.len() / 2), narrow];
            let params =
                GateParams { width: width as u32, activation: which, numbers, only: 0, from: 0 };
            let grid = [width.div_ceil(GATE_NUMBERS), tokens, 1];
            let given = machine.run((Kernel::Gate, grid), &buffers, &params);
            let found = [floats(&given[0])];
            narrow_copy(&given[1], &found[0], numbers);
            let rows = x.chunks(2 * width).flat_map(|row| {
                let (gates, values) = row.split_at(width);
                gates
                    .iter()
                    .zip(values)
                    .map(|(g, v)| activation(which, f64::from(*g)) * f64::from(*v))
            });
            near(&found[0], &rows.collect::<Vec<_>>(), 2e-6, &format!("gate of {width}"));
            let only =
                machine.run((Kernel::Gate, grid), &buffers, &GateParams { only: 1, ..params });
            assert_eq!((&only[1], only[0] == given[0]), (&given[1], numbers == 0));
            check_narrow_gate(machine, &x, params);
        }
    }
}

/// Gates of 16 bits give what the same numbers of f32 give.
fn check_narrow_gate(machine: &impl Machine, x: &[f32], params: GateParams) {
    let width = params.width as usize;
    let grid = [width.div_ceil(GATE_NUMBERS), x.len() / 2 / width, 1];
    let gated = |bytes: &[u8], from: u32| {
        let buffers =
            [Buffer::Input(bytes), Buffer::Output(2 * x.len()), Buffer::Output(x.len().max(4))];
        machine.run((Kernel::Gate, grid), &buffers, &GateParams { from, ..params })
    };
    for from in [1, 2] {
        let (wide, narrow) = narrowed(x, from);
        assert_eq!(gated(&narrow, from), gated(&wide, 0));
    }
}

pub(super) fn check_matvecs(machine: &impl Machine) {
    let shapes = [(1, 8, 1), (1, 1032, 9), (2, 512, 8), (3, 1024, 17), (4, 2080, 5), (1, 4096, 6)];
    for (rows, input, output) in shapes {
        for (wide, gate) in [(0, 0), (1, 0), (0, 1), (1, 2)] {
            for numbers in [1, 2] {
                let stride = output + 3;
                let [rows, input] = [rows, input];
                check_matvec(
                    machine,
                    MatvecParams { rows, input, output, stride, numbers, wide, gate },
                );
            }
        }
    }
}

/// One product, plain or gated, of rows that are rounded before or by the kernel.
fn check_matvec(machine: &impl Machine, params: MatvecParams) {
    let MatvecParams { rows, input, output, stride, numbers, wide, gate } = params;
    let [rows, input, output, stride] = [rows, input, output, stride].map(|n| n as usize);
    let columns = if gate == 0 { output } else { 2 * output };
    let stored = |count, seed| -> (Vec<f64>, Vec<u8>, Vec<u8>) {
        let floats = Random(seed).floats(count);
        let all = floats.iter().map(|x| match numbers {
            1 => (f16::from_f32(*x).to_f64(), f16::from_f32(*x).to_ne_bytes()),
            _ => (bf16::from_f32(*x).to_f64(), bf16::from_f32(*x).to_ne_bytes()),
        });
        let (exact, bytes): (Vec<_>, Vec<_>) = all.unzip();
        (exact, bytes.concat(), bytes_of_floats(&floats))
    };
    let (x, x_bytes, x_floats) = stored(rows * input, 21);
    let (weights, weight_bytes, _) = stored(columns * input, 22);
    let kept = bytes_of_floats(&vec![-1.0; rows * stride]);
    let x_bytes = if wide == 1 { &x_floats } else { &x_bytes };
    let buffers = [Buffer::Input(x_bytes), Buffer::Input(&weight_bytes), Buffer::Changed(&kept)];
    let grid = [columns.div_ceil(MATVEC_COLUMNS), 1, 1];
    let found = run(machine, (Kernel::Matvec, grid), &buffers, &params);
    let product = |row: &[f64], column: usize| {
        let w = &weights[column * input..][..input];
        row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()
    };
    let result = |row: &[f64], column: usize| match (column < output, gate) {
        (false, _) => -1.0, // between the rows nothing is written
        (true, 0) => product(row, column),
        (true, gate) => activation(gate - 1, product(row, column)) * product(row, output + column),
    };
    let rows = x.chunks(input);
    let exact = rows.flat_map(|row| (0..stride).map(move |column| result(row, column)));
    near(&found[0], &exact.collect::<Vec<_>>(), 2e-5, &format!("{params:?}"));
}

/// SiLU (0), or GELU by tanh (1).
pub(crate) fn activation(which: u32, x: f64) -> f64 {
    if which == 0 {
        return x / (1.0 + (-x).exp());
    }
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}
