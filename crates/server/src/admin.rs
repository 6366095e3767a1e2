//! /admin/status and /v1/loads: what the server has and does, for people, the page and gateways.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kvant_engine::{Health, PAGE_TOKENS};
use serde_json::{Value, json};

use crate::ids;
use crate::served::Served;

/// GET /admin/status. Counts since the start are there so that a reader can make rates of them.
pub(crate) async fn status(State(served): State<Arc<Served>>) -> Json<Value> {
    let handle = &served.app.handle;
    let (gauges, limits) = (handle.gauges(), handle.limits());
    let model = &served.app.model;
    let status = match handle.health() {
        Health::Ok => "ok",
        Health::Draining => "draining",
        Health::Stalled(_) => "stalled",
        Health::Dead(_) => "dead",
    };
    let page = PAGE_TOKENS as u64;
    let page_bytes = model.cache.bytes_per_token * page;
    let memory = &model.memory;
    let (sequences, more) = served.metrics.under_way.told();
    Json(json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "now": ids::now(),
        "started": model.created,
        "model": {
            "id": model.id,
            "device": model.device,
            "max_model_len": model.max_model_len,
        },
        "cache": {
            "bytes_per_token": model.cache.bytes_per_token,
            "bits_per_element": model.cache.bits_per_element,
            "page_tokens": page,
            "pages": gauges.pages,
            "pages_used": gauges.pages_used,
            "layers": model.cache.layers,
        },
        "memory": {
            "weight_bytes": memory.weights,
            "workspace_bytes": memory.workspace,
            "tail_bytes": memory.tails,
            "staging_bytes": memory.staging,
            "cache_bytes": gauges.pages * page_bytes,
            "cache_used_bytes": gauges.pages_used * page_bytes,
        },
        "queue": {
            "waiting": gauges.waiting,
            "waiting_most": limits.waiting_requests,
            "waiting_tokens": gauges.waiting_tokens,
            "waiting_tokens_most": limits.waiting_tokens,
            "preempted": gauges.preempted,
        },
        "running": {"sequences": gauges.running, "most": limits.sequences},
        "sequences": sequences,
        "sequences_not_told": more,
        "since_start": {
            "prompt_tokens": gauges.prompt_tokens,
            "output_tokens": gauges.output_tokens,
            "steps": gauges.steps,
            "preemptions": gauges.preemptions,
            "cancelled_waiting": gauges.cancelled_waiting,
            "cancelled_prefill": gauges.cancelled_prefill,
            "cancelled_decode": gauges.cancelled_decode,
        },
    }))
}

/// GET /v1/loads, as SGLang's gateway reads it.
pub(crate) async fn loads(State(served): State<Arc<Served>>) -> Json<Value> {
    let handle = &served.app.handle;
    let (gauges, limits) = (handle.gauges(), handle.limits());
    let page = PAGE_TOKENS as u64;
    let usage = gauges.pages_used as f64 / gauges.pages.max(1) as f64;
    let load = json!({
        "dp_rank": 0,
        "num_running_reqs": gauges.running,
        "num_waiting_reqs": gauges.waiting + gauges.preempted,
        "num_waiting_uncached_tokens": gauges.waiting_tokens,
        "num_used_tokens": gauges.pages_used * page,
        "max_total_num_tokens": gauges.pages * page,
        "token_usage": usage,
        "cache_hit_rate": 0.0,
        "utilization": gauges.running as f64 / limits.sequences.max(1) as f64,
        "max_running_requests": limits.sequences,
    });
    Json(json!({
        "timestamp": ids::now(),
        "version": env!("CARGO_PKG_VERSION"),
        "dp_rank_count": 1,
        "loads": [load],
    }))
}
