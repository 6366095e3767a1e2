//! The reference road against the fused kernels, on ragged batches.

use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, Path, attend_dense, attend_packed,
};
use kvant_kv_cache::{
    CacheShape, PAGE_TOKENS, PageStore, ReferenceParams, Row, Tiles, attend_reference, pages_for,
};

use crate::random::{Random, shape};

const LENGTHS: [usize; 8] = [1, 15, 16, 17, 63, 64, 65, 200];
/// Length of a difference over the length of the answer of the reference.
const TOLERANCE: f64 = 1e-3;

/// A store of one layer with a sequence of each length; pages lie scattered.
struct Case {
    store: PageStore,
    pages: Vec<Vec<u32>>,
    kv_heads: usize,
    dim: usize,
    random: Random,
}

impl Case {
    fn new(shape: &CacheShape, seed: u64) -> Self {
        let mut random = Random(seed);
        let layer = shape.layers[0].shape;
        let count: usize = LENGTHS.iter().map(|length| pages_for(*length)).sum();
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|page| page * 7 % 16);
        let mut order = order.into_iter();
        let mut take = |length: &usize| order.by_ref().take(pages_for(*length)).collect();
        let pages: Vec<Vec<u32>> = LENGTHS.iter().map(&mut take).collect();
        let mut store = PageStore::new(shape, (count, LENGTHS.len()), seed);
        for (tail, (pages, length)) in pages.iter().zip(LENGTHS).enumerate() {
            for position in (0..length).step_by(PAGE_TOKENS) {
                let tokens = PAGE_TOKENS.min(length - position);
                let [k, v] = [(); 2].map(|()| random.floats(tokens * layer.token_len(), 2.0));
                store.append(0, &[Row { pages, tail: tail as u32, position, tokens }], &k, &v);
            }
        }
        Self { store, pages, kv_heads: layer.kv_heads, dim: layer.dim, random }
    }

    /// The last tokens of every sequence, at most `tokens` of them.
    fn rows<'a>(&'a self, tokens: usize) -> Vec<Row<'a>> {
        let rows = self.pages.iter().zip(LENGTHS).enumerate();
        let row = |(tail, (pages, length)): (usize, (&'a Vec<u32>, usize))| {
            let tokens = tokens.min(length);
            Row { pages, tail: tail as u32, position: length - tokens, tokens }
        };
        rows.map(row).collect()
    }

    fn reference(&self, q: &[f32], rows: &[Row<'_>], params: &ReferenceParams) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        attend_reference(&mut out, q, (&self.store, 0), rows, params);
        out
    }

    fn fused(&self, q: &[f32], rows: &[Row<'_>], params: &ReferenceParams) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        let ReferenceParams { q_heads, scale, window, soft_cap } = *params;
        match self.store.tiles(0) {
            Tiles::Dense(tiles) => {
                let rows: Vec<AttendRow<'_>> = rows
                    .iter()
                    .map(|Row { pages, position, tokens, .. }| AttendRow {
                        pages,
                        position: *position,
                        tokens: *tokens,
                    })
                    .collect();
                let params = AttendParams { q_heads, scale, window, softcap: soft_cap };
                attend_dense(&mut out, q, tiles, &rows, &params);
            }
            Tiles::Packed(tiles) => {
                let tails: Vec<[u32; 1]> = rows.iter().map(|row| [row.tail]).collect();
                let rows: Vec<PackedRow<'_>> = rows
                    .iter()
                    .zip(&tails)
                    .map(|(row, tail)| {
                        let Row { pages, position, tokens, .. } = *row;
                        let pages = &pages[..(position + tokens - 1) / PAGE_TOKENS];
                        PackedRow { pages, tail, sinks: None, position, tokens, mask: None }
                    })
                    .collect();
                let path = Path::best();
                let params =
                    PackedParams { q_heads, scale, window, soft_cap, sink_logits: None, path };
                attend_packed(&mut out, q, tiles, &rows, &params);
            }
        }
        out
    }

    /// Both roads on some queries; then each row alone against the row in the batch.
    fn compare(&mut self, group: usize, tokens: usize, limits: (Option<usize>, Option<f32>)) {
        let (window, soft_cap) = limits;
        let q_heads = self.kv_heads * group;
        let scale = 1.0 / (self.dim as f32).sqrt();
        let params = ReferenceParams { q_heads, scale, window, soft_cap };
        let count: usize = LENGTHS.iter().map(|length| tokens.min(*length)).sum();
        let q = self.random.floats(count * q_heads * self.dim, 2.0);
        let rows = self.rows(tokens);
        let want = self.reference(&q, &rows, &params);
        let got = self.fused(&q, &rows, &params);
        let vectors = got.chunks_exact(self.dim).zip(want.chunks_exact(self.dim));
        for (index, (got, want)) in vectors.enumerate() {
            let length = want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            let difference = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2));
            let difference = difference.sum::<f64>().sqrt();
            let case = format!("dim {}, {params:?}, {tokens} tokens, vector {index}", self.dim);
            assert!(difference <= TOLERANCE * length, "{difference} of {length}: {case}");
        }
        let mut first = 0;
        for row in &rows {
            let part = first * q_heads * self.dim..(first + row.tokens) * q_heads * self.dim;
            let alone = self.reference(&q[part.clone()], &[*row], &params);
            assert_eq!(alone, want[part], "alone: {row:?}, {params:?}");
            first += row.tokens;
        }
    }
}

