//! `attend` and `combine` against attention in f64 over what the codes stand for.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{PageSource, encode};
use kvant_kernels::device::{
    Activations, AttendParams, CombineParams, Kernel, Params, RotateParams, RowParams, Spec,
    sign_words,
};
use kvant_turboquant::{Codec, Encoded};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, floats};
use crate::random::{Random, codecs, widths};

#[derive(Clone, Copy, Debug)]
struct Shape {
    dim: usize,
    bits: (usize, usize),
    kv_heads: usize,
    group: usize,
    queries: usize,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    split_pages: usize,
    window: usize,
    soft_cap: f32,
}

const PLAIN: Options = Options { split_pages: 3, window: 0, soft_cap: 0.0 };

/// A packed cache with scattered pages. Rows are (position, tokens).
struct Case {
    shape: Shape,
    codecs: (Codec, Codec),
    spec: Spec,
    rows: Vec<RowParams>,
    pages: Vec<u32>,
    tiles: Vec<u8>,
    /// Keys and values of f16, `[page][kv_heads][64][dim]`; slots that hold no token are NaN.
    tail: [Vec<f16>; 2],
    q: Vec<f32>,
}

impl Case {
    fn new(shape: Shape, rows: &[(usize, usize)], sharp: f32) -> Self {
        let Shape { dim, bits, kv_heads, group, queries } = shape;
        let spec = Spec::new(dim, widths(bits.0, bits.1), Activations::F32).unwrap();
        let spec = spec.with_queries(queries);
        let codecs = codecs(&spec, None);
        let mut random = Random((dim * rows.len() + bits.0) as u64);
        let packed: usize = rows.iter().map(|row| row.0 / PAGE_TOKENS).sum();
        let numbers = packed * PAGE_TOKENS * kv_heads * dim;
        let (keys, values) = (random.floats(numbers), random.floats(numbers));
        let mut tiles = vec![0; packed * kv_heads * spec.layout().tile_bytes()];
        let source = PageSource { keys: &keys, values: &values, kv_heads };
        encode(&mut tiles, source, spec.layout(), (&codecs.0, &codecs.1)).unwrap();
        let mut case = Self {
            shape,
            codecs,
            spec,
            rows: Vec::new(),
            pages: Vec::new(),
            tiles,
            tail: [Vec::new(), Vec::new()],
            q: Vec::new(),
        };
        let (mut packed_from, mut query, mut tail_page) = (packed as u32, 0, 0);
        for &(position, tokens) in rows {
            let (own, end) = (position / PAGE_TOKENS, position + tokens);
            let packed_at = case.pages.len() as u32;
            // Pages are taken from the end of memory.
            case.pages.extend((0..own as u32).map(|page| packed_from - 1 - page));
            packed_from -= own as u32;
            let tail_at = case.pages.len() as u32;
            for page in own..end.div_ceil(PAGE_TOKENS) {
                case.pages.push(tail_page);
                tail_page += 1;
                for side in &mut case.tail {
                    for _ in 0..kv_heads {
                        let filled = PAGE_TOKENS.min(end - page * PAGE_TOKENS) * dim;
                        side.extend(random.floats(filled).into_iter().map(f16::from_f32));
                        side.resize(side.len() + PAGE_TOKENS * dim - filled, f16::NAN);
                    }
                }
            }
            case.rows.push(RowParams {
                query,
                tokens: tokens as u32,
                position: position as u32,
                packed_at,
                packed: own as u32,
                tail_at,
            });
            query += tokens as u32;
        }
        case.q = random.floats(query as usize * kv_heads * group * dim);
        case.q.iter_mut().for_each(|q| *q *= sharp);
        case
    }

    fn q_heads(&self) -> usize {
        self.shape.kv_heads * self.shape.group
    }

    /// Key and value of a position of a row.
    fn token(&self, row: &RowParams, position: usize, head: usize) -> [Vec<f32>; 2] {
        let (dim, kv_heads) = (self.shape.dim, self.shape.kv_heads);
        let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
        if page < row.packed as usize {
            let layout = self.spec.layout();
            let page = self.pages[row.packed_at as usize + page] as usize;
            let tile = &self.tiles[(page * kv_heads + head) * layout.tile_bytes()..];
            let codes = (0..dim).map(|d| layout.key_code(tile, slot, d)).collect();
            let key = Encoded { scale: layout.key_scale(tile, slot), codes };
            let codes = (0..dim).map(|d| layout.value_code(tile, slot, d)).collect();
            let value = Encoded { scale: layout.value_scale(tile, slot), codes };
            return [self.codecs.0.decode(&key), self.codecs.1.decode(&value)];
        }
        let page = self.pages[row.tail_at as usize + page - row.packed as usize] as usize;
        let at = ((page * kv_heads + head) * PAGE_TOKENS + slot) * dim;
        self.tail.each_ref().map(|side| side[at..at + dim].iter().map(|x| x.to_f32()).collect())
    }

