//! `attend_dense` and `merge` against attention in f64 over 16-bit pages.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::{
    DENSE_FEW, DENSE_MANY, DenseParams, DenseRowParams, Kernel, Params, Spec,
};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, results, rounded};
use crate::random::{Random, spec};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) dim: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    parts: usize,
    block: usize,
    window: usize,
    soft_cap: f32,
    /// Of results: 0 f32, 1 f16, 2 bf16.
    numbers: u32,
}

const FEW: Options = Options { parts: 3, block: DENSE_FEW, window: 0, soft_cap: 0.0, numbers: 0 };
const MANY: Options = Options { parts: 1, block: DENSE_MANY, window: 0, soft_cap: 0.0, numbers: 0 };

/// Scattered pages of random numbers. Rows are (position, tokens).
pub(crate) struct Case {
    shape: Shape,
    rows: Vec<DenseRowParams>,
    pages: Vec<u32>,
    /// Keys and values, `[page][kv_heads][64][dim]`; slots that hold no token are NaN.
    sides: [Vec<f16>; 2],
    q: Vec<f32>,
    /// Every so manyth query vector is compared.
    stride: usize,
}

impl Case {
    pub(crate) fn new(shape: Shape, rows: &[(usize, usize)], sharp: f32) -> Self {
        let Shape { dim, kv_heads, group } = shape;
        let mut random = Random((7 * dim + rows.len()) as u64);
        let count: usize = rows.iter().map(|(at, n)| (at + n).div_ceil(PAGE_TOKENS)).sum();
        let page_len = kv_heads * PAGE_TOKENS * dim;
        let mut sides = [(); 2].map(|()| vec![f16::NAN; count * page_len]);
        let (mut list, mut all_rows) = (Vec::new(), Vec::new());
        let (mut query, mut from) = (0, count as u32);
        for &(position, tokens) in rows {
            let (pages_at, end) = (list.len() as u32, position + tokens);
            // Pages are taken from the end of memory.
            let own = end.div_ceil(PAGE_TOKENS) as u32;
            list.extend((0..own).map(|page| from - 1 - page));
            for (index, page) in list[pages_at as usize..].iter().enumerate() {
                let filled = PAGE_TOKENS.min(end - index * PAGE_TOKENS) * dim;
                for side in &mut sides {
                    let page = &mut side[*page as usize * page_len..][..page_len];
                    for head in page.chunks_mut(PAGE_TOKENS * dim) {
                        let numbers = random.floats(filled).into_iter().map(f16::from_f32);
                        head.iter_mut().zip(numbers).for_each(|(into, x)| *into = x);
                    }
                }
            }
            from -= own;
            let position = position as u32;
            all_rows.push(DenseRowParams { query, tokens: tokens as u32, position, pages_at });
            query += tokens as u32;
        }
        let mut q = random.floats(query as usize * kv_heads * group * dim);
        for q in &mut q {
            *q *= sharp;
        }
        Self { shape, rows: all_rows, pages: list, sides, q, stride: 1 }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn sampled(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.dim as f32).sqrt()
    }

    fn params(&self, options: Options) -> DenseParams {
        DenseParams {
            q_heads: (self.shape.kv_heads * self.shape.group) as u32,
            kv_heads: self.shape.kv_heads as u32,
            parts: options.parts as u32,
            block: options.block as u32,
            window: options.window as u32,
            scale: self.scale(),
            soft_cap: options.soft_cap,
            numbers: options.numbers,
        }
    }

    /// The list of pages, with numbers past the end for those that no token of its row sees.
    fn list(&self, window: usize) -> Vec<u32> {
        let mut list = self.pages.clone();
        for row in &self.rows {
            if window > 0 && row.tokens > 0 {
                let from = (row.position as usize + 1).saturating_sub(window) / PAGE_TOKENS;
                list[row.pages_at as usize..][..from].fill(u32::MAX);
            }
        }
        list
    }

