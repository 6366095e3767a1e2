//! `Told`: an answer of /v1/messages, whole and in events.

use axum::http::HeaderValue;
use serde_json::{Value, json};

use super::request;
use crate::blocks::{Block, Blocks, TellBlocks};
use crate::converse::Converse;
use crate::error::ApiError;
use crate::json::Fields;
use crate::sequence::{Cause, End, Piece};
use crate::sequences::Sequences;
use crate::sse::{Tell, named_event};
use crate::wire::Head;
use crate::{context, ids, shape};

/// An answer under way.
#[derive(Debug)]
pub(super) struct Told {
    head: Head,
    id: String,
    /// Name of the request, which an error tells.
    request: HeaderValue,
    blocks: Blocks,
    /// Content so far; the last block may be open.
    content: Vec<Value>,
    /// Of the open block.
    text: String,
    end: Option<End>,
}

impl Converse for Told {
    type Asked = ();

    const NAMES: &'static [(&'static str, &'static str)] = &request::NAMES;

    fn read(fields: Fields) -> Result<(Fields, ()), ApiError> {
        Ok((request::read(fields, true)?, ()))
    }

    fn new(head: Head, (): ()) -> Self {
        let id = ids::fresh("msg_");
        let (blocks, content, text) = (Blocks::default(), Vec::new(), String::new());
        let none = HeaderValue::from_static("");
        let request = context::current().map_or(none, |context| context.id.clone());
        Self { head, id, request, blocks, content, text, end: None }
    }

    fn whole(mut self, piece: Piece, sequences: &Sequences) -> Value {
        self.piece(0, piece, sequences);
        self.close(&mut String::new());
        self.message(sequences)
    }
}

impl Told {
    fn message(&self, sequences: &Sequences) -> Value {
        let (reason, stop) = self.stop();
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model(),
            "content": self.content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": self.usage(sequences),
        })
    }

    fn usage(&self, sequences: &Sequences) -> Value {
        let usage = self.head.usage(sequences);
        json!({
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.prompt_tokens_details.cached_tokens,
        })
    }

    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match &self.end {
            None => (None, None),
            Some(End { cause: Some(Cause::Text(stop)), .. }) => (Some("stop_sequence"), Some(stop)),
            Some(End { reason: "length", .. }) => (Some("max_tokens"), None),
            Some(End { reason: "tool_calls", .. }) => (Some("tool_use"), None),
            Some(_) => (Some("end_turn"), None),
        }
    }

    /// The open block, and the key of its text.
    fn last(&mut self) -> (&mut Value, &'static str) {
        let block = self.content.last_mut().expect("a block is open");
        let key = match block["type"].as_str() {
            Some("text") => "text",
            Some("thinking") => "thinking",
            _ => "input",
        };
        (block, key)
    }
}

impl TellBlocks for Told {
    fn blocks(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    fn open(&mut self, text: &mut String, block: Block) {
        self.text.clear();
        let block = match block {
            Block::Text => json!({"type": "text", "text": ""}),
            Block::Thoughts => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Block::Call(begun) => {
                json!({"type": "tool_use", "id": begun.id, "name": begun.name, "input": {}})
            }
        };
        let (name, index) = ("content_block_start", self.content.len());
        let event = json!({"type": name, "index": index, "content_block": block});
        named_event(text, name, &event);
        self.content.push(block);
    }

    fn more(&mut self, text: &mut String, delta: &str) {
        self.text.push_str(delta);
        let (kind, key) = match self.last().1 {
            "text" => ("text_delta", "text"),
            "thinking" => ("thinking_delta", "thinking"),
            _ => ("input_json_delta", "partial_json"),
        };
        let name = "content_block_delta";
        let index = self.content.len() - 1;
        let delta = json!({"type": kind, key: delta});
        named_event(text, name, &json!({"type": name, "index": index, "delta": delta}));
    }

    fn shut(&mut self, text: &mut String) {
        let said = std::mem::take(&mut self.text);
        let (block, key) = self.last();
        block[key] = match key {
            // Cut off, arguments may be no JSON; the reason to stop says so.
            "input" => serde_json::from_str(&said).unwrap_or_else(|_| json!({})),
            _ => said.into(),
        };
        let name = "content_block_stop";
        let index = self.content.len() - 1;
        named_event(text, name, &json!({"type": name, "index": index}));
    }
}

impl Tell for Told {
    fn begin(&mut self) -> String {
        let usage = json!({"input_tokens": self.head.prompt_tokens(), "output_tokens": 0,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0});
        let message = json!({"id": self.id, "type": "message", "role": "assistant",
            "model": self.head.model(), "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": usage});
        let mut text = String::new();
        let name = "message_start";
        named_event(&mut text, name, &json!({"type": name, "message": message}));
        text
    }

    fn piece(&mut self, _: usize, piece: Piece, _: &Sequences) -> String {
        if piece.end.is_some() {
            self.end = piece.end;
        }
        self.tell(piece.parts)
    }

    fn end(&mut self, sequences: &Sequences) -> String {
        let mut text = String::new();
        self.close(&mut text);
        let (reason, stop) = self.stop();
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        let name = "message_delta";
        let event = json!({"type": name, "delta": delta, "usage": self.usage(sequences)});
        named_event(&mut text, name, &event);
        named_event(&mut text, "message_stop", &json!({"type": "message_stop"}));
        text
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut text = String::new();
        named_event(&mut text, "error", &shape::anthropic(error, &self.request));
        text
    }

    fn waiting(&self) -> &'static str {
        "event: ping\ndata: {\"type\": \"ping\"}\n\n"
    }
}
