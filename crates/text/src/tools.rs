//! Calls of tools in the text of a model: found as the text comes, told name first.
//!
//! Each family of models spells calls in its own way; a family is its markers ([`Spelling`]) and
//! what stands between them ([`body::Body`]). What turns out to be no call is given back as text,
//! every character once, and what is told does not depend on how the text was cut into pieces.

mod body;
mod call;
mod family;
mod gemma;
mod generic;
mod hermes;
mod json;
mod llama;
mod mistral;
mod parser;
mod phi;
mod preamble;
mod python;

pub use family::{ToolFamily, ToolShape};
pub use parser::ToolParser;
pub use preamble::{Telling, tools_in_words};

use body::BodyKind;

/// What a text has: words for the reader, and calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolPart {
    /// Text that belongs to no call.
    Text(String),
    /// A call of the tool with this name begins.
    Call(String),
    /// More of its arguments: JSON, as the model wrote it.
    Arguments(String),
}

/// How calls are marked.
#[derive(Debug)]
struct Spelling {
    openings: &'static [Opening],
    /// Whether a text that begins with JSON may be a call without any marker.
    bare: bool,
}

/// A marker and what it opens.
#[derive(Debug)]
struct Opening {
    marker: &'static str,
    /// May be left out by the model; empty where nothing closes.
    close: &'static str,
    body: BodyKind,
    /// Whether only names of tools that the model was told of make a call: the marker has other
    /// uses.
    known: bool,
}

/// Parts as they are made; those of one kind that follow each other are one.
#[derive(Debug, Default)]
struct Out {
    parts: Vec<ToolPart>,
}

impl Out {
    fn text(&mut self, c: char) {
        match self.parts.last_mut() {
            Some(ToolPart::Text(text)) => text.push(c),
            _ => self.parts.push(ToolPart::Text(c.to_string())),
        }
    }

    fn call(&mut self, name: &str) {
        self.parts.push(ToolPart::Call(name.to_owned()));
    }

    fn arguments(&mut self, more: &str) {
        match self.parts.last_mut() {
            Some(ToolPart::Arguments(text)) => text.push_str(more),
            _ => self.parts.push(ToolPart::Arguments(more.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
