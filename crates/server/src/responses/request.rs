//! A request to /v1/responses as one to chat: the same messages, tools and rules under other names.

use serde_json::{Map, Value, json};

use super::items;
use crate::error::ApiError;
use crate::json::{Fields, wrong_type};

/// What chat calls a field, and what it is called here.
pub(super) const NAMES: [(&str, &str); 7] = [
    ("tool_choice.allowed_tools", "tool_choice"),
    ("tool_choice.function", "tool_choice"),
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
];

/// Of this dialect and not served; null asks for nothing.
const NOT_SERVED: [(&str, &str); 8] = [
    ("previous_response_id", "answers are not kept; send the whole conversation as input"),
    ("conversation", "conversations are not kept; send the whole conversation as input"),
    ("prompt", "there are no prompt templates; send input"),
    ("max_tool_calls", "there are no built-in tools"),
    ("context_management", "the context is not managed"),
    ("moderation", "nothing is moderated"),
    ("messages", "it belongs to /v1/chat/completions; send input"),
    ("n", "there is one answer"),
];

/// Chat's name is the same.
const SAME: [&str; 30] = [
    "model",
    "temperature",
    "top_p",
    "stream",
    "parallel_tool_calls",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "logit_bias",
    "chat_template_kwargs",
    "thinking_token_budget",
    "include_reasoning",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
];

/// What the answer says of its request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Fields of the answer that repeat the request.
    pub(super) told: Map<String, Value>,
}

/// The fields of chat, and what the answer repeats. What nobody knows stays for chat to report.
pub(super) fn read(mut fields: Fields) -> Result<(Fields, Asked), ApiError> {
    refuse(&mut fields)?;
    let mut told = repeated(&fields);
    let mut chat = Map::new();
    let instructions = fields.text("instructions")?;
    let input = fields.take("input").ok_or_else(|| ApiError::missing("input"))?;
    chat.insert("messages".to_owned(), items::messages(instructions, input)?);
    let mut tools = Vec::new();
    for (index, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        tools.push(self::tool(&format!("tools[{index}]"), tool)?);
    }
    if !tools.is_empty() {
        chat.insert("tools".to_owned(), Value::Array(tools));
    }
    if let Some(choice) = fields.take("tool_choice") {
        chat.insert("tool_choice".to_owned(), tool_choice(choice)?);
    }
    if let Some(most) = fields.take("max_output_tokens") {
        chat.insert("max_completion_tokens".to_owned(), most);
    }
    text(&mut fields, &mut chat)?;
    reasoning(&mut fields, &mut chat)?;
    for name in SAME {
        if let Some(value) = fields.take(name) {
            chat.insert(name.to_owned(), value);
        }
    }
    told.insert("store".to_owned(), Value::Bool(false));
    let mut chat = Fields::from(chat);
    chat.adopt(fields);
    Ok((chat, Asked { told }))
}

fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for (name, why) in NOT_SERVED {
        if fields.take(name).is_some() {
            return Err(ApiError::unsupported(name, format!("{name} is not served: {why}")));
        }
    }
    if fields.flag("background", false)? {
        let message = "background is not served: answers are not kept";
        return Err(ApiError::unsupported("background", message));
    }
    // Nothing is stored either way, which the answer says.
    fields.flag("store", true)?;
    if fields.text("truncation")?.is_some_and(|how| how != "disabled") {
        let message = "truncation is served as disabled only: no prompt is cut";
        return Err(ApiError::unsupported("truncation", message));
    }
    if !fields.list("include")?.unwrap_or_default().is_empty() {
        return Err(ApiError::unsupported("include", "include is not served: nothing is added"));
    }
    if let Some(top) = fields.take("top_logprobs")
        && top.as_u64() != Some(0)
    {
        let message = "top_logprobs is not served here; /v1/chat/completions has it";
        return Err(ApiError::unsupported("top_logprobs", message));
    }
    if let Some(options) = fields.object("stream_options")? {
        let mut options = Fields::from(options);
        let wrong = |error: ApiError| error.of("stream_options");
        options.flag("include_obfuscation", false).map_err(wrong)?;
        fields.leave("stream_options", options);
    }
    Ok(())
}

