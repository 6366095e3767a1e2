//! A request to /v1/messages as one to chat: the same messages, tools and rules under other names.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::json::{Fields, wrong_type};

/// What chat calls a field, and what it is called here.
pub(super) const NAMES: [(&str, &str); 4] = [
    ("stop", "stop_sequences"),
    ("thinking_token_budget", "thinking.budget_tokens"),
    ("continue_final_message", "messages"),
    ("max_completion_tokens", "max_tokens"),
];

/// Of this dialect and not served; null asks for nothing.
const NOT_SERVED: [(&str, &str); 5] = [
    ("mcp_servers", "this server calls no other"),
    ("container", "there are no containers"),
    ("context_management", "the context is not managed"),
    ("output_config", "there is no such choice"),
    ("inference_geo", "there is one place"),
];

/// Chat's name is the same.
const SAME: [&str; 5] = ["model", "temperature", "top_p", "top_k", "stream"];

/// The fields of chat. What nobody knows stays to be reported.
pub(super) fn read(mut fields: Fields, answer: bool) -> Result<Fields, ApiError> {
    for (name, why) in NOT_SERVED {
        if fields.take(name).is_some() {
            return Err(ApiError::unsupported(name, format!("{name} is not served: {why}")));
        }
    }
    let tier = fields.text("service_tier")?;
    if tier.is_some_and(|tier| !["auto", "standard_only"].contains(&tier.as_str())) {
        let message = "service_tier is served as auto or standard_only: there is one tier";
        return Err(ApiError::unsupported("service_tier", message));
    }
    fields.object("metadata")?;
    fields.object("cache_control")?;
    let mut chat = Map::new();
    let most = fields.take("max_tokens");
    match most {
        Some(most) if answer => drop(chat.insert("max_tokens".to_owned(), most)),
        None if answer => return Err(ApiError::missing("max_tokens")),
        _ => {}
    }
    messages(&mut fields, &mut chat)?;
    tools(&mut fields, &mut chat)?;
    thinking(&mut fields, &mut chat, answer)?;
    if let Some(stops) = fields.list("stop_sequences")?
        && answer
    {
        chat.insert("stop".to_owned(), Value::Array(stops));
    }
    for name in SAME {
        if let Some(value) = fields.take(name)
            && (answer || name == "model")
        {
            chat.insert(name.to_owned(), value);
        }
    }
    let mut chat = Fields::from(chat);
    chat.adopt(fields);
    Ok(chat)
}

fn messages(fields: &mut Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        let text = text("system", &system)?;
        messages.push(json!({"role": "system", "content": text}));
    }
    let list = fields.list("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    if list.is_empty() {
        return Err(ApiError::value("messages", "messages is empty, it needs at least one"));
    }
    for (index, message) in list.iter().enumerate() {
        add(&mut messages, &format!("messages[{index}]"), message)?;
    }
    let last = messages.last();
    // An answer that was begun is gone on with.
    if last.is_some_and(|last| last["role"] == "assistant" && last["tool_calls"].is_null()) {
        chat.insert("continue_final_message".to_owned(), Value::Bool(true));
    }
    chat.insert("messages".to_owned(), Value::Array(messages));
    Ok(())
}

