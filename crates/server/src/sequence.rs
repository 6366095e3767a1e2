//! `Sequence`: the events of one sequence become pieces of text with their log-probabilities.
//!
//! A piece has text, or ends the sequence; tokens whose text is held back wait for the next piece.

use std::sync::Arc;

use kvant_engine::{FinishReason, TokenEvent, TokenLogprob, TokenStream, Usage};
use kvant_text::{StopStrings, TextStream, Tokenizer};

use crate::answer::{Answer, AnswerPart, AnswerRules, Parts};
use crate::error::ApiError;
use crate::order::Reply;
use crate::patience::Late;
use crate::stopwatch::Stopwatch;

/// What a sequence has to say at a time.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) parts: Parts,
    /// Token ids of the output.
    pub(crate) tokens: Vec<u32>,
    /// If log-probabilities were asked for.
    pub(crate) scores: Vec<Score>,
    /// Of the prompt's tokens but the first, if they were asked for.
    pub(crate) prompt: Vec<TokenLogprob>,
    /// The prompt's pooled hidden state, if that was asked for; then nothing else comes.
    pub(crate) pooled: Vec<f32>,
    /// In the last piece.
    pub(crate) end: Option<End>,
}

/// Log-probability of a token that is part of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Score {
    pub(crate) token: u32,
    /// The prompt's first token has none.
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(u32, f32)>,
    /// Characters of the answer before it.
    pub(crate) offset: usize,
}

/// Why a sequence is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    /// `stop`, `length` or `tool_calls`.
    pub(crate) reason: &'static str,
    /// What stopped it, unless the model's own end token.
    pub(crate) cause: Option<Cause>,
}

/// What a request asked to stop at.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum Cause {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(u32),
}

impl Piece {
    /// Adds what came after.
    pub(crate) fn extend(&mut self, more: Self) {
        self.parts.extend(more.parts);
        self.tokens.extend(more.tokens);
        self.scores.extend(more.scores);
        self.prompt.extend(more.prompt);
        self.pooled.extend(more.pooled);
        self.end = more.end;
    }

    /// Whether there is anything to tell but the end.
    pub(crate) fn tells(&self, reply: Reply) -> bool {
        let ids = reply.token_ids && !self.tokens.is_empty();
        ids || !self.parts.is_empty() || !self.scores.is_empty()
    }
}

/// How a sequence is read.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own in the request")]
pub(crate) struct Rules {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_tokens: Vec<u32>,
    /// Stop strings count from here on.
    pub(crate) min_tokens: u32,
    pub(crate) skip_special: bool,
    /// Special tokens whose text is not left out: they mark calls or thoughts.
    pub(crate) shown: Arc<[u32]>,
    pub(crate) answer: AnswerRules,
    /// The prompt alone is the answer; the engine's token is dropped.
    pub(crate) prompt_only: bool,
    pub(crate) scores: bool,
    pub(crate) prompt_scores: bool,
}

/// A sequence under way.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// `None` once it is over, which frees what it held.
    stream: Option<TokenStream>,
    rules: Arc<Rules>,
    text: TextStream,
    stops: StopStrings,
    answer: Answer,
    /// Not yet told.
    piece: Piece,
    /// Characters of the answer so far, those held back included.
    offset: usize,
    output_tokens: u32,
    reasoning_tokens: u32,
    echo: Option<Echo>,
    watch: Stopwatch,
}

/// The prompt as the beginning of the answer.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) text: String,
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) scores: Vec<TokenLogprob>,
    /// Alternatives that are told.
    pub(crate) top: usize,
}

impl Rules {
    /// Of prompts that are read and not answered.
    pub(crate) fn of_pooling(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            stop_strings: Vec::new(),
            stop_tokens: Vec::new(),
            min_tokens: 0,
            skip_special: false,
            shown: Arc::default(),
            answer: AnswerRules::default(),
            prompt_only: false,
            scores: false,
            prompt_scores: false,
        }
    }
}

