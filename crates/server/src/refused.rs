//! Fields that change the answer and are not served: refused by name, never dropped in silence.

use serde_json::Value;

use crate::error::ApiError;
use crate::json::{Fields, wrong_type};

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
const BOTH: [Row; 8] = [
    ("allowed_token_ids", Idle::Empty, NOT_SERVED),
    ("bad_words", Idle::Empty, NOT_SERVED),
    ("use_beam_search", Idle::False, NOT_SERVED),
    ("truncate_prompt_tokens", Idle::Null, "is not served: no prompt is cut"),
    ("include_stop_str_in_output", Idle::False, NOT_SERVED),
    ("return_tokens_as_token_ids", Idle::False, "is not served; use return_token_ids"),
    ("logits_processors", Idle::Empty, NOT_SERVED),
    ("prompt_embeds", Idle::Null, NOT_SERVED),
];

/// Of /v1/chat/completions.
const CHAT: [Row; 12] = [
    ("moderation", Idle::Null, "is not served: nothing is moderated"),
    ("verbosity", Idle::Words(&["medium"]), "is not served other than medium"),
    ("store", Idle::False, "is not served: answers are not kept"),
    ("service_tier", Idle::Words(&["auto", "default"]), "is not served: there is one tier"),
    ("functions", Idle::Empty, "are not served; send tools"),
    ("function_call", Idle::Words(&["none", "auto"]), "is not served; use tool_choice"),
    ("audio", Idle::Null, "is not served: answers are text"),
    ("web_search_options", Idle::Null, "is not served: there is no web search"),
    ("chat_template", Idle::Null, "is not taken from requests; the model's own is used"),
    ("echo", Idle::False, "is served by /v1/completions only"),
    ("prompt", Idle::Empty, "belongs to /v1/completions; send messages"),
    ("mm_processor_kwargs", Idle::Empty, "is not served: prompts are text"),
];

/// Of /v1/completions.
const TEXT: [Row; 3] = [
    ("thinking_token_budget", Idle::Null, "is served by /v1/chat/completions only"),
    ("suffix", Idle::Empty, "is not served: text is not filled in"),
    ("messages", Idle::Empty, "belong to /v1/chat/completions; send prompt"),
];

/// Accepted and without effect: they name, bill, hint at or speed up, and answers are the same
/// without them.
const HARMLESS: [(&str, Kind); 11] = [
    ("user", Kind::Text),
    ("metadata", Kind::Object),
    ("safety_identifier", Kind::Text),
    ("prompt_cache_key", Kind::Text),
    ("prompt_cache_retention", Kind::Text),
    ("prompt_cache_options", Kind::Object),
    ("cache_prompt", Kind::Flag),
    ("prediction", Kind::Object),
    ("priority", Kind::Number),
    ("request_id", Kind::Text),
    ("timings_per_token", Kind::Flag),
];

/// What a field without effect must be all the same.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Object,
    Number,
}

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
    for (name, kind) in HARMLESS {
        let Some(value) = fields.take(name) else { continue };
        let (fits, wanted) = match kind {
            Kind::Text => (value.is_string(), "a string"),
            Kind::Flag => (value.is_boolean(), "true or false"),
            Kind::Object => (value.is_object(), "an object"),
            Kind::Number => (value.is_number(), "a number"),
        };
        if !fits {
            return Err(wrong_type(name, &value, wanted));
        }
    }
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
            r#"{"audio": null, "echo": false, "functions": [], "function_call": "none"}"#,
            r#"{"modalities": ["text"], "user": "me"}"#,
            r#"{"store": false, "metadata": {"a": "b"}, "service_tier": "auto"}"#,
        ] {
            chat(body).unwrap();
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (body, param) in [
            (r#"{"functions": [{}]}"#, "functions"),
            (r#"{"modalities": ["text", "audio"]}"#, "modalities"),
            (r#"{"audio": {}}"#, "audio"),
            (r#"{"use_beam_search": true}"#, "use_beam_search"),
            (r#"{"chat_template": "x"}"#, "chat_template"),
            (r#"{"store": true}"#, "store"),
            (r#"{"service_tier": "flex"}"#, "service_tier"),
            (r#"{"verbosity": "low"}"#, "verbosity"),
            (r#"{"moderation": {"model": "x"}}"#, "moderation"),
            (r#"{"user": 3}"#, "user"),
            (r#"{"metadata": "x"}"#, "metadata"),
            (r#"{"priority": "high"}"#, "priority"),
        ] {
            let error = chat(body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        }
        let mut text = Fields::parse(br#"{"suffix": "x"}"#).unwrap();
        assert_eq!(of_text(&mut text).unwrap_err().param.as_deref(), Some("suffix"));
    }
}
