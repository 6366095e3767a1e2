//! Words and token ids: tokenizer, chat template, incremental decode, stop strings. Knows no
//! tensor, no engine and no HTTP.

mod error;
mod gguf;
mod grammar;
mod pieces;
mod reasoning;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod tools;

pub use error::Error;
pub use gguf::GgufVocab;
pub use grammar::{Grammar, GrammarEnv, GrammarLimits, GrammarSpec, Matcher};
pub use reasoning::{ReasoningMarks, ReasoningPart, ReasoningSplit};
pub use stop::{StopStrings, Stopped};
pub use stream::TextStream;
pub use template::{ChatTemplate, RenderOptions, TemplateTokens, ToolsIn};
pub use tokenizer::Tokenizer;
pub use tools::{Telling, ToolFamily, ToolParser, ToolPart, ToolShape, tools_in_words};
