//! `Answer`: the text of a sequence as parts: content, reasoning, calls of tools. Every endpoint
//! that tells an answer is made of them, whole and streamed.
//!
//! Joined, the parts of one kind are the same however the text was cut into pieces.

use kvant_text::{ReasoningMarks, ReasoningPart, ReasoningSplit, ToolFamily, ToolParser, ToolPart};

use crate::ids;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    /// Text for the reader.
    Content(String),
    /// What the model thought before it.
    Reasoning(String),
    /// A call of a tool, or more of one.
    ToolCall {
        /// Which call of this answer, counted from 0.
        index: usize,
        /// In the first part of a call.
        begins: Option<Begun>,
        /// More of its arguments: JSON, as the model wrote it.
        arguments: String,
    },
}

/// A call that begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// What an answer is made of, in order; parts of one kind that follow each other are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    list: Vec<AnswerPart>,
}

impl Parts {
    /// Adds a part, to the last one if it goes on with it.
    pub(crate) fn push(&mut self, part: AnswerPart) {
        use AnswerPart::{Content, Reasoning, ToolCall};
        match (self.list.last_mut(), part) {
            (_, Content(text) | Reasoning(text)) if text.is_empty() => {}
            (Some(Content(last)), Content(more)) | (Some(Reasoning(last)), Reasoning(more)) => {
                last.push_str(&more);
            }
            (
                Some(ToolCall { index, arguments, .. }),
                ToolCall { index: same, begins: None, arguments: more },
            ) if *index == same => arguments.push_str(&more),
            (_, part) => self.list.push(part),
        }
    }

    /// Adds what came after.
    pub(crate) fn extend(&mut self, more: Self) {
        for part in more.list {
            self.push(part);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All content as one text.
    pub(crate) fn content(self) -> String {
        let mut text = String::new();
        for part in self.list {
            if let AnswerPart::Content(more) = part {
                text.push_str(&more);
            }
        }
        text
    }
}

impl IntoIterator for Parts {
    type Item = AnswerPart;
    type IntoIter = std::vec::IntoIter<AnswerPart>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

/// How the text of an answer is read; by default all of it is content.
#[derive(Clone, Debug, Default)]
pub(crate) struct AnswerRules {
    pub(crate) reasoning: Option<Reasoning>,
    pub(crate) calls: Option<Calls>,
}

/// The model may think before it answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reasoning {
    pub(crate) marks: ReasoningMarks,
    /// The prompt ends within its thoughts.
    pub(crate) opened: bool,
    /// Thoughts are part of the answer.
    pub(crate) told: bool,
}

/// The model may call tools.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) family: ToolFamily,
    /// Names of the tools.
    pub(crate) names: Vec<String>,
    /// Whether other names make no call, however they are marked.
    pub(crate) only: bool,
    /// Whether there may be more than one call.
    pub(crate) many: bool,
}

/// Reads the text of one answer.
#[derive(Debug)]
pub(crate) struct Answer {
    split: Option<ReasoningSplit>,
    parser: Option<ToolParser>,
    rules: AnswerRules,
    calls: usize,
    over: bool,
}

impl Answer {
    pub(crate) fn new(rules: AnswerRules) -> Self {
        let split = rules.reasoning.map(|own| ReasoningSplit::new(own.marks, own.opened));
        let parser = rules.calls.as_ref().map(|own| {
            let parser = ToolParser::new(own.family, own.names.iter().cloned());
            if own.only { parser.only_known() } else { parser }
        });
        Self { split, parser, rules, calls: 0, over: false }
    }

    /// Whether the model is in its thoughts.
    pub(crate) fn is_thinking(&self) -> bool {
        self.split.as_ref().is_some_and(ReasoningSplit::is_thinking)
    }

    /// Whether there was a call.
    pub(crate) fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// Whether no more may come: one call was wanted and a second began.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Takes text; what is certain comes back.
    pub(crate) fn push(&mut self, text: &str) -> Parts {
        let mut parts = Parts::default();
        match &mut self.split {
            Some(split) => {
                let split = split.push(text);
                self.after_split(split, &mut parts);
            }
            None => self.content(text, &mut parts),
        }
        parts
    }

    /// The text ends: what was held back.
    pub(crate) fn finish(&mut self) -> Parts {
        let mut parts = Parts::default();
        let split = self.split.as_mut().map(ReasoningSplit::finish).unwrap_or_default();
        self.after_split(split, &mut parts);
        let rest = self.parser.as_mut().map(ToolParser::finish).unwrap_or_default();
        self.called(rest, &mut parts);
        parts
    }

