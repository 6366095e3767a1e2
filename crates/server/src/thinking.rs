//! `Thinking`: a constraint on an answer holds from the end of the thoughts on, and thoughts may
//! have a budget: when it is spent, the marker that closes them is forced.

use std::sync::Arc;

use kvant_engine::{Constraint, TokenMask};
use kvant_text::{ReasoningMarks, Tokenizer};

/// What a request asks of thoughts, ready to be put around the constraint of each of its answers.
#[derive(Clone, Debug)]
pub(crate) struct ThinkingRules {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) marks: ReasoningMarks,
    /// The prompt ends within thoughts.
    pub(crate) opened: bool,
    /// Tokens of thoughts at most.
    pub(crate) budget: Option<u32>,
    /// Tokens that end an answer.
    pub(crate) ends: Vec<u32>,
}

impl ThinkingRules {
    /// A constraint for one answer, around the one on what follows its thoughts; none is needed if
    /// neither asks for anything.
    pub(crate) fn constraint(
        &self,
        inner: Option<Box<dyn Constraint>>,
    ) -> Option<Box<dyn Constraint>> {
        if inner.is_none() && self.budget.is_none() {
            return None;
        }
        let encode = |text: &str| self.tokenizer.encode(text, false).unwrap_or_default();
        let open = match encode(self.marks.open).as_slice() {
            [one] => Some(*one),
            _ => None,
        };
        let at = match (self.opened, self.budget) {
            (true, Some(0)) => At::Forced(0),
            (true, _) => At::Thoughts(0),
            (false, _) => At::Start,
        };
        Some(Box::new(Thinking {
            tokenizer: self.tokenizer.clone(),
            close: self.marks.close,
            open,
            forced: encode(&format!("\n{}\n\n", self.marks.close)),
            budget: self.budget.unwrap_or(u32::MAX),
            ends: if inner.is_some() { self.ends.clone() } else { Vec::new() },
            at,
            tail: Vec::new(),
            inner,
        }))
    }
}

#[derive(Debug)]
struct Thinking {
    tokenizer: Arc<Tokenizer>,
    close: &'static str,
    /// The marker that opens, if it is one token.
    open: Option<u32>,
    /// The marker that closes, with the lines around it.
    forced: Vec<u32>,
    budget: u32,
    /// Not allowed in thoughts: what must follow them has not come.
    ends: Vec<u32>,
    at: At,
    /// The last bytes of the thoughts, fewer than the marker has.
    tail: Vec<u8>,
    inner: Option<Box<dyn Constraint>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    /// So many tokens of thoughts have come.
    Thoughts(u32),
    /// This token of the forced ones is next.
    Forced(usize),
    Answer,
}

impl Constraint for Thinking {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        match (self.at, &mut self.inner) {
            (At::Forced(next), _) => mask.insert(self.forced[next]),
            (At::Answer, Some(inner)) => inner.allow(mask)?,
            (At::Start, Some(inner)) => {
                inner.allow(mask)?;
                if let Some(open) = self.open {
                    mask.insert(open);
                }
            }
            (At::Start | At::Thoughts(_) | At::Answer, _) => {
                let words = self.tokenizer.vocab_len().div_ceil(32);
                let mut all = vec![u32::MAX; words];
                for end in self.ends.iter().map(|end| *end as usize) {
                    if let Some(word) = all.get_mut(end / 32) {
                        *word &= !(1 << (end % 32));
                    }
                }
                mask.insert_words(&all);
            }
        }
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<bool, String> {
        match self.at {
            At::Start if Some(token) == self.open => self.think(0),
            At::Start if self.inner.is_none() && self.is_space(token) => {}
            At::Start | At::Answer => {
                self.at = At::Answer;
                return self.inner.as_mut().map_or(Ok(false), |inner| inner.take(token));
            }
            At::Forced(next) if next + 1 < self.forced.len() => self.at = At::Forced(next + 1),
            At::Forced(_) => self.at = At::Answer,
            At::Thoughts(tokens) => {
                self.think(tokens + 1);
                if self.closes(token) {
                    self.at = At::Answer;
                }
            }
        }
        Ok(false)
    }
}

