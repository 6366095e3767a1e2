//! What a step of decoding allocates, counted by the allocator: lists of its rows, and no
//! activations.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvant_engine::{
    DecodeRow, Heartbeat, ModelRunner, Place, Runner, SampleRow, SamplingParams, SeqId, Step,
};
use kvant_kv_cache::{LayerShape, LayerTraits, PageStore, Staging, Wish, decide};
use kvant_models::{DecoderSpec, ModelFiles};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: usize = 8;
const PAGES: usize = 4;
/// Steps that are counted together.
const WINDOW: usize = 8;

/// A runner of random weights, and the decoder's shape.
fn runner(preset: &str) -> (ModelRunner, DecoderSpec) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    let decoder = ModelFiles::open_config_only(&folder).unwrap().load_dummy(3).unwrap();
    let spec = decoder.spec().clone();
    let layer = LayerTraits {
        shape: LayerShape { kv_heads: spec.heads.kv, dim: spec.heads.dim },
        queries_per_key: spec.heads.q / spec.heads.kv,
        key_bias: false,
        window: None,
    };
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    let shape = decide(&vec![layer; spec.layers.len()], &wish).unwrap();
    let store = PageStore::new(&shape, (ROWS * PAGES, ROWS), 1);
    (ModelRunner::new(decoder, store, Staging::new(&shape, 0)), spec)
}

/// All rows at one position, greedy.
fn step(position: usize) -> Step {
    let params = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let row = |row: usize| DecodeRow {
        seq: SeqId(row as u64),
        tokens: vec![(row * 7 + position) as u32],
        position: position as u32,
        place: Place {
            pages: (0..PAGES).map(|page| (row * PAGES + page) as u32).collect(),
            tail: row as u32,
        },
        sample: Some(SampleRow {
            params: params.clone(),
            index: position as u32,
            forbidden: Vec::new(),
            prompt: Arc::from([]),
            output: Vec::new(),
            allowed: None,
        }),
        follows: None,
    };
    Step { decode: (0..ROWS).map(row).collect(), prefill: Vec::new() }
}

/// The least that the steps of a window allocate, in bytes, and how often: a thread of the pool may
/// take its first task, and grow its buffers, in any step.
fn counted(preset: &str) -> (usize, usize, DecoderSpec) {
    let (mut runner, spec) = runner(preset);
    let alive = Heartbeat::new(Duration::MAX);
    let steps: Vec<Step> = (0..24 * WINDOW).map(step).collect();
    let counted = steps.chunks(WINDOW).map(|window| {
        let region = Region::new(ALLOCATOR);
        for step in window {
            assert_eq!(runner.run(step, &alive).unwrap().len(), ROWS);
        }
        let change = region.change();
        let grown = change.bytes_reallocated.max(0) as usize;
        (change.bytes_allocated + grown, change.allocations + change.reallocations)
    });
    let (bytes, count) = counted.min().unwrap();
    (bytes / WINDOW, count / WINDOW, spec)
}

// One test: the allocator counts for the whole program.
#[test]
fn a_step_of_decoding_allocates_no_activations() {
    for preset in ["f16", "tq4"] {
        let (bytes, count, spec) = counted(preset);
        let (layers, heads) = (spec.layers.len(), spec.heads);
        eprintln!("{preset}: {bytes} bytes in {count} allocations a step of {ROWS} rows");
        // Lists of a step's rows, the tokens, and what is chosen.
        let lists = ROWS * 1024;
        // Packed attention takes a query head apart, three times.
        let packed = if preset == "f16" { 0 } else { layers * ROWS * heads.q * 3 * 4 * heads.dim };
        assert!(bytes <= lists + packed, "{preset}: {bytes} bytes, not {lists} and {packed}");
        // The bound would not do for one activation a layer.
        assert!(f64::from(lists as u32) < (layers * ROWS * spec.hidden * 4) as f64);
    }
}
