//! `Order`: a request to generate, checked, rendered and tokenised.

use std::sync::Arc;

use crate::answer::AnswerRules;
use crate::error::ApiError;
use crate::guide::{self, Guide};
use crate::json::Fields;
use crate::sampling::{Asks, Sampling};
use crate::served::Served;
use crate::thinking::ThinkingRules;
use crate::unknown::Unknown;
use crate::{bounds, prompts, refused, render, sampling};
use kvant_engine::Limits;

/// Which endpoint asks; what is sent back differs in shape only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// /v1/chat/completions.
    Chat,
    /// /v1/completions.
    Text,
}

/// What is to be generated and how it is told.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) dialect: Dialect,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) sampling: Sampling,
    pub(crate) reply: Reply,
    /// How the text of an answer is read.
    pub(crate) answer: AnswerRules,
    /// What is asked of thoughts, if the model has any.
    pub(crate) thinking: Option<ThinkingRules>,
    /// What an answer must be like.
    pub(crate) guide: Option<Guide>,
    pub(crate) unknown: Unknown,
}

/// One prompt.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// As it was sent, if it was sent as text.
    pub(crate) text: Option<String>,
    pub(crate) tokens: Arc<[u32]>,
}

/// How the answer is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// `Some`: as events.
    pub(crate) stream: Option<StreamUsage>,
    /// The answer begins with the prompt.
    pub(crate) echo: bool,
    /// Token ids beside the text.
    pub(crate) token_ids: bool,
    /// Special tokens are left out of the text.
    pub(crate) skip_special: bool,
}

/// Where a stream tells the usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamUsage {
    /// Nowhere.
    Never,
    /// In an event of its own at the end.
    Last,
    /// In every event and at the end.
    Each,
}

impl Order {
    /// Reads a body. Takes time: renders and tokenises.
    pub(crate) fn read(served: &Served, dialect: Dialect, body: &[u8]) -> Result<Self, ApiError> {
        Self::of(served, dialect, Fields::parse(body)?)
    }

    /// Reads fields that a body has, or that another dialect's body was put into.
    pub(crate) fn of(
        served: &Served,
        dialect: Dialect,
        mut fields: Fields,
    ) -> Result<Self, ApiError> {
        bounds::check(&fields, &served.app.options.bounds)?;
        served.check_model(&mut fields)?;
        let vocab = served.app.handle.limits().vocab;
        let strict = served.app.options.strict;
        match dialect {
            Dialect::Chat => {
                refused::of_chat(&mut fields)?;
                let sampling = sampling::read(&mut fields, Asks::Chat, vocab)?;
                let reply = Reply::read(&mut fields, false)?;
                whole_only(&sampling, reply)?;
                let rendered = render::chat(served, &mut fields)?;
                let render::Rendered { prompt, answer, thinking, call } = rendered;
                let guide = guide::read(&mut fields, call)?;
                let unknown = fields.rest(strict)?;
                let prompts = vec![prompt];
                Ok(Self { dialect, prompts, sampling, reply, answer, thinking, guide, unknown })
            }
            Dialect::Text => {
                refused::of_text(&mut fields)?;
                let echo = fields.flag("echo", false)?;
                let sampling = sampling::read(&mut fields, Asks::Text { echo }, vocab)?;
                let reply = Reply::read(&mut fields, echo)?;
                whole_only(&sampling, reply)?;
                let prompts = prompts::read(served, &mut fields, sampling.best_of)?;
                let guide = guide::read(&mut fields, None)?;
                let unknown = fields.rest(strict)?;
                let answer = AnswerRules::default();
                let thinking = None;
                Ok(Self { dialect, prompts, sampling, reply, answer, thinking, guide, unknown })
            }
        }
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }

    /// Those of them that later ones read packed.
    pub(crate) fn early_tokens(&self, limits: &Limits) -> usize {
        self.prompts.iter().map(|prompt| limits.early_tokens(prompt.tokens.len())).sum()
    }
}

impl Reply {
    fn read(fields: &mut Fields, echo: bool) -> Result<Self, ApiError> {
        let stream = fields.flag("stream", false)?;
        let usage = stream_usage(fields, stream)?;
        Ok(Self {
            stream: stream.then_some(usage),
            echo,
            token_ids: fields.flag("return_token_ids", false)?,
            skip_special: fields.flag("skip_special_tokens", true)?,
        })
    }
}

/// Refuses what a stream cannot tell.
fn whole_only(sampling: &Sampling, reply: Reply) -> Result<(), ApiError> {
    if reply.stream.is_none() {
        return Ok(());
    }
    let wrong = if sampling.best_of > sampling.n {
        "best_of"
    } else if sampling.prompt_logprobs.is_some() {
        "prompt_logprobs"
    } else {
        return Ok(());
    };
    Err(ApiError::value(wrong, format!("{wrong} is not told in a stream; send stream: false")))
}

fn stream_usage(fields: &mut Fields, stream: bool) -> Result<StreamUsage, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(StreamUsage::Never) };
    if !stream {
        let message = "stream_options is for streams only; send stream: true or leave it out";
        return Err(ApiError::value("stream_options", message));
    }
    let mut options = Fields::from(options);
    let of_options = |error: ApiError| error.of("stream_options");
    let last = options.flag("include_usage", false).map_err(of_options)?;
    let each = options.flag("continuous_usage_stats", false).map_err(of_options)?;
    // Random padding against whoever measures the lengths on the wire: none is sent.
    options.flag("include_obfuscation", false).map_err(of_options)?;
    fields.leave("stream_options", options);
    Ok(match (last, each) {
        (false, _) => StreamUsage::Never,
        (true, false) => StreamUsage::Last,
        (true, true) => StreamUsage::Each,
    })
}
