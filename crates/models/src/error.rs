//! `Error`: everything that can be wrong with a model's files, one line each.

use std::path::PathBuf;

/// What was wrong, in which file and where in it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened, read or mapped.
    #[error("{path}: cannot be read: {source}; check the path and its permissions")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path holds no model, or not exactly one.
    #[error(
        "{path}: {found}; give a .gguf file, a folder with exactly one .gguf file, or a folder \
             with config.json and model.safetensors (or model.safetensors.index.json)"
    )]
    NoModel {
        /// Path as given.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A file breaks its format.
    #[error("{file}: {place}: {what}; the file is damaged or incomplete, fetch it again")]
    Malformed {
        /// File name.
        file: String,
        /// Byte offset, key or tensor.
        place: String,
        /// Which rule is broken.
        what: String,
    },
    /// A file keeps its format but asks for something that is not served.
    #[error("{file}: {place}: {what}")]
    Unsupported {
        /// File name.
        file: String,
        /// Key or tensor.
        place: String,
        /// What it asks for, and what is served instead.
        what: String,
    },
    /// A key of the configuration is missing or has an impossible value.
    #[error("{file}: {key}: {what}; correct the key or fetch the file again")]
    Config {
        /// File name.
        file: String,
        /// Key as written in the file.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor that the model needs is not in its files.
    #[error(
        "{file}: tensor {tensor} is missing; the file is incomplete or of another architecture"
    )]
    MissingTensor {
        /// File name.
        file: String,
        /// Hugging Face name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{file}: tensor {tensor} has shape {found:?}, the configuration says {expected:?}; \
             weights and configuration are of different models"
    )]
    Shape {
        /// File name.
        file: String,
        /// Hugging Face name of the tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor operation failed while weights were made.
    #[error("weights: {0}")]
    Candle(#[from] candle_core::Error),
}

/// Longest quotation from a file in a message, characters.
const QUOTED_CHARS: usize = 300;

impl Error {
    /// A broken rule of a file format.
    pub(crate) fn malformed(file: &str, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed { file: line(file), place: line(place), what: line(what) }
    }

    /// A missing or impossible configuration value.
    pub(crate) fn config(file: &str, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { file: line(file), key: line(key), what: line(what) }
    }

    /// Something valid that is not served.
    pub(crate) fn unsupported(
        file: &str,
        place: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        Self::Unsupported { file: line(file), place: line(place), what: line(what) }
    }

    /// A tensor that is not there.
    pub(crate) fn missing(file: &str, tensor: &str) -> Self {
        Self::MissingTensor { file: line(file), tensor: line(tensor) }
    }
}

/// One printable line of bounded length, whatever a damaged file put into it.
fn line(text: impl Into<String>) -> String {
    let text = text.into();
    if text.len() <= QUOTED_CHARS && !text.contains(char::is_control) {
        return text;
    }
    let shown = text.chars().take(QUOTED_CHARS);
    let mut short: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(QUOTED_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        let cases = [
            ("short".to_owned(), "short".to_owned()),
            ("a\nb\u{1b}[0m".to_owned(), "a b [0m".to_owned()),
            ("é".repeat(300), "é".repeat(300)),
            ("é".repeat(301), format!("{}…", "é".repeat(300))),
        ];
        for (text, expected) in cases {
            assert_eq!(line(text), expected);
        }
    }
}
