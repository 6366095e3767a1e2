//! `Chunk`: what one event of a streamed answer says.

use serde::Deserialize;
use serde_json::Value;

/// One event, of either endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// It brings a token.
    pub(super) token: bool,
    /// The choice has ended.
    pub(super) finished: bool,
    /// Tokens of prompt and answer.
    pub(super) usage: Option<(u64, u64)>,
    /// Nothing comes after it.
    pub(super) last: bool,
}

#[derive(Deserialize)]
struct Written {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Choice {
    /// A token without text counts where the answer goes on; the first chunk of a chat, which only
    /// names the role, does not.
    fn has_token(&self) -> bool {
        let full = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        match &self.delta {
            Some(delta) => {
                [&delta.content, &delta.reasoning_content, &delta.reasoning].into_iter().any(full)
            }
            None => full(&self.text) || (self.text.is_some() && self.finish_reason.is_none()),
        }
    }
}

/// Reads an event; the error is one line.
pub(super) fn read(event: &[u8]) -> Result<Chunk, String> {
    if event.trim_ascii() == b"[DONE]" {
        return Ok(Chunk { last: true, ..Chunk::default() });
    }
    let written: Written =
        serde_json::from_slice(event).map_err(|error| format!("an event is no chunk: {error}"))?;
    if let Some(error) = written.error.filter(|error| !error.is_null()) {
        return Err(format!("the server gave up: {}", message(&error)));
    }
    let choices = written.choices.unwrap_or_default();
    Ok(Chunk {
        token: choices.iter().any(Choice::has_token),
        finished: choices.iter().any(|choice| choice.finish_reason.is_some()),
        usage: written.usage.and_then(|usage| usage.prompt_tokens.zip(usage.completion_tokens)),
        last: false,
    })
}

/// What an `error` of the dialect says, whatever its form; one line of bounded length.
pub(super) fn message(error: &Value) -> String {
    let inner = if error["error"].is_null() { error } else { &error["error"] };
    let text = inner["message"].as_str().or(inner.as_str());
    one_line(&text.map_or_else(|| inner.to_string(), str::to_owned))
}

/// Words on one line, the first 300 characters.
pub(super) fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    line.chars().take(300).collect()
}
