//! `Order`: a request to generate, checked, rendered and tokenised.

use std::sync::Arc;

use kvant_engine::Limits;
use kvant_text::{Error as TextError, RenderOptions};
use serde_json::Value;

use crate::error::ApiError;
use crate::json::Fields;
use crate::sampling::{Asks, Sampling};
use crate::served::Served;
use crate::{messages, prompts, refused, sampling};

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
        let mut fields = Fields::parse(body)?;
        served.check_model(&mut fields)?;
        let vocab = served.app.handle.limits().vocab;
        match dialect {
            Dialect::Chat => {
                refused::of_chat(&mut fields)?;
                let sampling = sampling::read(&mut fields, Asks::Chat, vocab)?;
                let reply = Reply::read(&mut fields, false)?;
                let prompts = vec![chat_prompt(served, &mut fields)?];
                fields.log_unknown();
                Ok(Self { dialect, prompts, sampling, reply })
            }
            Dialect::Text => {
                refused::of_text(&mut fields)?;
                let echo = fields.flag("echo", false)?;
                let sampling = sampling::read(&mut fields, Asks::Text { echo }, vocab)?;
                let reply = Reply::read(&mut fields, echo)?;
                let prompts = prompts::read(served, &mut fields, sampling.n)?;
                fields.log_unknown();
                Ok(Self { dialect, prompts, sampling, reply })
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
    Ok(match (last, each) {
        (false, _) => StreamUsage::Never,
        (true, false) => StreamUsage::Last,
        (true, true) => StreamUsage::Each,
    })
}

/// Takes messages and what belongs to their rendering. The template writes the special tokens.
pub(crate) fn chat_prompt(served: &Served, fields: &mut Fields) -> Result<Prompt, ApiError> {
    let messages = messages::read(fields)?;
    let options = render_options(fields)?;
    let special = fields.flag("add_special_tokens", false)?;
    let Some(template) = &served.app.template else {
        let message = format!(
            "{} has no chat template; use /v1/completions, or a model with one",
            served.app.model.id
        );
        return Err(ApiError::bad("chat_template_missing", message).of("messages"));
    };
    let text = template.render(&messages, None, options).map_err(|error| {
        let param = match &error {
            TextError::ReservedArgument(_) => "chat_template_kwargs",
            TextError::FinalMessage(_) => "continue_final_message",
            _ => "messages",
        };
        ApiError::value(param, error.to_string())
    })?;
    let tokens = served.encode("messages", &text, special)?;
    Ok(Prompt { text: Some(text), tokens })
}

fn render_options(fields: &mut Fields) -> Result<RenderOptions, ApiError> {
    let go_on = fields.flag("continue_final_message", false)?;
    // Absent, it is what continue_final_message leaves; vLLM wants it spelled out.
    let add = fields.flag("add_generation_prompt", !go_on)?;
    if add && go_on {
        let message = "add_generation_prompt and continue_final_message cannot both be true";
        return Err(ApiError::value("continue_final_message", message));
    }
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = fields.text("reasoning_effort")? {
        kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(RenderOptions { add_generation_prompt: add, continue_final_message: go_on, kwargs })
}
