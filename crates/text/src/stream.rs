//! `TextStream`: text of tokens as they come. Gives whole characters only; a token costs what it
//! holds, never a second look at what came before.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// Decodes the tokens that follow a prompt, one at a time.
///
/// All pieces together are the text that the tokens add to the decoded prompt: a space that begins
/// the first token is kept, although [`Tokenizer::decode`] of the tokens alone would drop it where
/// the vocabulary marks the beginning of a text with a space.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    special: bool,
    /// Special tokens whose text is given all the same.
    shown: Arc<[u32]>,
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl TextStream {
    /// A stream that leaves out special tokens.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self::showing(tokenizer, Arc::default())
    }

    /// A stream that leaves out special tokens, but for these: they mark what a reader of the text
    /// looks for.
    pub fn showing(tokenizer: Arc<Tokenizer>, shown: Arc<[u32]>) -> Self {
        Self { tokenizer, special: false, shown, pending: Vec::new() }
    }

    /// A stream that gives the text of special tokens too.
    pub fn with_special(tokenizer: Arc<Tokenizer>) -> Self {
        Self { special: true, ..Self::new(tokenizer) }
    }

    /// Text that the token completes; empty while a character is only begun.
    pub fn push(&mut self, id: u32) -> String {
        if self.special || !self.tokenizer.is_special(id) || self.shown.contains(&id) {
            self.pending.extend_from_slice(self.tokenizer.bytes(id));
        }
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        // Bytes that cannot become a character are replaced as soon as that is certain.
        while let Err(error) = std::str::from_utf8(rest) {
            let Some(wrong) = error.error_len() else { break };
            let end = error.valid_up_to() + wrong;
            text.push_str(&String::from_utf8_lossy(&rest[..end]));
            rest = &rest[end..];
        }
        let whole = match std::str::from_utf8(rest) {
            Ok(_) => rest.len(),
            Err(error) => error.valid_up_to(),
        };
        text.push_str(&String::from_utf8_lossy(&rest[..whole]));
        let used = self.pending.len() - rest.len() + whole;
        self.pending.drain(..used);
        text
    }

    /// The tokens end: a character that was only begun becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&pending).into_owned()
    }
}

#[cfg(test)]
mod tests;
