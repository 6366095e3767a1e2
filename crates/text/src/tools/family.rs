//! `ToolFamily`: which spelling of calls a model knows, and what a call must look like when one is
//! asked for.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Spelling, gemma, generic, hermes, llama, mistral, phi};

/// A spelling of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFamily {
    /// Hermes, Qwen 2.5, Qwen 3, SmolLM.
    Hermes,
    /// Llama 3.
    Llama3,
    /// Mistral.
    Mistral,
    /// Phi 4 mini.
    Phi4Mini,
    /// Gemma.
    Gemma,
    /// JSON without a marker.
    Json,
}

/// Families with the names that settings give them; vLLM's where it has one.
const NAMES: [(ToolFamily, &str); 6] = [
    (ToolFamily::Hermes, "hermes"),
    (ToolFamily::Llama3, "llama3_json"),
    (ToolFamily::Mistral, "mistral"),
    (ToolFamily::Phi4Mini, "phi4_mini_json"),
    (ToolFamily::Gemma, "gemma"),
    (ToolFamily::Json, "json"),
];

/// What a template has that tells its family; the first that is found.
const TELLS: [(&str, ToolFamily); 8] = [
    ("<tool_call>", ToolFamily::Hermes),
    ("[TOOL_CALLS]", ToolFamily::Mistral),
    ("<|python_tag|>", ToolFamily::Llama3),
    ("<|start_header_id|>", ToolFamily::Llama3),
    ("<|tool_call|>", ToolFamily::Phi4Mini),
    ("<|tool|>", ToolFamily::Phi4Mini),
    ("functools", ToolFamily::Phi4Mini),
    ("<start_of_turn>", ToolFamily::Gemma),
];

/// A tool as a grammar needs it.
#[derive(Clone, Copy, Debug)]
pub struct ToolShape<'a> {
    /// Letters, digits, `_` and `-` only.
    pub name: &'a str,
    /// JSON schema of its arguments; without one any object will do.
    pub parameters: Option<&'a Value>,
    /// What the schema asks beyond what can be promised is left out.
    pub lenient: bool,
}

/// How calls are written where they are asked for.
struct Shape {
    /// Before and after all calls, or with `each` of each one.
    marks: (&'static str, &'static str),
    /// Within the marks.
    inner: (&'static str, &'static str),
    each: bool,
    /// One call may stand without `inner`.
    alone: bool,
    before_name: &'static str,
    before_arguments: &'static str,
    after: &'static str,
    between: &'static str,
}

const LIST: Shape = Shape {
    marks: ("", ""),
    inner: ("[", "]"),
    each: false,
    alone: false,
    before_name: "{\"name\": \"",
    before_arguments: "\", \"arguments\": ",
    after: "}",
    between: ", ",
};

