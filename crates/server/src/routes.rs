//! The router: every path, what is said to unknown ones, and the name that each request gets.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::served::Served;
use crate::{generate, ids, models, status, tokenize};

const REQUEST_ID: &str = "x-request-id";

/// Longest name of a request that a client may choose.
const REQUEST_ID_MAX: usize = 128;

pub(crate) fn router(served: Arc<Served>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::text))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(status::health))
        .route("/metrics", get(status::metrics))
        .route("/version", get(status::version))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(named))
        .with_state(served)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::refused(StatusCode::NOT_FOUND, "not_found", format!("there is no {path}"))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not a method of {}", uri.path());
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Every response has the request's name, the client's own if it sent a usable one.
async fn named(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let given = request.headers().get(REQUEST_ID).filter(|name| usable(name)).cloned();
    let name = given
        .unwrap_or_else(|| HeaderValue::from_str(&ids::fresh("req-")).expect("letters and digits"));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let seconds = start.elapsed().as_secs_f64();
    tracing::debug!(?name, %method, path, status, seconds, "answered");
    response.headers_mut().insert(REQUEST_ID, name);
    response
}

fn usable(name: &HeaderValue) -> bool {
    let bytes = name.as_bytes();
    (1..=REQUEST_ID_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}
