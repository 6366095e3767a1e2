//! Choices of /v1/chat/completions, whole and as deltas.

use kvant_text::Tokenizer;
use serde::Serialize;

use crate::answer::{AnswerPart, Begun, Parts};
use crate::order::Reply;
use crate::sequence::{Cause, Piece, Score};
use crate::wire::finite;

/// A whole answer.
#[derive(Serialize)]
pub(crate) struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    /// Null if the model called tools and said nothing.
    content: Option<String>,
    /// Always null; the schema wants the key.
    refusal: Option<String>,
    #[serde(flatten)]
    reasoning: Thought,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

/// Reasoning under both names that clients look for: the older one, and vLLM's newer one.
#[derive(Default, Serialize)]
struct Thought {
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
}

impl From<String> for Thought {
    fn from(text: String) -> Self {
        Self { reasoning_content: Some(text.clone()), reasoning: Some(text) }
    }
}

/// A call of a tool: whole, or more of one with its `index`.
#[derive(Serialize)]
struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Call {
    fn new(index: Option<usize>, begins: Option<Begun>, arguments: String) -> Self {
        let kind = begins.is_some().then_some("function");
        let (id, name) = begins.map(|Begun { id, name }| (id, name)).unzip();
        Self { index, id, kind, function: Function { name, arguments } }
    }
}

/// A part of an answer.
#[derive(Serialize)]
pub(crate) struct Part {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(flatten)]
    reasoning: Thought,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Call; 1]>,
}

impl From<AnswerPart> for Delta {
    fn from(part: AnswerPart) -> Self {
        match part {
            AnswerPart::Content(text) => Self { content: Some(text), ..Self::default() },
            AnswerPart::Reasoning(text) => Self { reasoning: text.into(), ..Self::default() },
            AnswerPart::ToolCall { index, begins, arguments } => {
                let call = Call::new(Some(index), begins, arguments);
                Self { tool_calls: Some([call]), ..Self::default() }
            }
        }
    }
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<Entry>,
    refusal: Option<Vec<Entry>>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    token: Scored,
    top_logprobs: Vec<Scored>,
}

#[derive(Serialize)]
struct Scored {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// A whole answer of all its pieces in one.
pub(crate) fn whole(
    index: usize,
    piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
) -> Choice {
    let Piece { parts, tokens, scores: found, end, .. } = piece;
    let (finish_reason, stop_reason) =
        end.map_or((None, None), |end| (Some(end.reason), end.cause));
    Choice {
        index,
        message: message(parts),
        logprobs: scores.map(|tokenizer| logprobs(&found, tokenizer)),
        finish_reason,
        stop_reason,
        token_ids: reply.token_ids.then_some(tokens),
    }
}

/// The chunks of a piece: the role before the first, what is told, and the end.
pub(crate) fn parts(
    (index, first): (usize, bool),
    piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
) -> Vec<Part> {
    let part = |delta| Part {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    };
    let mut list = Vec::new();
    if first {
        let content = Some(String::new());
        list.push(part(Delta { role: Some("assistant"), content, ..Delta::default() }));
    }
    if piece.tells(reply) {
        let mut deltas = piece.parts.into_iter().map(Delta::from);
        // Tokens whose text is held back are told all the same.
        let silent = || Delta { content: Some(String::new()), ..Delta::default() };
        let told = scores.filter(|_| !piece.scores.is_empty());
        list.push(Part {
            logprobs: told.map(|tokenizer| logprobs(&piece.scores, tokenizer)),
            token_ids: reply.token_ids.then_some(piece.tokens),
            ..part(deltas.next().unwrap_or_else(silent))
        });
        list.extend(deltas.map(part));
    }
    if let Some(end) = piece.end {
        let (finish_reason, stop_reason) = (Some(end.reason), end.cause);
        list.push(Part { finish_reason, stop_reason, ..part(Delta::default()) });
    }
    list
}

fn message(parts: Parts) -> Message {
    let mut content = String::new();
    let mut reasoning = String::new();
    let mut tool_calls: Vec<Call> = Vec::new();
    for part in parts {
        match part {
            AnswerPart::Content(text) => content.push_str(&text),
            AnswerPart::Reasoning(text) => reasoning.push_str(&text),
            AnswerPart::ToolCall { begins: None, arguments, .. } => {
                let call = tool_calls.last_mut().expect("a call begins before it goes on");
                call.function.arguments.push_str(&arguments);
            }
            AnswerPart::ToolCall { begins, arguments, .. } => {
                tool_calls.push(Call::new(None, begins, arguments));
            }
        }
    }
    let said = !content.is_empty() || tool_calls.is_empty();
    Message {
        role: "assistant",
        content: said.then_some(content),
        refusal: None,
        reasoning: if reasoning.is_empty() { Thought::default() } else { reasoning.into() },
        tool_calls,
    }
}

fn logprobs(scores: &[Score], tokenizer: &Tokenizer) -> Logprobs {
    let token = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Scored { token, logprob: finite(logprob), bytes }
    };
    let entry = |score: &Score| Entry {
        token: token(score.token, score.logprob.unwrap_or(0.0)),
        top_logprobs: score.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect(),
    };
    Logprobs { content: scores.iter().map(entry).collect(), refusal: None }
}
