//! An engine with the built-in model.

use std::path::Path;
use std::time::Duration;

use kvant_engine::{AttentionRoad, Engine, EngineOptions, Handle, ModelRunner};
use kvant_kv_cache::{LayerShape, LayerTraits, PageStore, Staging, Wish, decide};
use kvant_models::ModelFiles;

/// Tokens of context of these engines.
pub(crate) const CONTEXT: usize = 512;

/// An engine with the built-in model, a cache preset and so many pages.
pub(crate) fn start(
    preset: &str,
    cache_pages: usize,
    step_tokens: usize,
    sequences: usize,
) -> Handle {
    start_on(AttentionRoad::Fused, preset, (cache_pages, 2 * CONTEXT), step_tokens, sequences)
}

/// The same with a road of attention and so many tokens of staging.
pub(crate) fn start_on(
    road: AttentionRoad,
    preset: &str,
    (cache_pages, staging_tokens): (usize, usize),
    step_tokens: usize,
    sequences: usize,
) -> Handle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    let files = ModelFiles::open(&folder).unwrap();
    let decoder = files.load(&mut |_, _| {}).unwrap();
    let spec = decoder.spec();
    let layer = LayerTraits {
        shape: LayerShape { kv_heads: spec.heads.kv, dim: spec.heads.dim },
        queries_per_key: spec.heads.q / spec.heads.kv,
        key_bias: false,
        window: None,
    };
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    let shape = decide(&vec![layer; spec.layers.len()], &wish).unwrap();
    let options = EngineOptions {
        sequences,
        step_tokens,
        waiting_requests: 100,
        waiting_tokens: 100_000,
        context_tokens: CONTEXT,
        cache_pages,
        staging_tokens,
        vocab: spec.vocab,
        unread_tokens: 1024,
        stall: Duration::from_mins(1),
    };
    let store = PageStore::new(&shape, (cache_pages, sequences), 1);
    let staging = Staging::new(&shape, staging_tokens);
    Engine::start(ModelRunner::new(decoder, store, staging).on(road), options)
}
