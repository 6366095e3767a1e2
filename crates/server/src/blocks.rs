//! `Blocks`: the parts of an answer as blocks that open, grow and close, one after the other, as
//! /v1/responses and /v1/messages tell them.

use crate::answer::{AnswerPart, Begun, Parts};

/// What a block is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Text for the reader.
    Text,
    /// What the model thought.
    Thoughts,
    /// A call of a tool.
    Call(Begun),
}

/// What happens to the block at the end of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A new one begins.
    Open(Block),
    /// The open one goes on.
    More(String),
    /// The open one is whole.
    Close,
}

/// How a dialect tells blocks, in events that are added to a text.
pub(crate) trait TellBlocks {
    fn blocks(&mut self) -> &mut Blocks;

    /// A block begins.
    fn open(&mut self, text: &mut String, block: Block);

    /// The open block goes on.
    fn more(&mut self, text: &mut String, delta: &str);

    /// The open block is whole.
    fn shut(&mut self, text: &mut String);

    /// The events of more parts.
    fn tell(&mut self, parts: Parts) -> String {
        let mut text = String::new();
        for part in parts {
            for change in self.blocks().take(part) {
                match change {
                    Change::Open(block) => self.open(&mut text, block),
                    Change::More(delta) => self.more(&mut text, &delta),
                    Change::Close => self.shut(&mut text),
                }
            }
        }
        text
    }

    /// Nothing more comes.
    fn close(&mut self, text: &mut String) {
        if self.blocks().close().is_some() {
            self.shut(text);
        }
    }
}

/// Which block is open.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    open: Option<Block>,
}

impl Blocks {
    /// What a part changes.
    pub(crate) fn take(&mut self, part: AnswerPart) -> Vec<Change> {
        let (block, text) = match part {
            AnswerPart::Content(text) => (Some(Block::Text), text),
            AnswerPart::Reasoning(text) => (Some(Block::Thoughts), text),
            AnswerPart::ToolCall { begins, arguments, .. } => (begins.map(Block::Call), arguments),
        };
        let mut changes = Vec::new();
        if let Some(block) = block
            && self.open.as_ref() != Some(&block)
        {
            changes.extend(self.close());
            self.open = Some(block.clone());
            changes.push(Change::Open(block));
        }
        if !text.is_empty() {
            changes.push(Change::More(text));
        }
        changes
    }

    /// Closes the open one, if there is one.
    pub(crate) fn close(&mut self) -> Option<Change> {
        self.open.take().map(|_| Change::Close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_is_open_at_a_time() {
        let call = |id: &str| Begun { id: id.to_owned(), name: "f".to_owned() };
        let part = |begins, arguments: &str| AnswerPart::ToolCall {
            index: 0,
            begins,
            arguments: arguments.to_owned(),
        };
        let mut blocks = Blocks::default();
        let mut changes = Vec::new();
        for part in [
            AnswerPart::Reasoning("a".to_owned()),
            AnswerPart::Reasoning("b".to_owned()),
            AnswerPart::Content("c".to_owned()),
            part(Some(call("1")), ""),
            part(None, "{}"),
            part(Some(call("2")), "{"),
        ] {
            changes.extend(blocks.take(part));
        }
        changes.extend(blocks.close());
        let more = |text: &str| Change::More(text.to_owned());
        let expected = [
            Change::Open(Block::Thoughts),
            more("a"),
            more("b"),
            Change::Close,
            Change::Open(Block::Text),
            more("c"),
            Change::Close,
            Change::Open(Block::Call(call("1"))),
            more("{}"),
            Change::Close,
            Change::Open(Block::Call(call("2"))),
            more("{"),
            Change::Close,
        ];
        assert_eq!(changes, expected);
        assert_eq!(blocks.close(), None);
    }
}
