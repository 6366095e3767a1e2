//! Words and token ids: tokenizer, chat template, incremental decode, stop strings. Knows no
//! tensor, no engine and no HTTP.

mod error;
mod gguf;
mod pieces;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use error::Error;
pub use gguf::GgufVocab;
pub use stop::{StopStrings, Stopped};
pub use stream::TextStream;
pub use template::{ChatTemplate, RenderOptions, TemplateTokens};
pub use tokenizer::Tokenizer;
