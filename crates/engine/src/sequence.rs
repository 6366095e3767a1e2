//! `Sequence`: a request under way: its tokens and the phase that it is in.

use std::sync::Arc;

use kvant_kv_cache::{PAGE_TOKENS, pages_for};

use crate::request::{
    FinishReason, GenerateRequest, SamplingParams, SeqId, StopRules, TokenId, TokenLogprob,
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
    /// Log-probabilities of the prompt, as far as its chunks have brought them.
    pub(crate) prompt_scores: Vec<TokenLogprob>,
    pub(crate) preemptions: u32,
    pub(crate) phase: Phase,
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
        let GenerateRequest { prompt, sampling, stop, prompt_logprobs } = request;
        Self {
            id,
            prompt,
            output: Vec::new(),
            sampling,
            stop,
            prompt_logprobs,
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
        }
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
            sample: (end == total && fresh).then(|| self.sample_row()),
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

    /// Adds a generated token. `Some`: the sequence ends with it.
    pub(crate) fn push(&mut self, token: TokenId) -> Option<FinishReason> {
        self.output.push(token);
        if self.ends().any(|end| end == token) {
            return Some(FinishReason::Stop(token));
        }
        (self.output.len() >= self.stop.max_tokens as usize).then_some(FinishReason::Length)
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
        }
    }
}
