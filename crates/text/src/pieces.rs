//! `Pieces`: the bytes of each token, so that decoding looks up and joins.

use std::collections::HashMap;

use serde_json::Value;

use crate::error::Error;

/// How the texts of a vocabulary stand for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Every character is a byte (GPT-2's alphabet).
    ByteLevel,
    /// Text with U+2581 for a space, `<0x0A>` for a byte without a piece.
    Sentence {
        /// Whether decoding drops a space that begins the text, for encoding adds one.
        drops_space: bool,
    },
}

impl Spelling {
    /// Reads the decoder of a tokenizer.json.
    pub(crate) fn of_decoder(decoder: &Value) -> Result<Self, String> {
        let steps = match decoder["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        let kind = |step: &Value| step["type"].as_str().unwrap_or("none").to_owned();
        if steps.iter().any(|step| kind(step) == "ByteLevel") {
            return Ok(Self::ByteLevel);
        }
        let mut drops_space = false;
        for step in steps {
            match kind(step).as_str() {
                "ByteFallback" | "Fuse" => {}
                "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {}
                "Strip" if step["content"] == " " && step["stop"] == 0 => {
                    drops_space = step["start"] != 0;
                }
                "Metaspace" if step["replacement"] == "▁" => {
                    drops_space = step["prepend_scheme"] != "never";
                }
                other => return Err(format!("decoders of type {other} are not supported")),
            }
        }
        if steps.is_empty() {
            return Err("it has no decoder".to_owned());
        }
        Ok(Self::Sentence { drops_space })
    }

    fn bytes(self, text: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            // Added tokens are plain text, which the alphabet may lack; so does the library.
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> =
                    text.chars().map(|c| alphabet.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| text.as_bytes().to_vec())
            }
            Self::Sentence { .. } => match byte_piece(text) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// `<0x0A>`: the byte.
pub(crate) fn byte_piece(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    // from_str_radix alone would take "+A".
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Bytes of all tokens, one after the other.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Pieces {
    /// Of the text of each id; `None`: there is no such token.
    pub(crate) fn new(
        texts: &[Option<&str>],
        special: Vec<bool>,
        spelling: Spelling,
    ) -> Result<Self, Error> {
        if texts.len() != special.len() {
            let (ids, marks) = (texts.len(), special.len());
            return Err(Error::Vocabulary(format!("{ids} tokens have {marks} marks of special")));
        }
        let alphabet = alphabet();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(texts.len());
        for text in texts {
            bytes.extend(spelling.bytes(text.unwrap_or_default(), &alphabet));
            ends.push(bytes.len());
        }
        Ok(Self { bytes, ends, special })
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty outside the vocabulary.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..*end]
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from
/// U+0100 on, in order.
pub(crate) fn alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut letter = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        let letter = char::from_u32(next).unwrap_or_default();
        next += 1;
        letter
    };
    (0..=u8::MAX).map(|byte| (letter(byte), byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = alphabet();
        assert_eq!(alphabet.len(), 256);
        for (letter, byte) in [('A', b'A'), ('Ġ', b' '), ('Ċ', b'\n'), ('č', b'\r'), ('é', 0xE9)]
        {
            assert_eq!(alphabet[&letter], byte, "{letter}");
        }
    }

    #[test]
    fn only_whole_byte_pieces_are_bytes() {
        let cases = [
            ("<0x0A>", Some(10)),
            ("<0xff>", Some(255)),
            ("<0x+A>", None),
            ("<0x0A", None),
            ("<0x00A>", None),
            ("<s>", None),
        ];
        for (text, expected) in cases {
            assert_eq!(byte_piece(text), expected, "{text}");
        }
    }

    #[test]
    fn decoders_are_known_or_refused() {
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let other = json!({"type": "Replace", "pattern": {"String": "_"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        let keeps = Spelling::Sentence { drops_space: false };
        let drops = Spelling::Sentence { drops_space: true };
        for (decoder, expected) in [
            (json!({"type": "ByteLevel"}), Ok(Spelling::ByteLevel)),
            (sequence(&[&json!({"type": "ByteLevel"})]), Ok(Spelling::ByteLevel)),
            (sequence(&[&replace, &json!({"type": "ByteFallback"})]), Ok(keeps)),
            (sequence(&[&replace, &strip]), Ok(drops)),
            (
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}),
                Ok(drops),
            ),
            (sequence(&[&other]), Err("decoders of type Replace are not supported")),
            (json!({"type": "WordPiece"}), Err("decoders of type WordPiece are not supported")),
            (json!(null), Err("decoders of type none are not supported")),
            (sequence(&[]), Err("it has no decoder")),
        ] {
            let found = Spelling::of_decoder(&decoder);
            assert_eq!(found, expected.map_err(str::to_owned), "{decoder}");
        }
    }
}
