//! `Deltas`: chunks of /v1/chat/completions and /v1/completions.

use std::sync::Arc;

use kvant_text::Tokenizer;
use serde::Serialize;

use crate::error::ApiError;
use crate::order::{Dialect, StreamUsage};
use crate::sequence::Piece;
use crate::sequences::Sequences;
use crate::sse::{Tell, event};
use crate::wire::{Head, Tally};
use crate::{chat, completions};

/// What of the answer is out.
#[derive(Debug)]
pub(crate) struct Deltas {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    /// By choice: whether its first chunk is out.
    begun: Vec<bool>,
    /// Whether any chunk is out.
    first_out: bool,
}

impl Deltas {
    pub(crate) fn new(head: Head, tokenizer: Arc<Tokenizer>, choices: usize) -> Self {
        Self { head, tokenizer, begun: vec![false; choices], first_out: false }
    }

    fn chunk<C: Serialize>(&mut self, text: &mut String, choices: Vec<C>, sequences: &Sequences) {
        let usage = match self.head.reply.stream {
            None | Some(StreamUsage::Never) => Tally::Absent,
            Some(StreamUsage::Last) => Tally::Null,
            Some(StreamUsage::Each) => Tally::Of(self.head.usage(sequences)),
        };
        let first = !std::mem::replace(&mut self.first_out, true);
        event(text, &self.head.json(choices, usage, first));
    }
}

impl Tell for Deltas {
    fn piece(&mut self, index: usize, piece: Piece, sequences: &Sequences) -> String {
        let words = self.tokenizer.clone();
        let tokenizer = self.head.sampling.scores.then_some(&*words);
        let first = !std::mem::replace(&mut self.begun[index], true);
        let reply = self.head.reply;
        let mut text = String::new();
        match self.head.dialect {
            Dialect::Chat => {
                for part in chat::parts((index, first), piece, reply, tokenizer) {
                    self.chunk(&mut text, vec![part], sequences);
                }
            }
            Dialect::Text => {
                for part in completions::parts(index, piece, reply, tokenizer) {
                    self.chunk(&mut text, vec![part], sequences);
                }
            }
        }
        text
    }

    fn end(&mut self, sequences: &Sequences) -> String {
        let mut text = String::new();
        if !matches!(self.head.reply.stream, None | Some(StreamUsage::Never)) {
            let usage = Tally::Of(self.head.usage(sequences));
            event(&mut text, &self.head.json(Vec::<()>::new(), usage, false));
        }
        event(&mut text, "[DONE]");
        text
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut text = String::new();
        event(&mut text, &error.body().to_string());
        event(&mut text, "[DONE]");
        text
    }
}
