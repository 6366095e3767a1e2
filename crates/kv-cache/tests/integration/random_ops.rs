//! Random work on pool, store and staging against plain vectors, on mixed layers. `SEED=…` repeats
//! one run.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, thread};

use kvant_kv_cache::{CacheShape, PAGE_TOKENS, Row};

use crate::oracle::{Tokens, given};
use crate::random::shape;
use crate::world::{Sequence, World};

const SEEDS: u64 = 5_000;
const STEPS: usize = 30;

impl World {
    /// New tokens for several sequences at once, each within its page; a shared open page is copied
    /// first.
    pub(crate) fn decode(&mut self) {
        let mut steps: Vec<(usize, usize, Tokens)> = Vec::new();
        for index in 0..self.sequences.len() {
            if self.random.once_in(4) || !self.make_room(index) {
                continue;
            }
            let position = self.sequences[index].tokens.len();
            let room = PAGE_TOKENS - position % PAGE_TOKENS;
            let count = match self.random.below(4) {
                0 => room,
                1 => 1 + self.random.below(room),
                _ => 1,
            };
            let tokens: Tokens = (0..count).map(|_| self.oracle.token(&mut self.random)).collect();
            steps.push((index, position, tokens));
        }
        for layer in 0..self.layers {
            let rows: Vec<Row<'_>> = steps
                .iter()
                .map(|(index, position, tokens)| Row {
                    position: *position,
                    tokens: tokens.len(),
                    ..self.sequences[*index].row()
                })
                .collect();
            let [k, v] = given(layer, steps.iter().flat_map(|step| &step.2));
            self.store.append(layer, &rows, &k, &v);
        }
        for (index, position, tokens) in steps {
            self.sequences[index].tokens.extend(tokens);
            if position % PAGE_TOKENS == 0 {
                self.count("sealed");
            }
        }
    }

    /// A page of its own for the next token.
    fn make_room(&mut self, index: usize) -> bool {
        let sequence = &mut self.sequences[index];
        if sequence.tokens.len().is_multiple_of(PAGE_TOKENS) {
            let Some(page) = self.pool.alloc() else { return false };
            sequence.pages.push(page);
            return true;
        }
        let last = sequence.pages.last_mut().unwrap();
        if self.pool.owners(*last) > 1 {
            let Some(page) = self.pool.alloc() else { return false };
            self.store.copy_page(page, *last);
            self.pool.release(*last);
            *last = page;
            self.count("copied a shared page");
        }
        true
    }

    /// A second sequence with the same tokens: all pages shared, the tail copied.
    pub(crate) fn fork(&mut self) {
        if self.sequences.is_empty() || self.tails.is_empty() {
            return;
        }
        let source = &self.sequences[self.random.below(self.sequences.len())];
        let (tokens, pages) = (source.tokens.clone(), source.pages.clone());
        let tail = self.tails.pop().unwrap();
        self.store.copy_tail(tail, source.tail);
        for page in &pages {
            self.pool.retain(*page);
        }
        self.sequences.push(Sequence { tokens, pages, tail });
        self.count("forked");
    }

    pub(crate) fn free(&mut self) {
        if self.sequences.is_empty() {
            return;
        }
        let index = self.random.below(self.sequences.len());
        self.check_sequence(index);
        let gone = self.sequences.swap_remove(index);
        self.release(&gone);
        self.count("freed");
    }

    /// The youngest goes and is computed again later.
    pub(crate) fn preempt(&mut self) {
        let Some(index) = self.sequences.len().checked_sub(1) else { return };
        self.check_sequence(index);
        let gone = self.sequences.swap_remove(index);
        self.release(&gone);
        self.waiting.push(gone.tokens);
        self.count("preempted");
    }

    /// To other pages and another tail; the bytes come out again as they went in.
    pub(crate) fn export_and_import(&mut self) {
        if self.sequences.is_empty() || self.tails.is_empty() {
            return;
        }
        let index = self.random.below(self.sequences.len());
        let source = &self.sequences[index];
        if source.pages.len() > self.pool.free() {
            return;
        }
        let length = source.tokens.len();
        let bytes = self.store.export(source.row(), length);
        let pages = source.pages.iter().map(|_| self.pool.alloc().unwrap()).collect();
        let tail = self.tails.pop().unwrap();
        let copy = Sequence { tokens: source.tokens.clone(), pages, tail };
        if self.random.once_in(2) {
            self.check_sequence(index);
            let gone = self.sequences.swap_remove(index);
            self.release(&gone);
        }
        assert_eq!(self.store.import(copy.row(), &bytes), Ok(length));
        assert!(self.store.export(copy.row(), length) == bytes, "exported again");
        self.sequences.push(copy);
        self.count("imported");
    }
}

/// Dense and packed layers together, with heads of 16, 20 and 64.
fn layers(seed: u64) -> CacheShape {
    match seed % 4 {
        0 => shape(&[(2, 16, (16, 16)), (1, 16, (8, 8)), (1, 64, (4, 4))]),
        1 => shape(&[(2, 16, (4, 4)), (1, 20, (16, 16)), (1, 16, (8, 8))]),
        2 => shape(&[(1, 64, (8, 8)), (1, 16, (4, 4)), (1, 20, (16, 16))]),
        _ => shape(&[(1, 16, (8, 4)), (1, 16, (16, 16)), (2, 16, (3, 2)), (1, 16, (6, 8))]),
    }
}

/// Says which seed it was.
struct Running(u64);

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("failed at SEED={}", self.0);
        }
    }
}

fn run(seed: u64) -> BTreeMap<&'static str, usize> {
    let _running = Running(seed);
    let mut world = World::new(&layers(seed), seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.check();
    world.counts
}

#[test]
fn random_work_keeps_what_plain_vectors_keep() {
    if let Ok(seed) = env::var("SEED") {
        run(seed.parse().expect("SEED: a number"));
        return;
    }
    let next = AtomicU64::new(0);
    let total = Mutex::new(BTreeMap::<&'static str, usize>::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let counts = run(seed);
                    let mut total = total.lock().unwrap();
                    for (what, count) in counts {
                        *total.entry(what).or_default() += count;
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    eprintln!("{SEEDS} seeds: {total:?}");
    assert_eq!(total.len(), 14, "something never happened: {total:?}");
    for (what, count) in total {
        assert!(count > SEEDS as usize / 50, "{what}: {count} times");
    }
}
