//! The fields that ask for a constraint. At most one of them may.

use kvant_text::GrammarSpec;
use serde_json::{Map, Value};

use super::Guide;
use crate::error::ApiError;
use crate::json::{Fields, wrong_type};
use crate::render::Call;

/// Texts of a choice at most.
const CHOICES_MAX: usize = 4096;

/// Characters of a schema's name at most; OpenAI's.
const NAME_MAX: usize = 64;

/// Reads the value of a field, with the field's name.
type Read = fn(&str, Value) -> Result<Option<GrammarSpec>, ApiError>;

/// Fields that hold a constraint.
const FIELDS: [(&str, Read); 9] = [
    ("response_format", response_format),
    ("structured_outputs", structured_outputs),
    ("guided_json", schema),
    ("guided_json_object", json_object),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", grammar),
    ("grammar", llama_grammar),
    ("json_schema", llama_schema),
];

/// Keys of `structured_outputs` that hold a constraint.
const STRUCTURED: [(&str, Read); 5] = [
    ("json", schema),
    ("regex", regex),
    ("choice", choice),
    ("grammar", grammar),
    ("json_object", json_object),
];

/// Takes what an answer must be like; `call` is what `tool_choice` asks. A call that may be is an
/// alternative to JSON, as OpenAI has it, and to nothing else: what other grammars describe may
/// begin as a call does.
pub(crate) fn read(fields: &mut Fields, call: Option<Call>) -> Result<Option<Guide>, ApiError> {
    let (must, may) = match call {
        Some(Call { grammar, must: true }) => (Some(grammar), None),
        Some(Call { grammar, must: false }) => (None, Some(grammar)),
        None => (None, None),
    };
    let mut found = must.map(|spec| Guide { spec, field: "tool_choice", call: None });
    // There is one backend; what it is called changes no answer that it can give.
    fields.text("guided_decoding_backend")?;
    for (field, read) in FIELDS {
        let Some(value) = fields.take(field) else { continue };
        let Some(spec) = read(field, value)? else { continue };
        if let Some(other) = &found {
            let message = format!("{field} and {} cannot both hold; send one", other.field);
            return Err(ApiError::value(field, message));
        }
        let json = matches!(spec, GrammarSpec::JsonObject | GrammarSpec::JsonSchema { .. });
        let call = may.clone().filter(|_| json);
        found = Some(Guide { spec, field, call });
    }
    if let Some(pattern) = fields.text("guided_whitespace_pattern")? {
        return Err(unserved_pattern("guided_whitespace_pattern", &pattern));
    }
    Ok(found)
}

fn unserved_pattern(field: &str, pattern: &str) -> ApiError {
    let shown: String = pattern.chars().take(60).collect();
    let message = format!("{field} is {shown:?}, it is not served: white space in JSON is bounded");
    ApiError::unsupported(field, message)
}

fn response_format(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let Value::Object(mut format) = value else {
        return Err(wrong_type(field, &value, "an object"));
    };
    let path = format!("{field}.type");
    let kind = format.remove("type").ok_or_else(|| ApiError::missing(&path).of(field))?;
    match kind.as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(GrammarSpec::JsonObject)),
        Some("json_schema") => named_schema(field, format).map(Some),
        Some("structural_tag") => {
            let message = format!("{path} structural_tag is not served; use tools");
            Err(ApiError::unsupported(field, message))
        }
        Some(other) => {
            let other: String = other.chars().take(60).collect();
            let message =
                format!("{path} is {other:?}, it must be one of: text, json_object, json_schema");
            Err(ApiError::value(field, message))
        }
        None => Err(wrong_type(&path, &kind, "a string").of(field)),
    }
}

