//! `Sequence`: a request under way: its tokens and the phase that it is in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvant_kv_cache::{PAGE_TOKENS, PageId, pages_for};

use crate::constraint::{Constraint, TokenMask};
use crate::request::{
    FinishReason, GenerateRequest, Pooling, SamplingParams, SeqId, StopRules, TokenEvent, TokenId,
    TokenLogprob,
};
use crate::step::{DecodeRow, Place, PrefillChunk, PromptLogprobs, SampleRow, early_span};

/// Known tokens that a step computes again at most: as many as attention takes at once.
pub(crate) const REPLAY_TOKENS: usize = 16;

/// A request under way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    prompt: Arc<[TokenId]>,
    output: Vec<TokenId>,
    sampling: Arc<SamplingParams>,
    stop: StopRules,
    prompt_logprobs: Option<u32>,
    constraint: Option<Box<dyn Constraint>>,
    /// Why the constraint cannot go on.
    refusal: Option<String>,
    /// In place of an output.
    pooled: Option<Pooled>,
    /// Log-probabilities of the prompt, as far as its chunks have brought them.
    pub(crate) prompt_scores: Vec<TokenLogprob>,
    pub(crate) preemptions: u32,
    pub(crate) phase: Phase,
}

/// Hidden states of a prompt that are asked for, and their sum over the chunks so far.
#[derive(Debug)]
struct Pooled {
    pooling: Pooling,
    sum: Vec<f32>,
}

/// Where a sequence is. What only one phase has is in its arm.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Holds nothing: not yet admitted, or preempted.
    Waiting,
    /// The first `done` tokens of its prompt are in its `tiles` of staging; the newest of them if
    /// they are more.
    Prefill { done: usize, place: Place, tiles: usize },
    /// Its first `cached` tokens are in `place`; all but the newest one, unless it was preempted
    /// and its output is being computed again.
    Decode { cached: usize, place: Place },
}

/// A `Phase` without what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseKind {
    /// Not yet admitted, or preempted.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// Its output is being computed.
    Decode,
}

impl Sequence {
    pub(crate) fn new(id: SeqId, request: GenerateRequest) -> Self {
        let GenerateRequest { prompt, sampling, stop, prompt_logprobs, constraint, pooling } =
            request;
        Self {
            id,
            prompt,
            output: Vec::new(),
            sampling,
            stop,
            prompt_logprobs,
            constraint,
            refusal: None,
            pooled: pooling.map(|pooling| Pooled { pooling, sum: Vec::new() }),
            prompt_scores: Vec::new(),
            preemptions: 0,
            phase: Phase::Waiting,
        }
    }

    /// Tokens of the prompt and the output so far.
    pub(crate) fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    pub(crate) fn output_len(&self) -> usize {
        self.output.len()
    }

    pub(crate) fn kind(&self) -> PhaseKind {
        match self.phase {
            Phase::Waiting => PhaseKind::Waiting,
            Phase::Prefill { .. } => PhaseKind::Prefill,
            Phase::Decode { .. } => PhaseKind::Decode,
        }
    }

    /// What it holds.
    pub(crate) fn place(&self) -> Option<&Place> {
        match &self.phase {
            Phase::Waiting => None,
            Phase::Prefill { place, .. } | Phase::Decode { place, .. } => Some(place),
        }
    }

    /// Adds a page to what it holds.
    ///
    /// # Panics
    /// If it holds nothing: an error of ours.
    pub(crate) fn push_page(&mut self, page: PageId) {
        match &mut self.phase {
            Phase::Waiting => panic!("sequence {} grows while it waits", self.id.0),
            Phase::Prefill { place, .. } | Phase::Decode { place, .. } => place.pages.push(page),
        }
    }

    /// Pages that it holds.
    pub(crate) fn pages(&self) -> &[u32] {
        self.place().map_or(&[], |place| &place.pages)
    }

    /// Staging tiles that it holds.
    pub(crate) fn tiles(&self) -> usize {
        match self.phase {
            Phase::Prefill { tiles, .. } => tiles,
            Phase::Waiting | Phase::Decode { .. } => 0,
        }
    }

