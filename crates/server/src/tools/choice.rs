//! `tool_choice`: what the model is to do with the tools, and which of them it may call.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{function_kind, name, object};
use crate::error::ApiError;
use crate::json::wrong_type;

const PATH: &str = "tool_choice";

/// What the model is to do with the tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Call or answer.
    Auto,
    /// Call one or more.
    Required,
    /// Call this one, once.
    Named(String),
    /// Answer; the tools are not told.
    None,
}

/// What `tool_choice` says.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) choice: Choice,
    /// The names of the tools that may be called, unless all may.
    pub(super) allowed: Option<BTreeSet<String>>,
}

impl Asked {
    pub(super) fn of(choice: Choice) -> Self {
        Self { choice, allowed: None }
    }

    /// Reads a value that is there; `names` are those of the request's tools.
    pub(super) fn read(value: &Value, names: &BTreeSet<&str>) -> Result<Self, ApiError> {
        match value {
            Value::String(word) => self::word(word, value, names).map(Self::of),
            Value::Object(map) if map.get("type").is_some_and(|kind| kind == "allowed_tools") => {
                allowed(map, names)
            }
            Value::Object(map) => {
                function_kind(PATH, map)?;
                Ok(Self::of(Choice::Named(one_of(PATH, map, names)?)))
            }
            other => Err(wrong_type(PATH, other, "a string or an object")),
        }
    }
}

fn word(word: &str, value: &Value, names: &BTreeSet<&str>) -> Result<Choice, ApiError> {
    match word {
        "auto" => Ok(Choice::Auto),
        "none" => Ok(Choice::None),
        "required" if names.is_empty() => {
            let message = format!("{PATH} is required, but there are no tools; send tools");
            Err(ApiError::value(PATH, message))
        }
        "required" => Ok(Choice::Required),
        _ => {
            let words = "auto, none, required, or an object that names a function or allowed_tools";
            let message = format!("{PATH} is {value}, it must be one of: {words}");
            Err(ApiError::value(PATH, message))
        }
    }
}

/// `{"mode": …, "tools": […]}` in `allowed_tools`.
fn allowed(map: &Map<String, Value>, names: &BTreeSet<&str>) -> Result<Asked, ApiError> {
    let path = format!("{PATH}.allowed_tools");
    let inner = map.get("allowed_tools").ok_or_else(|| ApiError::missing(&path))?;
    let inner = object(&path, inner)?;
    let tools = format!("{path}.tools");
    let list = inner.get("tools").ok_or_else(|| ApiError::missing(&tools))?;
    let list = list.as_array().ok_or_else(|| wrong_type(&tools, list, "an array"))?;
    let one = |(index, tool): (usize, &Value)| {
        let path = format!("{tools}[{index}]");
        let tool = object(&path, tool)?;
        function_kind(&path, tool)?;
        one_of(&path, tool, names)
    };
    let allowed = list.iter().enumerate().map(one).collect::<Result<BTreeSet<_>, _>>()?;
    let mode = format!("{path}.mode");
    let choice = match inner.get("mode") {
        Some(Value::String(word)) if word == "auto" => Choice::Auto,
        Some(Value::String(word)) if word == "required" && allowed.is_empty() => {
            let message = format!("{mode} is required, but {tools} is empty; name one");
            return Err(ApiError::value(tools, message));
        }
        Some(Value::String(word)) if word == "required" => Choice::Required,
        Some(other) => {
            let message = format!("{mode} is {other}, it must be one of: auto, required");
            return Err(ApiError::value(mode, message));
        }
        None => return Err(ApiError::missing(&mode)),
    };
    Ok(Asked { choice, allowed: Some(allowed) })
}

/// The name in `{"function": {"name": …}}`, which must be one of `names`.
fn one_of(
    path: &str,
    map: &Map<String, Value>,
    names: &BTreeSet<&str>,
) -> Result<String, ApiError> {
    let path = format!("{path}.function");
    let function = map.get("function").ok_or_else(|| ApiError::missing(&path))?;
    let function = object(&path, function)?;
    let path = format!("{path}.name");
    let name = name(&path, function)?;
    if names.contains(name) {
        return Ok(name.to_owned());
    }
    let message = format!("{path} is {name:?}, which is no tool of this request");
    Err(ApiError::value(path, message))
}
