//! `ToolParser`: the text of an answer, cut into words and calls.

use super::body::{Body, BodyKind, Names, Step};
use super::{Opening, Out, Spelling, ToolFamily, ToolPart};

/// Without a marker: what begins a text that may be a call.
const BARE: Opening = Opening { marker: "", close: "", body: BodyKind::Json, known: true };

/// Finds calls in the text of one answer.
///
/// Space around a call belongs to it. A call that breaks off, or goes wrong within its arguments,
/// keeps what was told of it; one that goes wrong before is text.
#[derive(Debug)]
pub struct ToolParser {
    spelling: &'static Spelling,
    names: Names,
    at: At,
    out: Out,
    /// Space that is text if text follows.
    spaces: String,
    /// Whether the last thing told is a call, so that space after it is none.
    after_call: bool,
    /// Whether nothing was said yet.
    fresh: bool,
}

#[derive(Debug)]
enum At {
    /// In text; the beginning of a marker, or nothing.
    Text(String),
    /// Behind a marker; what is not told, with the marker.
    Body(&'static Opening, Box<dyn Body>, String),
    /// Behind a call: what may close it or go on to the next.
    After(&'static Opening, String),
}

impl ToolParser {
    /// For an answer of a model of this family that was told of tools with these names.
    pub fn new(family: ToolFamily, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            spelling: family.spelling(),
            names: Names { known: names.into_iter().collect(), only_known: false, strict: false },
            at: At::Text(String::new()),
            out: Out::default(),
            spaces: String::new(),
            after_call: false,
            fresh: true,
        }
    }

    /// The same where other names make no call, whatever marks them: they are text.
    #[must_use]
    pub fn only_known(mut self) -> Self {
        self.names.strict = true;
        self
    }

    /// Takes text; what is certain comes back.
    pub fn push(&mut self, text: &str) -> Vec<ToolPart> {
        for c in text.chars() {
            self.take(c);
        }
        std::mem::take(&mut self.out.parts)
    }

    /// The text ends: what was held back.
    pub fn finish(&mut self) -> Vec<ToolPart> {
        match std::mem::replace(&mut self.at, At::Text(String::new())) {
            At::Body(opening, mut body, held) => {
                self.names.only_known = opening.known;
                if body.finish(&self.names, &mut self.out) {
                    self.called();
                } else {
                    self.say(&held);
                }
            }
            // A marker that breaks off closes the call all the same.
            At::After(opening, held) if opening.close.starts_with(held.trim_start()) => {}
            At::Text(held) | At::After(_, held) => self.say(&held),
        }
        if !self.after_call {
            for c in std::mem::take(&mut self.spaces).chars() {
                self.out.text(c);
            }
        }
        std::mem::take(&mut self.out.parts)
    }

    fn take(&mut self, c: char) {
        match std::mem::replace(&mut self.at, At::Text(String::new())) {
            At::Text(held) => self.in_text(held, c),
            At::Body(opening, body, held) => self.in_body(opening, body, held, c),
            At::After(opening, held) => self.after(opening, held, c),
        }
    }

    fn in_text(&mut self, mut held: String, c: char) {
        if held.is_empty() && self.fresh && self.spelling.bare && matches!(c, '{' | '[') {
            return self.in_body(&BARE, BARE.body.start(), held, c);
        }
        held.push(c);
        let mut rest = held.as_str();
        while let Some(first) = rest.chars().next() {
            let mut openings = self.spelling.openings.iter();
            let Some(opening) = openings.find(|opening| opening.marker.starts_with(rest)) else {
                self.say(first.encode_utf8(&mut [0; 4]));
                rest = &rest[first.len_utf8()..];
                continue;
            };
            self.at = if opening.marker == rest {
                At::Body(opening, opening.body.start(), rest.to_owned())
            } else {
                At::Text(rest.to_owned())
            };
            return;
        }
    }

    fn in_body(
        &mut self,
        opening: &'static Opening,
        mut body: Box<dyn Body>,
        mut held: String,
        c: char,
    ) {
        self.names.only_known = opening.known;
        match body.push(c, &self.names, &mut self.out) {
            Step::More => {
                held.push(c);
                self.at = At::Body(opening, body, held);
            }
            Step::Told => {
                self.called();
                self.at = At::Body(opening, body, String::new());
            }
            Step::Done => {
                self.called();
                self.at = At::After(opening, String::new());
            }
            Step::Over => {
                self.called();
                self.after(opening, String::new(), c);
            }
            Step::Refused => {
                self.fresh = false;
                // What had no marker may begin with one: a bracket.
                if opening.marker.is_empty() {
                    held.chars().for_each(|c| self.take(c));
                } else {
                    self.say(&held);
                }
                self.take(c);
            }
        }
    }

    fn after(&mut self, opening: &'static Opening, mut held: String, c: char) {
        held.push(c);
        let rest = held.trim_start();
        if rest == opening.close && !rest.is_empty() {
            return;
        }
        let more = rest.trim_start_matches([';', ',']);
        let separated = rest.len() - more.len() <= 1;
        match more.trim_start() {
            "" if separated => self.at = At::After(opening, held),
            "{" if separated && matches!(opening.body, BodyKind::Json) => {
                held.pop();
                self.in_body(opening, opening.body.start(), held, c);
            }
            _ if opening.close.starts_with(rest) => self.at = At::After(opening, held),
            _ => held.chars().for_each(|c| self.take(c)),
        }
    }

    /// A call is being told: space before it was part of it.
    fn called(&mut self) {
        self.spaces.clear();
        self.after_call = true;
        self.fresh = false;
    }

    fn say(&mut self, text: &str) {
        for c in text.chars() {
            if c.is_whitespace() {
                self.spaces.push(c);
                continue;
            }
            let spaces = std::mem::take(&mut self.spaces);
            if !self.after_call {
                spaces.chars().for_each(|c| self.out.text(c));
            }
            self.out.text(c);
            (self.after_call, self.fresh) = (false, false);
        }
    }
}
