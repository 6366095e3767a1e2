//! Random work on pool, store and staging against plain vectors. `SEED=…` repeats one run.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::collections::HashMap;

use half::f16;
use kvant_kernels::cpu::DenseTiles;
use kvant_kv_cache::{
    CacheShape, Error, LayerShape, PAGE_TOKENS, PageList, PagePool, PageStore, RowSlot, Staging,
    pages_for,
};

const SEEDS: u64 = 60;
const STEPS: usize = 150;
const PAGES: usize = 12;
const STAGING_TOKENS: usize = 5 * PAGE_TOKENS;

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Mostly ordinary numbers, now and then one beyond 16 bits.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let scale = if self.below(8) == 0 { 1e6 } else { 4.0 };
        (0..count).map(|_| (self.below(20_001) as f32 / 10_000.0 - 1.0) * scale).collect()
    }
}

/// Keys and values of one layer, `[tokens][kv_heads * dim]`.
type Rows = Vec<(Vec<f16>, Vec<f16>)>;

#[derive(Clone)]
struct Model {
    layers: Vec<Rows>,
    /// Tokens reserved in staging.
    reserved: usize,
    pages: PageList,
}

fn rounded(values: &[f32]) -> Vec<f16> {
    values.iter().map(|v| f16::from_f32(v.clamp(-65504.0, 65504.0))).collect()
}

/// One token, gathered from tiles by hand.
fn gather(tiles: DenseTiles<'_>, pages: &[u32], position: usize) -> (Vec<f16>, Vec<f16>) {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in 0..tiles.kv_heads {
        let page = pages[position / PAGE_TOKENS] as usize;
        let row = (page * tiles.kv_heads + head) * PAGE_TOKENS + position % PAGE_TOKENS;
        keys.extend_from_slice(&tiles.keys[row * tiles.dim..][..tiles.dim]);
        values.extend_from_slice(&tiles.values[row * tiles.dim..][..tiles.dim]);
    }
    (keys, values)
}