    /// The results in f64, `[query tokens, q_heads, dim]`.
    fn reference(&self, options: Options) -> Vec<f64> {
        let (dim, group) = (self.shape.dim, self.shape.group);
        let mut out = vec![0.0; self.q.len()];
        for row in &self.rows {
            let end = (row.position + row.tokens) as usize;
            for head in 0..self.shape.kv_heads {
                let cache: Vec<_> = (0..end).map(|at| self.token(row, at, head)).collect();
                for token in 0..row.tokens as usize {
                    let seen = row.position as usize + token + 1;
                    let from = match options.window {
                        0 => 0,
                        window => seen.saturating_sub(window),
                    };
                    for q_head in head * group..(head + 1) * group {
                        let at = ((row.query as usize + token) * self.q_heads() + q_head) * dim;
                        let q = &self.q[at..at + dim];
                        attend(&mut out[at..at + dim], q, &cache[from..seen], options.soft_cap);
                    }
                }
            }
        }
        out
    }

    /// The same by the device's kernels.
    fn attended(&self, machine: &impl Machine, options: Options) -> Vec<f32> {
        let Shape { dim, kv_heads, group, queries, .. } = self.shape;
        let vectors = self.q.len() / dim;
        let q = bytes_of_floats(&self.q);
        let params =
            RotateParams { signs: sign_words(self.codecs.0.rotation()), vectors: vectors as u32 };
        let buffers = [Buffer::Input(&q), Buffer::Output(q.len())];
        let rotated = machine.run((Kernel::Rotate, [vectors.div_ceil(8), 1, 1]), &buffers, &params);
        let rows: Vec<u32> = self.rows.iter().flat_map(RowParams::words).collect();
        let (rows, pages) = (bytes_of_words(&rows), bytes_of_words(&self.pages));
        let splits =
            self.rows.iter().map(|row| (row.packed as usize).div_ceil(options.split_pages));
        let parts = 1 + splits.max().unwrap();
        let tokens = self.rows.iter().map(|row| row.tokens as usize).max().unwrap();
        let tail = self
            .tail
            .each_ref()
            .map(|side| side.iter().flat_map(|x| x.to_bits().to_ne_bytes()).collect::<Vec<u8>>());
        let params = AttendParams {
            q_heads: self.q_heads() as u32,
            kv_heads: kv_heads as u32,
            parts: parts as u32,
            split_pages: options.split_pages as u32,
            window: options.window as u32,
            scale: scale(dim),
            soft_cap: options.soft_cap,
        };
        let buffers = [
            Buffer::Input(&rotated[0]),
            Buffer::Input(&q),
            Buffer::Input(&self.tiles),
            Buffer::Input(&tail[0]),
            Buffer::Input(&tail[1]),
            Buffer::Input(&rows),
            Buffer::Input(&pages),
            Buffer::Output(4 * vectors * parts * dim),
            Buffer::Output(4 * vectors * parts * 2),
        ];
        let blocks = (tokens * group).div_ceil(queries);
        let grid = [parts, kv_heads * blocks, self.rows.len()];
        let found = machine.run((Kernel::Attend, grid), &buffers, &params);
        let params = CombineParams {
            signs: sign_words(self.codecs.1.rotation()),
            q_heads: self.q_heads() as u32,
            parts: parts as u32,
            split_pages: options.split_pages as u32,
        };
        let buffers = [
            Buffer::Input(&found[0]),
            Buffer::Input(&found[1]),
            Buffer::Input(&rows),
            Buffer::Output(q.len()),
        ];
        let grid = [self.q_heads(), tokens, self.rows.len()];
        floats(&machine.run((Kernel::Combine, grid), &buffers, &params)[0])
    }

    fn check<M: Machine>(&self, machine: &M, options: Options) {
        let (got, want) = (self.attended(machine, options), self.reference(options));
        let dim = self.shape.dim;
        for (index, (got, want)) in got.chunks(dim).zip(want.chunks(dim)).enumerate() {
            let square = |x: f64| x * x;
            let rest: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(*a) - b)).sum();
            let own: f64 = want.iter().map(|x| square(*x)).sum();
            let error = (rest / own).sqrt();
            assert!(
                error < M::ATTEND_ERROR,
                "{:?} {options:?} vector {index}: {error}",
                self.shape
            );
        }
    }
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

