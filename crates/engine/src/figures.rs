//! `Figures`: what the engine's thread counts, readable from any thread at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::queue::Queue;

/// Counters and gauges, written by the engine's thread alone.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) running: AtomicU64,
    pub(crate) preempted: AtomicU64,
    pub(crate) pages_used: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) staging_tokens_used: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) cancelled_waiting: AtomicU64,
    pub(crate) cancelled_prefill: AtomicU64,
    pub(crate) cancelled_decode: AtomicU64,
    pub(crate) unread: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) steps_ahead: AtomicU64,
    pub(crate) converted_pages: AtomicU64,
    pub(crate) conversion_micros: AtomicU64,
    pub(crate) not_finite_pages: AtomicU64,
    pub(crate) early_prompts: AtomicU64,
}

/// A snapshot for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Sequences in prefill or decode.
    pub running: u64,
    /// Requests that wait for their first admission.
    pub waiting: u64,
    /// Their prompt tokens.
    pub waiting_tokens: u64,
    /// Sequences that were preempted and wait to go on.
    pub preempted: u64,
    /// Cache pages that a sequence holds.
    pub pages_used: u64,
    /// All cache pages.
    pub pages: u64,
    /// Prompt tokens whose room in staging is taken.
    pub staging_tokens_used: u64,
    /// Prompt tokens computed since start, those of recomputed sequences once.
    pub prompt_tokens: u64,
    /// Tokens generated since start.
    pub output_tokens: u64,
    /// Preemptions since start.
    pub preemptions: u64,
    /// Sequences whose client left while they waited.
    pub cancelled_waiting: u64,
    /// Sequences whose client left during prefill.
    pub cancelled_prefill: u64,
    /// Sequences whose client left during decode.
    pub cancelled_decode: u64,
    /// Sequences given up because nobody read their tokens.
    pub unread: u64,
    /// Steps since start.
    pub steps: u64,
    /// Those of them that were queued before the tokens of the step in front were known.
    pub steps_ahead: u64,
    /// Pages packed since start, each layer's for itself.
    pub converted_pages: u64,
    /// Microseconds that packing them took.
    pub conversion_micros: u64,
    /// Those of them with vectors that were not finite.
    pub not_finite_pages: u64,
    /// Prompts longer than staging, whose oldest pages were read packed.
    pub early_prompts: u64,
}

impl Figures {
    pub(crate) fn read(&self, queue: &Queue) -> Gauges {
        let waiting = queue.waiting();
        Gauges {
            running: self.running.load(Relaxed),
            waiting: waiting.requests as u64,
            waiting_tokens: waiting.tokens as u64,
            preempted: self.preempted.load(Relaxed),
            pages_used: self.pages_used.load(Relaxed),
            pages: self.pages.load(Relaxed),
            staging_tokens_used: self.staging_tokens_used.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            output_tokens: self.output_tokens.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            cancelled_waiting: self.cancelled_waiting.load(Relaxed),
            cancelled_prefill: self.cancelled_prefill.load(Relaxed),
            cancelled_decode: self.cancelled_decode.load(Relaxed),
            unread: self.unread.load(Relaxed),
            steps: self.steps.load(Relaxed),
            steps_ahead: self.steps_ahead.load(Relaxed),
            converted_pages: self.converted_pages.load(Relaxed),
            conversion_micros: self.conversion_micros.load(Relaxed),
            not_finite_pages: self.not_finite_pages.load(Relaxed),
            early_prompts: self.early_prompts.load(Relaxed),
        }
    }
}
