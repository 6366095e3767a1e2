//! The road of `kvant serve` from a path to a first token, with its own parts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvant_engine::memory::{MemoryInputs, MemoryPlan};
use kvant_engine::{
    Engine, EngineOptions, GenerateRequest, ModelRunner, SamplingParams, StopRules, TokenEvent,
};
use kvant_kv_cache::{CacheShape, PageStore, Staging, Wish};
use kvant_models::{DecoderSpec, ModelFiles};
use kvant_text::RenderOptions;

use crate::facts::{Facts, cache_shape};
use crate::words::Words;

/// What all together may take, as the plan has it; its fixed part is half of that.
const AVAILABLE: u64 = 64 << 20;
const SEQUENCES: usize = 1;
const STEP_TOKENS: usize = 64;

/// Why the road ends.
pub(crate) struct Wrong {
    pub(crate) text: String,
    /// It is the file that is wrong, not the room for it.
    pub(crate) of_file: bool,
}

fn file(error: impl Into<anyhow::Error>) -> Wrong {
    Wrong { text: format!("{:#}", error.into()), of_file: true }
}

fn room(error: impl Into<anyhow::Error>) -> Wrong {
    Wrong { of_file: false, ..file(error) }
}

/// What `kvant inspect` reads.
pub(crate) fn headers(path: &Path) -> Result<(ModelFiles, DecoderSpec, CacheShape), Wrong> {
    let files = ModelFiles::open(path).map_err(file)?;
    let spec = files.spec().map_err(file)?;
    let shape = cache_shape(&spec, &Wish::default()).map_err(room)?;
    Facts::of(&files, "name", &shape).map_err(file)?.to_string();
    Ok((files, spec, shape))
}

/// All of it.
pub(crate) fn walk(path: &Path) -> Result<(), Wrong> {
    let (files, spec, shape) = headers(path)?;
    let plan = MemoryPlan::new(&MemoryInputs {
        available_bytes: AVAILABLE,
        weight_bytes: files.total_bytes(),
        shape: shape.clone(),
        spec: &spec,
        context_tokens: None,
        cache_tokens: None,
        staging_tokens: None,
        sequences: SEQUENCES,
        step_tokens: STEP_TOKENS,
        on_gpu: false,
        records: false,
    });
    let words = Words::load(&files).map_err(file)?;
    // What the words are is the file's business; that they can be asked for is ours.
    let _ = words.tokenizer.encode("a whale, 1851\n<s>", true);
    for token in [0, 1, u32::MAX] {
        words.tokenizer.decode(&[token], false);
    }
    let hi = serde_json::json!([{"role": "user", "content": "hi"}]);
    let rendered = words.template.map(|t| t.render(&hi, None, RenderOptions::default()));
    if let Some(Err(error)) = rendered {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    // Also where there is no room: what the plan refuses, a larger machine loads.
    let decoder = files.load(&mut |_, _| {}).map_err(file)?;
    let plan = plan.map_err(room)?;
    let store = PageStore::new(&shape, (plan.cache_pages, SEQUENCES), 1);
    let staging = Staging::new(&shape, plan.staging_tokens);
    let options = EngineOptions {
        sequences: SEQUENCES,
        step_tokens: STEP_TOKENS,
        waiting_requests: 1,
        waiting_tokens: 1024,
        context_tokens: plan.context_tokens,
        cache_pages: plan.cache_pages,
        staging_tokens: plan.staging_tokens,
        vocab: spec.vocab,
        unread_tokens: 1024,
        stall: Duration::from_mins(1),
    };
    let handle = Engine::start(ModelRunner::new(decoder, store, staging), options);
    let request = GenerateRequest {
        prompt: vec![0].into(),
        sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        stop: StopRules { max_tokens: 2, min_tokens: 0, eos_tokens: vec![], stop_tokens: vec![] },
        prompt_logprobs: None,
        constraint: None,
        pooling: None,
    };
    let Ok(mut stream) = handle.submit(request) else { return Ok(()) };
    loop {
        match stream.blocking_recv().expect("the engine's thread lives") {
            // Weights that are no numbers give no tokens, and it says so.
            TokenEvent::Done { .. } | TokenEvent::Stuck(_) | TokenEvent::Failed(_) => return Ok(()),
            _ => {}
        }
    }
}
