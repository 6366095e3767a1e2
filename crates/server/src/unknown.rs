//! `Unknown`: fields of a request that nobody knows: told in a header and in the log, or refused by
//! a strict server. No field is dropped in silence.

use std::convert::Infallible;

use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponseParts, ResponseParts};

use crate::error::ApiError;

const HEADER: &str = "x-kvant-unknown-fields";

/// Names that a header or message shows, and characters of each.
const SHOWN: usize = 20;
const SHOWN_CHARS: usize = 60;

/// Their names, with the path of the object that they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unknown(Vec<String>);

impl FromIterator<String> for Unknown {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Unknown {
    /// Adds names under a path.
    pub(crate) fn extend(&mut self, path: &str, more: Self) {
        self.0.extend(more.0.into_iter().map(|name| format!("{path}{name}")));
    }

    /// Refuses them if the server is strict, else writes them into the log.
    pub(crate) fn check(self, strict: bool) -> Result<Self, ApiError> {
        let Some(first) = self.0.first() else { return Ok(self) };
        let names = self.shown();
        if strict {
            let message = format!("unknown fields: {names}; this server takes known ones only");
            let first: String = first.chars().take(SHOWN_CHARS).collect();
            return Err(ApiError::bad("unknown_parameter", message).of(first));
        }
        tracing::info!(names, "unknown fields of a request are ignored");
        Ok(self)
    }

    /// The first of them, fit for a header: letters that no header may have are question marks.
    fn shown(&self) -> String {
        let fit = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
        let name = |name: &String| name.chars().take(SHOWN_CHARS).map(fit).collect::<String>();
        let mut names: Vec<String> = self.0.iter().take(SHOWN).map(name).collect();
        if self.0.len() > SHOWN {
            names.push(format!("and {} more", self.0.len() - SHOWN));
        }
        names.join(", ")
    }
}

impl IntoResponseParts for Unknown {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        if !self.0.is_empty()
            && let Ok(names) = HeaderValue::from_str(&self.shown())
        {
            parts.headers_mut().insert(HeaderName::from_static(HEADER), names);
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    fn told(names: &[&str]) -> Option<String> {
        let unknown: Unknown = names.iter().map(|name| (*name).to_owned()).collect();
        let response = (unknown.check(false).unwrap(), "").into_response();
        response.headers().get(HEADER).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn whatever_a_field_is_called_a_header_can_hold_it() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["top_q", "a b\r\nc,é"]).unwrap(), "top_q, a?b??c??");
        let many: Vec<String> = (0..30).map(|index| format!("f{index}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&many).unwrap().ends_with("f19, and 10 more"));
        assert_eq!(told(&[&"x".repeat(1000)]).unwrap().len(), SHOWN_CHARS);
    }

    #[test]
    fn a_strict_server_names_the_first() {
        let unknown: Unknown = ["top_q".to_owned(), "x".to_owned()].into_iter().collect();
        let error = unknown.check(true).unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("top_q")));
        assert!(error.to_string().contains("top_q, x"), "{error}");
        assert_eq!(Unknown::default().check(true), Ok(Unknown::default()));
    }
}
