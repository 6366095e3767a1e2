//! `append` gives the bytes of the CPU's pages: every number rounded to nearest even, at ±65504
//! most, in its token's slot, and nothing else touched.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::{AppendParams, Kernel, NOWHERE, Spec};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words};
use crate::random::{Random, spec};

/// What rounds in its own way: ties, the largest and smallest numbers, what is none.
const STRANGE: [f32; 17] = [
    -0.0,
    1.0 + 1.0 / 2048.0,
    1.0 + 3.0 / 2048.0,
    65504.0,
    65519.0,
    65520.0,
    -65520.0,
    1e30,
    f32::INFINITY,
    f32::NEG_INFINITY,
    5.96e-8,
    2.9e-8,
    -2.99e-8,
    6.1e-5,
    f32::MIN_POSITIVE,
    f32::from_bits(0x7F81_2345),
    f32::from_bits(0xFFC5_4321),
];

fn rounded(x: f32) -> u16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_bits()
}

#[test]
fn new_tokens_have_the_bytes_of_the_cpu() {
    check(Emulator::new);
}

pub(crate) fn check<M: Machine>(make: impl Fn(&Spec) -> M) {
    check_sizes(make, &[(64, 1), (80, 3), (112, 2), (128, 8), (256, 2)]);
}

pub(crate) fn check_sizes<M: Machine>(make: impl Fn(&Spec) -> M, sizes: &[(usize, usize)]) {
    for &(dim, kv_heads) in sizes {
        let machine = make(&spec(dim, 4, 4));
        // The last tokens of a page and the first of another, one that is not kept, and slots here
        // and there.
        let places: Vec<u32> =
            [(2, 62), (2, 63), (0, 0), (0, 1), (4, 33)].map(|(page, slot)| 64 * page + slot).into();
        let lists = [[&places[..], &[NOWHERE], &[64]].concat(), vec![5], vec![NOWHERE]];
        for places in &lists {
            check_append(&machine, (dim, kv_heads), [places, &[]]);
        }
        // Two targets: in both, in one of them, in none.
        let others = [NOWHERE, 7, NOWHERE, 64, 65, NOWHERE, 320];
        check_append(&machine, (dim, kv_heads), [&lists[0], &others]);
        check_append(&machine, (dim, kv_heads), [&[NOWHERE], &[130]]);
        check_append(&machine, (dim, kv_heads), [&[130], &[NOWHERE]]);
    }
}

/// One launch with a target, or with two of as many places.
fn check_append(machine: &impl Machine, (dim, kv_heads): (usize, usize), places: [&[u32]; 2]) {
    let (tokens, len) = (places[0].len(), kv_heads * dim);
    let mut random = Random((dim + tokens) as u64);
    let mut sides = [(); 2].map(|()| random.floats(tokens * len));
    for (side, at) in sides.iter_mut().zip([0, 3]) {
        let strange = STRANGE.iter().cycle().skip(at).take(2 * STRANGE.len());
        side.iter_mut().zip(strange).for_each(|(x, strange)| *x = *strange);
    }
    let page = kv_heads * PAGE_TOKENS * dim;
    let target = |places: &[u32]| {
        sides.each_ref().map(|side| {
            let mut pages = vec![u16::MAX; if places.is_empty() { 2 } else { 6 * page }];
            for (token, place) in side.chunks(len).zip(places) {
                let (index, slot) = (*place as usize / PAGE_TOKENS, *place as usize % PAGE_TOKENS);
                for (head, vector) in token.chunks(dim).enumerate() {
                    let at = index * page + (head * PAGE_TOKENS + slot) * dim;
                    if *place != NOWHERE {
                        let into = pages[at..at + dim].iter_mut();
                        into.zip(vector).for_each(|(y, x)| *y = rounded(*x));
                    }
                }
            }
            pages.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>()
        })
    };
    let want = places.map(target);
    let (k, v) = (bytes_of_floats(&sides[0]), bytes_of_floats(&sides[1]));
    let tables = places.map(bytes_of_words);
    let [pages, others] = want.each_ref().map(|sides| sides.each_ref().map(Vec::len));
    let buffers = [
        Buffer::Input(&k),
        Buffer::Input(&v),
        Buffer::Input(&tables[0]),
        Buffer::Output(pages[0]),
        Buffer::Output(pages[1]),
        Buffer::Input(&tables[1]),
        Buffer::Output(others[0]),
        Buffer::Output(others[1]),
    ];
    let params = AppendParams {
        tokens: tokens as u32,
        kv_heads: kv_heads as u32,
        targets: 1 + u32::from(!places[1].is_empty()),
    };
    let got = machine.run((Kernel::Append, params.grid(dim)), &buffers, &params);
    for (got, want) in got.iter().zip(want.iter().flatten()) {
        assert!(got == want, "{dim} {kv_heads} {places:?}");
    }
}
