//! `Access`: who may ask for what. Every route but the page and two others wants a key, unless
//! there are no keys.

mod cors;
mod keys;
mod usage;

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::page;
pub(crate) use cors::Cors;
pub use keys::{Keys, hash_line};
pub use usage::Quota;
pub(crate) use usage::Slot;

/// Paths that anybody may ask, beside the page's, spelled exactly so.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// What comes under it is for keys marked `admin`.
const ADMIN: &str = "/admin";

/// The keys as of now. Without any the server is open.
#[derive(Debug, Default)]
pub struct Access {
    keys: RwLock<Option<Arc<Keys>>>,
}

/// Who asks, with its place among the requests of the same key.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) name: Option<String>,
    pub(crate) slot: Option<Slot>,
}

impl Access {
    /// Behind keys.
    pub fn with_keys(keys: Keys) -> Self {
        Self { keys: RwLock::new(Some(Arc::new(keys))) }
    }

    /// Takes other keys from now on. Counts of keys that stay go on.
    pub fn replace(&self, keys: Keys) {
        let mut place = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let keys = match &*place {
            Some(before) => keys.with_usage_of(before),
            None => keys,
        };
        *place = Some(Arc::new(keys));
    }

    /// Whether the request may go on, and as whom.
    pub(crate) fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Admitted, ApiError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(keys) = keys else { return Ok(Admitted::default()) };
        let open = OPEN.contains(&path) || page::PATHS.contains(&path);
        if open && matches!(*method, Method::GET | Method::HEAD) {
            return Ok(Admitted::default());
        }
        let mut offered = offered(headers).peekable();
        if offered.peek().is_none() {
            let message = "this server wants a key: send Authorization: Bearer KEY or x-api-key";
            return Err(unauthorized("missing_api_key", message));
        }
        let found = offered.find_map(|key| keys.find(key));
        let Some(key) = found else {
            return Err(unauthorized("invalid_api_key", "the key is not one of this server's"));
        };
        if is_admin(path) && !key.admin {
            let message = "this path is for keys marked admin".to_owned();
            return Err(ApiError::refused(StatusCode::FORBIDDEN, "admin_key_needed", message));
        }
        let slot = if *method == Method::POST { Some(key.enter()?) } else { None };
        Ok(Admitted { name: Some(key.name.clone()), slot })
    }
}

fn unauthorized(code: &'static str, message: &str) -> ApiError {
    ApiError::refused(StatusCode::UNAUTHORIZED, code, message.to_owned())
}

/// Says how to come in, which a 401 must.
pub(crate) fn challenge(response: &mut Response) {
    if response.status() == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Bearer realm=\"kvant\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
}

/// Any spelling that a route below could take for one under `/admin`.
fn is_admin(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    first.eq_ignore_ascii_case(&ADMIN[1..]) || first.contains('%')
}

/// The keys that a request shows.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.chain(headers.get_all("x-api-key").iter().map(|value| value.as_bytes().trim_ascii()))
}

/// An answer that ends a request before its route.
pub(crate) fn empty(status: StatusCode) -> Response {
    status.into_response()
}