/// One query token and several (some across a page border), all groups, with and without a window.
fn compare_all(bits: (usize, usize), (kv_heads, dim): (usize, usize)) {
    let mut case = Case::new(&shape(&[(kv_heads, dim, bits)]), dim as u64);
    for group in [1, 3, 4] {
        for tokens in [1, 5] {
            for window in [None, Some(1), Some(20), Some(70)] {
                case.compare(group, tokens, (window, None));
            }
        }
    }
    case.compare(3, 2, (Some(100), Some(1.5)));
    case.compare(1, 1, (None, Some(0.5)));
}

#[test]
fn dense_pages_agree() {
    for heads in [(2, 16), (1, 20), (2, 64)] {
        compare_all((16, 16), heads);
    }
}

/// 144 takes a dense rotation, 48 a Hadamard one of 12 · 4.
#[test]
fn packed_pages_agree() {
    for (bits, heads) in [
        ((8, 8), (2, 64)),
        ((4, 4), (1, 64)),
        ((8, 4), (2, 48)),
        ((3, 2), (1, 16)),
        ((4, 6), (1, 144)),
    ] {
        compare_all(bits, heads);
    }
}

#[test]
fn a_token_that_sees_nothing_gets_zeros() {
    for bits in [(16, 16), (4, 4)] {
        let mut case = Case::new(&shape(&[(1, 16, bits)]), 3);
        let params = ReferenceParams { q_heads: 2, scale: 0.25, window: Some(0), soft_cap: None };
        let q = case.random.floats(LENGTHS.len() * 2 * 16, 1.0);
        let rows = case.rows(1);
        let zeros = vec![0.0; q.len()];
        assert_eq!(case.reference(&q, &rows, &params), zeros, "{bits:?}");
        assert_eq!(case.fused(&q, &rows, &params), zeros, "{bits:?}, fused");
        // A row without new tokens has no answer and changes no other.
        let params = ReferenceParams { window: None, ..params };
        let all = case.reference(&q, &rows, &params);
        let mut rows = rows;
        rows[7].tokens = 0;
        rows[7].position = 200;
        let most = 7 * 2 * 16;
        assert_eq!(case.reference(&q[..most], &rows, &params), all[..most], "{bits:?}");
        assert!(case.reference(&[], &[], &params).is_empty());
    }
}
