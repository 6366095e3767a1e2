//! The memory plan for scripts, and how large a cache would fit beside everything else.

use kvant_engine::memory::MemoryPlan;
use kvant_kv_cache::PAGE_TOKENS;
use serde_json::{Value, json};

/// Tokens that would fit if nothing else bounded the cache: the plan itself makes no more pages
/// than all sequences can use, or as many as were asked for.
pub(crate) fn fit_tokens(plan: &MemoryPlan) -> u64 {
    let cache = plan.page_bytes.saturating_mul(plan.cache_pages as u64);
    let beside = plan.total_bytes().saturating_sub(cache);
    plan.available_bytes.saturating_sub(beside) / plan.page_bytes.max(1) * PAGE_TOKENS as u64
}

/// All of it.
pub(crate) fn json(plan: &MemoryPlan) -> Value {
    json!({
        "available_bytes": plan.available_bytes,
        "weight_bytes": plan.weight_bytes,
        "tail_bytes": plan.tail_bytes,
        "staging_bytes": plan.staging_bytes,
        "staging_tokens": plan.staging_tokens,
        "page_bytes": plan.page_bytes,
        "cache_pages": plan.cache_pages,
        "cache_tokens": plan.cache_pages * PAGE_TOKENS,
        "fit_tokens": fit_tokens(plan),
        "workspace_bytes": plan.workspace_bytes,
        "recording_bytes": plan.recording_bytes,
    })
}