struct World {
    seed: u64,
    random: Random,
    shape: CacheShape,
    pool: PagePool,
    store: PageStore,
    staging: Staging,
    /// In prefill, by key.
    prompts: HashMap<u64, Model>,
    /// In pages; two may share full pages.
    sequences: Vec<Model>,
    keys: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let layers = [(2, 8), (1, 20), (3, 4)];
        let layers = layers.map(|(kv_heads, dim)| LayerShape { kv_heads, dim }).to_vec();
        let shape = CacheShape { layers };
        Self {
            seed,
            random: Random(seed),
            pool: PagePool::new(PAGES),
            store: PageStore::new(&shape, PAGES),
            staging: Staging::new(&shape, STAGING_TOKENS),
            shape,
            prompts: HashMap::new(),
            sequences: Vec::new(),
            keys: 0,
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0 | 1 => self.open(),
            2..=4 => self.append(),
            5 => self.close(),
            6 | 7 => self.ingest(),
            8 | 9 => self.decode(),
            10 => self.share(),
            _ => self.finish(),
        }
    }

    fn open(&mut self) {
        let tokens = 1 + self.random.below(3 * PAGE_TOKENS);
        let lent: usize = self.prompts.values().map(|prompt| pages_for(prompt.reserved)).sum();
        let free = STAGING_TOKENS / PAGE_TOKENS - lent;
        let room = pages_for(tokens) <= free;
        assert_eq!(self.staging.has_room(tokens), room, "{}", self.seed);
        let key = self.keys;
        self.keys += 1;
        match self.staging.open(key, tokens) {
            Ok(()) => {
                assert!(room, "seed {}", self.seed);
                assert_eq!(self.staging.open(key, tokens), Err(Error::Open { key }));
                let layers = vec![Vec::new(); self.shape.layers.len()];
                self.prompts.insert(key, Model { layers, reserved: tokens, pages: Vec::new() });
            }
            Err(error) => {
                let (needed, capacity) = (pages_for(tokens), STAGING_TOKENS / PAGE_TOKENS);
                assert_eq!(error, Error::StagingFull { tokens, needed, free, capacity });
                assert!(!room && !self.staging.is_open(key), "seed {}", self.seed);
            }
        }
    }

    fn prompt(&mut self) -> Option<u64> {
        let mut keys: Vec<u64> = self.prompts.keys().copied().collect();
        keys.sort_unstable();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len())])
    }

    fn append(&mut self) {
        let Some(key) = self.prompt() else { return };
        let prompt = self.prompts.get_mut(&key).unwrap();
        let length = prompt.layers[0].len();
        // Sometimes from an earlier position, one past what is there, or one past what was
        // reserved.
        let start = match self.random.below(10) {
            0 => self.random.below(length + 1),
            1 => length + 1,
            _ => length,
        };
        let room = prompt.reserved.saturating_sub(start);
        let tokens = match self.random.below(8) {
            0 => room + 1,
            1 => room,
            _ => self.random.below(room + 1),
        };
        let past_end = start + tokens > prompt.reserved;
        for (layer, shape) in self.shape.layers.iter().enumerate() {
            let len = shape.kv_heads * shape.dim;
            let k = self.random.floats(tokens * len);
            let v = self.random.floats(tokens * len);
            let result = self.staging.append(layer, (key, start), &k, &v);
            if start > length {
                assert_eq!(result, Err(Error::Gap { key, layer, length, start }));
            } else if past_end {
                let (tokens, end) = (prompt.reserved, start + tokens);
                assert_eq!(result, Err(Error::PastEnd { key, tokens, end }));
            } else {
                assert_eq!(result, Ok(()));
                let rows = &mut prompt.layers[layer];
                rows.truncate(start);
                let tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
                rows.extend(tokens.map(|(k, v)| (rounded(k), rounded(v))));
            }
        }
    }

    fn close(&mut self) {
        let Some(key) = self.prompt() else { return };
        self.prompts.remove(&key);
        assert!(self.staging.close(key));
        assert!(!self.staging.close(key));
        assert_eq!(self.staging.append(0, (key, 0), &[], &[]), Err(Error::Closed { key }));
        assert_eq!(self.staging.view(0, key).err(), Some(Error::Closed { key }));
    }

    fn ingest(&mut self) {
        let Some(key) = self.prompt() else { return };
        let length = self.prompts[&key].layers[0].len();
        if pages_for(length) > self.pool.free() || length == 0 {
            return;
        }
        let pages: PageList = (0..pages_for(length)).map(|_| self.pool.alloc().unwrap()).collect();
        for layer in 0..self.shape.layers.len() {
            if !length.is_multiple_of(PAGE_TOKENS) {
                let wanted = length + 1;
                let result = self.store.ingest(layer, (&self.staging, key), wanted, &pages);
                assert_eq!(result, Err(Error::Incomplete { key, layer, length, wanted }));
            }
            self.store.ingest(layer, (&self.staging, key), length, &pages).unwrap();
        }
        self.staging.close(key);
        let prompt = self.prompts.remove(&key).unwrap();
        self.sequences.push(Model { pages, ..prompt });
    }

    /// One more token for several sequences; a shared last page is copied first.
    fn decode(&mut self) {
        let mut rows = Vec::new();
        let mut taken = Vec::new();
        for index in 0..self.sequences.len() {
            let length = self.sequences[index].layers[0].len();
            let sequence = &mut self.sequences[index];
            if length.is_multiple_of(PAGE_TOKENS) {
                let Some(page) = self.pool.alloc() else { continue };
                sequence.pages.push(page);
            } else {
                let last = *sequence.pages.last().unwrap();
                if self.pool.owners(last) > 1 {
                    let Some(page) = self.pool.alloc() else { continue };
                    self.store.copy_page(page, last);
                    self.pool.release(last);
                    *sequence.pages.last_mut().unwrap() = page;
                }
            }
            rows.push(RowSlot::at(&sequence.pages, length));
            taken.push(index);
        }
        for (layer, shape) in self.shape.layers.iter().enumerate() {
            let len = shape.kv_heads * shape.dim;
            let k = self.random.floats(rows.len() * len);
            let v = self.random.floats(rows.len() * len);
            self.store.append(layer, &rows, &k, &v);
            let tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
            for (index, (k, v)) in taken.iter().zip(tokens) {
                self.sequences[*index].layers[layer].push((rounded(k), rounded(v)));
            }
        }
    }

    fn share(&mut self) {
        if self.sequences.is_empty() {
            return;
        }
        let twin = self.sequences[self.random.below(self.sequences.len())].clone();
        twin.pages.iter().for_each(|page| self.pool.retain(*page));
        self.sequences.push(twin);
    }

    fn finish(&mut self) {
        if self.sequences.is_empty() {
            return;
        }
        let gone = self.sequences.swap_remove(self.random.below(self.sequences.len()));
        for page in gone.pages {
            let last = self.pool.owners(page) == 1;
            assert_eq!(self.pool.release(page), last);
        }
    }

    fn check(&self) {
        self.pool.check();
        self.staging.check();
        let mut held: Vec<u32> = self.sequences.iter().flat_map(|s| s.pages.clone()).collect();
        for page in &held {
            let owners = held.iter().filter(|other| *other == page).count();
            assert_eq!(self.pool.owners(*page) as usize, owners, "seed {}", self.seed);
        }
        held.sort_unstable();
        held.dedup();
        assert_eq!(self.pool.used(), held.len(), "seed {}", self.seed);
        let staged: usize = self.prompts.values().map(|p| pages_for(p.reserved)).sum();
        assert_eq!(self.staging.used_tokens(), staged * PAGE_TOKENS, "seed {}", self.seed);
        for layer in 0..self.shape.layers.len() {
            for (key, prompt) in &self.prompts {
                let (tiles, pages) = self.staging.view(layer, *key).unwrap();
                assert_eq!(self.staging.length(layer, *key), Ok(prompt.layers[layer].len()));
                self.compare(tiles, pages, &prompt.layers[layer]);
            }
            for sequence in &self.sequences {
                self.compare(self.store.tiles(layer), &sequence.pages, &sequence.layers[layer]);
            }
        }
    }

    fn compare(&self, tiles: DenseTiles<'_>, pages: &[u32], rows: &Rows) {
        for (position, want) in rows.iter().enumerate() {
            let got = gather(tiles, pages, position);
            assert_eq!(&got, want, "seed {}: position {position}, pages {pages:?}", self.seed);
        }
    }
}

