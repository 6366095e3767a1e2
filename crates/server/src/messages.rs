//! Messages of a chat as a template wants them: known roles, content as one string.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{Fields, wrong_type};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Takes `messages`; each is an object with a role and its content.
pub(crate) fn read(fields: &mut Fields) -> Result<Value, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    if list.is_empty() {
        return Err(ApiError::value("messages", "messages is empty, it needs at least one"));
    }
    let one = |(index, message): (usize, Value)| {
        let path = format!("messages[{index}]");
        match message {
            Value::Object(map) => self::message(&path, map).map(Value::Object),
            other => Err(wrong_type(&path, &other, "an object")),
        }
    };
    list.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn message(path: &str, mut map: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let role = role(path, map.get("role"))?;
    let content = content(path, role, map.get_mut("content").map(Value::take))?;
    map.insert("role".to_owned(), Value::from(role));
    map.insert("content".to_owned(), Value::String(content));
    if let Some(calls) = map.get_mut("tool_calls") {
        read_arguments(calls);
    }
    Ok(map)
}

/// `developer` is what newer clients call `system`.
fn role(path: &str, role: Option<&Value>) -> Result<&'static str, ApiError> {
    let name = format!("{path}.role");
    let value = role.ok_or_else(|| ApiError::missing(&name))?;
    let text = value.as_str().ok_or_else(|| wrong_type(&name, value, "a string"))?;
    match ROLES.into_iter().find(|role| *role == text) {
        Some("developer") => Ok("system"),
        Some(role) => Ok(role),
        None => {
            let message = format!("{name} is {value}, it must be one of: {}", ROLES.join(", "));
            Err(ApiError::value(name, message))
        }
    }
}

fn content(path: &str, role: &str, content: Option<Value>) -> Result<String, ApiError> {
    let name = format!("{path}.content");
    match content {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate();
            let texts: Result<Vec<_>, _> =
                parts.map(|(index, part)| text_of(&format!("{name}[{index}]"), part)).collect();
            // As vLLM joins them.
            Ok(texts?.join("\n"))
        }
        // An assistant that called a tool or refused has said nothing.
        None | Some(Value::Null) if matches!(role, "assistant" | "function") => Ok(String::new()),
        None | Some(Value::Null) => Err(ApiError::missing(&name)),
        Some(other) => Err(wrong_type(&name, &other, "a string or an array of parts")),
    }
}

fn text_of<'a>(path: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    let kind = part.get("type").and_then(Value::as_str);
    let key = match kind {
        Some(kind @ ("text" | "refusal")) => kind,
        Some(kind) => {
            let message = format!("{path} is of type {kind:?}, only text is served");
            return Err(ApiError::unsupported(path, message));
        }
        None => return Err(ApiError::missing(&format!("{path}.type"))),
    };
    let name = format!("{path}.{key}");
    let text = part.get(key).ok_or_else(|| ApiError::missing(&name))?;
    text.as_str().ok_or_else(|| wrong_type(&name, text, "a string"))
}

/// Arguments travel as JSON in a string; templates write objects.
fn read_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(read) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = read;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(messages: &Value) -> Result<Value, ApiError> {
        let body = json!({"messages": messages}).to_string();
        read(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn roles_and_parts_become_what_templates_read() {
        let messages = parse(&json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ]));
        let expected = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ]);
        assert_eq!(messages.unwrap(), expected);
    }

    #[test]
    fn each_wrong_message_is_named() {
        let image = json!({"type": "image_url", "image_url": {"url": "http://x"}});
        for (messages, param) in [
            (json!(null), "messages"),
            (json!([]), "messages"),
            (json!({}), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "hi"}]), "messages[0].role"),
            (json!([{"role": 3, "content": "hi"}]), "messages[0].role"),
            (json!([{"role": "king", "content": "hi"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (json!([{"role": "user", "content": [image]}]), "messages[0].content[0]"),
            (
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                "messages[0].content[0].text",
            ),
            (json!([{"role": "user", "content": ["hi"]}]), "messages[0].content[0].type"),
        ] {
            let error = parse(&messages).expect_err(param);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        }
    }
}
