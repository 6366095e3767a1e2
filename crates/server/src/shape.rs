//! `Shape`: how a refusal is spelled on the wire. The one place that knows which path speaks which
//! dialect's errors: whatever refuses a request, its body gets the path's shape on the way out.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Anthropic's paths are this one and what is below it, whatever slashes are in front.
const ANTHROPIC: &str = "v1/messages";

/// Anthropic's clients read the request's name here.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Whose errors a path speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
}

impl Shape {
    pub(crate) fn of(path: &str) -> Self {
        // A base address that ends with a slash doubles it.
        let path = path.trim_start_matches('/');
        match path.strip_prefix(ANTHROPIC) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }

    /// Spells the refusal in an answer, if it is one, and names the request as the dialect does.
    pub(crate) fn put_on(self, response: &mut Response, id: &HeaderValue) {
        let error = response.extensions_mut().remove::<ApiError>();
        if self == Self::OpenAi {
            return;
        }
        response.headers_mut().insert(REQUEST_ID, id.clone());
        if let Some(error) = error {
            *response.body_mut() = Body::from(anthropic(&error, id).to_string());
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
    }
}

/// A refusal of the request of this name, as Anthropic spells it.
pub(crate) fn anthropic(error: &ApiError, id: &HeaderValue) -> Value {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let error = json!({"type": kind, "message": error.message()});
    json!({"type": "error", "error": error, "request_id": id.to_str().unwrap_or_default()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_messages_speak_anthropics_errors() {
        for (path, expected) in [
            ("/v1/messages", Shape::Anthropic),
            ("/v1/messages/", Shape::Anthropic),
            ("/v1/messages/count_tokens", Shape::Anthropic),
            ("/v1/messages/batches", Shape::Anthropic),
            ("/v1/messages2", Shape::OpenAi),
            ("/v1/chat/completions", Shape::OpenAi),
            ("//v1/messages", Shape::Anthropic),
            ("//v1/models", Shape::OpenAi),
            ("", Shape::OpenAi),
        ] {
            assert_eq!(Shape::of(path), expected, "{path}");
        }
    }

    #[test]
    fn every_status_has_its_kind() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (405, "invalid_request_error"),
            (408, "invalid_request_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (503, "overloaded_error"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = ApiError::refused(status, "code", "why".to_owned());
            let told = json!({"type": kind, "message": "why"});
            let expected = json!({"type": "error", "error": told, "request_id": "req-1"});
            assert_eq!(anthropic(&error, &HeaderValue::from_static("req-1")), expected);
        }
    }
}
