//! Against attention in f64 on the decoded cache, and bit for bit where order must not matter.

mod case;
mod product;

use case::{Case, Options, bits};
use kvant_turboquant::width_pairs;

use super::*;

const LENGTHS: [usize; 11] = [1, 15, 16, 17, 63, 64, 65, 130, 2047, 2048, 2049];
const GROUPS: [usize; 6] = [1, 3, 4, 7, 8, 16];
const DIMS: [usize; 6] = [64, 80, 96, 128, 256, 72];

/// Checks a case on every path: near the reference, and the same bits.
fn check(case: &mut Case) {
    let want = case.reference();
    let mut first = None;
    for path in Path::available() {
        case.options.path = path;
        let got = case.run();
        let worst = case.worst(&got, &want);
        assert!(worst < 5e-3, "{path:?}, {case}: {worst:.1e}");
        let same = first.get_or_insert_with(|| bits(&got));
        assert!(*same == bits(&got), "{path:?} differs from plain Rust, {case}");
    }
}

#[test]
fn every_width_pair_and_size_follows_the_reference() {
    for (index, widths) in width_pairs().enumerate() {
        for (turn, dim) in DIMS.into_iter().enumerate() {
            let group = GROUPS[(index + turn) % 6];
            check(&mut Case::new((1, group, dim), widths, &[(199, 1)], Options::default()));
        }
    }
}

#[test]
fn lengths_and_ragged_batches_follow_the_reference() {
    let pairs: Vec<_> = width_pairs().collect();
    for (index, length) in LENGTHS.into_iter().enumerate() {
        let widths = pairs[(7 * index + 3) % pairs.len()];
        let shape = (2, GROUPS[index % 6], DIMS[index % 5]);
        check(&mut Case::new(shape, widths, &[(length - 1, 1)], Options::default()));
        let rows = [(length - 1, 1), (70, 3), (0, 1), (300, 16), (1, 1), (64, 2), (5, 1), (128, 1)];
        let batch = [2, 3, 8][index % 3];
        let widths = pairs[(5 * index + 1) % pairs.len()];
        let shape = (1, GROUPS[(index + 1) % 6], 64);
        check(&mut Case::new(shape, widths, &rows[..batch], Options::default()));
    }
}

#[test]
fn windows_caps_sinks_and_masks_stay_in_the_kernel() {
    let pairs: Vec<_> = width_pairs().collect();
    for index in 0..32 {
        let options = Options {
            window: [None, Some(1), Some(17), Some(100), Some(700)][index % 5],
            soft_cap: (index & 1 > 0).then_some(2.0),
            sink_logits: index & 2 > 0,
            mask: index & 4 > 0,
            sinks: [0, 4, 64][index % 3],
            ..Options::default()
        };
        let shape = (2, GROUPS[index % 6], DIMS[index % 6]);
        let rows = [(600, 5), (64, 1), (3, 2), (129, 16)];
        check(&mut Case::new(shape, pairs[index % 25], &rows, options));
    }
}

#[test]
fn a_result_does_not_depend_on_neighbours_chunks_or_threads() {
    let widths = kvant_turboquant::Widths::from_average(3.5).unwrap();
    for window in [None, Some(100)] {
        let options = Options { window, sinks: 4, ..Options::default() };
        let rows = [(1100, 1), (70, 16), (3, 1), (600, 9)];
        let case = Case::new((2, 4, 64), widths, &rows, options);
        let together = case.run();
        let mut alone = Vec::new();
        let mut one_by_one = Vec::new();
        for (row, (_, tokens)) in rows.into_iter().enumerate() {
            alone.extend(case.run_part(row, 0..tokens));
            for token in 0..tokens {
                one_by_one.extend(case.run_part(row, token..token + 1));
            }
        }
        assert!(bits(&together) == bits(&alone), "alone, window {window:?}");
        assert!(bits(&together) == bits(&one_by_one), "one by one, window {window:?}");
        for threads in [1, 3, 64] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| bits(&case.run())) == bits(&together), "{threads} threads");
        }
    }
}

#[test]
fn one_split_and_many_agree() {
    // The same tokens with all pages in the first split, and shifted over three splits: the
    // softmax of a window of 400 tokens does not know where it lies.
    let widths = kvant_turboquant::Widths::from_average(4.0).unwrap();
    let long = Case::new((1, 4, 128), widths, &[(1500, 1)], Options::default());
    let short = long.without_first_pages(0, 7);
    let options = Options { window: Some(1500 - 7 * 64 + 1), ..Options::default() };
    let long = Case { options, ..long };
    let want: Vec<f64> = long.run().into_iter().map(f64::from).collect();
    let worst = short.worst(&short.run(), &want);
    assert!(worst < 1e-3, "{worst:.1e}");
}

#[test]
fn a_row_that_sees_nothing_gives_zeros() {
    let widths = kvant_turboquant::Widths::from_average(4.0).unwrap();
    let rows = [(130, 2), (3, 1)];
    let nothing = [
        Options { window: Some(0), ..Options::default() },
        Options { mask: true, mask_out: Some(f32::NEG_INFINITY), ..Options::default() },
        Options { mask: true, mask_out: Some(f32::MIN), ..Options::default() },
        Options { window: Some(0), sink_logits: true, ..Options::default() },
    ];
    for options in nothing {
        let mut case = Case::new((1, 3, 64), widths, &rows, options);
        for path in Path::available() {
            case.options.path = path;
            assert!(case.run().iter().all(|x| *x == 0.0), "{path:?}, {case}");
        }
    }
    let case = Case::new((1, 3, 64), widths, &[], Options::default());
    assert!(case.run().is_empty());
}

#[test]
fn the_wrong_inverse_is_seen() {
    let widths = kvant_turboquant::Widths::from_average(4.0).unwrap();
    let mut case = Case::new((1, 4, 128), widths, &[(255, 1)], Options::default());
    let want = case.reference();
    std::mem::swap(&mut case.rotations.0, &mut case.rotations.1);
    let worst = case.worst(&case.run(), &want);
    assert!(worst > 1.0, "K and V rotations swapped: {worst}");
}

#[test]
#[should_panic(expected = "1 packed and 1 tail pages are too few for 129 tokens")]
fn a_tail_one_token_too_short_is_refused() {
    let widths = kvant_turboquant::Widths::from_average(4.0).unwrap();
    let mut case = Case::new((1, 1, 64), widths, &[(127, 1)], Options::default());
    case.rows[0].position = 128;
    case.run();
}
