//! What a conversion allocates, counted by the allocator: one slice of one layer, whatever the
//! prompt's length; and what two prompts take with a packed cache and with a 16-bit one.

#![cfg(test)]

use kvant_kv_cache::{
    CacheShape, LayerShape, LayerTraits, PAGE_TOKENS, PageStore, Row, Span, Staging, Wish, decide,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const LAYERS: usize = 6;
const HEADS: LayerShape = LayerShape { kv_heads: 4, dim: 64 };
/// f32 keys and values of one page of one layer, and what each thread encodes a head with.
const SLICE_BYTES: usize = 2 * PAGE_TOKENS * 4 * 64 * 4 + 8192;

fn shape(preset: &str) -> CacheShape {
    let layer = LayerTraits { shape: HEADS, queries_per_key: 3, key_bias: false, window: None };
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    decide(&[layer; LAYERS], &wish).unwrap()
}

/// A prompt in staging, converted; the most that was allocated meanwhile, bytes.
fn convert(store: &mut PageStore, staging: &mut Staging, key: u64, pages: &[u32]) -> usize {
    let total = pages.len() * PAGE_TOKENS;
    staging.open(key, total).unwrap();
    let tokens = vec![0.5; total * HEADS.kv_heads * HEADS.dim];
    for layer in 0..LAYERS {
        staging.append(layer, (key, 0), &tokens, &tokens).unwrap();
    }
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    for layer in 0..LAYERS {
        let row = Row { pages, tail: key as u32, position: 0, tokens: 0 };
        store.convert(layer, (staging, key), Span { start: 0, end: total, total }, row).unwrap();
    }
    staging.close(key);
    ALLOCATOR.peak_usage() - before
}

// One test: the allocator counts for the whole process.
#[test]
fn a_conversion_takes_a_slice_and_a_second_prompt_stays_below_the_dense_peak() {
    // Threads that encode start once.
    let mut store = PageStore::new(&shape("tq4"), (64, 2), 0);
    let mut staging = Staging::new(&shape("tq4"), 32 * PAGE_TOKENS);
    convert(&mut store, &mut staging, 0, &[0, 1]);
    let [short, long] = [2, 32].map(|pages| {
        let pages: Vec<u32> = (0..pages).collect();
        convert(&mut store, &mut staging, 0, &pages)
    });
    eprintln!("a conversion of 2 pages took {short} bytes, of 32 pages {long}");
    assert!(long <= SLICE_BYTES, "{long} bytes; a slice is {SLICE_BYTES}");
    assert!(long > PAGE_TOKENS * HEADS.kv_heads * HEADS.dim, "nothing was counted");
    drop((store, staging));

    // The second of two prompts comes to staging when the first has left it.
    let peak = |preset| {
        let shape = shape(preset);
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let mut store = PageStore::new(&shape, (64, 2), 0);
        let mut staging = Staging::new(&shape, 32 * PAGE_TOKENS);
        let planned = store.bytes() as usize + staging.bytes() as usize;
        let counted = ALLOCATOR.peak_usage() - before;
        let more = convert(&mut store, &mut staging, 0, &(0..32).collect::<Vec<_>>());
        let again = convert(&mut store, &mut staging, 1, &(32..64).collect::<Vec<_>>());
        assert!(counted.abs_diff(planned) < 100_000, "{preset}: {counted}, planned {planned}");
        planned + more.max(again)
    };
    let (dense, packed) = (peak("f16"), peak("tq4"));
    // Staging and both prompts in 16 bits, against staging and both packed.
    assert!(dense >= 96 * shape("f16").dense_page_bytes() as usize, "{dense}");
    assert!(3 * packed < 2 * dense, "{packed}, dense {dense}");
}
