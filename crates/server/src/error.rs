//! `ApiError`: one refusal, in the four keys that OpenAI's clients read.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kvant_engine::Rejected;
use serde_json::{Value, json};

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// What the client is told instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<String>,
    message: String,
    /// When it is worth trying again, if that is known.
    retry: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: String) -> Self {
        Self { status, kind, code: Some(code), param: None, message, retry: None }
    }

    /// 400: the request is at fault, and no single field.
    pub(crate) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message.into())
    }

    /// 400: the value of a field.
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad("invalid_value", message).of(param)
    }

    /// 400: a field that is known and not served.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad("unsupported_parameter", message).of(param)
    }

    /// 400: a field that must be there.
    pub(crate) fn missing(param: &str) -> Self {
        Self::bad("missing_required_parameter", format!("{param} is missing")).of(param)
    }

    /// 400: prompt and output cannot fit.
    pub(crate) fn too_long(limit: usize, prompt: usize, output: usize) -> Self {
        let message = format!(
            "this model's context is {limit} tokens, but {} were asked for: {prompt} in the prompt \
             and {output} to generate; shorten the prompt or ask for fewer",
            prompt + output
        );
        Self::bad("context_length_exceeded", message)
    }

    /// Another status for the request's own fault: 401, 403, 404, 405, 408, 413, 415.
    pub(crate) fn refused(status: StatusCode, code: &'static str, message: String) -> Self {
        Self::new(status, INVALID, code, message)
    }

    /// 500: our fault.
    pub(crate) fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, code, message.into())
    }

    /// 503: not now.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message.into())
    }

    /// Names fields as the client's dialect does: each name in front of a path, and in the message.
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        for (from, to) in names {
            let rest = self.param.as_deref().and_then(|param| param.strip_prefix(from));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            {
                self.param = Some(format!("{to}{rest}"));
                self.message = self.message.replace(from, to);
                break;
            }
        }
        self
    }

    /// What went wrong, in words.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// 429: this client asks for too much.
    pub(crate) fn limited(code: &'static str, message: String) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    /// Says when it is worth trying again.
    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        Self { retry: Some(wait), ..self }
    }

    /// Names the field.
    pub(crate) fn of(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// `{"error": {…}}`, for a body or an event of a stream.
    pub(crate) fn body(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    /// Seconds after which it is worth trying again.
    fn retry_seconds(&self) -> Option<u64> {
        if let Some(wait) = self.retry {
            return Some(wait.as_secs_f64().ceil() as u64);
        }
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => Some(1),
            StatusCode::SERVICE_UNAVAILABLE => Some(5),
            _ => None,
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        let message = rejected.to_string();
        match rejected {
            Rejected::QueueFull { .. } => Self::limited("queue_full", message),
            Rejected::TooLong { limit, prompt, output } => Self::too_long(limit, prompt, output),
            Rejected::Closing => Self::unavailable("shutting_down", message),
            Rejected::Dead => Self::unavailable("engine_dead", message),
            Rejected::Invalid(message) => Self::bad("invalid_value", message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), param = self.param, "refused: {self}");
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_seconds() {
            let value = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        // For `Shape`, which may spell it otherwise.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_keys_are_always_there() {
        for error in [ApiError::bad("x", "y"), ApiError::value("n", "y"), Rejected::Dead.into()] {
            let body = error.body();
            let keys: Vec<_> = body["error"].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["message", "type", "param", "code"]);
        }
    }

    #[test]
    fn rejections_have_the_status_that_clients_retry_on() {
        let full = Rejected::QueueFull { waiting_requests: 3, waiting_tokens: 9 };
        let long = Rejected::TooLong { limit: 8, prompt: 8, output: 1 };
        let cases = [
            (full, 429, Some("1"), "queue_full"),
            (Rejected::Closing, 503, Some("5"), "shutting_down"),
            (Rejected::Dead, 503, Some("5"), "engine_dead"),
            (long, 400, None, "context_length_exceeded"),
            (Rejected::Invalid("no".into()), 400, None, "invalid_value"),
        ];
        for (rejected, status, retry, code) in cases {
            let error = ApiError::from(rejected);
            assert_eq!((error.status.as_u16(), error.code), (status, Some(code)));
            let response = error.into_response();
            let found = response.headers().get("retry-after").map(|v| v.to_str().unwrap());
            assert_eq!(found, retry, "{code}");
        }
    }
}
