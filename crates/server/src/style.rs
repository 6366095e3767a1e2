//! `ChatStyle`: how a model chats: where its template reads tools, how it spells calls, how it
//! marks its thoughts.

use std::sync::Arc;

use kvant_text::{ChatTemplate, ReasoningMarks, Tokenizer, ToolFamily, ToolsIn};

use crate::tools::ToolLimits;

/// Settings of chat.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Name of a spelling of calls, `auto` for what the template was written for, or `none`.
    pub tool_parser: String,
    /// Name of markers of thoughts, `auto` for those of the template, or `none`.
    pub reasoning_parser: String,
    /// Bounds of the tools of a request.
    pub tools: ToolLimits,
}

impl Default for ChatOptions {
    fn default() -> Self {
        let auto = || AUTO.to_owned();
        let tools = ToolLimits::default();
        Self { tool_parser: auto(), reasoning_parser: auto(), tools }
    }
}

const AUTO: &str = "auto";

/// A name of markers that says more: the model is in its thoughts from the first token on, whatever
/// its prompt shows.
const ALWAYS_THINKS: &str = "deepseek_r1";

/// How a model chats.
#[derive(Clone, Debug)]
pub(crate) struct ChatStyle {
    pub(crate) tools_in: ToolsIn,
    /// Calls are looked for in this spelling.
    pub(crate) family: Option<ToolFamily>,
    pub(crate) marks: Option<ReasoningMarks>,
    always_thinks: bool,
    /// Special tokens that mark calls or thoughts.
    pub(crate) shown: Arc<[u32]>,
}

impl ChatStyle {
    pub(crate) fn new(
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
        options: &ChatOptions,
    ) -> Self {
        let source = template.map(ChatTemplate::source).unwrap_or_default();
        let tools_in = template.map_or(ToolsIn::Nowhere, ChatTemplate::tools_in);
        let family = match (options.tool_parser.as_str(), tools_in) {
            // It is told of tools in our words, so it answers in our spelling.
            (AUTO, ToolsIn::Nowhere) => match ToolFamily::of_template(&source) {
                ToolFamily::Gemma => Some(ToolFamily::Gemma),
                _ => Some(ToolFamily::Json),
            },
            (AUTO, _) => Some(ToolFamily::of_template(&source)),
            (name, _) => ToolFamily::named(name),
        };
        let marks = match options.reasoning_parser.as_str() {
            AUTO => ReasoningMarks::of_template(&source),
            name => ReasoningMarks::named(name),
        };
        let calls = family.into_iter().flat_map(ToolFamily::markers);
        let thoughts = marks.into_iter().flat_map(|marks| [marks.open, marks.close]);
        let shown = calls.chain(thoughts).filter_map(|text| tokenizer.special(text)).collect();
        let always_thinks = options.reasoning_parser == ALWAYS_THINKS;
        Self { tools_in, family, marks, always_thinks, shown }
    }

    /// Whether the model goes on from this prompt within its thoughts. `continued`: the message
    /// that it goes on with, if it does.
    pub(crate) fn thinks_after(&self, prompt: &str, continued: Option<&str>) -> bool {
        let Some(marks) = self.marks else { return false };
        match continued {
            Some(message) => marks.open_in(message),
            None if marks.opened_by(prompt) => true,
            None => self.always_thinks && !prompt.trim_end().ends_with(marks.close),
        }
    }
}
