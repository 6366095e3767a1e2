//! Bounds that are checked before a grammar is read: how large it is, and how deep.

use serde_json::Value;

use super::{GrammarLimits, GrammarSpec};
use crate::error::Error;

/// Bytes of an expression at most, whatever the limits: it costs more than in proportion to them,
/// and not all of it is counted while it compiles.
const EXPRESSION_BYTES: usize = 16 << 10;

pub(super) fn check(spec: &GrammarSpec, limits: &GrammarLimits) -> Result<(), Error> {
    let (bytes, nesting) = match spec {
        GrammarSpec::JsonObject => (0, 0),
        GrammarSpec::JsonSchema { schema, .. } => (schema.to_string().len(), of_value(schema)),
        GrammarSpec::Choice(texts) => (texts.iter().map(String::len).sum(), 0),
        GrammarSpec::Regex(text) | GrammarSpec::Text(text) => (text.len(), of_text(text)),
        GrammarSpec::Either(parts) => return parts.iter().try_for_each(|part| check(part, limits)),
    };
    let most = match spec {
        GrammarSpec::Regex(_) => limits.bytes.min(EXPRESSION_BYTES),
        _ => limits.bytes,
    };
    if bytes > most {
        return Err(Error::Grammar(format!("it has {bytes} bytes, at most {most} are taken")));
    }
    if nesting > limits.nesting {
        let most = limits.nesting;
        return Err(Error::Grammar(format!(
            "it is nested {nesting} deep, at most {most} are taken"
        )));
    }
    Ok(())
}

/// Arrays and objects around the innermost value.
fn of_value(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(list) => open.extend(list.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// Brackets of any kind around the innermost character; those behind a backslash are text.
fn of_text(text: &str) -> usize {
    let (mut deepest, mut depth, mut escaped) = (0_usize, 0_usize, false);
    for letter in text.chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_what_is_open_at_once() {
        for (text, depth) in
            [("", 0), ("a(b)(c)", 1), (r"((a)|[b{2}])", 3), (r"\(\(\(", 0), ("([]{", 2), ("))(", 1)]
        {
            assert_eq!(of_text(text), depth, "{text}");
        }
        for (text, depth) in [("1", 0), ("[]", 0), ("[1]", 1), (r#"{"a":[{"b":1}],"c":{}}"#, 3)] {
            assert_eq!(of_value(&serde_json::from_str(text).unwrap()), depth, "{text}");
        }
    }
}
