//! /v1/models: the one model.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::served::Served;

/// GET /v1/models.
pub(crate) async fn list(State(served): State<Arc<Served>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&served)]}))
}

/// GET /v1/models/{id}; an id may have slashes.
pub(crate) async fn one(
    State(served): State<Arc<Served>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if id == served.app.model.id { Ok(Json(card(&served))) } else { Err(served.unknown_model(&id)) }
}

fn card(served: &Served) -> Value {
    let model = &served.app.model;
    json!({
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": served.app.options.owned_by,
        "root": model.id,
        "parent": null,
        "max_model_len": model.max_model_len,
        "kv_cache": {
            "bytes_per_token": model.cache.bytes_per_token,
            "bits_per_element": model.cache.bits_per_element,
            "layers": model.cache.layers,
        },
    })
}
