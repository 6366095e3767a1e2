//! `Plan`: which request is the nth. The same seed gives the same requests, whatever the pace.

use std::str::FromStr;

use kvant_bench::random;
use serde_json::{Value, json};

/// First token id of a prompt: those below are special tokens and single bytes in most models.
const FIRST_ID: u32 = 256;
/// Number of the probe: no other request has it.
const PROBE: u64 = 1 << 40;
/// Most tokens of a prompt or an answer.
const TOKENS: u32 = 1_000_000;
/// Words that are one token each in most vocabularies.
const WORDS: [&str; 32] = [
    "time", "people", "water", "house", "over", "small", "light", "hand", "world", "never",
    "under", "place", "again", "right", "great", "sound", "still", "every", "found", "between",
    "night", "part", "work", "read", "long", "white", "story", "three", "might", "young", "sea",
    "back",
];

/// Which of the two ways to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Completions,
    Chat,
}

/// What prompts are made of, if not of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    Ids,
    Words,
}

/// A length: from the least to the most, each as likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) least: u32,
    pub(crate) most: u32,
}

/// Where prompts come from. A word counts as a token; the server's usage has the true number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Random ids below `vocab`: the length is exact.
    Ids { vocab: u32 },
    /// Random words.
    Words,
    /// Words that follow each other in a text.
    Text(Vec<String>),
}

/// All requests of a load.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) model: String,
    pub(super) endpoint: Endpoint,
    pub(super) source: Source,
    pub(super) input_tokens: Span,
    pub(super) output_tokens: Span,
    pub(super) seed: u64,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) path: &'static str,
    /// JSON.
    pub(super) body: String,
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
}

impl Plan {
    /// The request of a number.
    pub(super) fn order(&self, number: u64) -> Order {
        self.order_of(number, self.output_tokens)
    }

    /// A short request like no other, to try the server with.
    pub(super) fn probe(&self) -> Order {
        self.order_of(PROBE, Span { least: 1, most: 1 })
    }

    fn order_of(&self, number: u64, output_tokens: Span) -> Order {
        let mut state = random::nth(self.seed, number);
        let input_tokens = self.input_tokens.draw(&mut state);
        let output_tokens = output_tokens.draw(&mut state);
        let prompt = self.prompt(number, input_tokens, &mut state);
        let mut body = json!({
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self.endpoint {
            Endpoint::Completions => body["prompt"] = prompt,
            Endpoint::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
        }
        let body = body.to_string();
        Order { path: self.endpoint.path(), body, input_tokens, output_tokens }
    }

    /// A prompt that begins like no other one, so that what a server keeps of one helps no other.
    fn prompt(&self, number: u64, tokens: u32, state: &mut u64) -> Value {
        let mut below = |most: usize| (random::next(state) % most as u64) as usize;
        let mut words: Vec<String> = match &self.source {
            Source::Ids { vocab } => {
                let span = vocab.saturating_sub(FIRST_ID).max(1);
                let mut ids: Vec<u32> =
                    (0..tokens).map(|_| FIRST_ID + below(span as usize) as u32).collect();
                let mut digits = number;
                for id in ids.iter_mut().take(4) {
                    *id = FIRST_ID + (digits % u64::from(span)) as u32;
                    digits /= u64::from(span);
                }
                return json!(ids);
            }
            Source::Words => (0..tokens).map(|_| WORDS[below(WORDS.len())].to_owned()).collect(),
            Source::Text(text) => {
                let first = below(text.len());
                let endless = text.iter().cycle().skip(first);
                endless.take(tokens as usize).cloned().collect()
            }
        };
        words[0] = format!("{number}:");
        json!(words.join(" "))
    }
}

impl Span {
    fn draw(self, state: &mut u64) -> u32 {
        let choices = u64::from(self.most - self.least) + 1;
        self.least + (random::next(state) % choices) as u32
    }
}

impl Endpoint {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let bound = |text: &str| text.parse().ok().filter(|n| (1..=TOKENS).contains(n));
        let span = bound(least).zip(bound(most)).filter(|(least, most)| least <= most);
        let span = span.map(|(least, most)| Self { least, most });
        span.ok_or_else(|| format!("it must be a number or a range like 64..512 in 1..={TOKENS}"))
    }
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "completions" => Ok(Self::Completions),
            "chat" => Ok(Self::Chat),
            _ => Err("it must be completions or chat"),
        }
    }
}

impl FromStr for Prompts {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ids" => Ok(Self::Ids),
            "words" => Ok(Self::Words),
            _ => Err("it must be ids or words"),
        }
    }
}