    fn after_split(&mut self, split: Vec<ReasoningPart>, parts: &mut Parts) {
        for part in split {
            match part {
                ReasoningPart::Content(text) => self.content(&text, parts),
                ReasoningPart::Reasoning(text) => {
                    if self.rules.reasoning.is_some_and(|own| own.told) {
                        parts.push(AnswerPart::Reasoning(text));
                    }
                }
            }
        }
    }

    fn content(&mut self, text: &str, parts: &mut Parts) {
        match &mut self.parser {
            Some(parser) => {
                let found = parser.push(text);
                self.called(found, parts);
            }
            None => parts.push(AnswerPart::Content(text.to_owned())),
        }
    }

    fn called(&mut self, found: Vec<ToolPart>, parts: &mut Parts) {
        let many = self.rules.calls.as_ref().is_some_and(|own| own.many);
        for part in found {
            if matches!(part, ToolPart::Call(_)) && self.calls == 1 && !many {
                self.over = true;
            }
            if self.over {
                return;
            }
            parts.push(match part {
                ToolPart::Text(text) => AnswerPart::Content(text),
                ToolPart::Call(name) => {
                    self.calls += 1;
                    let begins = Some(Begun { id: self.call_id(), name });
                    AnswerPart::ToolCall { index: self.calls - 1, begins, arguments: String::new() }
                }
                ToolPart::Arguments(arguments) => {
                    AnswerPart::ToolCall { index: self.calls - 1, begins: None, arguments }
                }
            });
        }
    }

    /// Templates of Mistral take ids of nine letters and digits only.
    fn call_id(&self) -> String {
        match &self.rules.calls {
            Some(Calls { family: ToolFamily::Mistral, .. }) => ids::fresh("")[..9].to_owned(),
            _ => ids::fresh("call_"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(many: bool, told: bool) -> AnswerRules {
        let marks = ReasoningMarks::named("qwen3").unwrap();
        AnswerRules {
            reasoning: Some(Reasoning { marks, opened: false, told }),
            calls: Some(Calls {
                family: ToolFamily::Hermes,
                names: vec!["f".to_owned()],
                only: false,
                many,
            }),
        }
    }

    fn parts(rules: AnswerRules, pieces: &[&str]) -> (Parts, bool) {
        let mut answer = Answer::new(rules);
        let mut parts = Parts::default();
        for piece in pieces {
            parts.extend(answer.push(piece));
        }
        parts.extend(answer.finish());
        (parts, answer.is_over())
    }

    /// Kinds and texts; a call's id is another each time.
    fn shown(parts: Parts) -> Vec<String> {
        let one = |part| match part {
            AnswerPart::Content(text) => format!("content {text}"),
            AnswerPart::Reasoning(text) => format!("reasoning {text}"),
            AnswerPart::ToolCall { index, begins, arguments } => {
                let name = begins.map_or_else(String::new, |begun| begun.name);
                format!("call {index} {name} {arguments}")
            }
        };
        parts.into_iter().map(one).collect()
    }

    const TEXT: &str = "<think>\nhm <tool_call>\n</think>\n\nSo: <tool_call>\n{\"name\": \"f\", \
        \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"f\"}</tool_call>";

    #[test]
    fn thoughts_then_words_then_calls() {
        let whole = shown(parts(rules(true, true), &[TEXT]).0);
        let expected =
            ["reasoning hm <tool_call>", "content So:", "call 0 f {\"a\": 1}", "call 1 f {}"];
        assert_eq!(whole, expected);
        for (at, _) in TEXT.char_indices() {
            let (before, after) = TEXT.split_at(at);
            assert_eq!(shown(parts(rules(true, true), &[before, after]).0), expected, "at {at}");
        }
    }

    #[test]
    fn one_call_and_no_thoughts_where_that_is_wanted() {
        let (found, over) = parts(rules(false, false), &[TEXT]);
        assert_eq!(shown(found), ["content So:", "call 0 f {\"a\": 1}"]);
        assert!(over);
    }

    #[test]
    fn all_is_content_by_default() {
        let (found, over) = parts(AnswerRules::default(), &[TEXT, "", "x"]);
        assert_eq!(shown(found), [format!("content {TEXT}x")]);
        assert!(!over);
    }

    #[test]
    fn ids_are_what_templates_take() {
        let id = |family| {
            let calls = Calls { family, names: Vec::new(), only: false, many: true };
            let mut answer = Answer::new(AnswerRules { calls: Some(calls), reasoning: None });
            let text = "[TOOL_CALLS]f[ARGS]{}<tool_call>{\"name\": \"f\"}</tool_call>";
            let begun = answer.push(text).into_iter().find_map(|part| match part {
                AnswerPart::ToolCall { begins, .. } => begins,
                _ => None,
            });
            begun.unwrap().id
        };
        assert_eq!(id(ToolFamily::Mistral).len(), 9);
        assert!(id(ToolFamily::Hermes).starts_with("call_"));
    }
}
