//! `Fields`: the fields of a request's JSON object, taken one by one, each with its own message.
//!
//! Read by hand and not by derive, so that every refusal names its field, value and bound.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::unknown::Unknown;

/// Characters of a refused value that its message shows.
const SHOWN: usize = 60;

/// The fields that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Of objects inside.
    unknown: Unknown,
}

impl From<Map<String, Value>> for Fields {
    fn from(map: Map<String, Value>) -> Self {
        Self { map, unknown: Unknown::default() }
    }
}

/// A number's bounds; `high` is allowed, and `low` unless `open`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) name: &'static str,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) open: bool,
}

impl Bound {
    pub(crate) const fn new(name: &'static str, low: f64, high: f64) -> Self {
        Self { name, low, high, open: false }
    }

    /// `low` itself is out.
    pub(crate) const fn above(name: &'static str, low: f64, high: f64) -> Self {
        Self { name, low, high, open: true }
    }

    fn check(&self, number: f64) -> Result<(), ApiError> {
        let Self { name, low, high, open } = *self;
        let enough = if open { number > low } else { number >= low };
        if enough && number <= high {
            return Ok(());
        }
        let from = if open { "above" } else { "at least" };
        let message = format!("{name} is {number}, it must be {from} {low} and at most {high}");
        Err(ApiError::value(name, message))
    }
}

impl Fields {
    /// The object of a body. Nesting is bounded by `serde_json` at 128.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad("invalid_json", format!("the body is not JSON: {error}"))
        })?;
        match value {
            Value::Object(map) => Ok(map.into()),
            other => {
                let message = format!("the body is {}, it must be an object", kind(&other));
                Err(ApiError::bad("invalid_json", message))
            }
        }
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field's value, left for who takes it.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// A field's value; null is as good as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong_type(name, &other, "true or false")),
        }
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, &other, "a string")),
        }
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong_type(name, &other, "an array")),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(name, &other, "an object")),
        }
    }

    pub(crate) fn number(&mut self, bound: &Bound) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(bound.name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(bound.name, &value, "a number"))?;
        bound.check(number)?;
        Ok(Some(number))
    }

    pub(crate) fn integer(&mut self, bound: &Bound) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(bound.name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong_type(bound.name, &value, "an integer"))?;
        bound.check(number)?;
        if number.fract() != 0.0 {
            return Err(wrong_type(bound.name, &value, "an integer"));
        }
        Ok(Some(number as i64))
    }

    /// A field's value, left for whoever takes it.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Takes over what nobody has taken of another object, to report it.
    pub(crate) fn adopt(&mut self, other: Self) {
        let Self { map, unknown } = other;
        self.unknown.extend("", unknown);
        self.unknown.extend("", map.into_iter().map(|(key, _)| key).collect());
    }

    /// Takes note of what nobody has taken of an object inside.
    pub(crate) fn leave(&mut self, name: &str, inside: Self) {
        let Self { map, unknown } = inside;
        self.unknown.extend(&format!("{name}."), unknown);
        self.unknown.extend(&format!("{name}."), map.into_iter().map(|(key, _)| key).collect());
    }

    /// What nobody has taken at the end: it is reported, since gateways pass their own fields
    /// through, or refused if the server is strict.
    pub(crate) fn rest(self, strict: bool) -> Result<Unknown, ApiError> {
        let mut unknown: Unknown = self.map.into_iter().map(|(key, _)| key).collect();
        unknown.extend("", self.unknown);
        unknown.check(strict)
    }
}

/// 400 for a value of another kind.
pub(crate) fn wrong_type(name: &str, value: &Value, wanted: &str) -> ApiError {
    let message = format!("{name} is {}, it must be {wanted}", shown(value));
    ApiError::bad("invalid_type", message).of(name)
}

/// A token id of a list or key.
pub(crate) fn token_id(name: &str, value: &Value, vocab: usize) -> Result<u32, ApiError> {
    let Some(number) = value.as_i64() else {
        return Err(wrong_type(name, value, "a token id"));
    };
    match u32::try_from(number) {
        Ok(token) if (token as usize) < vocab => Ok(token),
        _ => {
            let message = format!("{name} is {number}, the vocabulary has {vocab} tokens");
            Err(ApiError::value(name, message))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A scalar as written, else its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        Value::String(text) if text.chars().count() > SHOWN => "a long string".to_owned(),
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_not_an_object_of_json_is_refused() {
        let deep = "[".repeat(10_000);
        let nested = format!("{{\"x\":{}}}", "{\"a\":".repeat(10_000));
        let cases: [&[u8]; 8] = [
            b"",
            b"{",
            b"[]",
            b"\"x\"",
            b"{\"x\": NaN}",
            b"{\"x\": \"\xff\"}",
            deep.as_bytes(),
            nested.as_bytes(),
        ];
        for body in cases {
            let error = Fields::parse(body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (400, Some("invalid_json")));
        }
        assert!(Fields::parse(br#"{"temperature": 1e999}"#).is_err());
    }

    #[test]
    fn null_is_absent_and_kinds_are_checked() {
        assert_eq!(fields(r#"{"x": null}"#).text("x").unwrap(), None);
        let error = fields(r#"{"x": 3}"#).text("x").unwrap_err();
        assert_eq!(error.to_string(), "x is 3, it must be a string");
        assert_eq!(error.param.as_deref(), Some("x"));
        assert!(fields(r#"{"x": "yes"}"#).flag("x", true).is_err());
        assert!(fields(r#"{"x": {}}"#).list("x").is_err());
        assert!(fields(r#"{"x": []}"#).object("x").is_err());
    }

    #[test]
    fn numbers_are_checked_at_their_bounds() {
        let bound = Bound::above("x", 0.0, 2.0);
        assert_eq!(fields(r#"{"x": 2}"#).number(&bound).unwrap(), Some(2.0));
        let error = fields(r#"{"x": 0}"#).number(&bound).unwrap_err();
        assert_eq!(error.to_string(), "x is 0, it must be above 0 and at most 2");
        assert!(fields(r#"{"x": 2.1}"#).number(&bound).is_err());
        assert!(fields(r#"{"x": "NaN"}"#).number(&bound).is_err());
        assert_eq!(fields(r#"{"x": 2.0}"#).integer(&bound).unwrap(), Some(2));
        assert!(fields(r#"{"x": 1.5}"#).integer(&bound).is_err());
    }

    #[test]
    fn token_ids_are_within_the_vocabulary() {
        assert_eq!(token_id("t", &Value::from(9), 10).unwrap(), 9);
        for wrong in [Value::from(10), Value::from(-1), Value::from("1"), Value::from(1.5)] {
            assert!(token_id("t", &wrong, 10).is_err(), "{wrong}");
        }
    }
}
