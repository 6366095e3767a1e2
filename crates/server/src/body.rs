//! A request's body as bytes, within its size and time.

use std::pin::pin;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};

use crate::error::ApiError;
use crate::options::ServerOptions;

/// What is read of a body that is too large, in multiples of the bound, before the connection is
/// given up: a client that is still sending does not see the answer.
const DISCARDED: u64 = 16;

/// The whole body. Any content type is taken for JSON.
pub(crate) async fn read(request: Request, options: &ServerOptions) -> Result<Vec<u8>, ApiError> {
    plain(request.headers())?;
    let reading = collect(request.into_body(), options.body_bytes);
    tokio::time::timeout(options.body_time, reading).await.unwrap_or_else(|_| {
        let seconds = options.body_time.as_secs_f64();
        let message = format!("the body did not arrive within {seconds} seconds");
        Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
    })
}

fn plain(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b"identity"[..], |v| v.as_bytes());
    if encoding.eq_ignore_ascii_case(b"identity") {
        return Ok(());
    }
    let message = "compressed bodies are not read; send it without content-encoding".to_owned();
    Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message))
}

async fn collect(body: Body, bound: usize) -> Result<Vec<u8>, ApiError> {
    let declared = body.size_hint().lower();
    let mut bytes = Vec::with_capacity(declared.min(bound as u64) as usize);
    let mut total = 0_u64;
    let mut body = pin!(body);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(chunk) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
        total += chunk.len() as u64;
        if total <= bound as u64 {
            bytes.extend_from_slice(&chunk);
        } else {
            bytes = Vec::new();
            if total > DISCARDED * bound as u64 {
                break;
            }
        }
    }
    if total > bound as u64 {
        let message = format!("the body is larger than {bound} bytes");
        return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message));
    }
    Ok(bytes)
}

fn broken(error: &axum::Error) -> ApiError {
    ApiError::bad("incomplete_body", format!("the body could not be read: {error}"))
}
