//! Values as Python writes them: `str`, `repr` and `json.dumps`, which templates were made for.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Deepest nesting of lists and objects; JSON from a request has less.
pub(super) const DEPTH: usize = 128;

/// Arguments of `json.dumps`.
#[derive(Debug)]
pub(super) struct Dumps {
    pub(super) ensure_ascii: bool,
    pub(super) indent: Option<String>,
    /// Between items, and after a key.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
}

impl Dumps {
    /// `json.dumps(value)`.
    pub(super) fn text(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                out.push('[');
                self.list(out, depth, &items, |out, item| self.write(out, item, depth + 1))?;
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                self.list(out, depth, &keys, |out, key| {
                    let item = value.get_item(key)?;
                    match key.as_str() {
                        Some(text) => self.string(out, text),
                        // Keys of other types become texts: 1 is "1", none is "null".
                        None => self.string(out, &self.text(key)?),
                    }
                    out.push_str(&self.separators.1);
                    self.write(out, &item, depth + 1)
                })?;
                out.push('}');
            }
            kind => {
                let what = format!("{kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::BadSerialization, what));
            }
        }
        Ok(())
    }

    /// What is between the brackets.
    fn list(
        &self,
        out: &mut String,
        depth: usize,
        items: &[Value],
        write: impl Fn(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_deref().filter(|_| !items.is_empty()) {
                out.push('\n');
                out.extend(std::iter::repeat_n(indent, depth));
            }
        };
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.separators.0);
            }
            line(out, depth + 1);
            write(out, item)?;
        }
        line(out, depth);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `str(value)`. An undefined value is empty, as Jinja writes it.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => repr_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if !x.is_finite() {
        let name = if x.is_nan() { "NaN" } else { "Infinity" };
        return if x < 0.0 { format!("-{name}") } else { name.to_owned() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

fn too_deep() -> Error {
    let what = format!("a value is nested more than {DEPTH} deep");
    Error::new(ErrorKind::InvalidOperation, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dumps(indent: Option<&str>, ensure_ascii: bool) -> Dumps {
        let separators = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
        Dumps { ensure_ascii, indent: indent.map(str::to_owned), separators, sort_keys: false }
    }

    #[test]
    fn floats_are_written_as_python_does() {
        for (x, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (1e100, "1e+100"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float(x), expected, "{x:e}");
        }
    }

    #[test]
    fn values_are_written_as_python_does() {
        let value =
            json!({"b": [1, 2.5, null, true], "a": {"é\n\u{1}\"": "'<&>😀"}, "e": [{}, []]});
        let value = Value::from_serialize(value);
        assert_eq!(
            dumps(None, false).text(&value).unwrap(),
            "{\"b\": [1, 2.5, null, true], \"a\": {\"é\\n\\u0001\\\"\": \"'<&>😀\"}, \
             \"e\": [{}, []]}"
        );
        assert_eq!(
            dumps(None, true).text(&value).unwrap(),
            "{\"b\": [1, 2.5, null, true], \"a\": {\"\\u00e9\\n\\u0001\\\"\": \
             \"'<&>\\ud83d\\ude00\"}, \"e\": [{}, []]}"
        );
        assert_eq!(
            dumps(Some("  "), false).text(&Value::from_serialize(json!({"a": [1, {}]}))).unwrap(),
            "{\n  \"a\": [\n    1,\n    {}\n  ]\n}"
        );
        assert_eq!(
            text(&value).unwrap(),
            "{'b': [1, 2.5, None, True], 'a': {'é\\n\\x01\"': \"'<&>😀\"}, 'e': [{}, []]}"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let nested =
            |depth: usize| (0..depth).fold(Value::from(1), |value, _| Value::from(vec![value]));
        assert!(dumps(None, false).text(&nested(DEPTH)).is_ok());
        assert!(dumps(None, false).text(&nested(DEPTH + 1)).is_err());
        assert!(text(&nested(DEPTH)).is_ok());
        assert!(text(&nested(DEPTH + 1)).is_err());
    }
}
