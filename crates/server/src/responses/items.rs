//! Items of `input` as messages of a chat.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::wrong_type;

/// The messages of instructions and input.
pub(super) fn messages(instructions: Option<String>, input: Value) -> Result<Value, ApiError> {
    let mut messages = Vec::new();
    if let Some(text) = instructions {
        messages.push(json!({"role": "system", "content": text}));
    }
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::value("input", "input is empty, it needs at least one item"));
        }
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                add(&mut messages, &format!("input[{index}]"), &item)?;
            }
        }
        other => return Err(wrong_type("input", &other, "a string or an array of items")),
    }
    Ok(Value::Array(messages))
}

fn add(messages: &mut Vec<Value>, path: &str, item: &Value) -> Result<(), ApiError> {
    if !item.is_object() {
        return Err(wrong_type(path, item, "an object"));
    }
    let kind = item.get("type").and_then(Value::as_str).unwrap_or("message");
    match kind {
        "message" => {
            let role = field(path, item, "role")?;
            let content = content(&format!("{path}.content"), item.get("content"))?;
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let call = json!({
                "id": field(path, item, "call_id")?,
                "type": "function",
                "function": {
                    "name": field(path, item, "name")?,
                    "arguments": field(path, item, "arguments")?,
                },
            });
            // Calls that follow each other, or what was said before them, are one turn.
            let turn = messages.last_mut().filter(|last| last["role"] == "assistant");
            let turn = if let Some(turn) = turn {
                turn
            } else {
                messages.push(json!({"role": "assistant", "content": null}));
                messages.last_mut().expect("pushed above")
            };
            match turn["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(call),
                None => turn["tool_calls"] = json!([call]),
            }
        }
        "function_call_output" => {
            let output = content(&format!("{path}.output"), item.get("output"))?;
            let id = field(path, item, "call_id")?;
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        "reasoning" => {
            // What the model thought of earlier answers is not shown to it again.
        }
        other => {
            let message = format!("{path} is of type {other:?}, which is not served");
            return Err(ApiError::unsupported(path, message));
        }
    }
    Ok(())
}

/// A text that must be there.
fn field<'a>(path: &str, item: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    let path = format!("{path}.{name}");
    let value = item.get(name).ok_or_else(|| ApiError::missing(&path))?;
    value.as_str().ok_or_else(|| wrong_type(&path, value, "a string"))
}

fn content(path: &str, content: Option<&Value>) -> Result<String, ApiError> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let key = match part.get("type").and_then(Value::as_str) {
                    Some("input_text" | "output_text" | "text") => "text",
                    Some("refusal") => "refusal",
                    Some(kind) => {
                        let message = format!("{path} is of type {kind:?}, only text is served");
                        return Err(ApiError::unsupported(path, message));
                    }
                    None => return Err(ApiError::missing(&format!("{path}.type"))),
                };
                texts.push(field(&path, part, key)?);
            }
            Ok(texts.join("\n"))
        }
        None => Err(ApiError::missing(path)),
        Some(other) => Err(wrong_type(path, other, "a string or an array of parts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_the_turns_of_a_chat() {
        let call = |id: &str| {
            let arguments = "{}";
            json!({"type": "function_call", "call_id": id, "name": "f", "arguments": arguments})
        };
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "b", "annotations": []}]},
            call("1"),
            call("2"),
            {"type": "function_call_output", "call_id": "1", "output": "7"},
        ]);
        let told = |id: &str| {
            let function = json!({"name": "f", "arguments": "{}"});
            json!({"id": id, "type": "function", "function": function})
        };
        let expected = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "tool_calls": [told("1"), told("2")]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
        ]);
        assert_eq!(messages(Some("be brief".to_owned()), input).unwrap(), expected);
    }

    #[test]
    fn each_wrong_item_is_named() {
        let image = json!({"role": "user", "content": [{"type": "input_image"}]});
        for (input, param) in [
            (json!(3), "input"),
            (json!([]), "input"),
            (json!(["x"]), "input[0]"),
            (json!([{"content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([image]), "input[0].content[0]"),
            (json!([{"type": "web_search_call"}]), "input[0]"),
            (json!([{"type": "function_call", "call_id": "1"}]), "input[0].name"),
            (json!([{"type": "function_call_output", "output": "x"}]), "input[0].call_id"),
        ] {
            let error = messages(None, input).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        }
    }
}