/// softmax(q·Kᵀ)·V of one query.
fn attend(out: &mut [f64], q: &[f32], cache: &[[Vec<f32>; 2]], soft_cap: f32) {
    let dot = |key: &[f32]| -> f64 {
        q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let score = |key: &[f32]| {
        let score = dot(key) * f64::from(scale(q.len()));
        let cap = f64::from(soft_cap);
        if soft_cap == 0.0 { score } else { cap * (score / cap).tanh() }
    };
    let scores: Vec<f64> = cache.iter().map(|[key, _]| score(key)).collect();
    let top = scores.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
    for (score, [_, value]) in scores.iter().zip(cache) {
        let weight = (score - top).exp() / total;
        out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * f64::from(*value));
    }
}

#[test]
fn every_width_and_size() {
    check_shapes(Emulator::new);
}

pub(crate) fn check_shapes<M: Machine>(make: impl Fn(&Spec) -> M) {
    let sizes = [(64, 1), (80, 3), (96, 2), (128, 4), (256, 8)];
    let bits = [(2, 3), (3, 8), (4, 4), (6, 2), (8, 6)];
    for (index, (dim, group)) in sizes.into_iter().enumerate() {
        for offset in [0, 2] {
            let bits = bits[(index + offset) % bits.len()];
            let shape = Shape { dim, bits, kv_heads: 2, group, queries: group };
            let case = Case::new(shape, &[(0, 1), (130, 1), (63, 1), (448, 1)], 1.0);
            case.check(&make(&case.spec), PLAIN);
        }
    }
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
    let shape = Shape { dim, bits, kv_heads: 1, group: 3, queries: 8 };
    let rows = [(63, 16), (64, 2), (0, 5), (321, 7), (127, 1)];
    let case = Case::new(shape, &rows, 4.0);
    let machine = make(&case.spec);
    for options in [
        Options { split_pages: 1, ..PLAIN },
        Options { split_pages: 16, ..PLAIN },
        Options { window: 1, ..PLAIN },
        Options { window: 60, ..PLAIN },
        Options { window: 100, split_pages: 2, ..PLAIN },
        Options { soft_cap: 2.0, ..PLAIN },
        Options { soft_cap: 30.0, window: 200, split_pages: 2 },
    ] {
        case.check(&machine, options);
    }
}

#[test]
fn scores_far_apart_stay_finite() {
    check_sharp(Emulator::new, 64);
}

pub(crate) fn check_sharp<M: Machine>(make: impl Fn(&Spec) -> M, dim: usize) {
    let shape = Shape { dim, bits: (8, 4), kv_heads: 1, group: 2, queries: 2 };
    for sharp in [0.0, 60.0] {
        let case = Case::new(shape, &[(200, 1), (64, 1)], sharp);
        case.check(&make(&case.spec), Options { split_pages: 1, ..PLAIN });
    }
}

/// Every width that a GPU's own kernel takes, at its size of a head, and every number of query
/// vectors.
#[cfg(feature = "cuda")]
pub(crate) fn check_own_widths<M: Machine>(make: impl Fn(&Spec) -> M) {
    for keys in [2, 3, 4, 8] {
        for values in [2, 3, 4, 8] {
            let bits = (keys, values);
            let few = if bits == (4, 4) { &[(1, 1), (3, 5)][..] } else { &[] };
            for &(group, queries) in [(4, 4), (8, 8)].iter().chain(few) {
                let shape = Shape { dim: 128, bits, kv_heads: 2, group, queries };
                let case = Case::new(shape, &[(0, 1), (130, 1), (63, 1), (1024, 1)], 2.0);
                let machine = make(&case.spec);
                for split_pages in [3, 16] {
                    case.check(&machine, Options { split_pages, ..PLAIN });
                }
            }
        }
    }
}

/// Long contexts.
#[cfg(feature = "cuda")]
pub(crate) fn check_long<M: Machine>(make: impl Fn(&Spec) -> M) {
    for (bits, group, length) in [((4, 4), 4, 131_072), ((8, 4), 8, 32_000), ((3, 3), 4, 8191)] {
        let shape = Shape { dim: 128, bits, kv_heads: 1, group, queries: group };
        let case = Case::new(shape, &[(length, 1), (777, 1)], 3.0);
        case.check(&make(&case.spec), Options { split_pages: 64, ..PLAIN });
    }
}
