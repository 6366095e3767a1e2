//! `/`: the page in the binary: a document, a style sheet and a script that ask this server only.
//!
//! It holds no secret, so no key is asked for it; what it asks for, it asks with the user's key.

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The paths that are served without a key.
pub(crate) const PATHS: [&str; 3] = ["/", "/page.css", "/page.js"];

/// Nothing from elsewhere, nothing inline, no markup made of text. The icon is a `data:` URL.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page: its content type and its text.
#[derive(Clone, Copy)]
struct Asset(&'static str, &'static str);

const ASSETS: [Asset; 3] = [
    Asset("text/html; charset=utf-8", include_str!("page/page.html")),
    Asset("text/css; charset=utf-8", include_str!("page/page.css")),
    Asset("text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// The routes of the page.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    PATHS.into_iter().zip(ASSETS).fold(Router::new(), |router, (path, asset)| {
        router.route(path, get(move |headers: HeaderMap| async move { asset.answer(&headers) }))
    })
}

impl Asset {
    /// The file, or 304 if the browser has it already: it is kept, but asked for every time.
    fn answer(self, request: &HeaderMap) -> Response {
        let Self(kind, text) = self;
        let tag = tag(text);
        let seen = request.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let seen = seen.is_some_and(|tags| tags.split(',').any(|seen| seen.trim() == tag));
        let mut response = if seen {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        };
        let tag = HeaderValue::try_from(tag).expect("letters and digits");
        let headers = response.headers_mut();
        headers.insert(header::ETAG, tag);
        for (name, value) in [
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Names a text: FNV-1a, which has to tell versions of a file apart and nothing more.
fn tag(text: &str) -> String {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("\"{:016x}\"", text.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}
