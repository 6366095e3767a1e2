//! `quant_matmul` against sums in f64 over elements decoded one by one, and every path, number of
//! rows and number of threads against each other.

use half::f16;

use super::activations::cells;
use super::*;

const ROWS: [usize; 8] = [1, 2, 3, 7, 8, 17, 64, 65];
const MOST_ROWS: usize = 65;
const OUTPUTS: [usize; 5] = [1, 15, 16, 17, 33];

/// Of the rounding in f32, in parts of the norms of a row of x and a row of the weights.
const EXACT: f64 = 1e-5;
/// Of the activations in sixteen bits, likewise: half a step is 1/65024 of the largest of 32, and
/// the largest of 32 uniform numbers is less than twice their mean.
const ROUNDED: f64 = 5e-5;

/// Bits from a multiplicative congruential generator.
fn bits(seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 32) as u32
    })
}

/// Numbers in -1..1, every row of another size.
fn numbers(rows: usize, input: usize) -> Vec<f32> {
    let numbers = bits(1).map(|bits| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0);
    let numbers = numbers.take(rows * input).enumerate();
    numbers.map(|(i, number)| number * ((i / input) as f32 + 0.1)).collect()
}

/// Blocks of random codes, with scales that give weights below about one.
fn blocks(format: BlockFormat, count: usize) -> Vec<u8> {
    let mut bits = bits(2);
    let mut next = || bits.next().unwrap();
    let mut bytes: Vec<u8> =
        (0..count * format.block_bytes()).map(|_| (next() >> 24) as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let (places, size): (&[usize], f32) = match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => (&[0], 0.03),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => (&[0, 2], 0.1),
            BlockFormat::Q4K | BlockFormat::Q5K => (&[0, 2], 0.001),
            BlockFormat::Q6K => (&[208], 0.0003),
        };
        for place in places {
            let sign = if next() >> 31 == 0 { size } else { -size };
            let value = f16::from_f32(sign * (next() >> 8) as f32 / (1 << 24) as f32);
            block[*place..][..2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

/// One element of a block of the file, as the format defines it.
fn element(format: BlockFormat, block: &[u8], i: usize) -> f64 {
    let f16_at = |at: usize| f64::from(f16::from_le_bytes([block[at], block[at + 1]]).to_f32());
    let nibble = |at: usize| f64::from((block[at + i % 16] >> (i / 16 * 4)) & 15);
    let fifth = |at: usize| f64::from((block[at + i / 8] >> (i % 8)) & 1) * 16.0;
    // Of 256: the part of 32, and the place in it.
    let (part, place) = (i / 32, i % 32);
    let pair = |at: usize| {
        let packed = &block[at..at + 12];
        let (scale, minimum) = match part {
            0..4 => (packed[part] & 63, packed[part + 4] & 63),
            _ => (
                (packed[part + 4] & 15) | ((packed[part - 4] >> 6) << 4),
                (packed[part + 4] >> 4) | ((packed[part] >> 6) << 4),
            ),
        };
        (f16_at(0) * f64::from(scale), f16_at(2) * f64::from(minimum))
    };
    let half = |at: usize| f64::from((block[at + part / 2 * 32 + place] >> (part % 2 * 4)) & 15);
    match format {
        BlockFormat::Q4_0 => f16_at(0) * (nibble(2) - 8.0),
        BlockFormat::Q4_1 => f16_at(0) * nibble(4) + f16_at(2),
        BlockFormat::Q5_0 => f16_at(0) * (nibble(6) + fifth(2) - 16.0),
        BlockFormat::Q5_1 => f16_at(0) * (nibble(8) + fifth(4)) + f16_at(2),
        BlockFormat::Q8_0 => f16_at(0) * f64::from(block[2 + i] as i8),
        BlockFormat::Q4K => {
            let (scale, minimum) = pair(4);
            scale * half(16) - minimum
        }
        BlockFormat::Q5K => {
            let (scale, minimum) = pair(4);
            let fifth = f64::from((block[16 + place] >> part) & 1) * 16.0;
            scale * (half(48) + fifth) - minimum
        }
        BlockFormat::Q6K => {
            let (upper, quarter) = (part / 4, part % 4);
            let low = block[64 * upper + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
            let high = block[128 + 32 * upper + place] >> (2 * quarter) & 3;
            let scale = f64::from(block[192 + i / 16] as i8);
            f16_at(208) * scale * (f64::from(low | high << 4) - 32.0)
        }
    }
}

/// `[output, input]`.
fn decoded(format: BlockFormat, bytes: &[u8]) -> Vec<f64> {
    let blocks = bytes.chunks_exact(format.block_bytes());
    let elements = |block| (0..format.block_elements()).map(move |i| element(format, block, i));
    blocks.flat_map(elements).collect()
}

fn run(path: Path, x: &[f32], weights: &PackedWeights) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / weights.input() * weights.output()];
    quant_matmul_on(path, &mut out, x, weights);
    out
}

/// Every element within `tolerance` of the norms' product.
fn close(out: &[f32], x: &[f64], weights: &[f64], input: usize, tolerance: f64) -> bool {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let output = weights.len() / input;
    x.chunks(input).zip(out.chunks(output)).all(|(x, out)| {
        weights.chunks(input).zip(out).all(|(w, out)| {
            let bound = tolerance * (dot(x, x) * dot(w, w)).sqrt();
            (f64::from(*out) - dot(x, w)).abs() <= bound
        })
    })
}

fn check(format: BlockFormat, input: usize, output: usize) {
    let case = format!("{format:?} [{output}, {input}]");
    let bytes = blocks(format, output * input / format.block_elements());
    let weights = PackedWeights::new(format, &bytes, input, output);
    let exact = decoded(format, &bytes);
    let x = numbers(MOST_ROWS, input);
    let rows = x.chunks(input);
    let alone: Vec<f32> = rows.clone().flat_map(|x| run(Path::best(), x, &weights)).collect();

    let rounded: Vec<f64> = rows
        .flat_map(|x| {
            let mut own = vec![Cell::default(); x.len() / BLOCK];
            cells(&mut own, x, (input, 1), format.codebook());
            own
        })
        .flat_map(|cell| cell.values())
        .collect();
    assert!(close(&alone, &rounded, &exact, input, EXACT), "{case} of rounded activations");
    let x64: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    assert!(close(&alone, &x64, &exact, input, ROUNDED), "{case}");

    for path in Path::available() {
        for rows in ROWS {
            let together = run(path, &x[..rows * input], &weights);
            assert!(together == alone[..rows * output], "{case}, {rows} rows, {path:?}");
        }
    }
}

#[test]
fn agrees_with_f64_on_every_path_and_keeps_rows_apart() {
    for format in BlockFormat::ALL {
        let inputs: &[usize] =
            if format.block_elements() == 256 { &[256, 768] } else { &[32, 64, 256, 576] };
        for input in inputs {
            for output in OUTPUTS {
                check(format, *input, output);
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for format in BlockFormat::ALL {
        let (input, output) = (512, 400);
        let bytes = blocks(format, output * input / format.block_elements());
        let x = numbers(33, input);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let weights = PackedWeights::new(format, &bytes, input, output);
                let all = |rows: usize| run(Path::best(), &x[..rows * input], &weights);
                [all(1), all(33)]
            })
        };
        assert_eq!(with(1), with(2), "{format:?}");
    }
}

#[test]
fn chunks_of_long_rows_are_smaller_and_change_nothing() {
    let (format, input) = (BlockFormat::Q4_1, 32 * 1024);
    let weights = PackedWeights::new(format, &blocks(format, input / 32), input, 1);
    let x = numbers(11, input);
    let alone: Vec<f32> = x.chunks(input).flat_map(|x| run(Path::best(), x, &weights)).collect();
    assert_eq!(run(Path::best(), &x, &weights), alone);
}

#[test]
fn largest_codes_do_not_overflow() {
    let (input, output) = (256, 1);
    for (format, codes, sign) in [
        (BlockFormat::Q8_0, 0x80, -1.0),
        (BlockFormat::Q8_0, 0x7f, 1.0),
        (BlockFormat::Q4_0, 0xff, 1.0),
        (BlockFormat::Q5_0, 0xff, 1.0),
        (BlockFormat::Q6K, 0xff, 1.0),
    ] {
        let mut bytes = blocks(format, input / format.block_elements());
        let (place, scales) = if format == BlockFormat::Q6K { (208, 192..208) } else { (0, 0..0) };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            block.fill(codes);
            block[scales.clone()].fill(1);
            block[place..][..2].copy_from_slice(&f16::ONE.to_le_bytes());
        }
        let weights = PackedWeights::new(format, &bytes, input, output);
        let exact = element(format, &bytes, 0);
        assert_eq!(exact.signum(), sign);
        for path in Path::available() {
            // Every sixteenth bit counts: the scale of these is a 256th.
            for x in [127.0, -127.0] {
                let out = run(path, &vec![x; input], &weights)[0];
                let expected = exact * f64::from(x) * input as f64;
                let error = (f64::from(out) - expected).abs() / expected.abs();
                assert!(error < 1e-6, "{format:?} {path:?}: {out}, not {expected}");
            }
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so_and_small_ones_vanish() {
    let format = BlockFormat::Q4_1;
    let weights = PackedWeights::new(format, &blocks(format, 2), 32, 2);
    for path in Path::available() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = numbers(2, 32);
            x[40] = odd;
            let out = run(path, &x, &weights);
            assert!(out[..2].iter().all(|y| y.is_finite()), "{odd}: {out:?}");
            assert!(out[2..].iter().all(|y| y.is_nan()), "{odd}: {out:?}");
        }
        assert_eq!(run(path, &[1e-38; 32], &weights), [0.0; 2]);
        assert_eq!(run(path, &[0.0; 32], &weights), [0.0; 2]);
    }
}

#[test]
fn activations_far_from_one_keep_their_precision() {
    let (format, input, output) = (BlockFormat::Q4_0, 64, 16);
    let bytes = blocks(format, output * input / 32);
    let weights = PackedWeights::new(format, &bytes, input, output);
    let exact = decoded(format, &bytes);
    // As small as they may be, ordinary ones, and above all f16.
    for size in [1e-30, 1e-6, 1e-4, 1.0, 1e6, 1e9] {
        let x: Vec<f32> = numbers(3, input).iter().map(|x| x * size).collect();
        let x64: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let out = run(Path::best(), &x, &weights);
        assert!(close(&out, &x64, &exact, input, ROUNDED), "activations of {size}");
    }
}

#[test]
fn no_rows_give_nothing() {
    let format = BlockFormat::Q8_0;
    let weights = PackedWeights::new(format, &blocks(format, 1), 32, 1);
    assert!(run(Path::best(), &[], &weights).is_empty());
}

#[test]
fn packed_weights_are_as_large_as_in_the_file() {
    for format in BlockFormat::ALL {
        let bytes = blocks(format, 64 * 512 / format.block_elements());
        // Six bits of scale and minimum become eight.
        let more = match format {
            BlockFormat::Q4K | BlockFormat::Q5K => 64 * 2 * 4,
            _ => 0,
        };
        let packed = PackedWeights::new(format, &bytes, 512, 64);
        assert_eq!(packed.bytes(), bytes.len() + more, "{format:?}");
    }
}