/// `{name, schema, strict, description}` in `json_schema`.
fn named_schema(field: &str, mut format: Map<String, Value>) -> Result<GrammarSpec, ApiError> {
    let path = format!("{field}.json_schema");
    let of = |error: ApiError| error.of(field);
    let inner = format.remove("json_schema").filter(|inner| !inner.is_null());
    let inner = match inner.ok_or_else(|| of(ApiError::missing(&path)))? {
        Value::Object(inner) => inner,
        other => return Err(of(wrong_type(&path, &other, "an object"))),
    };
    let mut inner = Fields::from(inner);
    let wrong =
        |key: &str, error: ApiError| ApiError::value(field, format!("{path}.{key}: {error}"));
    let name = inner.text("name").map_err(|error| wrong("name", error))?;
    let name = name.ok_or_else(|| of(ApiError::missing(&format!("{path}.name"))))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !(1..=NAME_MAX).contains(&name.chars().count()) || !name.chars().all(fits) {
        let message = format!(
            "{path}.name must be of 1 to {NAME_MAX} letters, digits, underscores and dashes"
        );
        return Err(ApiError::value(field, message));
    }
    inner.text("description").map_err(|error| wrong("description", error))?;
    let strict = inner.flag("strict", false).map_err(|error| wrong("strict", error))?;
    let schema = inner.object("schema").map_err(|error| wrong("schema", error))?;
    // A schema is optional in OpenAI's document; without one there is only JSON to hold to.
    let Some(schema) = schema else { return Ok(GrammarSpec::JsonObject) };
    Ok(GrammarSpec::JsonSchema { schema: Value::Object(schema), lenient: !strict })
}

fn structured_outputs(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let Value::Object(map) = value else { return Err(wrong_type(field, &value, "an object")) };
    let mut keys = Fields::from(map);
    let mut found: Option<(&str, GrammarSpec)> = None;
    for (key, read) in STRUCTURED {
        let Some(value) = keys.take(key) else { continue };
        let spec = read(&format!("{field}.{key}"), value).map_err(|error| error.of(field))?;
        let Some(spec) = spec else { continue };
        if let Some((other, _)) = found {
            let message = format!("{field} has both {other} and {key}; send one");
            return Err(ApiError::value(field, message));
        }
        found = Some((key, spec));
    }
    if keys.has("structural_tag") {
        let message = format!("{field}.structural_tag is not served; use tools");
        return Err(ApiError::unsupported(field, message));
    }
    if let Some(pattern) = keys.text("whitespace_pattern").map_err(|error| error.of(field))? {
        let path = format!("{field}.whitespace_pattern");
        return Err(unserved_pattern(&path, &pattern).of(field));
    }
    Ok(found.map(|(_, spec)| spec))
}

/// A schema, or the text of one.
fn schema(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| {
            ApiError::value(field, format!("{field} is a text, but not of JSON: {error}"))
        })?,
        other => other,
    };
    match schema {
        Value::Object(_) => Ok(Some(GrammarSpec::JsonSchema { schema, lenient: false })),
        other => Err(wrong_type(field, &other, "a JSON schema, which is an object")),
    }
}

fn json_object(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    match value {
        Value::Bool(wanted) => Ok(wanted.then_some(GrammarSpec::JsonObject)),
        other => Err(wrong_type(field, &other, "true or false")),
    }
}

fn text(field: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, &other, "a string")),
    }
}

fn regex(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    Ok(Some(GrammarSpec::Regex(text(field, value)?)))
}

fn grammar(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    Ok(Some(GrammarSpec::Text(text(field, value)?)))
}

/// llama.cpp takes an empty one for none.
fn llama_grammar(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let text = text(field, value)?;
    Ok((!text.is_empty()).then_some(GrammarSpec::Text(text)))
}

/// llama.cpp takes an empty one for any JSON.
fn llama_schema(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    match &value {
        Value::Object(map) if map.is_empty() => Ok(None),
        _ => schema(field, value),
    }
}

fn choice(field: &str, value: Value) -> Result<Option<GrammarSpec>, ApiError> {
    let Value::Array(list) = value else { return Err(wrong_type(field, &value, "an array")) };
    if list.is_empty() || list.len() > CHOICES_MAX {
        let count = list.len();
        let message = format!("{field} has {count} texts, it must have from 1 to {CHOICES_MAX}");
        return Err(ApiError::value(field, message));
    }
    let texts = list.into_iter().map(|one| match one {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::value(field, format!("{field} has an empty text")))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, &other, "an array of strings")),
    });
    Ok(Some(GrammarSpec::Choice(texts.collect::<Result<_, _>>()?)))
}
