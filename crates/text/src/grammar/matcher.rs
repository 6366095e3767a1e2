//! `Matcher`: an output under way: which tokens may come next, and what came.

use llguidance::TokenParser;

use super::refused;
use crate::error::Error;

/// An output under way. Every call is bounded; after an error it cannot go on.
pub struct Matcher {
    inner: llguidance::Matcher,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The state is no use in a log.
        write!(f, "Matcher {{ stopped: {} }}", self.inner.is_stopped())
    }
}

impl Matcher {
    pub(super) fn new(parser: TokenParser) -> Result<Self, Error> {
        let inner = llguidance::Matcher::new(Ok(parser));
        match inner.get_error() {
            Some(error) => Err(refused(&error)),
            None => Ok(Self { inner }),
        }
    }

    /// The same state, sharing nothing: what one output costs is no other's.
    pub(super) fn fresh(&self) -> Self {
        Self { inner: self.inner.deep_clone() }
    }

    /// Tokens that may come next: token `t` is bit `t % 32` of word `t / 32`. Those that end an
    /// output are among them where it may end.
    pub fn allowed(&mut self) -> Result<Vec<u32>, Error> {
        let mask = self.inner.compute_mask_or_eos();
        mask.map(Vec::from).map_err(|error| refused(&error.to_string()))
    }

    /// A token came that is no end; true if nothing can come after it.
    pub fn take(&mut self, token: u32) -> Result<bool, Error> {
        self.inner.consume_token(token).map_err(|error| refused(&error.to_string()))?;
        Ok(self.inner.is_stopped())
    }

    /// Whether the output may end here.
    pub fn may_end(&mut self) -> bool {
        self.inner.is_stopped() || self.inner.is_accepting().unwrap_or(false)
    }
}