fn add(messages: &mut Vec<Value>, path: &str, message: &Value) -> Result<(), ApiError> {
    if !message.is_object() {
        return Err(wrong_type(path, message, "an object"));
    }
    let role = field(path, message, "role")?;
    if !["user", "assistant", "system"].contains(&role) {
        let name = format!("{path}.role");
        let message = format!("{name} is {role:?}, it must be one of: user, assistant, system");
        return Err(ApiError::value(name, message));
    }
    let name = format!("{path}.content");
    let content = message.get("content").ok_or_else(|| ApiError::missing(&name))?;
    let blocks = match content {
        Value::String(text) => {
            messages.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(&name, other, "a string or an array of blocks")),
    };
    let (mut texts, mut calls) = (Vec::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{name}[{index}]");
        match (role, block.get("type").and_then(Value::as_str)) {
            (_, Some("text")) => texts.push(field(&path, block, "text")?),
            ("assistant", Some("thinking" | "redacted_thinking")) => {
                // What the model thought of earlier answers is not shown to it again.
            }
            ("assistant", Some("tool_use")) => calls.push(call(&path, block)?),
            ("user", Some("tool_result")) => messages.push(result(&path, block)?),
            (_, Some(kind)) => {
                let message = format!("{path} is of type {kind:?}, which is not served here");
                return Err(ApiError::unsupported(path, message));
            }
            (_, None) => return Err(ApiError::missing(&format!("{path}.type"))),
        }
    }
    let text = texts.join("\n");
    if !calls.is_empty() {
        let content = if text.is_empty() { Value::Null } else { text.into() };
        messages.push(json!({"role": role, "content": content, "tool_calls": calls}));
    } else if !texts.is_empty() || blocks.is_empty() || role == "assistant" {
        messages.push(json!({"role": role, "content": text}));
    }
    Ok(())
}

fn call(path: &str, block: &Value) -> Result<Value, ApiError> {
    let (id, name) = (field(path, block, "id")?, field(path, block, "name")?);
    let input = block.get("input").cloned().unwrap_or_else(|| json!({}));
    if !input.is_object() {
        return Err(wrong_type(&format!("{path}.input"), &input, "an object"));
    }
    let function = json!({"name": name, "arguments": input.to_string()});
    Ok(json!({"id": id, "type": "function", "function": function}))
}

fn result(path: &str, block: &Value) -> Result<Value, ApiError> {
    let id = field(path, block, "tool_use_id")?;
    let content = match block.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(content) => text(&format!("{path}.content"), content)?,
    };
    Ok(json!({"role": "tool", "tool_call_id": id, "content": content}))
}

/// A string, or blocks of text.
fn text(path: &str, value: &Value) -> Result<String, ApiError> {
    let blocks = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(path, other, "a string or an array of text blocks")),
    };
    let mut texts = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match block.get("type").and_then(Value::as_str) {
            Some("text") => texts.push(field(&path, block, "text")?),
            Some(kind) => {
                let message = format!("{path} is of type {kind:?}, only text is served");
                return Err(ApiError::unsupported(path, message));
            }
            None => return Err(ApiError::missing(&format!("{path}.type"))),
        }
    }
    Ok(texts.join("\n"))
}

fn field<'a>(path: &str, object: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    let path = format!("{path}.{name}");
    let value = object.get(name).ok_or_else(|| ApiError::missing(&path))?;
    value.as_str().ok_or_else(|| wrong_type(&path, value, "a string"))
}

fn tools(fields: &mut Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut tools = Vec::new();
    for (index, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("tools[{index}]");
        let Value::Object(mut map) = tool else {
            return Err(wrong_type(&path, &tool, "an object"));
        };
        let kind = map.remove("type").filter(|kind| !kind.is_null());
        if kind.is_some_and(|kind| kind != "custom") {
            let message = format!("{path} is built in; only tools with an input_schema are served");
            return Err(ApiError::unsupported(path, message));
        }
        map.remove("cache_control");
        let schema = map.remove("input_schema");
        let schema = schema.ok_or_else(|| ApiError::missing(&format!("{path}.input_schema")))?;
        map.insert("parameters".to_owned(), schema);
        tools.push(json!({"type": "function", "function": map}));
    }
    if !tools.is_empty() {
        chat.insert("tools".to_owned(), Value::Array(tools));
    }
    let Some(choice) = fields.object("tool_choice")? else { return Ok(()) };
    let kind = field("tool_choice", &Value::Object(choice.clone()), "type")?.to_owned();
    let told = match kind.as_str() {
        "auto" => json!("auto"),
        "any" => json!("required"),
        "none" => json!("none"),
        "tool" => {
            let name = field("tool_choice", &Value::Object(choice.clone()), "name")?.to_owned();
            json!({"type": "function", "function": {"name": name}})
        }
        _ => {
            let message = "tool_choice.type must be one of: auto, any, tool, none";
            return Err(ApiError::value("tool_choice.type", message));
        }
    };
    chat.insert("tool_choice".to_owned(), told);
    if let Some(Value::Bool(one)) = choice.get("disable_parallel_tool_use") {
        chat.insert("parallel_tool_calls".to_owned(), Value::Bool(!one));
    }
    Ok(())
}

