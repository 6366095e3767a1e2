//! Numbers of a schema that llguidance computes with: it does so in 32 and 64 bits and looks for no
//! overflow, so that larger ones would ask for something else.

use serde_json::{Deserializer, Value};

use super::GrammarSpec;
use crate::error::Error;

/// Largest bound of a number: past it not every whole number is one of JSON's.
const BOUND: f64 = 9_007_199_254_740_992.0;

/// Largest `multipleOf`, and one over its smallest part.
const MULTIPLE: f64 = 1e8;

const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];

/// Keywords whose values are not schemas.
const VALUES: [&str; 4] = ["const", "enum", "default", "examples"];

pub(super) fn check(spec: &GrammarSpec) -> Result<(), Error> {
    match spec {
        GrammarSpec::JsonSchema { schema, .. } => of_schema(schema),
        GrammarSpec::Text(text) => of_text(text),
        GrammarSpec::Either(both) => both.iter().try_for_each(check),
        GrammarSpec::JsonObject | GrammarSpec::Regex(_) | GrammarSpec::Choice(_) => Ok(()),
    }
}

/// Of the schemas in a grammar.
fn of_text(text: &str) -> Result<(), Error> {
    for rest in text.split("%json").skip(1) {
        // What is no JSON is for llguidance to refuse.
        if let Some(Ok(schema)) = Deserializer::from_str(rest).into_iter::<Value>().next() {
            of_schema(&schema)?;
        }
    }
    Ok(())
}

fn of_schema(schema: &Value) -> Result<(), Error> {
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(list) => open.extend(list),
            Value::Object(map) => {
                for (key, value) in map {
                    one(key, value)?;
                    if !VALUES.contains(&key.as_str()) {
                        open.push(value);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn one(key: &str, value: &Value) -> Result<(), Error> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let wrong = if BOUNDS.contains(&key) && number.abs() > BOUND {
        format!("it must be from {} to {BOUND}", -BOUND)
    } else if key == "multipleOf" && !is_multiple(number) {
        format!("it must be above 0, at most {MULTIPLE}, with at most 8 digits after the point")
    } else {
        return Ok(());
    };
    Err(Error::Grammar(format!("{key} is {number:e}, {wrong}")))
}

fn is_multiple(number: f64) -> bool {
    number > 0.0 && number <= MULTIPLE && (number * MULTIPLE).round() / MULTIPLE == number
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_llguidance_cannot_compute_with_is_refused_and_no_more() {
        for (schema, fits) in [
            (json!({"multipleOf": 1e8}), true),
            (json!({"multipleOf": 0.000_000_01}), true),
            (json!({"multipleOf": 100_000_001}), false),
            (json!({"multipleOf": 0.000_000_001}), false),
            (json!({"multipleOf": 0}), false),
            (json!({"minimum": -9_007_199_254_740_992_i64}), true),
            (json!({"anyOf": [{"items": {"exclusiveMaximum": 1e16}}]}), false),
            (json!({"properties": {"minimum": {"type": "string"}}}), true),
            (json!({"enum": [{"multipleOf": 0}], "default": {"minimum": 1e300}}), true),
        ] {
            assert_eq!(of_schema(&schema).is_ok(), fits, "{schema}");
            let text = format!("start: \"x\" a\na: %json {schema}\nb: %json {{");
            let grammar = GrammarSpec::Text(text);
            assert_eq!(check(&grammar).is_ok(), fits, "{schema} in a grammar");
            let either = GrammarSpec::Either(Box::new([GrammarSpec::JsonObject, grammar]));
            assert_eq!(check(&either).is_ok(), fits, "{schema} beside another");
        }
    }
}
