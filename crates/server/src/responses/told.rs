//! `Told`: an answer of /v1/responses, whole and in events.

use serde_json::{Map, Value, json};

use super::request::{self, Asked};
use crate::blocks::{Block, Blocks, TellBlocks};
use crate::converse::Converse;
use crate::error::ApiError;
use crate::ids;
use crate::json::Fields;
use crate::sequence::Piece;
use crate::sequences::Sequences;
use crate::sse::{Tell, named_event};
use crate::wire::{Head, Usage};

/// An answer under way.
#[derive(Debug)]
pub(super) struct Told {
    head: Head,
    asked: Asked,
    id: String,
    created: u64,
    blocks: Blocks,
    /// Items of the output; the last one may be open.
    output: Vec<Value>,
    /// Text of the open one.
    text: String,
    /// `stop`, `length` or `tool_calls`.
    reason: &'static str,
    /// Events so far.
    sequence: u64,
}

impl Converse for Told {
    type Asked = Asked;

    const NAMES: &'static [(&'static str, &'static str)] = &request::NAMES;

    fn read(fields: Fields) -> Result<(Fields, Asked), ApiError> {
        request::read(fields)
    }

    fn new(head: Head, asked: Asked) -> Self {
        Self {
            head,
            asked,
            id: ids::fresh("resp_"),
            created: ids::now(),
            blocks: Blocks::default(),
            output: Vec::new(),
            text: String::new(),
            reason: "stop",
            sequence: 0,
        }
    }

    fn whole(mut self, piece: Piece, sequences: &Sequences) -> Value {
        self.piece(0, piece, sequences);
        self.close(&mut String::new());
        let usage = self.head.usage(sequences);
        self.response(self.status(), Some(usage), None)
    }
}

impl Told {
    fn status(&self) -> &'static str {
        if self.reason == "length" { "incomplete" } else { "completed" }
    }

    fn response(&self, status: &str, usage: Option<Usage>, error: Option<&ApiError>) -> Value {
        let mut map = self.asked.told.clone();
        let cut = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let error = error.map(|error| json!({"code": "server_error", "message": error.message()}));
        let done = (status == "completed").then(ids::now);
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {
                    "reasoning_tokens": usage.completion_tokens_details.reasoning_tokens,
                },
                "total_tokens": usage.total_tokens,
            })
        });
        let own = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": done,
            "status": status,
            "error": error,
            "incomplete_details": cut,
            "model": self.head.model(),
            "output": self.output,
        });
        if let Value::Object(own) = own {
            map.extend(own);
        }
        // Absent until it is known: the schema has no null for it.
        map.extend(usage.map(|usage| ("usage".to_owned(), usage)));
        Value::Object(map)
    }

    fn event(&mut self, text: &mut String, name: &str, mut content: Value) {
        content["type"] = name.into();
        content["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        named_event(text, name, &content);
    }

    /// An event of the last item.
    fn of_item(&mut self, text: &mut String, name: &str, more: Value) {
        let mut content = Map::new();
        content.insert("output_index".to_owned(), (self.output.len() - 1).into());
        if let Value::Object(more) = more {
            content.extend(more);
        }
        self.event(text, name, Value::Object(content));
    }

    fn last(&self) -> (String, Value) {
        let item = self.output.last().expect("an item is open");
        (item["type"].as_str().unwrap_or_default().to_owned(), item["id"].clone())
    }
}

/// The one part of an item that has parts.
fn part(kind: &str, text: &str) -> Option<Value> {
    match kind {
        "message" => {
            Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}))
        }
        "reasoning" => Some(json!({"type": "reasoning_text", "text": text})),
        _ => None,
    }
}

impl TellBlocks for Told {
    fn blocks(&mut self) -> &mut Blocks {
        &mut self.blocks
    }

    fn open(&mut self, text: &mut String, block: Block) {
        self.text.clear();
        let status = "in_progress";
        let item = match block {
            Block::Text => json!({"type": "message", "id": ids::fresh("msg_"), "status": status,
                "role": "assistant", "content": []}),
            Block::Thoughts => json!({"type": "reasoning", "id": ids::fresh("rs_"),
                "status": status, "summary": [], "content": []}),
            Block::Call(begun) => json!({"type": "function_call", "id": ids::fresh("fc_"),
                "call_id": begun.id, "name": begun.name, "arguments": "", "status": status}),
        };
        self.output.push(item.clone());
        self.of_item(text, "response.output_item.added", json!({"item": item}));
        let (kind, id) = self.last();
        if let Some(part) = part(&kind, "") {
            let more = json!({"item_id": id, "content_index": 0, "part": part});
            self.of_item(text, "response.content_part.added", more);
        }
    }

    fn more(&mut self, text: &mut String, delta: &str) {
        self.text.push_str(delta);
        let (kind, id) = self.last();
        let (name, more) = match kind.as_str() {
            "message" => (
                "response.output_text.delta",
                json!({"item_id": id, "content_index": 0, "delta": delta, "logprobs": []}),
            ),
            "reasoning" => (
                "response.reasoning_text.delta",
                json!({"item_id": id, "content_index": 0, "delta": delta}),
            ),
            _ => ("response.function_call_arguments.delta", json!({"item_id": id, "delta": delta})),
        };
        self.of_item(text, name, more);
    }

    fn shut(&mut self, text: &mut String) {
        let said = std::mem::take(&mut self.text);
        let (kind, id) = self.last();
        let (name, more) = match kind.as_str() {
            "message" => (
                "response.output_text.done",
                json!({"item_id": id, "content_index": 0, "text": said, "logprobs": []}),
            ),
            "reasoning" => (
                "response.reasoning_text.done",
                json!({"item_id": id, "content_index": 0, "text": said}),
            ),
            _ => {
                let name = self.output.last().map(|item| item["name"].clone());
                (
                    "response.function_call_arguments.done",
                    json!({"item_id": id, "name": name, "arguments": said}),
                )
            }
        };
        self.of_item(text, name, more);
        let part = part(&kind, &said);
        if let Some(part) = &part {
            let more = json!({"item_id": id, "content_index": 0, "part": part});
            self.of_item(text, "response.content_part.done", more);
        }
        let cut = self.reason == "length";
        let item = self.output.last_mut().expect("an item is open");
        item["status"] = if cut { "incomplete" } else { "completed" }.into();
        match part {
            Some(part) => item["content"] = json!([part]),
            None => item["arguments"] = said.into(),
        }
        let item = item.clone();
        self.of_item(text, "response.output_item.done", json!({"item": item}));
    }
}

impl Tell for Told {
    fn begin(&mut self) -> String {
        let mut text = String::new();
        for name in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", None, None);
            self.event(&mut text, name, json!({"response": response}));
        }
        text
    }

    fn piece(&mut self, _: usize, piece: Piece, _: &Sequences) -> String {
        if let Some(end) = &piece.end {
            self.reason = end.reason;
        }
        self.tell(piece.parts)
    }

    fn end(&mut self, sequences: &Sequences) -> String {
        let mut text = String::new();
        self.close(&mut text);
        let status = self.status();
        let response = self.response(status, Some(self.head.usage(sequences)), None);
        self.event(&mut text, &format!("response.{status}"), json!({"response": response}));
        text
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut text = String::new();
        let response = self.response("failed", None, Some(error));
        self.event(&mut text, "response.failed", json!({"response": response}));
        text
    }
}
