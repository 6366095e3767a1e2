//! The kernels of a model against plain loops in f64.

mod products;

#[cfg(feature = "cuda")]
pub(crate) use products::activation;

use half::{bf16, f16};
use kvant_kernels::device::{
    AnglesParams, BiasParams, CastParams, ELSEWHERE, Kernel, LookupParams, NormParams, Params,
    PickParams, PlaceParams, SoftCapParams, SplitParams,
};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, floats, rounded};
use crate::random::Random;

#[test]
fn kernels_of_a_model_agree_with_plain_loops() {
    check(&Emulator::ops());
}

pub(crate) fn check(machine: &impl Machine) {
    check_norms(machine);
    check_angles(machine);
    check_splits(machine);
    products::check_gates(machine);
    products::check_matvecs(machine);
    check_rows(machine);
    check_numbers(machine);
}

fn near(found: &[f32], exact: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let gap = (f64::from(*found) - exact).abs();
        assert!(gap <= bound * exact.abs().max(1.0), "{what}: {found} for {exact} at {at}");
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    Random(seed).floats(count)
}

/// x over its root mean square times the weight.
fn normed(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * factor * f64::from(*w)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Runs a kernel on words and floats.
fn run(
    machine: &impl Machine,
    launch: (Kernel, [usize; 3]),
    buffers: &[Buffer<'_>],
    params: &impl Params,
) -> Vec<Vec<f32>> {
    machine.run(launch, buffers, params).iter().map(|bytes| floats(bytes)).collect()
}

fn check_norms(machine: &impl Machine) {
    let odd = [(1, 2), (7, 2), (9, 3), (1030, 2), (4095, 2), (4097, 1)];
    let fours = [(4, 2), (8, 1), (40, 3), (576, 4), (4096, 2), (4104, 2), (8192, 1), (9000, 1)];
    for (width, tokens) in odd.into_iter().chain(fours) {
        let [x, delta] = [1, 2].map(|seed| numbers(tokens * width, seed));
        let [weight, post] = [3, 4].map(|seed| numbers(width, seed));
        let bytes = [&x, &delta, &post, &weight].map(|x| bytes_of_floats(x));
        for add in 0..3 {
            let numbers = add;
            let params = NormParams {
                width: width as u32,
                add,
                eps: 1e-5,
                post_eps: 1e-3,
                numbers,
                only: 0,
                from: 0,
            };
            let [x_bytes, delta_bytes, post_bytes, weight_bytes] = &bytes;
            let unread = if add == 0 { &[][..] } else { delta_bytes };
            let buffers = [
                Buffer::Changed(x_bytes),
                Buffer::Output(x_bytes.len()),
                Buffer::Input(unread),
                Buffer::Input(if add == 2 { post_bytes } else { &[] }),
                Buffer::Input(weight_bytes),
                Buffer::Output(if numbers == 0 { 4 } else { x_bytes.len() / 2 }),
            ];
            let bytes = machine.run((Kernel::Norm, [tokens, 1, 1]), &buffers, &params);
            let found = [floats(&bytes[0]), floats(&bytes[1])];
            narrow_copy(&bytes[2], &found[1], numbers);
            let (mut sums, mut norms) = (Vec::new(), Vec::new());
            for (x, delta) in x.chunks(width).zip(delta.chunks(width)) {
                let added = match add {
                    0 => vec![0.0; width],
                    1 => wide(delta),
                    _ => normed(&wide(delta), &post, 1e-3),
                };
                let sum: Vec<f64> = wide(x).iter().zip(added).map(|(x, a)| x + a).collect();
                norms.extend(normed(&sum, &weight, 1e-5));
                sums.extend(sum);
            }
            let what = format!("norm of {width}, add {add}");
            near(&found[0], &sums, 2e-6, &what);
            near(&found[1], &norms, 4e-6, &what);
            let only = NormParams { only: 1, ..params };
            let again = machine.run((Kernel::Norm, [tokens, 1, 1]), &buffers, &only);
            assert_eq!((&again[0], &again[2]), (&bytes[0], &bytes[2]), "{what}");
            assert_eq!(again[1] == bytes[1], numbers == 0, "{what}: written where it is not read");
            for from in 1..3 {
                let (wide, narrow) = narrowed(&delta, from);
                let with = |delta: &[u8], from: u32| {
                    let mut buffers = buffers;
                    buffers[2] = Buffer::Input(if add == 0 { &[] } else { delta });
                    let params = NormParams { from, ..params };
                    machine.run((Kernel::Norm, [tokens, 1, 1]), &buffers, &params)
                };
                assert_eq!(with(&narrow, from), with(&wide, 0), "{what}");
            }
        }
    }
}

/// Numbers as f16 (1) or bf16 (2), as bytes of f32 and of their own.
fn narrowed(x: &[f32], numbers: u32) -> (Vec<u8>, Vec<u8>) {
    let wide = rounded(x, numbers);
    let narrow = wide.iter().flat_map(|x| match numbers {
        1 => f16::from_f32(*x).to_ne_bytes(),
        _ => bf16::from_f32(*x).to_ne_bytes(),
    });
    (bytes_of_floats(&wide), narrow.collect())
}

/// What lies beside results as f16 (1) or bf16 (2), or is not written (0).
fn narrow_copy(bytes: &[u8], wide: &[f32], numbers: u32) {
    let round = |x: &f32| match numbers {
        1 => f16::from_f32(*x).to_bits(),
        _ => bf16::from_f32(*x).to_bits(),
    };
    let wanted: Vec<u16> =
        if numbers == 0 { vec![u16::MAX; 2] } else { wide.iter().map(round).collect() };
    let found: Vec<u16> = bytes.as_chunks().0.iter().map(|x| u16::from_ne_bytes(*x)).collect();
    assert_eq!(found, wanted);
}

fn check_angles(machine: &impl Machine) {
    let (pairs, rows) = (40_usize, 512_usize);
    let frequency = |pair: usize| 10_000_f64.powf(-(pair as f64) / pairs as f64);
    let row = |position: usize| {
        let angle = move |pair: usize| position as f64 * frequency(pair);
        (0..pairs).map(move |p| angle(p).cos()).chain((0..pairs).map(move |p| angle(p).sin()))
    };
    let positions = (0..256).chain((0..rows).map(|multiple| 256 * multiple));
    let table: Vec<f32> = positions.flat_map(row).map(|x| x as f32).collect();
    let asked = [0, 1, 255, 256, 257, 4_097, 131_071];
    let words = asked.map(|position| position as u32);
    let buffers = [
        Buffer::Input(&bytes_of_words(&words)),
        Buffer::Input(&bytes_of_floats(&table)),
        Buffer::Output(asked.len() * 2 * pairs * 4),
    ];
    let params = AnglesParams { pairs: pairs as u32, rows: rows as u32 };
    let found = run(machine, (Kernel::Angles, [1, asked.len(), 1]), &buffers, &params);
    let exact: Vec<f64> = asked.into_iter().flat_map(row).collect();
    near(&found[0], &exact, 2.5e-7, "angles");
}

fn check_splits(machine: &impl Machine) {
    let sizes = [
        (1, 1, 16, 16, false),
        (4, 2, 64, 64, true),
        (3, 1, 80, 20, false),
        (3, 1, 80, 80, true),
        (5, 1, 96, 48, true),
        (2, 1, 96, 24, false),
        (6, 2, 128, 0, true),
        (32, 8, 128, 128, false),
        (7, 2, 128, 128, true),
        (3, 2, 256, 64, true),
        (2, 1, 256, 256, false),
        (2, 1, 264, 264, true),
        (3, 1, 64, 6, true),
        (1, 1, 7, 6, true),
        (1, 2, 36, 32, false),
    ];
    for (q_heads, kv_heads, dim, rotated, norms) in sizes {
        let (tokens, heads) = (3, q_heads + 2 * kv_heads);
        let qkv = numbers(tokens * heads * dim, 5);
        let angles = numbers(tokens * rotated, 6);
        let weights = [7, 8].map(|seed| numbers(if norms { dim } else { 0 }, seed));
        let bytes = [&qkv, &angles, &weights[0], &weights[1]].map(|x| bytes_of_floats(x));
        let mut buffers: Vec<_> = bytes.iter().map(|bytes| Buffer::Input(bytes)).collect();
        buffers.push(Buffer::Output(qkv.len() * 4));
        let params = SplitParams {
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            dim: dim as u32,
            rotated: rotated as u32,
            tokens: tokens as u32,
            norms: u32::from(norms),
            q_eps: 1e-6,
            k_eps: 1e-5,
        };
        let found = run(machine, (Kernel::Split, params.grid()), &buffers, &params);
        let head = |token: usize, head: usize| {
            let mut x = wide(&qkv[(token * heads + head) * dim..][..dim]);
            if head >= q_heads + kv_heads {
                return x;
            }
            if norms {
                let k = usize::from(head >= q_heads);
                x = normed(&x, &weights[k], [1e-6, 1e-5][k]);
            }
            let half = rotated / 2;
            let angles = wide(&angles[token * rotated..][..rotated]);
            for i in 0..half {
                let ([a, b], [cos, sin]) = ([x[i], x[i + half]], [angles[i], angles[i + half]]);
                (x[i], x[i + half]) = (a * cos - b * sin, a * sin + b * cos);
            }
            x
        };
        let of = |from: usize, count: usize| {
            (0..tokens).flat_map(move |token| (from..from + count).map(move |head| (token, head)))
        };
        let order =
            of(0, q_heads).chain(of(q_heads, kv_heads)).chain(of(q_heads + kv_heads, kv_heads));
        let exact: Vec<f64> = order.flat_map(|(token, at)| head(token, at)).collect();
        near(&found[0], &exact, 4e-6, &format!("split of heads of {dim}, {rotated} turned"));
    }
}

fn check_rows(machine: &impl Machine) {
    let (vocab, hidden) = (5, 514);
    let table = numbers(vocab * hidden, 10);
    let ids = [4_u32, 0, 5, 4];
    let id_bytes = bytes_of_words(&ids);
    // Some of them elsewhere in the list, one of them nothing.
    let apart = bytes_of_words(&[4, ELSEWHERE | 5, ELSEWHERE | 4, 4, u32::MAX, 0]);
    let halves: Vec<u8> = table.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect();
    let brains: Vec<u8> = table.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect();
    let grid = [hidden.div_ceil(512), ids.len(), 1];
    let size = Buffer::Output;
    for (numbers, bytes) in (0..).zip([&bytes_of_floats(&table), &halves, &brains]) {
        let stored = |x: f32| match numbers {
            0 => x,
            1 => f16::from_f32(x).to_f32(),
            _ => bf16::from_f32(x).to_f32(),
        };
        let params =
            LookupParams { hidden: hidden as u32, vocab: vocab as u32, numbers, scale: 1.5 };
        let exact = ids.iter().flat_map(|id| {
            let row = table.chunks(hidden).nth(*id as usize);
            row.map_or(vec![0.0; hidden], |row| row.iter().map(|x| stored(*x) * 1.5).collect())
        });
        let exact: Vec<f32> = exact.collect();
        for ids_at in [&id_bytes, &apart] {
            let out = size(ids.len() * hidden * 4);
            let buffers = [Buffer::Input(ids_at), Buffer::Input(bytes), out];
            let found = run(machine, (Kernel::Lookup, grid), &buffers, &params);
            assert_eq!(found[0], exact, "table of {numbers}");
        }
    }
    let bytes = bytes_of_floats(&table);
    let params = PickParams { width: hidden as u32, tokens: vocab as u32 };
    let buffers = [Buffer::Input(&id_bytes), Buffer::Input(&bytes), size(ids.len() * hidden * 4)];
    let found = run(machine, (Kernel::Pick, grid), &buffers, &params);
    let zeros = vec![0.0; hidden];
    let rows = ids.iter().flat_map(|id| table.chunks(hidden).nth(*id as usize).unwrap_or(&zeros));
    assert_eq!(found[0], rows.copied().collect::<Vec<f32>>());
    let params = PlaceParams { width: hidden as u32, stride: 600, first: 7 };
    let kept = bytes_of_floats(&numbers(vocab * 600, 11));
    let buffers = [Buffer::Input(&bytes), Buffer::Changed(&kept)];
    let found = run(machine, (Kernel::Place, [2, vocab, 1]), &buffers, &params);
    let mut expected = floats(&kept);
    for (into, row) in expected.chunks_mut(600).zip(table.chunks(hidden)) {
        into[7..7 + hidden].copy_from_slice(row);
    }
    assert_eq!(found[0], expected);
    check_weighed(machine, &table, hidden);
}

fn check_weighed(machine: &impl Machine, x: &[f32], width: usize) {
    let (rows, tokens) = ([6_u32, 0, 9, 2, 1], 7);
    let weights = numbers(rows.len(), 14);
    let kept = numbers(tokens * width, 15);
    let params = PickParams { width: width as u32, tokens: tokens as u32 };
    let bytes = [&weights, x].map(bytes_of_floats);
    let buffers = [
        Buffer::Input(&bytes_of_words(&rows)),
        Buffer::Input(&bytes[0]),
        Buffer::Input(&bytes[1]),
        Buffer::Changed(&bytes_of_floats(&kept)),
    ];
    let grid = [width.div_ceil(512), rows.len(), 1];
    let found = run(machine, (Kernel::Weigh, grid), &buffers, &params);
    let mut expected = kept;
    for ((row, weight), x) in rows.iter().zip(weights).zip(x.chunks(width)) {
        let Some(out) = expected.chunks_mut(width).nth(*row as usize) else { continue };
        out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
    }
    assert_eq!(found[0], expected);
}

fn check_numbers(machine: &impl Machine) {
    let mut x = numbers(1030, 12);
    x[..8].copy_from_slice(&[
        f32::NAN,
        f32::INFINITY,
        -0.0,
        1e9,
        65_519.9,
        1e-8,
        -1e-41,
        1.003_906,
    ]);
    let bytes = bytes_of_floats(&x);
    let count = x.len() as u32;
    let grid = [x.len().div_ceil(512), 1, 1];
    for numbers in [1, 2] {
        let buffers = [Buffer::Input(&bytes), Buffer::Output(2 * x.len())];
        let found = machine.run((Kernel::Cast, grid), &buffers, &CastParams { count, numbers });
        let stored = |x: f32| match numbers {
            1 => f16::from_f32(x).to_bits(),
            _ => bf16::from_f32(x).to_bits(),
        };
        let found = found[0].as_chunks().0.iter().map(|x| u16::from_ne_bytes(*x));
        for (found, x) in found.zip(&x).skip(1) {
            assert_eq!(found, stored(*x), "{x} to {numbers}");
        }
    }
    let rows = &x[8..1008];
    let bytes = bytes_of_floats(rows);
    let bias = numbers(250, 13);
    let buffers = [Buffer::Input(&bytes_of_floats(&bias)), Buffer::Changed(&bytes)];
    let found = run(machine, (Kernel::Bias, [1, 4, 1]), &buffers, &BiasParams { width: 250 });
    let exact = rows.iter().zip(bias.iter().cycle()).map(|(x, b)| x + b);
    assert_eq!(found[0], exact.collect::<Vec<f32>>());
    let params = SoftCapParams { count: 1000, cap: 2.5 };
    let found = run(machine, (Kernel::SoftCap, [2, 1, 1]), &[Buffer::Changed(&bytes)], &params);
    let exact = rows.iter().map(|x| (f64::from(*x) / 2.5).tanh() * 2.5);
    near(&found[0], &exact.collect::<Vec<_>>(), 1e-6, "soft cap");
}
