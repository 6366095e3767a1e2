//! Against a plain f64 reference, and bit for bit against itself where the order of work must not
//! matter.

use half::f16;

use super::*;

/// Uniform numbers in -1..1 from a counter.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 27)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }

    fn halves(&mut self, count: usize) -> Vec<f16> {
        (0..count).map(|_| f16::from_f32(self.next())).collect()
    }
}

/// A store with sequences whose pages lie scattered in it.
struct Case {
    keys: Vec<f16>,
    values: Vec<f16>,
    kv_heads: usize,
    dim: usize,
    params: AttendParams,
    /// (pages, position, tokens)
    rows: Vec<(Vec<u32>, usize, usize)>,
    q: Vec<f32>,
}

impl Case {
    /// Rows of (position, tokens); `shape` is (kv_heads, group, dim).
    fn new(shape: (usize, usize, usize), window: Option<usize>, rows: &[(usize, usize)]) -> Self {
        let (kv_heads, group, dim) = shape;
        let mut random = Random(rows.iter().fold(7, |seed, r| seed * 31 + r.0 as u64));
        let counts: Vec<usize> = rows.iter().map(|r| (r.0 + r.1).div_ceil(PAGE_TOKENS)).collect();
        let pages = counts.iter().sum::<usize>() + 1;
        // 7 is prime to most page counts; neighbours in a sequence are far apart in the store.
        let mut order: Vec<u32> = (0..pages as u32).collect();
        order.sort_by_key(|page| (page * 7) % 16);
        let mut order = order.into_iter();
        let rows = rows
            .iter()
            .zip(counts)
            .map(|(r, count)| (order.by_ref().take(count).collect(), r.0, r.1))
            .collect::<Vec<_>>();
        let len = pages * kv_heads * PAGE_TOKENS * dim;
        let tokens: usize = rows.iter().map(|r: &(Vec<u32>, usize, usize)| r.2).sum();
        let scale = 1.0 / (dim as f32).sqrt();
        let params = AttendParams { q_heads: kv_heads * group, scale, window, softcap: None };
        let q = random.floats(tokens * params.q_heads * dim, 4.0);
        let (keys, values) = (random.halves(len), random.halves(len));
        Self { keys, values, kv_heads, dim, params, rows, q }
    }

