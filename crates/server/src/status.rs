//! /health, /ready, /metrics, /version: how the server is. Nothing here waits or uses the threads
//! of text.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kvant_engine::Health;
use serde_json::{Value, json};

use crate::served::Served;

/// GET /health: 200 when requests are taken and worked on, else 503. Why an engine died is for the
/// log, not for whoever asks.
pub(crate) async fn health(State(served): State<Arc<Served>>) -> Response {
    let unavailable = |body: Value| (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    match served.app.handle.health() {
        Health::Ok => Json(json!({"status": "ok"})).into_response(),
        Health::Draining => unavailable(json!({"status": "draining"})),
        Health::Stalled(silent) => {
            let seconds = silent.as_secs_f64();
            unavailable(json!({"status": "stalled", "silent_seconds": seconds}))
        }
        Health::Dead(_) => unavailable(json!({"status": "dead"})),
    }
}

/// GET /ready: 200 when a request that comes now would be taken, else 503: beside what `/health`
/// looks at, the queue has room.
pub(crate) async fn ready(State(served): State<Arc<Served>>) -> Response {
    if served.app.handle.health() != Health::Ok {
        return health(State(served)).await;
    }
    match served.check_open() {
        Ok(()) => Json(json!({"status": "ok"})).into_response(),
        Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "full"}))).into_response()
        }
    }
}

/// GET /metrics.
pub(crate) async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let mut page = served.metrics.page(&served.app.handle.gauges(), &served.app.model.cache);
    if let Some(traces) = &served.app.traces {
        served.metrics.lost_traces(&mut page, traces.lost());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// GET /version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
