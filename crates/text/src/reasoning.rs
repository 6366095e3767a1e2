//! `ReasoningSplit`: what a model thinks before it answers, apart from the answer.

/// Markers of a block of thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningMarks {
    /// Opens the block; the model writes it, or its template does.
    pub open: &'static str,
    /// Closes it.
    pub close: &'static str,
}

const THINK: ReasoningMarks = ReasoningMarks { open: "<think>", close: "</think>" };
const MISTRAL: ReasoningMarks = ReasoningMarks { open: "[THINK]", close: "[/THINK]" };

/// Names of settings with their markers; vLLM's.
const NAMES: [(&str, ReasoningMarks); 4] =
    [("think", THINK), ("qwen3", THINK), ("deepseek_r1", THINK), ("mistral", MISTRAL)];

impl ReasoningMarks {
    /// Those that a template writes or looks for.
    pub fn of_template(text: &str) -> Option<Self> {
        [THINK, MISTRAL].into_iter().find(|marks| text.contains(marks.close))
    }

    /// Those of this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, marks)| *marks)
    }

    /// Whether a prompt ends within a block that its template has opened.
    pub fn opened_by(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }

    /// Whether a text ends within a block.
    pub fn open_in(self, text: &str) -> bool {
        text.rfind(self.open) > text.rfind(self.close)
    }
}

/// What a text has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReasoningPart {
    /// Thoughts.
    Reasoning(String),
    /// The answer.
    Content(String),
}

/// Splits the text of one answer as it comes. Space around the thoughts belongs to neither.
#[derive(Debug)]
pub struct ReasoningSplit {
    marks: ReasoningMarks,
    at: At,
    /// What may be a marker or the space around one.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Nothing but space has come.
    Start,
    /// In the block, before the first thought.
    Opened,
    Thoughts,
    /// Behind the block, before the answer.
    Closed,
    Content,
}

impl ReasoningSplit {
    /// `opened`: the prompt ends within a block.
    pub fn new(marks: ReasoningMarks, opened: bool) -> Self {
        let at = if opened { At::Opened } else { At::Start };
        Self { marks, at, held: String::new() }
    }

    /// Whether the block is open.
    pub fn is_thinking(&self) -> bool {
        matches!(self.at, At::Opened | At::Thoughts)
    }

    /// Takes text; what is certain comes back, thoughts first.
    pub fn push(&mut self, text: &str) -> Vec<ReasoningPart> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(at) = self.advance(&mut parts) {
            self.at = at;
        }
        parts
    }

    /// The text ends: what was held back.
    pub fn finish(&mut self) -> Vec<ReasoningPart> {
        let held = std::mem::take(&mut self.held);
        match self.at {
            At::Start | At::Content if !held.is_empty() => vec![ReasoningPart::Content(held)],
            At::Start | At::Content | At::Closed => Vec::new(),
            At::Opened | At::Thoughts => {
                let thoughts = held.trim_end();
                let some = !thoughts.is_empty();
                some.then(|| ReasoningPart::Reasoning(thoughts.to_owned())).into_iter().collect()
            }
        }
    }

    /// One step; `None` when more text is needed.
    fn advance(&mut self, parts: &mut Vec<ReasoningPart>) -> Option<At> {
        let ReasoningMarks { open, close } = self.marks;
        match self.at {
            At::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(open) {
                    self.held = rest.to_owned();
                    return Some(At::Opened);
                }
                (!open.starts_with(text)).then_some(At::Content)
            }
            At::Opened => {
                self.held = self.held.trim_start().to_owned();
                // A model may repeat the marker that its prompt has written.
                if let Some(rest) = self.held.strip_prefix(open) {
                    self.held = rest.to_owned();
                    return Some(At::Opened);
                }
                (!open.starts_with(&self.held)).then_some(At::Thoughts)
            }
            At::Thoughts => {
                let (thoughts, next) = match self.held.find(close) {
                    Some(at) => (at, Some(At::Closed)),
                    None => (self.held.len() - partial(&self.held, close), None),
                };
                let certain = self.held[..thoughts].trim_end().len();
                if certain > 0 {
                    parts.push(ReasoningPart::Reasoning(self.held[..certain].to_owned()));
                }
                let keep = if next.is_some() { thoughts + close.len() } else { certain };
                self.held.drain(..keep);
                next
            }
            At::Closed => {
                self.held = self.held.trim_start().to_owned();
                (!self.held.is_empty()).then_some(At::Content)
            }
            At::Content => {
                let text = std::mem::take(&mut self.held);
                if !text.is_empty() {
                    parts.push(ReasoningPart::Content(text));
                }
                None
            }
        }
    }
}

/// Bytes at the end of a text that may be the beginning of a marker.
fn partial(text: &str, marker: &str) -> usize {
    let most = (marker.len() - 1).min(text.len());
    let longest = (1..=most).rev().find(|len| text.ends_with(&marker[..*len]));
    longest.unwrap_or(0)
}

#[cfg(test)]
mod tests;
