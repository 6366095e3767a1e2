//! /v1/responses: create, whole and streamed. Nothing is kept, so there is nothing to go on from.

mod items;
mod request;
mod told;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use crate::converse;
use crate::error::ApiError;
use crate::served::Served;
use told::Told;

/// POST /v1/responses.
pub(crate) async fn create(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    converse::answer::<Told>(served, request).await
}
