//! A packed cache, query tokens over it, and their attention: in f64 and by the device's kernels.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{PageSource, encode};
use kvant_kernels::device::{
    Activations, AttendParams, AttendRow, Cut, Kernel, NO_MASK, Params, PartParams, Spec, parts_of,
    sign_words,
};
use kvant_turboquant::{Codec, Encoded};

use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, results, rounded};
use crate::random::{Random, codecs, matrices, turning, widths};

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) dim: usize,
    pub(super) bits: (usize, usize),
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) queries: usize,
    /// Whether the rotation is a full matrix.
    pub(super) dense: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) split_pages: usize,
    pub(super) tail_apart: bool,
    pub(super) window: usize,
    pub(super) soft_cap: f32,
    /// Tokens from position 0 on that lie in a 16-bit page.
    pub(super) sinks: usize,
    pub(super) sink_logits: bool,
    /// For rows of odd index.
    pub(super) mask: bool,
    /// Of results: 0 f32, 1 f16, 2 bf16.
    pub(super) numbers: u32,
}

pub(super) const PLAIN: Options = Options {
    split_pages: 3,
    tail_apart: false,
    window: 0,
    soft_cap: 0.0,
    sinks: 0,
    sink_logits: false,
    mask: false,
    numbers: 0,
};

/// A packed cache with scattered pages.
pub(super) struct Case {
    shape: Shape,
    codecs: (Codec, Codec),
    pub(super) spec: Spec,
    /// Each with a page for its sinks, if it has packed pages at all.
    rows: Vec<AttendRow>,
    pages: Vec<u32>,
    tiles: Vec<u8>,
    /// Keys and values of f16, `[page][kv_heads][64][dim]`; slots that hold no token are NaN.
    dense: [Vec<f16>; 2],
    q: Vec<f32>,
    /// `[tokens, position + tokens]` of one row after the other.
    mask: Vec<f32>,
    sink_logits: Vec<f32>,
}