/// What an answer repeats of its request, with what stands for nothing.
fn repeated(fields: &Fields) -> Map<String, Value> {
    let or = |name: &str, other: Value| fields.value(name).cloned().unwrap_or(other);
    let Value::Object(map) = json!({
        "instructions": or("instructions", Value::Null),
        "max_output_tokens": or("max_output_tokens", Value::Null),
        "metadata": or("metadata", json!({})),
        "parallel_tool_calls": or("parallel_tool_calls", Value::Bool(true)),
        "reasoning": or("reasoning", json!({"effort": null, "summary": null})),
        "temperature": or("temperature", json!(1.0)),
        "top_p": or("top_p", json!(1.0)),
        "text": or("text", json!({"format": {"type": "text"}})),
        "tool_choice": or("tool_choice", json!("auto")),
        "tools": or("tools", json!([])),
        "truncation": "disabled",
        "background": false,
        "previous_response_id": null,
        "max_tool_calls": null,
        "service_tier": "default",
        "top_logprobs": 0,
    }) else {
        unreachable!("an object is written above")
    };
    map
}

fn tool(path: &str, tool: Value) -> Result<Value, ApiError> {
    let Value::Object(mut map) = tool else { return Err(wrong_type(path, &tool, "an object")) };
    let kind = map.remove("type");
    if kind.as_ref().and_then(Value::as_str) != Some("function") {
        let message = format!("{path} is no function; built-in tools are not served");
        return Err(ApiError::unsupported(path, message));
    }
    Ok(json!({"type": "function", "function": map}))
}

fn tool_choice(choice: Value) -> Result<Value, ApiError> {
    match choice {
        Value::String(_) => Ok(choice),
        Value::Object(map) if map.get("type").is_some_and(|kind| kind == "function") => {
            Ok(chosen(Value::Object(map)))
        }
        Value::Object(mut map) if map.get("type").is_some_and(|kind| kind == "allowed_tools") => {
            if let Some(Value::Array(tools)) = map.get_mut("tools") {
                *tools = std::mem::take(tools).into_iter().map(chosen).collect();
            }
            let kind = map.remove("type");
            Ok(json!({"type": kind, "allowed_tools": map}))
        }
        Value::Object(_) => {
            let message =
                "tool_choice is served as none, auto, required, a function or allowed_tools";
            Err(ApiError::unsupported("tool_choice", message))
        }
        other => Err(wrong_type("tool_choice", &other, "a string or an object")),
    }
}

/// A tool by name, as chat spells it; what is none stays for chat to refuse.
fn chosen(tool: Value) -> Value {
    match tool {
        Value::Object(mut map) => {
            let mut chat = Map::new();
            if let Some(kind) = map.remove("type") {
                chat.insert("type".to_owned(), kind);
            }
            let name = map.remove("name").map(|name| json!({"name": name}));
            chat.insert("function".to_owned(), name.unwrap_or_else(|| json!({})));
            Value::Object(chat)
        }
        other => other,
    }
}

/// `text`: the format of the answer.
fn text(fields: &mut Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(()) };
    let mut text = Fields::from(text);
    if let Some(verbosity) = text.take("verbosity") {
        chat.insert("verbosity".to_owned(), verbosity);
    }
    if let Some(mut format) = text.object("format").map_err(|error| error.of("text.format"))? {
        let kind = format.remove("type").unwrap_or_default();
        let format = if kind == "json_schema" {
            json!({"type": kind, "json_schema": format})
        } else {
            json!({"type": kind})
        };
        chat.insert("response_format".to_owned(), format);
    }
    fields.leave("text", text);
    Ok(())
}

fn reasoning(fields: &mut Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(reasoning) = fields.object("reasoning")? else { return Ok(()) };
    let mut reasoning = Fields::from(reasoning);
    if let Some(effort) = reasoning.take("effort") {
        chat.insert("reasoning_effort".to_owned(), effort);
    }
    for name in ["summary", "generate_summary"] {
        if reasoning.take(name).is_some() {
            let name = format!("reasoning.{name}");
            let message = format!("{name} is not served: reasoning is told as it is");
            return Err(ApiError::unsupported(name, message));
        }
    }
    fields.leave("reasoning", reasoning);
    Ok(())
}
