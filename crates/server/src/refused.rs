//! Fields that change the answer and are not served: refused by name, never dropped in silence.

use serde_json::Value;

use crate::error::ApiError;
use crate::json::Fields;

/// Which values of a field ask for nothing.
#[derive(Clone, Copy)]
enum Idle {
    /// Only null.
    Null,
    /// Null and false.
    False,
    /// Null, and an empty string, list or object.
    Empty,
    /// Null and these strings.
    Words(&'static [&'static str]),
}

/// Field, what asks for nothing, and what to say otherwise.
type Row = (&'static str, Idle, &'static str);

const NOT_SERVED: &str = "is not served";

/// Of both endpoints.
const BOTH: [Row; 17] = [
    ("guided_json", Idle::Null, "is not served: output is not constrained yet"),
    ("guided_regex", Idle::Null, "is not served: output is not constrained yet"),
    ("guided_choice", Idle::Empty, "is not served: output is not constrained yet"),
    ("guided_grammar", Idle::Null, "is not served: output is not constrained yet"),
    ("structured_outputs", Idle::Empty, "is not served: output is not constrained yet"),
    ("grammar", Idle::Empty, "is not served: output is not constrained yet"),
    ("json_schema", Idle::Empty, "is not served: output is not constrained yet"),
    ("allowed_token_ids", Idle::Empty, NOT_SERVED),
    ("bad_words", Idle::Empty, NOT_SERVED),
    ("use_beam_search", Idle::False, NOT_SERVED),
    ("prompt_logprobs", Idle::Null, "is not served; use echo and logprobs of /v1/completions"),
    ("truncate_prompt_tokens", Idle::Null, "is not served: no prompt is cut"),
    ("include_stop_str_in_output", Idle::False, NOT_SERVED),
    ("return_tokens_as_token_ids", Idle::False, "is not served; use return_token_ids"),
    ("logits_processors", Idle::Empty, NOT_SERVED),
    ("prompt_embeds", Idle::Null, NOT_SERVED),
    ("thinking_token_budget", Idle::Null, NOT_SERVED),
];

/// Of /v1/chat/completions.
const CHAT: [Row; 11] = [
    ("tools", Idle::Empty, "are not served yet; send none"),
    ("tool_choice", Idle::Words(&["none", "auto"]), "is not served: tools are not served yet"),
    ("functions", Idle::Empty, "are not served; send none"),
    ("function_call", Idle::Words(&["none", "auto"]), "is not served: functions are not served"),
    ("audio", Idle::Null, "is not served: answers are text"),
    ("web_search_options", Idle::Null, "is not served: there is no web search"),
    ("chat_template", Idle::Null, "is not taken from requests; the model's own is used"),
    ("documents", Idle::Empty, NOT_SERVED),
    ("echo", Idle::False, "is served by /v1/completions only"),
    ("prompt", Idle::Empty, "belongs to /v1/completions; send messages"),
    ("mm_processor_kwargs", Idle::Empty, "is not served: prompts are text"),
];

/// Of /v1/completions.
const TEXT: [Row; 2] = [
    ("suffix", Idle::Empty, "is not served: text is not filled in"),
    ("messages", Idle::Empty, "belong to /v1/chat/completions; send prompt"),
];

/// Accepted and without effect: they name, store, bill, hint at or speed up, and answers are the
/// same without them.
const HARMLESS: [&str; 14] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_prompt",
    "parallel_tool_calls",
    "prediction",
    "verbosity",
    "priority",
    "request_id",
    "timings_per_token",
];

/// Takes what chat knows and does not serve.
pub(crate) fn of_chat(fields: &mut Fields) -> Result<(), ApiError> {
    modalities(fields)?;
    take(fields, &CHAT)?;
    of_both(fields)
}

/// Takes what completions know and do not serve.
pub(crate) fn of_text(fields: &mut Fields) -> Result<(), ApiError> {
    take(fields, &TEXT)?;
    of_both(fields)
}

fn of_both(fields: &mut Fields) -> Result<(), ApiError> {
    for name in HARMLESS {
        fields.take(name);
    }
    response_format(fields)?;
    take(fields, &BOTH)
}

fn take(fields: &mut Fields, rows: &[Row]) -> Result<(), ApiError> {
    for (name, idle, why) in rows {
        if let Some(value) = fields.take(name)
            && !asks_nothing(&value, *idle)
        {
            return Err(ApiError::unsupported(*name, format!("{name} {why}")));
        }
    }
    Ok(())
}

fn asks_nothing(value: &Value, idle: Idle) -> bool {
    match idle {
        Idle::Null => value.is_null(),
        Idle::False => value == &Value::Bool(false),
        Idle::Empty => match value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        },
        Idle::Words(words) => value.as_str().is_some_and(|word| words.contains(&word)),
    }
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(()) };
    if format.get("type").and_then(Value::as_str) == Some("text") {
        return Ok(());
    }
    let message = "response_format is served with the type text only";
    Err(ApiError::unsupported("response_format", message))
}

fn modalities(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(list) = fields.list("modalities")? else { return Ok(()) };
    if list.iter().all(|modality| modality == "text") {
        return Ok(());
    }
    Err(ApiError::unsupported("modalities", "modalities other than text are not served"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Result<(), ApiError> {
        of_chat(&mut Fields::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        for body in [
            r#"{"tools": [], "tool_choice": "auto", "audio": null, "echo": false}"#,
            r#"{"tools": null, "tool_choice": "none", "functions": [], "function_call": "none"}"#,
            r#"{"response_format": {"type": "text"}, "modalities": ["text"], "user": "me"}"#,
            r#"{"store": true, "metadata": {"a": "b"}, "service_tier": "auto"}"#,
        ] {
            chat(body).unwrap();
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (body, param) in [
            (r#"{"tools": [{"type": "function"}]}"#, "tools"),
            (r#"{"tool_choice": "required"}"#, "tool_choice"),
            (r#"{"tool_choice": {"type": "function"}}"#, "tool_choice"),
            (r#"{"functions": [{}]}"#, "functions"),
            (r#"{"response_format": {"type": "json_object"}}"#, "response_format"),
            (r#"{"response_format": {}}"#, "response_format"),
            (r#"{"response_format": "text"}"#, "response_format"),
            (r#"{"modalities": ["text", "audio"]}"#, "modalities"),
            (r#"{"audio": {}}"#, "audio"),
            (r#"{"guided_json": {}}"#, "guided_json"),
            (r#"{"use_beam_search": true}"#, "use_beam_search"),
            (r#"{"chat_template": "x"}"#, "chat_template"),
        ] {
            let error = chat(body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        }
        let mut text = Fields::parse(br#"{"suffix": "x"}"#).unwrap();
        assert_eq!(of_text(&mut text).unwrap_err().param.as_deref(), Some("suffix"));
    }
}
