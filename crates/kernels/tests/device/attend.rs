//! `attend` and `combine` against attention in f64 over what the codes stand for.

mod case;

use kvant_kernels::device::Spec;
use kvant_turboquant::Width;

use self::case::{Case, Options, PLAIN, Shape};
use crate::emulator::Emulator;
use crate::machine::{Machine, each};
use crate::random::{DIMS, paired};

#[test]
fn every_width_and_size() {
    check_shapes(Emulator::new);
}

pub(crate) fn check_shapes<M: Machine>(make: impl Fn(&Spec) -> M + Sync) {
    let sizes = [(64, 1), (80, 3), (96, 2), (128, 4), (256, 8)];
    let bits = [(2, 3), (3, 8), (4, 4), (6, 2), (8, 6)];
    let mut shapes = Vec::new();
    for (index, (dim, group)) in sizes.into_iter().enumerate() {
        for offset in [0, 2] {
            let bits = bits[(index + offset) % bits.len()];
            shapes.push(Shape { dim, bits, kv_heads: 2, group, queries: group, dense: false });
        }
    }
    each::<M, _>(&shapes, |shape| {
        let case = Case::new(*shape, &[(0, 1), (130, 1), (63, 1), (448, 1)], 1.0);
        case.check(&make(&case.spec), PLAIN);
    });
}

#[test]
fn sizes_by_bits_by_groups() {
    // Values of the widths whose programs `encode` has.
    check_table(Emulator::new, |dim, keys| {
        let index = DIMS.iter().position(|of| *of == dim).unwrap();
        let at = Width::CACHE.iter().position(|width| width.bits() == keys).unwrap();
        paired(index, at).bits()
    });
}

/// Sizes of a head × bits × query heads of a key head × kinds of rotation.
pub(crate) fn check_table<M: Machine>(
    make: impl Fn(&Spec) -> M + Sync,
    values: impl Fn(usize, usize) -> usize,
) {
    let mut shapes = Vec::new();
    for (dim, dense) in [64, 128, 256].into_iter().flat_map(|dim| [(dim, false), (dim, true)]) {
        for keys in [2, 3, 4, 8] {
            let bits = (keys, values(dim, keys));
            for group in [1, 4] {
                shapes.push(Shape { dim, bits, kv_heads: 1, group, queries: 8, dense });
            }
        }
    }
    each::<M, _>(&shapes, |shape| {
        let case = Case::new(*shape, &[(64, 1), (210, 1)], 1.0);
        case.check(&make(&case.spec), PLAIN);
    });
    // A size without a Hadamard rotation, by what each size does unasked.
    let shape = Shape { dim: 144, bits: (4, 4), kv_heads: 1, group: 2, queries: 8, dense: false };
    let case = Case::new(shape, &[(64, 1), (210, 3)], 1.0);
    assert!(case.spec.is_dense());
    case.check(&make(&case.spec), Options { window: 100, split_pages: 2, ..PLAIN });
}

#[test]
fn windows_caps_and_several_tokens() {
    check_options(Emulator::new, 64, (4, 3));
}

pub(crate) fn check_options<M: Machine>(
    make: impl Fn(&Spec) -> M,
    dim: usize,
    bits: (usize, usize),
) {
    let shape = Shape { dim, bits, kv_heads: 1, group: 3, queries: 8, dense: false };
    let rows = [(63, 16), (64, 2), (0, 5), (321, 7), (127, 1)];
    let case = Case::new(shape, &rows, 4.0);
    let machine = make(&case.spec);
    for options in [
        Options { split_pages: 1, ..PLAIN },
        Options { split_pages: 16, tail_apart: true, ..PLAIN },
        Options { window: 1, ..PLAIN },
        Options { window: 60, ..PLAIN },
        Options { window: 100, split_pages: 2, ..PLAIN },
        Options { soft_cap: 2.0, ..PLAIN },
        Options { soft_cap: 30.0, window: 200, split_pages: 2, ..PLAIN },
        Options { sinks: 4, ..PLAIN },
        Options { sinks: 64, window: 150, split_pages: 1, ..PLAIN },
        Options { sink_logits: true, ..PLAIN },
        Options { mask: true, split_pages: 2, ..PLAIN },
        Options { mask: true, sinks: 7, sink_logits: true, window: 250, soft_cap: 20.0, ..PLAIN },
    ] {
        case.check(&machine, options);
    }
    case.check_numbers(&machine, Options { split_pages: 16, ..PLAIN });
    case.check_numbers(&machine, Options { split_pages: 1, ..PLAIN });
}

#[test]
fn scores_far_apart_stay_finite() {
    check_sharp(Emulator::new, 64);
}

pub(crate) fn check_sharp<M: Machine>(make: impl Fn(&Spec) -> M, dim: usize) {
    let shape = Shape { dim, bits: (8, 4), kv_heads: 1, group: 2, queries: 2, dense: false };
    for sharp in [0.0, 60.0] {
        let case = Case::new(shape, &[(200, 1), (64, 1)], sharp);
        case.check(&make(&case.spec), Options { split_pages: 1, ..PLAIN });
    }
}

/// Every width that a GPU's own kernel takes at 128 numbers, some at its other sizes of a head, and
/// every number of query vectors.
#[cfg(feature = "cuda")]
pub(crate) fn check_own_widths<M: Machine>(make: impl Fn(&Spec) -> M + Sync) {
    let all = [2, 3, 4, 6, 8];
    let all = all.into_iter().flat_map(|keys| all.map(|values| (keys, values)));
    let others = [64, 256].into_iter().flat_map(|dim| {
        [(4, 4), (8, 4), (3, 2), (2, 3), (6, 6)].into_iter().map(move |bits| (dim, bits))
    });
    let mut shapes = Vec::new();
    for (index, (dim, bits)) in all.map(|bits| (128, bits)).chain(others).enumerate() {
        let groups = match bits {
            (4, 4) => &[(4, 4), (8, 8), (1, 1), (3, 5)][..],
            _ if index % 2 == 0 => &[(4, 4)],
            _ => &[(8, 8)],
        };
        for &(group, queries) in groups {
            shapes.push(Shape { dim, bits, kv_heads: 2, group, queries, dense: false });
        }
    }
    each::<M, _>(&shapes, |shape| {
        let case = Case::new(*shape, &[(0, 1), (130, 1), (63, 1), (1024, 1)], 2.0);
        let machine = make(&case.spec);
        for (split_pages, tail_apart) in [(3, true), (16, false)] {
            case.check(&machine, Options { split_pages, tail_apart, ..PLAIN });
        }
    });
}

/// Long contexts.
#[cfg(feature = "cuda")]
pub(crate) fn check_long<M: Machine>(make: impl Fn(&Spec) -> M) {
    for (bits, group, length) in [((4, 4), 4, 131_072), ((8, 4), 8, 32_000), ((3, 3), 4, 8191)] {
        let shape = Shape { dim: 128, bits, kv_heads: 1, group, queries: group, dense: false };
        let case = Case::new(shape, &[(length, 1), (777, 1)], 3.0);
        case.check(&make(&case.spec), Options { split_pages: 64, ..PLAIN });
    }
}
