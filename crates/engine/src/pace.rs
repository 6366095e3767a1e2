//! `Pace`: how many tokens of prompts a step may have so that it does not take long.
//!
//! A client that leaves is noticed between steps, and streams get a token a step: both want steps
//! of a bounded time, while the speed of prefill differs by orders of magnitude between models and
//! machines.

use std::time::Duration;

/// How long a step with prompt tokens should take.
const STEP: Duration = Duration::from_millis(400);
/// Tokens of the first step, when nothing is known yet.
const FIRST_TOKENS: usize = 32;
/// Prompt tokens of a step at least.
const LEAST_TOKENS: usize = 16;

/// The budget of the next step.
#[derive(Debug)]
pub(crate) struct Pace {
    budget_tokens: usize,
    most_tokens: usize,
}

impl Pace {
    /// Never more than `most_tokens`.
    pub(crate) fn new(most_tokens: usize) -> Self {
        Self { budget_tokens: FIRST_TOKENS.min(most_tokens), most_tokens }
    }

    /// Prompt tokens of the next step.
    pub(crate) fn budget_tokens(&self) -> usize {
        self.budget_tokens
    }

    /// Learns from a step with so many prompt tokens, if they used its whole budget; others say
    /// little about speed.
    pub(crate) fn learn(&mut self, tokens: usize, took: Duration) {
        if tokens < self.budget_tokens {
            return;
        }
        let fit = tokens as f64 * STEP.as_secs_f64() / took.as_secs_f64().max(1e-6);
        // Doubled at most: one lucky step must not make the next one long.
        let next = (fit as usize).min(2 * tokens);
        self.budget_tokens = next.max(LEAST_TOKENS).min(self.most_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_speed_within_its_bounds() {
        let mut pace = Pace::new(512);
        assert_eq!(pace.budget_tokens(), 32);
        // 1000 tokens/s: 400 fit, reached by doubling.
        for expected in [64, 128, 256, 400, 400] {
            let tokens = pace.budget_tokens();
            pace.learn(tokens, Duration::from_millis(tokens as u64));
            assert_eq!(pace.budget_tokens(), expected);
        }
        // A step that was not full says nothing.
        pace.learn(10, Duration::from_secs(1));
        assert_eq!(pace.budget_tokens(), 400);
        // 10 tokens/s: the least.
        pace.learn(400, Duration::from_secs(40));
        assert_eq!(pace.budget_tokens(), 16);
        // As fast as one likes: never past the bound.
        for _ in 0..10 {
            pace.learn(pace.budget_tokens(), Duration::ZERO);
        }
        assert_eq!(pace.budget_tokens(), 512);
        assert_eq!(Pace::new(20).budget_tokens(), 20);
    }
}
