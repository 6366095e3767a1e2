//! `Scheduler`: which tokens of which sequence are computed next, and who holds which page.
//!
//! Data and arithmetic: no tensor, no clock, no channel. Admission is first come, first served; the
//! youngest sequence is preempted when pages run out, so the oldest always goes on and nobody
//! starves.

mod ahead;

use std::collections::{HashMap, VecDeque};

use kvant_kv_cache::{PagePool, pages_for};

use crate::request::{FinishReason, GenerateRequest, SeqId, TokenEvent, Usage};
use crate::sequence::{Phase, PhaseKind, Sequence};
use crate::step::{Place, Sampled, Step};

/// Prompt tokens that a step takes at least, however many rows decode: prompts must go on too.
const MIN_PREFILL_TOKENS: usize = 16;

/// Bounds of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Sequences in prefill and decode together.
    pub sequences: usize,
    /// Pages of the cache; enough for the longest sequence.
    pub cache_pages: usize,
    /// Tiles of staging, at least one; a prompt that needs more takes all of them.
    pub staging_tiles: usize,
}

/// An event for the client of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Emit {
    /// Whose.
    pub seq: SeqId,
    /// What. Times in `Usage` are zero: there is no clock here.
    pub event: TokenEvent,
}

/// All sequences under way.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    pool: PagePool,
    tiles_used: usize,
    /// Numbers of tails that no sequence has.
    tails: Vec<u32>,
    /// Oldest first; preempted ones are older than all that were never admitted.
    waiting: VecDeque<Sequence>,
    /// In prefill or decode, oldest first.
    running: Vec<Sequence>,
    next_id: u64,
    /// Preempted since the last `take_preempted`: the runner must forget what it staged of them.
    preempted: Vec<SeqId>,
}

impl Scheduler {
    /// Nothing under way.
    pub fn new(limits: SchedulerLimits) -> Self {
        Self {
            pool: PagePool::new(limits.cache_pages),
            tails: (0..limits.sequences as u32).rev().collect(),
            limits,
            tiles_used: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            preempted: Vec::new(),
        }
    }

