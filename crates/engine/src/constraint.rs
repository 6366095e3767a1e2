//! `Constraint`, what a sequence's output must be like, and `TokenMask`, the tokens that it allows.
//!
//! The engine knows no grammar: it asks before a token is chosen and tells which one was.

use std::fmt::Debug;

use crate::request::TokenId;

/// What may come next in a sequence, and what came. Asked and told on the engine's thread or on one
/// that computes for it, so neither call may take long. An error ends the sequence and no other;
/// its text is fit for a client.
pub trait Constraint: Debug + Send {
    /// Adds the tokens that may come next to an empty mask, the model's end tokens among them where
    /// the output may end.
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String>;

    /// A token was chosen that ends nothing by itself; true if the output is complete with it.
    fn take(&mut self, token: TokenId) -> Result<bool, String>;
}

/// A set of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Token `t` is bit `t % 32` of word `t / 32`; what is beyond the words is not in the set.
    words: Vec<u32>,
}

impl TokenMask {
    /// Adds a token.
    pub fn insert(&mut self, token: TokenId) {
        let word = token as usize / 32;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (token % 32);
    }

    /// Adds tokens by bits: token `t` is bit `t % 32` of word `t / 32`.
    pub fn insert_words(&mut self, words: &[u32]) {
        if words.len() > self.words.len() {
            self.words.resize(words.len(), 0);
        }
        for (own, more) in self.words.iter_mut().zip(words) {
            *own |= more;
        }
    }

    /// Whether a token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        let word = self.words.get(token as usize / 32).copied().unwrap_or(0);
        word & (1 << (token % 32)) != 0
    }

    /// Forbids all other tokens. logits: `[vocab]`.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_what_was_added_and_nothing_else() {
        let mut mask = TokenMask::default();
        assert!(!mask.contains(0));
        for token in [0, 31, 32, 70] {
            mask.insert(token);
        }
        mask.insert_words(&[0b10, 0, 0, 1]);
        let held: Vec<u32> = (0..200).filter(|token| mask.contains(*token)).collect();
        assert_eq!(held, [0, 1, 31, 32, 70, 96]);
        assert!(!mask.contains(TokenId::MAX));
    }

    #[test]
    fn logits_of_other_tokens_are_forbidden() {
        for vocab in [1, 31, 32, 33, 64, 100, 200] {
            let mut mask = TokenMask::default();
            mask.insert_words(&[u32::MAX, 0, 0b101]);
            let mut logits: Vec<f32> = (0..vocab).map(|logit| logit as f32).collect();
            mask.apply(&mut logits);
            for (token, logit) in (0..).zip(&logits) {
                let expected = if mask.contains(token) { token as f32 } else { f32::NEG_INFINITY };
                assert_eq!(*logit, expected, "token {token} of {vocab}");
            }
        }
    }
}