impl Thinking {
    fn think(&mut self, tokens: u32) {
        let spent = tokens >= self.budget && !self.forced.is_empty();
        self.at = if spent { At::Forced(0) } else { At::Thoughts(tokens) };
    }

    fn is_space(&self, token: u32) -> bool {
        self.tokenizer.token_bytes(token).iter().all(u8::is_ascii_whitespace)
    }

    /// Whether the marker is complete with this token.
    fn closes(&mut self, token: u32) -> bool {
        self.tail.extend(self.tokenizer.token_bytes(token));
        let close = self.close.as_bytes();
        let found = self.tail.windows(close.len()).any(|window| window == close);
        let surplus = self.tail.len().saturating_sub(close.len() - 1);
        self.tail.drain(..surplus);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Allows one token, and is complete with it.
    #[derive(Debug)]
    struct Only(u32);

    impl Constraint for Only {
        fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
            mask.insert(self.0);
            Ok(())
        }

        fn take(&mut self, token: u32) -> Result<bool, String> {
            if token == self.0 { Ok(true) } else { Err(format!("{token} is not {}", self.0)) }
        }
    }

    const END: u32 = 2;

    fn rules(opened: bool, budget: Option<u32>) -> ThinkingRules {
        let file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama-1m/tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_json_file(Path::new(file)).unwrap());
        let marks = ReasoningMarks::named("qwen3").unwrap();
        ThinkingRules { tokenizer, marks, opened, budget, ends: vec![END] }
    }

    fn allowed(constraint: &mut Box<dyn Constraint>) -> Vec<u32> {
        let mut mask = TokenMask::default();
        constraint.allow(&mut mask).unwrap();
        (0..4096).filter(|token| mask.contains(*token)).collect()
    }

    #[test]
    fn nothing_is_asked_where_nothing_is_wanted() {
        assert!(rules(true, None).constraint(None).is_none());
    }

    #[test]
    fn a_spent_budget_closes_the_thoughts() {
        for (opened, budget) in [(true, 0), (true, 3)] {
            let rules = rules(opened, Some(budget));
            let word = rules.tokenizer.encode("a", false).unwrap()[0];
            let mut constraint = rules.constraint(None).unwrap();
            for _ in 0..budget {
                assert!(allowed(&mut constraint).contains(&END));
                assert_eq!(constraint.take(word), Ok(false));
            }
            let mut text = Vec::new();
            while let [one] = allowed(&mut constraint)[..] {
                text.push(one);
                assert_eq!(constraint.take(one), Ok(false));
            }
            assert_eq!(rules.tokenizer.decode(&text, false).trim(), "</think>", "{budget}");
            assert!(allowed(&mut constraint).contains(&word));
        }
    }

    #[test]
    fn what_follows_thoughts_is_constrained_from_their_end_on() {
        let rules = rules(true, None);
        let mut constraint = rules.constraint(Some(Box::new(Only(9)))).unwrap();
        for token in rules.tokenizer.encode("so </think", false).unwrap() {
            let allowed = allowed(&mut constraint);
            assert!(allowed.contains(&token) && !allowed.contains(&END));
            assert_eq!(constraint.take(token), Ok(false));
        }
        let close = rules.tokenizer.encode(">", false).unwrap()[0];
        assert_eq!(constraint.take(close), Ok(false));
        assert_eq!(allowed(&mut constraint), [9]);
        assert_eq!(constraint.take(9), Ok(true));
    }

    #[test]
    fn an_answer_without_thoughts_is_constrained_from_the_start() {
        let mut constraint = rules(false, Some(5)).constraint(Some(Box::new(Only(9)))).unwrap();
        assert_eq!(allowed(&mut constraint), [9]);
        assert_eq!(constraint.take(9), Ok(true));
    }
}