impl ToolFamily {
    /// The family that a template was written for.
    pub fn of_template(text: &str) -> Self {
        let found = TELLS.iter().find(|(tell, _)| text.contains(tell));
        found.map_or(Self::Json, |(_, family)| *family)
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(family, _)| *family)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(family, _)| *family == self);
        found.expect("every family has a name").1
    }

    pub(super) fn spelling(self) -> &'static Spelling {
        match self {
            Self::Hermes => &hermes::SPELLING,
            Self::Llama3 => &llama::SPELLING,
            Self::Mistral => &mistral::SPELLING,
            Self::Phi4Mini => &phi::SPELLING,
            Self::Gemma => &gemma::SPELLING,
            Self::Json => &generic::SPELLING,
        }
    }

    /// Texts that a stream must show although they may be special tokens.
    pub fn markers(self) -> impl Iterator<Item = &'static str> {
        let openings = self.spelling().openings.iter();
        let pairs = openings.flat_map(|opening| [opening.marker, opening.close]);
        pairs.chain([mistral::ARGUMENTS, mistral::ID]).filter(|marker| !marker.is_empty())
    }

    /// Whether a call is told from JSON by how it begins: by a marker of its own.
    pub fn is_marked(self, special: &dyn Fn(&str) -> Option<u32>) -> bool {
        let open = self.shape(special(mistral::ARGUMENTS).is_some()).marks.0;
        special(open).is_some() || open.starts_with('<')
    }

    /// A Lark grammar, as llguidance reads it, of one call of these tools, or with `many` of one or
    /// more. `special` says which texts are single tokens of the vocabulary.
    pub fn grammar(
        self,
        tools: &[ToolShape<'_>],
        many: bool,
        special: &dyn Fn(&str) -> Option<u32>,
    ) -> String {
        let shape = self.shape(special(mistral::ARGUMENTS).is_some());
        let atom = |text: &str| match special(text) {
            _ if text.is_empty() => String::new(),
            Some(token) => format!("<[{token}]>"),
            None => Value::from(text).to_string(),
        };
        let (open, close) = (atom(shape.marks.0), atom(shape.marks.1));
        let (first, last) = (atom(shape.inner.0), atom(shape.inner.1));
        let next = atom(shape.between);
        let mut text = match (many, shape.each) {
            (true, true) => {
                format!("start: block ({next} block)*\nblock: {open} {first} call {last} {close}\n")
            }
            (true, false) if shape.alone => {
                format!("start: call | {first} call ({next} call)* {last}\n")
            }
            (true, false) => format!("start: {open} {first} call ({next} call)* {last} {close}\n"),
            (false, _) if shape.alone => format!("start: {open} call {close}\n"),
            (false, _) => format!("start: {open} {first} call {last} {close}\n"),
        };
        let calls = (0..tools.len()).map(|index| format!("call_{index}")).collect::<Vec<_>>();
        let _ = writeln!(text, "call: {}", calls.join(" | "));
        for (index, tool) in tools.iter().enumerate() {
            let before = atom(&format!("{}{}", shape.before_name, tool.name));
            let (middle, after) = (atom(shape.before_arguments), atom(shape.after));
            let schema = spaced(tool.parameters, tool.lenient);
            let _ = writeln!(text, "call_{index}: {before} {middle} args_{index} {after}");
            let _ = writeln!(text, "args_{index}: %json {schema}");
        }
        text
    }

    fn shape(self, named_arguments: bool) -> Shape {
        match self {
            Self::Hermes => Shape {
                marks: ("<tool_call>", "</tool_call>"),
                inner: ("\n", "\n"),
                each: true,
                between: "\n",
                ..LIST
            },
            Self::Llama3 => Shape {
                inner: ("", ""),
                before_arguments: "\", \"parameters\": ",
                between: "; ",
                ..LIST
            },
            Self::Mistral if named_arguments => Shape {
                marks: ("[TOOL_CALLS]", ""),
                inner: ("", ""),
                each: true,
                before_name: "",
                before_arguments: mistral::ARGUMENTS,
                after: "",
                between: "",
                ..LIST
            },
            Self::Mistral => Shape { marks: ("[TOOL_CALLS]", ""), ..LIST },
            Self::Phi4Mini => Shape { marks: ("<|tool_call|>", "<|/tool_call|>"), ..LIST },
            Self::Gemma | Self::Json => Shape { alone: true, ..LIST },
        }
    }
}

/// The schema of arguments, with the one spacing that templates write: where any will do, a model
/// may write space without end.
fn spaced(parameters: Option<&Value>, lenient: bool) -> Value {
    let mut schema = parameters.cloned().unwrap_or_else(|| json!({"type": "object"}));
    if let Some(map) = schema.as_object_mut() {
        let spacing = json!({"whitespace_flexible": false, "item_separator": ", ",
            "key_separator": ": ", "lenient": lenient});
        map.insert("x-guidance".to_owned(), spacing);
    }
    schema
}

#[cfg(test)]
mod tests;