    /// Queues a request. It must be able to run alone.
    ///
    /// # Panics
    /// If its prompt and output cannot fit the cache: they must be checked against the context
    /// before.
    pub fn submit(&mut self, request: GenerateRequest) -> SeqId {
        let longest = request.prompt.len() + request.stop.max_tokens as usize;
        let room = self.limits.cache_pages;
        assert!(pages_for(longest) <= room, "a request of {longest} tokens was let in");
        let id = SeqId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence::new(id, request));
        id
    }

    /// The next step: rows in decode and at most `budget_tokens` tokens of prompts. Empty if there
    /// is nothing to do.
    ///
    /// The newest token of a row is not counted: it costs little, and a prompt that fills some
    /// steps would leave to a step of its own, for which there may be no other prompt, what its
    /// chunks lack for rows. Older tokens that a row computes again are counted.
    pub fn plan(&mut self, budget_tokens: usize) -> Step {
        let mut step = Step::default();
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].kind() == PhaseKind::Decode && self.grow(index) {
                step.decode.push(self.running[index].decode_row());
            }
            index += 1;
        }
        let again: usize = step.decode.iter().map(|row| row.tokens.len() - 1).sum();
        let mut left = budget_tokens.saturating_sub(again).max(MIN_PREFILL_TOKENS);
        let mut index = 0;
        while left > 0 && (index < self.running.len() || self.admit()) {
            let sequence = &self.running[index];
            if sequence.kind() == PhaseKind::Prefill {
                let chunk = sequence.chunk(left);
                left -= chunk.tokens.len();
                step.prefill.push(chunk);
            }
            index += 1;
        }
        step
    }

    /// Works out which tokens the constrained sequences of a planned step may choose, on the
    /// threads that compute.
    pub fn constrain(&mut self, step: &mut Step) {
        use rayon::prelude::*;
        let running = self.running.iter_mut().filter(|sequence| sequence.is_constrained());
        let mut sequences: HashMap<SeqId, &mut Sequence> =
            running.map(|sequence| (sequence.id, sequence)).collect();
        if sequences.is_empty() {
            return;
        }
        let decode = step.decode.iter_mut().map(|row| (row.seq, &mut row.sample));
        let chunks = step.prefill.iter_mut().map(|chunk| (chunk.seq, &mut chunk.sample));
        let asked = decode.chain(chunks);
        let asked = asked.filter_map(|(seq, row)| Some((sequences.remove(&seq)?, row.as_mut()?)));
        let asked: Vec<_> = asked.collect();
        asked.into_par_iter().for_each(|(sequence, row)| sequence.constrain(row));
    }

    /// Makes sure that a decode row has a page for its newest token, preempting the youngest
    /// sequences for it; false if it was the youngest itself.
    fn grow(&mut self, index: usize) -> bool {
        let needed = pages_for(self.running[index].len());
        while self.running[index].pages().len() < needed {
            if let Some(page) = self.pool.alloc() {
                self.running[index].push_page(page);
                continue;
            }
            self.preempt_youngest();
            if index >= self.running.len() {
                return false;
            }
        }
        true
    }

    fn preempt_youngest(&mut self) {
        let mut sequence = self.running.pop().expect("the row that grows is running");
        self.free(&mut sequence);
        self.preempted.push(sequence.id);
        self.waiting.push_front(sequence);
    }

    /// Staging tiles and pages for the oldest waiting sequence, if there is room for it: a place,
    /// staging, pages for all its tokens and the next one, and beside them a page for each running
    /// sequence to grow into, lest it be preempted at once.
    fn room(&self) -> Option<(usize, usize)> {
        let sequence = self.waiting.front()?;
        let tiles = pages_for(sequence.prompt_len()).min(self.limits.staging_tiles);
        let pages = pages_for(sequence.len());
        let spare = pages_for(sequence.len() + 1) - pages + self.running.len();
        let alone = self.running.is_empty();
        let fits = self.running.len() < self.limits.sequences
            && self.tiles_used + tiles <= self.limits.staging_tiles
            && (alone || pages + spare <= self.pool.free());
        fits.then_some((tiles, pages))
    }

    /// Moves the oldest waiting sequence to prefill if there is room.
    fn admit(&mut self) -> bool {
        let Some((tiles, pages)) = self.room() else { return false };
        let pages = (0..pages).map(|_| self.pool.alloc().expect("counted above")).collect();
        let tail = self.tails.pop().expect("there are as many as sequences may run");
        self.tiles_used += tiles;
        let mut sequence = self.waiting.pop_front().expect("seen above");
        sequence.phase = Phase::Prefill { done: 0, place: Place { pages, tail }, tiles };
        self.running.push(sequence);
        true
    }

    /// Takes the results of a planned step; finished sequences give their pages back. What a step
    /// ahead gave for a sequence that has ended meanwhile is dropped.
    pub fn commit(&mut self, step: &Step, sampled: Vec<Sampled>) -> Vec<Emit> {
        let decoded = step.decode.iter().map(|row| (row.seq, row.tokens.len()));
        let chunks = step.prefill.iter().map(|chunk| (chunk.seq, chunk.tokens.len()));
        for (seq, tokens) in decoded.chain(chunks) {
            let running = self.running.iter_mut().find(|running| running.id == seq);
            let Some(running) = running else { continue };
            let tiles = running.tiles();
            if running.advance(tokens) {
                self.tiles_used -= tiles;
            }
        }
        let mut emits = Vec::new();
        for result in sampled {
            let found = self.running.iter().position(|running| running.id == result.seq);
            if let Some(index) = found {
                self.apply(index, result, &mut emits);
            }
        }
        emits
    }

    fn apply(&mut self, index: usize, result: Sampled, emits: &mut Vec<Emit>) {
        let sequence = &mut self.running[index];
        let seq = sequence.id;
        let mut emit = |event| emits.push(Emit { seq, event });
        sequence.prompt_scores.extend(result.prompt);
        if let Some(part) = &result.pooled {
            sequence.pool(part);
        }
        if sequence.kind() == PhaseKind::Prefill {
            return;
        }
        if let Some(hidden) = sequence.take_pooled() {
            emit(if hidden.iter().all(|hidden| hidden.is_finite()) {
                TokenEvent::Pooled { hidden, usage: usage(sequence) }
            } else {
                TokenEvent::Failed("the model gave no finite hidden states for this prompt".into())
            });
            self.remove(index);
            return;
        }
        let scores = std::mem::take(&mut sequence.prompt_scores);
        if !scores.is_empty() {
            emit(TokenEvent::Prompt(scores));
        }
        let pushed = match result.token {
            Some(token) => sequence.push(token).map(|reason| (token, reason)),
            None => Err(sequence.no_token()),
        };
        let (token, reason) = match pushed {
            Ok(pushed) => pushed,
            Err(end) => {
                emit(end);
                self.remove(index);
                return;
            }
        };
        if !matches!(reason, Some(FinishReason::Stop(_))) {
            emit(TokenEvent::Token { token, logprob: result.logprob });
        }
        if let Some(reason) = reason {
            emit(TokenEvent::Done { reason, usage: usage(sequence) });
            self.remove(index);
        }
    }

    /// Ends a sequence in any phase and says in which it was; `None` if it is unknown or has ended.
    pub fn cancel(&mut self, seq: SeqId) -> Option<PhaseKind> {
        if let Some(index) = self.waiting.iter().position(|waiting| waiting.id == seq) {
            self.waiting.remove(index);
            return Some(PhaseKind::Waiting);
        }
        let index = self.running.iter().position(|running| running.id == seq)?;
        let kind = self.running[index].kind();
        self.remove(index);
        Some(kind)
    }

    fn remove(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.free(&mut sequence);
    }

    fn free(&mut self, sequence: &mut Sequence) {
        self.tiles_used -= sequence.tiles();
        if let Some(place) = sequence.preempt() {
            self.tails.push(place.tail);
            for page in place.pages {
                self.pool.release(page);
            }
        }
    }

    /// Sequences preempted since the last call.
    pub fn take_preempted(&mut self) -> Vec<SeqId> {
        std::mem::take(&mut self.preempted)
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that wait, preempted ones included; and those of them that were preempted.
    pub fn waiting(&self) -> (usize, usize) {
        let preempted = self.waiting.iter().filter(|waiting| waiting.preemptions > 0).count();
        (self.waiting.len(), preempted)
    }

    /// Sequences in prefill and decode.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Page counts.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Staging tiles held.
    pub fn tiles_used(&self) -> usize {
        self.tiles_used
    }

    /// Asserts what must hold between any two calls.
    pub fn check(&self) {
        self.pool.check();
        let mut held = vec![0; self.pool.capacity()];
        for page in self.running.iter().flat_map(Sequence::pages) {
            held[*page as usize] += 1;
        }
        for (page, held) in held.into_iter().enumerate() {
            assert_eq!(self.pool.owners(page as u32), held, "owners of page {page}");
        }
        let places = self.running.iter().filter_map(Sequence::place);
        let mut tails: Vec<u32> =
            places.map(|place| place.tail).chain(self.tails.clone()).collect();
        tails.sort_unstable();
        assert!(tails.iter().copied().eq(0..self.limits.sequences as u32), "tails, each once");
        let tiles: usize = self.running.iter().map(Sequence::tiles).sum();
        assert_eq!(tiles, self.tiles_used, "staging tiles held");
        assert!(tiles <= self.limits.staging_tiles && self.running.len() <= self.limits.sequences);
        let ids = self.running.iter().chain(&self.waiting).map(|sequence| sequence.id);
        assert!(ids.is_sorted(), "sequences are in order of arrival");
        assert!(self.waiting.iter().all(|waiting| waiting.kind() == PhaseKind::Waiting));
        assert!(self.running.iter().all(|running| running.kind() != PhaseKind::Waiting));
    }
}

/// Counts of a sequence; its times are for whoever has a clock.
fn usage(sequence: &Sequence) -> Usage {
    Usage {
        prompt_tokens: sequence.prompt_len() as u32,
        output_tokens: sequence.output_len() as u32,
        preemptions: sequence.preemptions,
        ..Usage::default()
    }
}