    /// The results of the device's kernels.
    fn attended(&self, machine: &impl Machine, options: Options) -> Vec<f32> {
        let (params, dim) = (self.params(options), self.shape.dim);
        let (q, list) = (bytes_of_floats(&self.q), bytes_of_words(&self.list(options.window)));
        let rows: Vec<u32> = self.rows.iter().flat_map(DenseRowParams::words).collect();
        let rows = bytes_of_words(&rows);
        let bytes = |side: &Vec<f16>| -> Vec<u8> {
            side.iter().flat_map(|x| x.to_bits().to_ne_bytes()).collect()
        };
        let sides = self.sides.each_ref().map(bytes);
        let tokens = self.q.len() / dim / params.q_heads as usize;
        let most = self.rows.iter().map(|row| row.tokens as usize).max().unwrap();
        let scratch = params.scratch_bytes(tokens, dim);
        let buffers = [
            Buffer::Input(&q),
            Buffer::Input(&sides[0]),
            Buffer::Input(&sides[1]),
            Buffer::Input(&rows),
            Buffer::Input(&list),
            Buffer::Output(q.len()),
            Buffer::Output(scratch[0].max(4)),
            Buffer::Output(scratch[1].max(4)),
        ];
        let grid = params.grid(most, self.rows.len());
        let found = machine.run((params.kernel(), grid), &buffers, &params);
        if options.parts == 1 {
            return results(&found[0], options.numbers);
        }
        let buffers = [
            Buffer::Input(&found[1]),
            Buffer::Input(&found[2]),
            Buffer::Input(&rows),
            Buffer::Output(q.len()),
        ];
        let grid = params.merge_grid(most, self.rows.len());
        let found = machine.run((Kernel::Merge, grid), &buffers, &params);
        results(&found[0], options.numbers)
    }

    /// Results of 16 bits are those of f32, rounded.
    fn check_numbers(&self, machine: &impl Machine, options: Options) {
        let wide = self.attended(machine, options);
        for numbers in [1, 2] {
            let found = self.attended(machine, Options { numbers, ..options });
            assert_eq!(found, rounded(&wide, numbers), "{:?} {options:?}", self.shape);
        }
    }

    /// The result of one query vector in f64.
    fn reference(&self, row: &DenseRowParams, vector: usize, options: Options) -> Vec<f64> {
        let Shape { dim, kv_heads, group } = self.shape;
        let (token, q_head) = (vector / (kv_heads * group), vector % (kv_heads * group));
        let seen = row.position as usize + token - row.query as usize + 1;
        let window = if options.window == 0 { seen } else { options.window };
        let q = &self.q[vector * dim..][..dim];
        let at = |position: usize| {
            let page = self.pages[row.pages_at as usize + position / PAGE_TOKENS] as usize;
            ((page * kv_heads + q_head / group) * PAGE_TOKENS + position % PAGE_TOKENS) * dim
        };
        let score = |position: usize| {
            let key = &self.sides[0][at(position)..][..dim];
            let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * k.to_f64()).sum();
            let (score, cap) = (dot * f64::from(self.scale()), f64::from(options.soft_cap));
            if cap == 0.0 { score } else { cap * (score / cap).tanh() }
        };
        let from = seen.saturating_sub(window);
        let scores: Vec<f64> = (from..seen).map(score).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        let mut out = vec![0.0; dim];
        for (position, score) in (from..seen).zip(scores) {
            let weight = (score - top).exp() / total;
            let value = &self.sides[1][at(position)..][..dim];
            out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * v.to_f64());
        }
        out
    }

    fn check<M: Machine>(&self, machine: &M, options: Options) {
        let (dim, q_heads) = (self.shape.dim, self.shape.kv_heads * self.shape.group);
        let got = self.attended(machine, options);
        for row in &self.rows {
            let vectors = row.query as usize * q_heads..(row.query + row.tokens) as usize * q_heads;
            let last = vectors.end.saturating_sub(1);
            for vector in vectors.step_by(self.stride).chain([last]).take_while(|_| row.tokens > 0)
            {
                let want = self.reference(row, vector, options);
                let got = &got[vector * dim..][..dim];
                let square = |x: f64| x * x;
                let rest: f64 = got.iter().zip(&want).map(|(a, b)| square(f64::from(*a) - b)).sum();
                let own: f64 = want.iter().map(|x| square(*x)).sum();
                let (error, allowed) = ((rest / own).sqrt(), M::dense_error(options.block));
                assert!(
                    error < allowed,
                    "{:?} {options:?} {row:?}: vector {vector}: {error}",
                    self.shape
                );
            }
        }
    }
}

/// Rows of 1 to 65 tokens at the borders of pages, blocks and tiles, and one that is not used.
const EDGES: [(usize, usize); 10] = [
    (0, 1),
    (0, 15),
    (63, 16),
    (64, 17),
    (0, 0),
    (127, 1),
    (100, 63),
    (1, 64),
    (320, 65),
    (193, 3),
];

#[test]
fn every_size_and_group() {
    check_shapes(Emulator::new);
}

