//! `Session`: one model for one person: text in, text out as it comes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use kvant_engine::{GenerateRequest, Handle, SamplingParams, StopRules, TokenEvent};
use kvant_text::{RenderOptions, StopStrings, TextStream};
use serde_json::Value;

use crate::cli::SamplingArgs;
use crate::config::Config;
use crate::load;
use crate::words::Words;

/// An engine with the words of its model.
#[derive(Debug)]
pub(crate) struct Session {
    handle: Handle,
    words: Words,
    eos_tokens: Vec<u32>,
    name: String,
}

impl Session {
    /// Loads the model.
    pub(crate) fn start(config: &Config) -> Result<Self> {
        let (opened, handle) = load::engine(config)?;
        let words = Words::load(&opened.files)?;
        let eos_tokens = opened.files.eos_tokens();
        Ok(Self { handle, words, eos_tokens, name: opened.facts.name })
    }

    /// Name of the model.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the model has a chat template.
    pub(crate) fn chats(&self) -> bool {
        self.words.template.is_some()
    }

    /// Tokens of a conversation, ready for the answer. `messages`: a list of objects with `role`
    /// and `content`.
    pub(crate) fn chat_prompt(&self, messages: &Value) -> Result<Vec<u32>> {
        let template = self.words.template.as_ref();
        let template = template.with_context(|| {
            format!("{} has no chat template; use generate --raw to continue a text", self.name)
        })?;
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = template.render(messages, None, options)?;
        // The template has written the special tokens that the model wants.
        self.words.tokenizer.encode(&text, false).context("the prompt cannot be tokenised")
    }

    /// Tokens of a text as it is.
    pub(crate) fn raw_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.words.tokenizer.encode(text, true).context("the prompt cannot be tokenised")
    }

    /// Continues a prompt. `on_text` gets every piece and says whether to go on; the whole text is
    /// returned.
    pub(crate) fn answer(
        &self,
        prompt: Vec<u32>,
        sampling: &SamplingArgs,
        on_text: &mut dyn FnMut(&str) -> Result<bool>,
    ) -> Result<String> {
        let mut stream = self.handle.submit(self.request(prompt, sampling)?)?;
        let mut text = TextStream::new(self.words.tokenizer.clone());
        let mut stop = StopStrings::new(sampling.stop.clone());
        let mut whole = String::new();
        loop {
            let piece = match stream.blocking_recv().context("the engine has stopped")? {
                TokenEvent::Token { token, .. } => text.push(token),
                TokenEvent::Prompt(_) | TokenEvent::Pooled { .. } => continue,
                TokenEvent::Stuck(what) | TokenEvent::Failed(what) => bail!("{what}"),
                TokenEvent::Done { .. } => {
                    let stopped = stop.push(&text.finish());
                    let rest = if stopped.stop.is_none() { stop.finish() } else { String::new() };
                    for piece in [stopped.text, rest] {
                        whole.push_str(&piece);
                        on_text(&piece)?;
                    }
                    return Ok(whole);
                }
            };
            let stopped = stop.push(&piece);
            whole.push_str(&stopped.text);
            if !on_text(&stopped.text)? || stopped.stop.is_some() {
                return Ok(whole);
            }
        }
    }

    fn request(&self, prompt: Vec<u32>, sampling: &SamplingArgs) -> Result<GenerateRequest> {
        let context = self.handle.limits().context_tokens;
        let left = context.saturating_sub(prompt.len());
        if left == 0 {
            bail!("the prompt has {} tokens, the context is {context} tokens", prompt.len());
        }
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Ok(GenerateRequest {
            prompt: prompt.into(),
            sampling: Arc::new(params(sampling)),
            stop: StopRules {
                max_tokens: sampling.max_tokens.unwrap_or(left),
                min_tokens: 0,
                eos_tokens: self.eos_tokens.clone(),
                stop_tokens: Vec::new(),
            },
            prompt_logprobs: None,
            constraint: None,
            pooling: None,
        })
    }
}

fn params(sampling: &SamplingArgs) -> SamplingParams {
    SamplingParams {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        seed: sampling.seed.unwrap_or_else(clock_seed),
        ..SamplingParams::default()
    }
}

/// Another one at every call.
fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}