#[test]
fn random_work_keeps_what_plain_vectors_keep() {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().expect("SEED: a number"));
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut ingested = 0;
    for seed in seeds {
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step();
            if step % 8 == 0 {
                world.check();
            }
        }
        world.check();
        ingested += world.sequences.len();
    }
    assert!(only.is_some() || ingested > 0, "no prompt ever got into pages");
}

fn small() -> CacheShape {
    CacheShape { layers: vec![LayerShape { kv_heads: 1, dim: 2 }] }
}

#[test]
fn staging_fits_exactly_and_refuses_one_token_more() {
    for (capacity, tokens, fits) in
        [(64, 64, true), (64, 65, false), (65, 128, true), (0, 1, false)]
    {
        let mut staging = Staging::new(&small(), capacity);
        assert_eq!(staging.has_room(tokens), fits, "{tokens} in {capacity}");
        assert_eq!(staging.open(1, tokens).is_ok(), fits, "{tokens} in {capacity}");
    }
    let mut staging = Staging::new(&small(), 128);
    staging.open(1, 65).unwrap();
    assert_eq!((staging.used_tokens(), staging.capacity_tokens()), (128, 128));
    let error = staging.open(2, 1).unwrap_err().to_string();
    assert!(error.contains("1 tokens") && error.contains("0 of 2"), "{error}");
    assert!(staging.close(1));
    assert_eq!(staging.used_tokens(), 0);
}

#[test]
fn an_append_fills_what_was_reserved_and_no_more() {
    let mut staging = Staging::new(&small(), 128);
    staging.open(9, 3).unwrap();
    let rows = |tokens: usize| vec![1.0; 2 * tokens];
    assert!(staging.append(0, (9, 0), &rows(4), &rows(4)).is_err());
    staging.append(0, (9, 0), &rows(2), &rows(2)).unwrap();
    let gap = staging.append(0, (9, 3), &rows(0), &rows(0)).unwrap_err().to_string();
    assert!(gap.contains("2 staged tokens") && gap.contains("at 3"), "{gap}");
    staging.append(0, (9, 2), &rows(1), &rows(1)).unwrap();
    assert!(staging.append(0, (9, 3), &rows(1), &rows(1)).is_err());
    assert_eq!(staging.length(0, 9), Ok(3));
}

#[test]
#[should_panic(expected = "pages for a prompt of 65 tokens")]
fn ingest_wants_the_pages_that_the_prompt_needs() {
    let mut store = PageStore::new(&small(), 4);
    let staging = Staging::new(&small(), 128);
    let _ = store.ingest(0, (&staging, 1), 65, &[0]);
}

#[test]
#[should_panic(expected = "1 pages end before 64")]
fn a_row_past_its_pages_is_refused() {
    RowSlot::at(&[0], 64);
}
