//! The bounds of a request's lists, looked at before anything is made of them.

use serde_json::Value;

use crate::error::ApiError;
use crate::json::Fields;
use crate::options::Bounds;

/// Refuses what asks for more than one request may, and names the field.
pub(crate) fn check(fields: &Fields, bounds: &Bounds) -> Result<(), ApiError> {
    for name in ["n", "best_of"] {
        let asked = fields.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        if asked > bounds.choices as f64 {
            let most = bounds.choices;
            let message = format!("{name} is {asked}, this server takes at most {most}");
            return Err(ApiError::value(name, message));
        }
    }
    let lists = [
        ("messages", bounds.messages, "messages"),
        ("stop", bounds.stops, "strings"),
        ("logit_bias", bounds.biases, "entries"),
    ];
    for (name, most, what) in lists {
        at_most(name, fields.get(name).map_or(0, length), most, what)?;
    }
    match fields.get("prompt") {
        // A list of numbers is one prompt.
        Some(Value::Array(list)) if !list.first().is_some_and(Value::is_number) => {
            at_most("prompt", list.len(), bounds.prompts, "prompts")
        }
        _ => Ok(()),
    }
}

fn length(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

fn at_most(name: &str, count: usize, most: usize, what: &str) -> Result<(), ApiError> {
    if count <= most {
        return Ok(());
    }
    let message = format!("{name} has {count} {what}, this server takes at most {most}");
    Err(ApiError::value(name, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Make<'a> = &'a dyn Fn(usize) -> Value;

    #[test]
    fn every_bound_holds_at_the_limit_and_one_past() {
        let bounds = Bounds { choices: 3, prompts: 4, messages: 5, stops: 6, biases: 7 };
        let list = |count: usize| json!(vec!["x"; count]);
        let map = |count: usize| (0..count).map(|id| (id.to_string(), json!(1))).collect();
        let cases: [(&str, usize, Make<'_>); 6] = [
            ("n", 3, &|count| json!(count)),
            ("best_of", 3, &|count| json!(count)),
            ("prompt", 4, &list),
            ("messages", 5, &list),
            ("stop", 6, &list),
            ("logit_bias", 7, &|count| Value::Object(map(count))),
        ];
        for (name, most, value) in cases {
            let body = |count| json!({name: value(count)}).to_string();
            let check = |count| check(&Fields::parse(body(count).as_bytes()).unwrap(), &bounds);
            assert_eq!(check(most), Ok(()), "{name}");
            let error = check(most + 1).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.to_string().contains(&format!("at most {most}")), "{error}");
        }
        let ids = json!({"prompt": vec![1; 100]}).to_string();
        assert_eq!(check(&Fields::parse(ids.as_bytes()).unwrap(), &bounds), Ok(()));
    }

    #[test]
    fn nesting_is_read_to_127_levels() {
        let nested =
            |depth: usize| format!("{{\"x\": {}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Fields::parse(nested(127).as_bytes()).is_ok());
        assert!(Fields::parse(nested(128).as_bytes()).is_err());
    }
}