pub(crate) fn check_shapes<M: Machine>(make: impl Fn(&Spec) -> M) {
    let shapes = [(64, 2, 3), (80, 1, 1), (96, 1, 7), (112, 2, 1), (128, 2, 4), (160, 1, 2)];
    for (dim, kv_heads, group) in shapes.into_iter().chain([(192, 1, 1), (224, 1, 3), (256, 1, 8)])
    {
        let shape = Shape { dim, kv_heads, group };
        let machine = make(&spec(dim, 4, 4));
        let rows: &[(usize, usize)] = if [64, 128].contains(&dim) { &EDGES } else { &EDGES[..5] };
        Case::new(shape, rows, 1.0).check(&machine, MANY);
        let rows = [(0, 1), (130, 1), (63, 1), (448, 1), (700, 2), (77, 0)];
        Case::new(shape, &rows, 1.0).check(&machine, FEW);
    }
}

#[test]
fn windows_caps_and_parts() {
    check_options(Emulator::new, 64);
}

pub(crate) fn check_options<M: Machine>(make: impl Fn(&Spec) -> M, dim: usize) {
    let shape = Shape { dim, kv_heads: 1, group: 3 };
    let machine = make(&spec(dim, 4, 4));
    let case = Case::new(shape, &[(63, 16), (64, 2), (0, 5), (321, 7), (127, 1)], 4.0);
    for options in [
        Options { parts: 1, ..FEW },
        Options { parts: 20, ..FEW },
        Options { window: 1, ..FEW },
        Options { window: 60, parts: 2, ..FEW },
        Options { soft_cap: 2.0, ..FEW },
        Options { soft_cap: 30.0, window: 200, parts: 2, ..FEW },
    ] {
        case.check(&machine, options);
    }
    case.check_numbers(&machine, Options { parts: 1, ..FEW });
    case.check_numbers(&machine, Options { parts: 2, ..FEW });
    let case = Case::new(shape, &[(0, 45), (200, 65), (384, 3)], 1.0);
    case.check_numbers(&machine, MANY);
    for options in [
        Options { block: DENSE_FEW, ..MANY },
        Options { block: DENSE_MANY / 2, ..MANY },
        Options { parts: 3, ..MANY },
        Options { window: 1, ..MANY },
        Options { window: 64, ..MANY },
        Options { window: 100, soft_cap: 2.0, ..MANY },
        Options { window: 64, parts: 3, ..MANY },
        Options { soft_cap: 30.0, ..MANY },
    ] {
        case.check(&machine, options);
    }
}

#[test]
fn scores_far_apart_stay_finite() {
    check_sharp(Emulator::new, 64);
}

pub(crate) fn check_sharp<M: Machine>(make: impl Fn(&Spec) -> M, dim: usize) {
    let shape = Shape { dim, kv_heads: 1, group: 2 };
    let machine = make(&spec(dim, 4, 4));
    for sharp in [0.0, 60.0] {
        Case::new(shape, &[(200, 1), (64, 2)], sharp).check(&machine, FEW);
    }
    Case::new(shape, &[(100, 70)], 0.0).check(&machine, MANY);
}

/// More groups than two for each multiprocessor, and more than there are places for; and chunks.
#[cfg(feature = "cuda")]
pub(crate) fn check_many<M: Machine>(make: impl Fn(&Spec) -> M) {
    for (dim, parts) in [(64, 1), (128, 1), (128, 2)] {
        let shape = Shape { dim, kv_heads: 8, group: 4 };
        let case = Case::new(shape, &[(1090, 1); 40], 1.0).sampled(3);
        case.check(&make(&spec(dim, 4, 4)), Options { parts, ..FEW });
        // Of nine, seven and one blocks: pairs, and blocks without another one.
        let rows = [(1090, 270), (63, 200), (5, 20), (0, 2), (700, 1)];
        let case = Case::new(shape, &rows, 1.0).sampled(101);
        for window in [0, 100] {
            case.check(&make(&spec(dim, 4, 4)), Options { parts, window, ..MANY });
        }
    }
}

/// Long contexts and long chunks.
#[cfg(feature = "cuda")]
pub(crate) fn check_long<M: Machine>(make: impl Fn(&Spec) -> M) {
    for (dim, kv_heads, group) in [(128, 2, 4), (64, 1, 7), (256, 1, 1), (96, 1, 8)] {
        let shape = Shape { dim, kv_heads, group };
        let machine = make(&spec(dim, 4, 4));
        let rows = [(131_071, 1), (32_768, 16), (777, 1), (8191, 2)];
        Case::new(shape, &rows, 1.0).check(&machine, Options { parts: 32, ..FEW });
        let case = Case::new(shape, &[(0, 2048), (33_000, 513), (5, 1)], 1.0).sampled(131);
        case.check(&machine, MANY);
        case.check(&machine, Options { window: 1000, ..MANY });
    }
}