impl Case {
    /// Rows are (position, tokens).
    pub(super) fn new(shape: Shape, rows: &[(usize, usize)], sharp: f32) -> Self {
        let Shape { dim, bits, kv_heads, group, queries, dense } = shape;
        let spec = Spec::new(dim, widths(bits.0, bits.1), Activations::F32).unwrap();
        let spec = if dense { spec.with_dense_rotation() } else { spec };
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
            dense: [Vec::new(), Vec::new()],
            q: Vec::new(),
            mask: Vec::new(),
            sink_logits: random.floats(kv_heads * group),
        };
        let (mut packed_from, mut query, mut dense_page) = (packed as u32, 0, 0);
        for &(position, tokens) in rows {
            let (own, end) = (position / PAGE_TOKENS, position + tokens);
            let packed_at = case.pages.len() as u32;
            // Pages are taken from the end of memory.
            case.pages.extend((0..own as u32).map(|page| packed_from - 1 - page));
            packed_from -= own as u32;
            let tail_at = case.pages.len() as u32;
            let tail = own..end.div_ceil(PAGE_TOKENS);
            case.pages.extend((0..).map(|at| dense_page + at).take(tail.len()));
            let tail = tail.map(|page| PAGE_TOKENS.min(end - page * PAGE_TOKENS));
            let sinks = if own > 0 { PAGE_TOKENS } else { 0 };
            let filled: Vec<usize> = tail.chain([sinks]).collect();
            dense_page += filled.len() as u32;
            for filled in filled {
                case.dense_page(filled, &mut random);
            }
            case.rows.push(AttendRow {
                query,
                tokens: tokens as u32,
                position: position as u32,
                packed_at,
                packed: own as u32,
                tail_at,
                sinks: (0, dense_page - 1),
                mask_at: case.mask.len() as u32,
            });
            let mask = random.floats(tokens * end);
            let mask = mask.into_iter().enumerate();
            case.mask.extend(mask.map(|(at, x)| if at % 7 == 3 { f32::NEG_INFINITY } else { x }));
            query += tokens as u32;
        }
        case.q = random.floats(query as usize * kv_heads * group * dim);
        case.q.iter_mut().for_each(|q| *q *= sharp);
        case
    }

    /// One more 16-bit page with so many tokens.
    fn dense_page(&mut self, filled: usize, random: &mut Random) {
        let dim = self.shape.dim;
        for side in &mut self.dense {
            for _ in 0..self.shape.kv_heads {
                side.extend(random.floats(filled * dim).into_iter().map(f16::from_f32));
                side.resize(side.len() + (PAGE_TOKENS - filled) * dim, f16::NAN);
            }
        }
    }

    fn q_heads(&self) -> usize {
        self.shape.kv_heads * self.shape.group
    }

    /// The rows with what the options ask of them.
    fn rows(&self, options: Options) -> Vec<AttendRow> {
        let rows = self.rows.iter().enumerate();
        let with_options = rows.map(|(index, row)| AttendRow {
            sinks: (if row.packed > 0 { options.sinks as u32 } else { 0 }, row.sinks.1),
            mask_at: if options.mask && index % 2 == 1 { row.mask_at } else { NO_MASK },
            ..*row
        });
        with_options.collect()
    }

    /// Key and value of a position of a row.
    fn token(&self, row: &AttendRow, position: usize, head: usize) -> [Vec<f32>; 2] {
        let (dim, kv_heads) = (self.shape.dim, self.shape.kv_heads);
        let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
        let in_sinks = position < row.sinks.0 as usize;
        if page < row.packed as usize && !in_sinks {
            let layout = self.spec.layout();
            let page = self.pages[row.packed_at as usize + page] as usize;
            let tile = &self.tiles[(page * kv_heads + head) * layout.tile_bytes()..];
            let codes = (0..dim).map(|d| layout.key_code(tile, slot, d)).collect();
            let key = Encoded { scale: layout.key_scale(tile, slot), codes };
            let codes = (0..dim).map(|d| layout.value_code(tile, slot, d)).collect();
            let value = Encoded { scale: layout.value_scale(tile, slot), codes };
            return [self.codecs.0.decode(&key), self.codecs.1.decode(&value)];
        }
        let page = if in_sinks {
            row.sinks.1
        } else {
            self.pages[row.tail_at as usize + page - row.packed as usize]
        };
        let at = ((page as usize * kv_heads + head) * PAGE_TOKENS + slot) * dim;
        self.dense.each_ref().map(|side| side[at..at + dim].iter().map(|x| x.to_f32()).collect())
    }

    /// The results in f64, `[query tokens, q_heads, dim]`.
    fn reference(&self, options: Options) -> Vec<f64> {
        let (dim, group) = (self.shape.dim, self.shape.group);
        let mut out = vec![0.0; self.q.len()];
        for row in &self.rows(options) {
            let end = (row.position + row.tokens) as usize;
            for head in 0..self.shape.kv_heads {
                let cache: Vec<_> = (0..end).map(|at| self.token(row, at, head)).collect();
                for token in 0..row.tokens as usize {
                    let seen = row.position as usize + token + 1;
                    let from = match options.window {
                        0 => 0,
                        window => seen.saturating_sub(window),
                    };
                    let mask = match row.mask_at {
                        NO_MASK => None,
                        at => Some(&self.mask[at as usize + token * end..][from..seen]),
                    };
                    for q_head in head * group..(head + 1) * group {
                        let at = ((row.query as usize + token) * self.q_heads() + q_head) * dim;
                        let q = &self.q[at..at + dim];
                        let logit = options.sink_logits.then(|| self.sink_logits[q_head]);
                        let extras = (options.soft_cap, mask, logit);
                        attend(&mut out[at..at + dim], q, &cache[from..seen], extras);
                    }
                }
            }
        }
        out
    }

    /// The same by the device's kernels.
    fn attended(&self, machine: &impl Machine, options: Options) -> Vec<f32> {
        let Shape { dim, kv_heads, group, queries, .. } = self.shape;
        let q = bytes_of_floats(&self.q);
        let Options { split_pages, tail_apart, window, .. } = options;
        let cut = Cut { split_pages, tail_apart };
        let mut parts = parts_of(&self.rows(options), &self.pages, cut, window);
        parts.push(PartParams { parts: 0, ..parts[0] });
        let tokens = self.rows.iter().map(|row| row.tokens as usize).max().unwrap();
        let dense = self
            .dense
            .each_ref()
            .map(|side| side.iter().flat_map(|x| x.to_bits().to_ne_bytes()).collect::<Vec<u8>>());
        let params = AttendParams {
            key_signs: sign_words(self.codecs.0.rotation()),
            value_signs: sign_words(self.codecs.1.rotation()),
            q_heads: self.q_heads() as u32,
            kv_heads: kv_heads as u32,
            tokens: tokens as u32,
            window: options.window as u32,
            sink_logits: u32::from(options.sink_logits),
            scale: scale(dim),
            soft_cap: options.soft_cap,
            numbers: options.numbers,
        };
        let words: Vec<u32> = parts.iter().flat_map(Params::words).collect();
        let (list, pages) = (bytes_of_words(&words), bytes_of_words(&self.pages));
        let (mask, logits) = (bytes_of_floats(&self.mask), bytes_of_floats(&self.sink_logits));
        let height = kv_heads * (tokens * group).div_ceil(queries);
        let vectors = parts.len() * tokens * self.q_heads();
        let matrices = matrices([self.codecs.0.rotation(), self.codecs.1.rotation()]);
        let buffers = [
            Buffer::Input(&q),
            Buffer::Input(&self.tiles),
            Buffer::Input(&dense[0]),
            Buffer::Input(&dense[1]),
            Buffer::Input(&list),
            Buffer::Input(&pages),
            Buffer::Input(&mask),
            Buffer::Input(&logits),
            Buffer::Output(4 * vectors * dim),
            Buffer::Output(4 * vectors * 2),
            Buffer::Zeroed(4 * parts.len() * height),
            Buffer::Output(q.len()),
        ];
        let buffers = turning(buffers, &matrices);
        let found = machine.run((Kernel::Attend, [parts.len(), height, 1]), &buffers, &params);
        assert!(found[2].iter().all(|byte| *byte == 0), "counters are zeros again");
        if machine.attend_combines() {
            return results(&found[3], options.numbers);
        }
        let buffers = [
            Buffer::Input(&found[0]),
            Buffer::Input(&found[1]),
            Buffer::Input(&list),
            Buffer::Input(&logits),
            Buffer::Output(q.len()),
        ];
        let buffers = turning(buffers, &matrices);
        let grid = [self.q_heads(), tokens, parts.len()];
        let found = machine.run((Kernel::Combine, grid), &buffers, &params);
        results(&found[0], options.numbers)
    }

    /// Results of 16 bits are those of f32, rounded.
    pub(super) fn check_numbers(&self, machine: &impl Machine, options: Options) {
        let wide = self.attended(machine, options);
        for numbers in [1, 2] {
            let found = self.attended(machine, Options { numbers, ..options });
            assert_eq!(found, rounded(&wide, numbers), "{:?} {options:?}", self.shape);
        }
    }

    pub(super) fn check<M: Machine>(&self, machine: &M, options: Options) {
        let (got, want) = (self.attended(machine, options), self.reference(options));
        let dim = self.shape.dim;
        for (index, (got, want)) in got.chunks(dim).zip(want.chunks(dim)).enumerate() {
            let square = |x: f64| x * x;
            let rest: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(*a) - b)).sum();
            let own: f64 = want.iter().map(|x| square(*x)).sum();
            let error = (rest / own.max(f64::MIN_POSITIVE)).sqrt();
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

/// softmax(q·Kᵀ)·V of one query, with soft cap, mask and sink logit.
fn attend(
    out: &mut [f64],
    q: &[f32],
    cache: &[[Vec<f32>; 2]],
    (soft_cap, mask, logit): (f32, Option<&[f32]>, Option<f32>),
) {
    let dot = |key: &[f32]| -> f64 {
        q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let score = |(at, [key, _]): (usize, &[Vec<f32>; 2])| {
        let score = dot(key) * f64::from(scale(q.len()));
        let cap = f64::from(soft_cap);
        let score = if soft_cap == 0.0 { score } else { cap * (score / cap).tanh() };
        score + mask.map_or(0.0, |mask| f64::from(mask[at]))
    };
    let scores: Vec<f64> = cache.iter().enumerate().map(score).collect();
    let logit = logit.map_or(f64::MIN, f64::from);
    let top = scores.iter().copied().fold(logit.max(-1e300), f64::max);
    let weights = scores.iter().map(|score| (score - top).exp());
    let total = weights.clone().sum::<f64>() + (logit - top).exp();
    for (weight, [_, value]) in weights.zip(cache) {
        let weight = if weight > 0.0 { weight / total } else { 0.0 };
        out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * f64::from(*value));
    }
}