fn thinking(
    fields: &mut Fields,
    chat: &mut Map<String, Value>,
    answer: bool,
) -> Result<(), ApiError> {
    let Some(thinking) = fields.object("thinking")? else { return Ok(()) };
    let mut thinking = Fields::from(thinking);
    let wrong = |error: ApiError| error.of("thinking");
    let kind = thinking.text("type").map_err(wrong)?.unwrap_or_default();
    let budget = thinking.take("budget_tokens");
    thinking.take("display");
    fields.leave("thinking", thinking);
    let on = match kind.as_str() {
        "enabled" | "adaptive" => true,
        "disabled" => false,
        _ => {
            let message = "thinking.type must be one of: enabled, adaptive, disabled";
            return Err(ApiError::value("thinking.type", message));
        }
    };
    chat.insert("chat_template_kwargs".to_owned(), json!({"enable_thinking": on}));
    if let Some(budget) = budget.filter(|_| on && answer) {
        chat.insert("thinking_token_budget".to_owned(), budget);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &Value) -> Result<Fields, ApiError> {
        read(Fields::parse(body.to_string().as_bytes()).unwrap(), true)
    }

    #[test]
    fn blocks_are_the_turns_of_a_chat() {
        let body = json!({
            "model": "m",
            "max_tokens": 7,
            "system": [
                {"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": ""},
                    {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "7"},
                    {"type": "text", "text": "and?"}]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
            "stop_sequences": ["x"],
        });
        let mut fields = chat(&body).unwrap();
        let call = json!({"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{\"x\":1}"}});
        let messages = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "7"},
            {"role": "user", "content": "and?"},
        ]);
        assert_eq!(fields.take("messages"), Some(messages));
        let tools = json!([{"type": "function", "function":
            {"name": "f", "description": "d", "parameters": {"type": "object"}}}]);
        assert_eq!(fields.take("tools"), Some(tools));
        let named = json!({"type": "function", "function": {"name": "f"}});
        assert_eq!(fields.take("tool_choice"), Some(named));
        assert_eq!(fields.take("parallel_tool_calls"), Some(json!(false)));
        assert_eq!(fields.take("stop"), Some(json!(["x"])));
        assert_eq!(fields.take("max_tokens"), Some(json!(7)));
        assert_eq!(fields.take("continue_final_message"), None);
    }

    #[test]
    fn each_wrong_field_is_named() {
        let hi = json!([{"role": "user", "content": "hi"}]);
        let with = |name: &str, value: Value| {
            let mut body = json!({"max_tokens": 7, "messages": hi});
            body[name] = value;
            body
        };
        let content =
            |block: Value| with("messages", json!([{"role": "user", "content": [block]}]));
        for (body, param) in [
            (json!({"messages": hi}), "max_tokens"),
            (json!({"max_tokens": 7}), "messages"),
            (with("messages", json!([])), "messages"),
            (with("messages", json!([{"role": "tool", "content": ""}])), "messages[0].role"),
            (with("system", json!(3)), "system"),
            (content(json!({"type": "image"})), "messages[0].content[0]"),
            (content(json!({"type": "text"})), "messages[0].content[0].text"),
            (content(json!({"type": "tool_result"})), "messages[0].content[0].tool_use_id"),
            (with("tools", json!([{"type": "bash_20250124", "name": "bash"}])), "tools[0]"),
            (with("tools", json!([{"name": "f"}])), "tools[0].input_schema"),
            (with("tool_choice", json!({"type": "all"})), "tool_choice.type"),
            (with("thinking", json!({"type": "much"})), "thinking.type"),
            (with("mcp_servers", json!([])), "mcp_servers"),
            (with("service_tier", json!("fast")), "service_tier"),
        ] {
            let error = chat(&body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        }
    }
}