impl Sequence {
    pub(crate) fn new(
        stream: TokenStream,
        rules: Arc<Rules>,
        echo: Option<Echo>,
        watch: Stopwatch,
    ) -> Self {
        let text = text_stream(&rules);
        let stops = StopStrings::new(rules.stop_strings.clone());
        let answer = Answer::new(rules.answer.clone());
        Self {
            stream: Some(stream),
            rules,
            text,
            stops,
            answer,
            piece: Piece::default(),
            offset: 0,
            output_tokens: 0,
            reasoning_tokens: 0,
            echo,
            watch,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stream.is_none()
    }

    /// Tokens generated so far.
    pub(crate) fn output_tokens(&self) -> u32 {
        self.output_tokens
    }

    /// Those of them that were thoughts.
    pub(crate) fn reasoning_tokens(&self) -> u32 {
        self.reasoning_tokens
    }

    /// The next piece; not to be called after the last. May be dropped and called again: what has
    /// arrived is kept.
    pub(crate) async fn next(&mut self) -> Result<Piece, ApiError> {
        loop {
            let stream = self.stream.as_mut().expect("callers ask is_over");
            let event = stream.recv().await;
            if let Some(piece) = self.take(event)? {
                return Ok(piece);
            }
        }
    }

    fn take(&mut self, event: Option<TokenEvent>) -> Result<Option<Piece>, ApiError> {
        match event {
            Some(TokenEvent::Prompt(scores)) => {
                if self.rules.prompt_scores {
                    self.piece.prompt.extend(scores.iter().cloned());
                }
                if let Some(echo) = &mut self.echo {
                    echo.scores.extend(scores);
                }
                Ok(None)
            }
            Some(TokenEvent::Token { token, logprob }) => {
                self.tell_prompt();
                Ok(self.token(token, logprob))
            }
            Some(TokenEvent::Done { reason, usage }) => {
                self.tell_prompt();
                Ok(Some(self.done(reason, &usage)))
            }
            Some(TokenEvent::Pooled { hidden, usage }) => {
                self.piece.pooled = hidden;
                Ok(Some(self.end("stop", None, Some(&usage))))
            }
            Some(TokenEvent::Stuck(why)) => Err(self.stuck(why)),
            Some(TokenEvent::Failed(why)) => Err(self.failed(why)),
            None => Err(self.unread()),
        }
    }

    fn token(&mut self, token: u32, logprob: Option<TokenLogprob>) -> Option<Piece> {
        if self.rules.prompt_only {
            return Some(self.end("length", None, None));
        }
        self.watch.token();
        self.output_tokens += 1;
        let text = self.text.push(token);
        self.piece.tokens.push(token);
        if let Some(TokenLogprob { token, logprob, top }) = logprob {
            let offset = self.offset;
            self.piece.scores.push(Score { token, logprob: Some(logprob), top, offset });
        }
        let thought = self.answer.is_thinking();
        let stop = self.tell(&text);
        self.reasoning_tokens += u32::from(thought || self.answer.is_thinking());
        if let Some(stop) = stop {
            return Some(self.end("stop", Some(Cause::Text(stop)), None));
        }
        if self.answer.is_over() {
            return Some(self.end("stop", None, None));
        }
        (!self.piece.parts.is_empty()).then(|| std::mem::take(&mut self.piece))
    }

    /// Adds text to the piece up to a stop string, which is returned.
    fn tell(&mut self, text: &str) -> Option<String> {
        self.offset += text.chars().count();
        if self.output_tokens < self.rules.min_tokens {
            self.answer(text);
            return None;
        }
        let stopped = self.stops.push(text);
        self.answer(&stopped.text);
        stopped.stop
    }

    fn answer(&mut self, text: &str) {
        let parts = self.answer.push(text);
        self.piece.parts.extend(parts);
    }

    fn done(&mut self, reason: FinishReason, usage: &Usage) -> Piece {
        if self.rules.prompt_only {
            return self.end("length", None, Some(usage));
        }
        self.output_tokens = self.output_tokens.max(usage.output_tokens);
        let rest = self.text.finish();
        if let Some(stop) = self.tell(&rest) {
            return self.end("stop", Some(Cause::Text(stop)), Some(usage));
        }
        let held = self.stops.finish();
        self.answer(&held);
        match reason {
            FinishReason::Stop(token) => {
                let asked = self.rules.stop_tokens.contains(&token);
                self.end("stop", asked.then_some(Cause::Token(token)), Some(usage))
            }
            FinishReason::Complete => self.end("stop", None, Some(usage)),
            FinishReason::Length => self.end("length", None, Some(usage)),
        }
    }

    fn end(&mut self, reason: &'static str, cause: Option<Cause>, usage: Option<&Usage>) -> Piece {
        self.stream = None;
        self.watch.finished(reason, usage);
        let rest = self.answer.finish();
        self.piece.parts.extend(rest);
        let called = reason == "stop" && self.answer.has_called();
        let reason = if called { "tool_calls" } else { reason };
        self.piece.end = Some(End { reason, cause });
        std::mem::take(&mut self.piece)
    }

    /// What was asked for cannot be: no fault of the engine.
    fn stuck(&mut self, why: String) -> ApiError {
        self.stream = None;
        self.watch.failed();
        ApiError::bad("constraint_failed", why)
    }

    fn failed(&mut self, why: String) -> ApiError {
        self.stream = None;
        self.watch.failed();
        ApiError::internal("engine_failed", why)
    }

    /// The engine has given it up, or is gone.
    fn unread(&mut self) -> ApiError {
        self.stream = None;
        self.watch.unread();
        let message = "the answer was not read as fast as it came, and was given up";
        ApiError::internal("reader_too_slow", message)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.stream.as_ref().is_some_and(TokenStream::is_waiting)
    }

    /// Ends it because its time is over.
    pub(crate) fn cut(&mut self, late: Late) {
        self.stream = None;
        self.watch.late(late);
    }

    /// The prompt goes before the first token.
    fn tell_prompt(&mut self) {
        let Some(echo) = self.echo.take() else { return };
        if self.rules.scores {
            let mut text = text_stream(&self.rules);
            let mut offset = 0;
            let none = TokenLogprob { token: 0, logprob: 0.0, top: Vec::new() };
            let scores = std::iter::once(none).chain(echo.scores);
            for (index, (token, score)) in echo.tokens.iter().zip(scores).enumerate() {
                let logprob = (index > 0).then_some(score.logprob);
                let mut top = score.top;
                top.truncate(echo.top);
                self.piece.scores.push(Score { token: *token, logprob, top, offset });
                offset += text.push(*token).chars().count();
            }
        }
        self.offset = echo.text.chars().count();
        self.piece.parts.push(AnswerPart::Content(echo.text));
    }
}

fn text_stream(rules: &Rules) -> TextStream {
    let tokenizer = rules.tokenizer.clone();
    if rules.skip_special {
        TextStream::showing(tokenizer, rules.shown.clone())
    } else {
        TextStream::with_special(tokenizer)
    }
}
