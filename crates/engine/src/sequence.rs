//! `Sequence`: a request under way: its tokens and the phase that it is in.

use std::sync::Arc;

use kvant_kv_cache::{PageList, pages_for};

use crate::request::{
    FinishReason, GenerateRequest, SamplingParams, SeqId, StopRules, TokenId, TokenLogprob,
};
use crate::step::{Completion, DecodeRow, PrefillChunk, PromptLogprobs, SampleRow};

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
    /// Its first `done` tokens are in staging, which has room for `total`; `pages` are reserved for
    /// as many.
    Prefill { done: usize, total: usize, pages: PageList },
    /// All tokens but the newest are in `pages`.
    Decode { pages: PageList },
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

    /// Pages that it holds.
    pub(crate) fn pages(&self) -> &[u32] {
        match &self.phase {
            Phase::Waiting => &[],
            Phase::Prefill { pages, .. } | Phase::Decode { pages } => pages,
        }
    }

    /// Staging tiles that it holds.
    pub(crate) fn tiles(&self) -> usize {
        match self.phase {
            Phase::Prefill { total, .. } => pages_for(total),
            Phase::Waiting | Phase::Decode { .. } => 0,
        }
    }

    /// Back to `Waiting`; returns the pages for the pool.
    pub(crate) fn preempt(&mut self) -> PageList {
        self.preemptions += 1;
        self.prompt_scores.clear();
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Waiting => PageList::new(),
            Phase::Prefill { pages, .. } | Phase::Decode { pages } => pages,
        }
    }

    /// The row that computes the newest token.
    ///
    /// # Panics
    /// If the sequence is in another phase than decode: an error of ours.
    pub(crate) fn decode_row(&self) -> DecodeRow {
        let Phase::Decode { pages } = &self.phase else {
            panic!("sequence {} is in no decode phase", self.id.0)
        };
        DecodeRow {
            seq: self.id,
            token: self.token(self.len() - 1),
            position: (self.len() - 1) as u32,
            pages: pages.clone(),
            sample: self.sample_row(),
        }
    }

    /// The next part of the prefill, of at most `budget` tokens.
    ///
    /// # Panics
    /// If the sequence is in another phase than prefill: an error of ours.
    pub(crate) fn chunk(&self, budget: usize) -> PrefillChunk {
        let Phase::Prefill { done, total, pages } = &self.phase else {
            panic!("sequence {} is in no prefill phase", self.id.0)
        };
        let end = (*total).min(done + budget);
        // A sequence that is computed again has told its prompt's log-probabilities already.
        let asked = self.prompt_logprobs.filter(|_| self.output.is_empty());
        let targets = |top| PromptLogprobs {
            top,
            targets: (done + 1..(end + 1).min(*total)).map(|at| self.token(at)).collect(),
        };
        PrefillChunk {
            seq: self.id,
            start: *done as u32,
            total: *total as u32,
            tokens: (*done..end).map(|at| self.token(at)).collect(),
            prompt_logprobs: asked.map(targets),
            completion: (end == *total)
                .then(|| Completion { pages: pages.clone(), sample: self.sample_row() }),
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
