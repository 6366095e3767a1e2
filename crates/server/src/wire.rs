//! What answers of both dialects have around their choices.

use kvant_engine::Limits;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::ids;
use crate::order::{Dialect, Order, Prompt, Reply};
use crate::sampling::Sampling;
use crate::sequences::Sequences;

/// Which build answers with which numbers.
pub(crate) const FINGERPRINT: &str = concat!("kvant-", env!("CARGO_PKG_VERSION"));

/// No probability in JSON is below it: there is no minus infinity.
const FLOOR: f32 = -9999.0;

/// What is the same in all parts of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) dialect: Dialect,
    pub(crate) reply: Reply,
    pub(crate) sampling: Sampling,
    id: String,
    created: u64,
    model: String,
    prompts: Vec<Prompt>,
    prompt_tokens: usize,
    early_tokens: usize,
}

/// An answer or a chunk of one; `C` is the dialect's choice.
#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Tally::is_absent")]
    usage: Tally,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<PromptIds<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
}

/// One prompt's tokens, or a list for each of several.
#[derive(Serialize)]
#[serde(untagged)]
enum PromptIds<'a> {
    One(&'a [u32]),
    Many(Vec<&'a [u32]>),
}

/// The field `usage`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tally {
    /// No such field.
    Absent,
    /// `null`.
    Null,
    /// Tokens generated so far.
    Of(Usage),
}

/// Token counts.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptDetails,
    pub(crate) completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: usize,
    /// Read packed before the prompt was complete; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    early_converted_tokens: Option<usize>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CompletionDetails {
    pub(crate) reasoning_tokens: usize,
}

impl Head {
    pub(crate) fn new(order: Order, model: &str, limits: &Limits) -> Self {
        let prefix = match order.dialect {
            Dialect::Chat => "chatcmpl-",
            Dialect::Text => "cmpl-",
        };
        Self {
            id: ids::fresh(prefix),
            created: ids::now(),
            model: model.to_owned(),
            dialect: order.dialect,
            reply: order.reply,
            sampling: order.sampling.clone(),
            prompt_tokens: order.prompt_tokens(),
            early_tokens: order.early_tokens(limits),
            prompts: order.prompts,
        }
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The model's name.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// Usage after what was generated so far.
    pub(crate) fn usage(&self, sequences: &Sequences) -> Usage {
        let output_tokens = sequences.output_tokens();
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: output_tokens,
            total_tokens: self.prompt_tokens + output_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: 0,
                early_converted_tokens: (self.early_tokens > 0).then_some(self.early_tokens),
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: sequences.reasoning_tokens(),
            },
        }
    }

    /// A chunk of an answer, or with `first` the first one, as JSON.
    pub(crate) fn json<C: Serialize>(&self, choices: Vec<C>, usage: Tally, first: bool) -> String {
        self.json_with(choices, usage, first, None)
    }

    /// A whole answer as JSON.
    pub(crate) fn whole<C: Serialize>(
        &self,
        choices: Vec<C>,
        usage: Usage,
        prompt_logprobs: Option<Value>,
    ) -> String {
        self.json_with(choices, Tally::Of(usage), true, prompt_logprobs)
    }

    fn json_with<C: Serialize>(
        &self,
        choices: Vec<C>,
        usage: Tally,
        first: bool,
        prompt_logprobs: Option<Value>,
    ) -> String {
        let object = match (self.dialect, self.reply.stream) {
            (Dialect::Chat, None) => "chat.completion",
            (Dialect::Chat, Some(_)) => "chat.completion.chunk",
            (Dialect::Text, _) => "text_completion",
        };
        let ids = || match self.prompts.as_slice() {
            [one] => PromptIds::One(&one.tokens),
            many => PromptIds::Many(many.iter().map(|prompt| &*prompt.tokens).collect()),
        };
        let envelope = Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
            prompt_token_ids: (first && self.reply.token_ids).then(ids),
            prompt_logprobs,
        };
        serde_json::to_string(&envelope).expect("every key is a string")
    }
}

impl Tally {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Of(usage) => usage.serialize(serializer),
            Self::Absent | Self::Null => serializer.serialize_none(),
        }
    }
}

/// A log-probability that JSON can hold.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { FLOOR } else { logprob.max(FLOOR) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_numbers_of_json() {
        for (logprob, expected) in
            [(-0.5, -0.5), (f32::NEG_INFINITY, FLOOR), (f32::NAN, FLOOR), (-1e30, FLOOR)]
        {
            assert_eq!(finite(logprob), expected);
        }
    }
}