    /// Back to `Waiting`; returns what it held.
    pub(crate) fn preempt(&mut self) -> Option<Place> {
        self.preemptions += 1;
        self.prompt_scores.clear();
        if let Some(pooled) = &mut self.pooled {
            pooled.sum.clear();
        }
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Waiting => None,
            Phase::Prefill { place, .. } | Phase::Decode { place, .. } => Some(place),
        }
    }

    /// The row that computes the newest token, or the next known ones.
    ///
    /// # Panics
    /// If the sequence is in another phase than decode: an error of ours.
    pub(crate) fn decode_row(&self) -> DecodeRow {
        let Phase::Decode { cached, place } = &self.phase else {
            panic!("sequence {} is in no decode phase", self.id.0)
        };
        let of_page = PAGE_TOKENS - cached % PAGE_TOKENS;
        let end = self.len().min(cached + of_page.min(REPLAY_TOKENS));
        DecodeRow {
            seq: self.id,
            tokens: (*cached..end).map(|at| self.token(at)).collect(),
            position: *cached as u32,
            place: place.clone(),
            sample: (end == self.len()).then(|| self.sample_row()),
            follows: None,
        }
    }

    /// Whether it ends with the token that is being chosen, whatever that is.
    pub(crate) fn is_last_token(&self) -> bool {
        self.output.len() + 1 >= self.stop.max_tokens as usize
    }

    /// The row that computes the token that is being chosen, which will be the result of that
    /// number; `None` if it holds nothing.
    pub(crate) fn row_ahead(&self, result: u32) -> Option<DecodeRow> {
        let sample = self.sample_row();
        Some(DecodeRow {
            seq: self.id,
            tokens: vec![0],
            position: self.len() as u32,
            place: self.place()?.clone(),
            sample: Some(SampleRow { index: sample.index + 1, ..sample }),
            follows: Some(result),
        })
    }

    /// The next part of the prompt, of at most `budget` tokens.
    ///
    /// # Panics
    /// If the sequence is in another phase than prefill: an error of ours.
    pub(crate) fn chunk(&self, budget: usize) -> PrefillChunk {
        let Phase::Prefill { done, place, tiles } = &self.phase else {
            panic!("sequence {} is in no prefill phase", self.id.0)
        };
        let total = self.prompt.len();
        let mut end = total.min(done + budget);
        if pages_for(total) > *tiles {
            end = end.min((done / PAGE_TOKENS + early_span(*tiles)) * PAGE_TOKENS);
        }
        // A sequence that is computed again has told its prompt's log-probabilities already.
        let fresh = self.output.is_empty();
        let targets = |top| PromptLogprobs {
            top,
            targets: self.prompt[done + 1..(end + 1).min(total)].to_vec(),
        };
        PrefillChunk {
            seq: self.id,
            start: *done as u32,
            total: total as u32,
            tiles: *tiles as u32,
            tokens: self.prompt[*done..end].to_vec(),
            place: place.clone(),
            prompt_logprobs: self.prompt_logprobs.filter(|_| fresh).map(targets),
            pooling: self.pooled.as_ref().map(|pooled| pooled.pooling),
            sample: (end == total && fresh && self.pooled.is_none()).then(|| self.sample_row()),
        }
    }

    /// Takes note of computed tokens; true if the prompt is complete with them.
    pub(crate) fn advance(&mut self, tokens: usize) -> bool {
        match &mut self.phase {
            Phase::Waiting => false,
            Phase::Decode { cached, .. } => {
                *cached += tokens;
                false
            }
            Phase::Prefill { done, place, .. } => {
                *done += tokens;
                let complete = *done == self.prompt.len();
                if complete {
                    let place = std::mem::take(place);
                    self.phase = Phase::Decode { cached: self.prompt.len(), place };
                }
                complete
            }
        }
    }

    /// Adds a generated token. `Some`: the sequence ends with it. An error: the constraint cannot
    /// go on, and this is the sequence's end.
    pub(crate) fn push(&mut self, token: TokenId) -> Result<Option<FinishReason>, TokenEvent> {
        self.output.push(token);
        if self.ends().any(|end| end == token) {
            return Ok(Some(FinishReason::Stop(token)));
        }
        let taken = self.constrained(|constraint| constraint.take(token));
        if taken.map_err(TokenEvent::Stuck)?.unwrap_or(false) {
            return Ok(Some(FinishReason::Complete));
        }
        let full = self.output.len() >= self.stop.max_tokens as usize;
        Ok(full.then_some(FinishReason::Length))
    }

    /// Adds the hidden states that a chunk has brought.
    pub(crate) fn pool(&mut self, part: &[f32]) {
        let Some(Pooled { sum, .. }) = &mut self.pooled else { return };
        if sum.is_empty() {
            sum.extend_from_slice(part);
        } else {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }

    /// What was asked for of a complete prompt in place of an output.
    pub(crate) fn take_pooled(&mut self) -> Option<Vec<f32>> {
        let Pooled { pooling, sum } = self.pooled.as_mut()?;
        let mut hidden = std::mem::take(sum);
        if *pooling == Pooling::Mean {
            let count = self.prompt.len() as f32;
            for hidden in &mut hidden {
                *hidden /= count;
            }
        }
        Some(hidden)
    }

    /// Whether the output must be like something.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Works out which tokens the next one may be; none if the constraint cannot go on.
    pub(crate) fn constrain(&mut self, row: &mut SampleRow) {
        let mut allowed = TokenMask::default();
        if let Err(why) = self.constrained(|constraint| constraint.allow(&mut allowed)) {
            self.refusal = Some(why);
            allowed = TokenMask::default();
        }
        row.allowed = Some(allowed);
    }

    /// The end of a sequence for which no token could be chosen.
    pub(crate) fn no_token(&mut self) -> TokenEvent {
        if self.constraint.is_none() {
            let why = "the model gave no finite logits for this sequence";
            return TokenEvent::Failed(why.to_owned());
        }
        let why = "no token is allowed here by the constraint of the output and the other rules";
        TokenEvent::Stuck(self.refusal.take().unwrap_or_else(|| why.to_owned()))
    }

    /// Asks the constraint, if there is one. Its panic is an error of this sequence alone.
    fn constrained<T>(
        &mut self,
        ask: impl FnOnce(&mut dyn Constraint) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(constraint) = self.constraint.as_deref_mut() else { return Ok(None) };
        let answer = catch_unwind(AssertUnwindSafe(|| ask(constraint)));
        answer.unwrap_or_else(|_| Err("the constraint of the output has failed".into())).map(Some)
    }

    fn ends(&self) -> impl Iterator<Item = TokenId> {
        self.stop.eos_tokens.iter().chain(&self.stop.stop_tokens).copied()
    }

    fn token(&self, at: usize) -> TokenId {
        match at.checked_sub(self.prompt.len()) {
            None => self.prompt[at],
            Some(at) => self.output[at],
        }
    }

    fn sample_row(&self) -> SampleRow {
        let must_go_on = self.output.len() < self.stop.min_tokens as usize;
        SampleRow {
            params: self.sampling.clone(),
            index: self.output.len() as u32,
            forbidden: if must_go_on { self.ends().collect() } else { Vec::new() },
            prompt: self.prompt.clone(),
            output: if self.sampling.has_penalty() { self.output.clone() } else { Vec::new() },
            allowed: None,
        }
    }
}