    fn tiles(&self) -> DenseTiles<'_> {
        let Self { keys, values, kv_heads, dim, .. } = self;
        DenseTiles { keys, values, kv_heads: *kv_heads, dim: *dim }
    }

    fn stride(&self) -> usize {
        self.params.q_heads * self.dim
    }

    fn run(&self) -> Vec<f32> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(pages, position, tokens)| AttendRow {
                pages,
                position: *position,
                tokens: *tokens,
            })
            .collect();
        let mut out = vec![f32::NAN; self.q.len()];
        attend_dense(&mut out, &self.q, self.tiles(), &rows, &self.params);
        out
    }

    /// Tokens `from..to` of a row alone, as one row.
    fn run_part(&self, row: usize, from: usize, to: usize) -> Vec<f32> {
        let before: usize = self.rows[..row].iter().map(|r| r.2).sum();
        let q = &self.q[(before + from) * self.stride()..(before + to) * self.stride()];
        let (pages, position, _) = &self.rows[row];
        let part = AttendRow { pages, position: position + from, tokens: to - from };
        let mut out = vec![f32::NAN; q.len()];
        attend_dense(&mut out, q, self.tiles(), &[part], &self.params);
        out
    }

    fn reference(&self) -> Vec<f64> {
        let group = self.params.q_heads / self.kv_heads;
        let mut out = Vec::new();
        let mut queries = self.q.chunks_exact(self.dim);
        for (pages, position, tokens) in &self.rows {
            for at in *position..position + tokens {
                let first = self.params.window.map_or(0, |w| (at + 1).saturating_sub(w));
                for head in 0..self.params.q_heads {
                    let rows: Vec<usize> = (first..=at)
                        .map(|key| {
                            let page = pages[key / PAGE_TOKENS] as usize;
                            let tile = (page * self.kv_heads + head / group) * PAGE_TOKENS;
                            (tile + key % PAGE_TOKENS) * self.dim
                        })
                        .collect();
                    out.extend(self.attend_one(queries.next().unwrap(), &rows));
                }
            }
        }
        out
    }

    fn attend_one(&self, query: &[f32], rows: &[usize]) -> Vec<f64> {
        let scores: Vec<f64> = rows
            .iter()
            .map(|row| {
                let key = &self.keys[*row..*row + self.dim];
                let dot: f64 = query.iter().zip(key).map(|(q, k)| *q as f64 * k.to_f64()).sum();
                let score = dot * self.params.scale as f64;
                self.params.softcap.map_or(score, |cap| cap as f64 * (score / cap as f64).tanh())
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        (0..self.dim)
            .map(|d| {
                let sum: f64 = scores
                    .iter()
                    .zip(rows)
                    .map(|(s, row)| (s - max).exp() * self.values[row + d].to_f64())
                    .sum();
                if rows.is_empty() { 0.0 } else { sum / total }
            })
            .collect()
    }

    fn check(&self) {
        for (index, (got, want)) in self.run().iter().zip(self.reference()).enumerate() {
            assert!(
                (*got as f64 - want).abs() < 4e-6,
                "rows {:?}, {:?}, dim {}: at {index} got {got}, want {want}",
                self.rows,
                self.params,
                self.dim
            );
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

const WINDOWS: [Option<usize>; 5] = [None, Some(1), Some(17), Some(64), Some(100)];
const GROUPS: [usize; 5] = [1, 3, 4, 7, 8];
const DIMS: [usize; 6] = [64, 80, 96, 128, 256, 20];

#[test]
fn decode_rows_follow_the_reference() {
    let lengths = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513, 2047, 2048, 2049];
    for (i, length) in lengths.into_iter().enumerate() {
        for (j, window) in WINDOWS.into_iter().enumerate() {
            let (group, dim) = (GROUPS[(i + j) % 5], DIMS[(i + 2 * j) % 6]);
            Case::new((2, group, dim), window, &[(length - 1, 1)]).check();
        }
    }
}

#[test]
fn every_shape_follows_the_reference() {
    for group in GROUPS {
        for dim in DIMS {
            Case::new((1, group, dim), None, &[(128, 1), (0, 3)]).check();
        }
    }
}

#[test]
fn chunks_of_several_prompts_follow_the_reference() {
    for (j, window) in WINDOWS.into_iter().enumerate() {
        let rows = [(0, 130), (60, 9), (700, 1), (490, 40), (3, 1)];
        Case::new((2, GROUPS[j], DIMS[j]), window, &rows).check();
    }
}

#[test]
fn a_result_does_not_depend_on_chunks_or_neighbours() {
    for (j, window) in WINDOWS.into_iter().enumerate() {
        let rows = [(0, 150), (1030, 1), (460, 70), (5, 1)];
        let case = Case::new((2, GROUPS[j], DIMS[j]), window, &rows);
        let together = case.run();
        let mut alone = Vec::new();
        let mut in_chunks = Vec::new();
        let mut one_by_one = Vec::new();
        for (index, (_, tokens)) in rows.into_iter().enumerate() {
            alone.extend(case.run_part(index, 0, tokens));
            for from in (0..tokens).step_by(37) {
                in_chunks.extend(case.run_part(index, from, tokens.min(from + 37)));
            }
            for from in 0..tokens {
                one_by_one.extend(case.run_part(index, from, from + 1));
            }
        }
        assert_eq!(bits(&together), bits(&alone), "alone, window {window:?}");
        assert_eq!(bits(&together), bits(&in_chunks), "chunks, window {window:?}");
        assert_eq!(bits(&together), bits(&one_by_one), "one by one, window {window:?}");
    }
}

#[test]
fn capped_scores_follow_the_reference_and_keep_rows_apart() {
    for (j, window) in WINDOWS.into_iter().enumerate() {
        for cap in [0.5, 2.0, 50.0] {
            let rows = [(0, 70), (600, 1), (460, 60), (5, 1)];
            let mut case = Case::new((2, GROUPS[j], DIMS[j]), window, &rows);
            let plain = case.run();
            case.params.softcap = Some(cap);
            case.check();
            let together = case.run();
            // A token that sees one key gives it the whole weight, capped or not.
            assert_eq!(bits(&together) == bits(&plain), window == Some(1));
            let alone = (0..rows.len()).flat_map(|row| case.run_part(row, 0, rows[row].1));
            assert_eq!(bits(&together), bits(&alone.collect::<Vec<_>>()));
        }
    }
}

#[test]
fn a_result_does_not_depend_on_the_number_of_threads() {
    let case = Case::new((2, 3, 64), None, &[(1600, 1), (600, 40)]);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        bits(&pool.install(|| case.run()))
    };
    // With 64 threads there are few blocks a thread, so splits become tasks of their own.
    assert_eq!(with(1), with(64));
    assert_eq!(with(1), with(3));
}

#[test]
fn what_nobody_sees_is_not_read() {
    for window in [None, Some(17)] {
        let mut case = Case::new((1, 2, 64), window, &[(70, 3), (200, 1)]);
        let before = case.run();
        let mut seen = vec![false; case.keys.len() / case.dim];
        for (pages, position, tokens) in &case.rows {
            let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
            for key in first..position + tokens {
                seen[pages[key / PAGE_TOKENS] as usize * PAGE_TOKENS + key % PAGE_TOKENS] = true;
            }
        }
        for (row, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            case.keys[row * 64..][..64].fill(f16::NAN);
            case.values[row * 64..][..64].fill(f16::NAN);
        }
        assert_eq!(bits(&before), bits(&case.run()));
    }
}

#[test]
fn a_row_that_sees_nothing_gives_zeros() {
    let case = Case::new((1, 3, 64), Some(0), &[(70, 3), (0, 1)]);
    assert!(case.run().iter().all(|value| *value == 0.0));
    attend_dense(&mut [], &[], case.tiles(), &[], &case.params);
    let none = AttendRow { pages: &[], position: 0, tokens: 0 };
    attend_dense(&mut [], &[], case.tiles(), &[none], &case.params);
}

#[test]
fn great_scores_stay_finite() {
    for scale in [1e4, -1e4] {
        let mut case = Case::new((1, 4, 64), None, &[(600, 2)]);
        case.params.scale = scale;
        // The maximum wins alone: the reference is the value of one key.
        for (got, want) in case.run().iter().zip(case.reference()) {
            assert!((*got as f64 - want).abs() < 1e-3, "scale {scale}: {got} is not {want}");
        }
    }
}

#[test]
#[should_panic(expected = "1 pages are too few for position 63 and 2 tokens")]
fn a_page_list_one_token_too_short_is_refused() {
    let case = Case::new((1, 1, 64), None, &[(62, 2)]);
    let row = AttendRow { pages: &[0], position: 63, tokens: 2 };
    attend_dense(&mut [0.0; 128], &[0.0; 128], case.tiles(), &[row], &case.params);
}
