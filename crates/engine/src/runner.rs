//! `Runner`, what the engine asks of a model, and `ModelRunner`, a decoder with its cache.

mod attend;
mod device;
mod early;
mod teacher;

use std::ops::Range;
use std::sync::Arc;

use kvant_kernels::device::GpuError;
use kvant_kv_cache::{Conversions, PageStore, Staging};
use kvant_models::{Decoder, Workspace, with_floats, with_floats_mut};

use crate::heartbeat::Heartbeat;
use crate::request::{SeqId, TokenLogprob};
use crate::sampler::{self, Choice};
use crate::step::{PrefillChunk, PromptLogprobs, SampleRow, Sampled, Step};
use attend::{Rows, StepAttend};

pub use attend::AttentionRoad;
pub use device::{DeviceRunner, Replay};
pub use teacher::{Prompts, Reading, Teacher, Window, prefill_alone};

/// Rows of logits made at once: bounds the memory that they take.
pub(crate) const LOGIT_ROWS: usize = 64;

/// The model's side of a step failed; the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The decoder.
    #[error("the model failed: {0}")]
    Model(#[from] candle_core::Error),
    /// The cache refused what the scheduler planned.
    #[error("the cache failed: {0}")]
    Cache(#[from] kvant_kv_cache::Error),
    /// The GPU.
    #[error("the GPU failed: {0}")]
    Gpu(#[from] GpuError),
}

/// Computes steps. The engine's thread is the only caller.
pub trait Runner: Send {
    /// Computes a step. `alive` is to be beaten often enough that a long step is not taken for a
    /// stalled one.
    fn run(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError>;

    /// Begins a step, which `finish` ends: what can be queued is queued.
    fn start(&mut self, _step: &Step, _alive: &Heartbeat) -> Result<(), RunError> {
        Ok(())
    }

    /// Whether it may queue a step behind the one that was started.
    fn follows(&self) -> bool {
        false
    }

    /// Queues a step of [`Scheduler::plan_ahead`] behind the one that was started, whose tokens it
    /// takes without the host; false if it cannot, and then nothing is queued.
    ///
    /// [`Scheduler::plan_ahead`]: crate::Scheduler::plan_ahead
    fn follow(&mut self, _step: &Step, _alive: &Heartbeat) -> Result<bool, RunError> {
        Ok(false)
    }

    /// Waits for the results of the oldest step that was started or follows, this one, and not for
    /// the step behind it.
    fn finish(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        self.run(step, alive)
    }

    /// A sequence was cancelled or preempted: what was kept for it beside its pages may go.
    fn forget(&mut self, seq: SeqId);

    /// What was packed since the start.
    fn conversions(&self) -> Conversions {
        Conversions::default()
    }
}

/// A decoder, the pages of all sequences, and the staging of those in prefill.
#[derive(Debug)]
pub struct ModelRunner {
    decoder: Arc<Decoder>,
    store: PageStore,
    staging: Staging,
    road: AttentionRoad,
    workspace: Workspace,
}

impl ModelRunner {
    /// Joins a decoder to a cache of its shape.
    pub fn new(decoder: impl Into<Arc<Decoder>>, store: PageStore, staging: Staging) -> Self {
        let decoder = decoder.into();
        let workspace = decoder.workspace();
        Self { decoder, store, staging, road: AttentionRoad::Fused, workspace }
    }

    /// Lets decode rows attend on another road.
    #[must_use]
    pub fn on(mut self, road: AttentionRoad) -> Self {
        self.road = road;
        self
    }

    /// Leaves the hidden states of a step's tokens that are asked for in the workspace, and keeps
    /// the keys and values of all.
    fn forward(&mut self, step: &Step, alive: &Heartbeat) -> Result<(), RunError> {
        for chunk in step.prefill.iter().filter(|chunk| chunk.start == 0) {
            self.staging.open(chunk.seq.0, chunk.total as usize)?;
        }
        let tokens = Tokens::of(step);
        let layers = &self.decoder.spec().layers;
        let rows = Rows::of(step);
        let (store, staging, road) = (&mut self.store, &mut self.staging, self.road);
        let asked = step.asked();
        let mut attend = StepAttend { step, asked, rows, layers, store, staging, road, alive };
        let Tokens { ids, positions } = &tokens;
        self.decoder.forward(ids, positions, &mut attend, &mut self.workspace)?;
        for chunk in step.prefill.iter().filter(|chunk| chunk.is_last()) {
            self.staging.close(chunk.seq.0);
        }
        Ok(())
    }

    /// Logits after some tokens of the last step, `LOGIT_ROWS` at a time; `each` gets the index in
    /// `rows` and `[vocab]`, on the threads that compute.
    fn logits<T: Send>(
        &mut self,
        rows: &[u32],
        each: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Result<Vec<T>, RunError> {
        use rayon::prelude::*;
        let vocab = self.decoder.spec().vocab;
        let mut results = Vec::with_capacity(rows.len());
        for (group, rows) in rows.chunks(LOGIT_ROWS).enumerate() {
            let first = group * LOGIT_ROWS;
            with_floats_mut(self.decoder.logits(rows, &mut self.workspace)?, |logits| {
                let rows = logits.par_chunks_mut(vocab).enumerate();
                results.par_extend(rows.map(|(row, logits)| each(first + row, logits)));
                Ok(())
            })?;
        }
        Ok(results)
    }

    fn prompt_scores(
        &mut self,
        first: usize,
        asked: &PromptLogprobs,
    ) -> Result<Vec<TokenLogprob>, RunError> {
        let rows: Vec<u32> = (first..first + asked.targets.len()).map(|row| row as u32).collect();
        self.logits(&rows, |index, logits| sampler::score(logits, asked.targets[index], asked.top))
    }
}

impl Runner for ModelRunner {
    fn run(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        // On a thread that computes: from outside, each of a step's hundreds of kernels would wake
        // one and be woken by it.
        rayon::scope(|_| self.compute(step, alive))
    }

    fn forget(&mut self, seq: SeqId) {
        self.staging.close(seq.0);
    }

    fn conversions(&self) -> Conversions {
        self.store.conversions()
    }
}

impl ModelRunner {
    fn compute(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        self.forward(step, alive)?;
        let rows = sampled_rows(step);
        let at: Vec<u32> = rows.iter().map(|row| row.at).collect();
        let choices =
            self.logits(&at, |index, logits| sampler::sample(logits, rows[index].sample))?;
        let mut sampled = results(step, (&rows, choices), |first, asked| {
            alive.beat();
            self.prompt_scores(first, asked)
        })?;
        pool(step, &mut sampled, |rows| self.hidden_sum(rows))?;
        Ok(sampled)
    }

    /// Sum of the hidden states of some tokens of the last step.
    fn hidden_sum(&self, rows: Range<usize>) -> Result<Vec<f32>, RunError> {
        let width = self.decoder.spec().hidden;
        let hidden = self.workspace.hidden().expect("a step was computed");
        Ok(with_floats(hidden, |hidden| {
            Ok(sum(&hidden[rows.start * width..rows.end * width], width))
        })?)
    }
}

/// Adds the sums of hidden states that the chunks of pooled prompts are asked for; `sum` gets
/// places among the hidden states.
fn pool(
    step: &Step,
    sampled: &mut Vec<Sampled>,
    sum: impl Fn(Range<usize>) -> Result<Vec<f32>, RunError>,
) -> Result<(), RunError> {
    for (chunk, hidden) in hidden_of_chunks(step) {
        if chunk.pooling.is_some() {
            let (rows, asked) = (chunk.pooled(), chunk.asked());
            let at = |row: usize| hidden.start + row - asked.start;
            let pooled = match rows.len() {
                0 => Vec::new(),
                _ => sum(at(rows.start)..at(rows.end))?,
            };
            sampled.push(Sampled { pooled: Some(pooled), ..result(chunk.seq, Vec::new(), None) });
        }
    }
    Ok(())
}

/// Sum of rows of so many numbers.
fn sum(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += number);
    }
    sum
}

/// The chunks of a step, with the places among its hidden states of what they ask for.
fn hidden_of_chunks(step: &Step) -> impl Iterator<Item = (&PrefillChunk, Range<usize>)> {
    let mut end: usize = step.decode.iter().map(|row| row.tokens.len()).sum();
    step.prefill.iter().map(move |chunk| {
        let first = end;
        end += chunk.asked().len();
        (chunk, first..end)
    })
}

/// What a step gave: the tokens chosen, and log-probabilities of prompts by `scores`, which gets
/// the place of a chunk's first token among the hidden states.
fn results(
    step: &Step,
    (rows, choices): (&[Sampling<'_>], Vec<Option<Choice>>),
    mut scores: impl FnMut(usize, &PromptLogprobs) -> Result<Vec<TokenLogprob>, RunError>,
) -> Result<Vec<Sampled>, RunError> {
    let mut sampled = Vec::with_capacity(rows.len());
    for (row, choice) in rows.iter().zip(choices) {
        sampled.push(result(row.seq, Vec::new(), choice));
    }
    for (chunk, hidden) in hidden_of_chunks(step) {
        if let Some(asked) = &chunk.prompt_logprobs {
            let prompt = scores(hidden.start, asked)?;
            match sampled.iter_mut().find(|sampled| sampled.seq == chunk.seq) {
                Some(sampled) => sampled.prompt = prompt,
                None => sampled.push(result(chunk.seq, prompt, None)),
            }
        }
    }
    Ok(sampled)
}

fn result(seq: SeqId, prompt: Vec<TokenLogprob>, choice: Option<Choice>) -> Sampled {
    let (token, logprob) = choice.map_or((None, None), |(token, logprob)| (Some(token), logprob));
    Sampled { seq, prompt, token, logprob, pooled: None }
}

/// All tokens of a step, decode rows first.
struct Tokens {
    ids: Vec<u32>,
    positions: Vec<u32>,
}

impl Tokens {
    fn of(step: &Step) -> Self {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let rows = step.decode.iter().map(|row| (&row.tokens, row.position));
        let chunks = step.prefill.iter().map(|chunk| (&chunk.tokens, chunk.start));
        for (tokens, start) in rows.chain(chunks) {
            ids.extend(tokens);
            positions.extend(start..start + tokens.len() as u32);
        }
        Self { ids, positions }
    }
}

/// A token of the step after which one is sampled.
struct Sampling<'a> {
    seq: SeqId,
    /// Its place among the step's hidden states.
    at: u32,
    sample: &'a SampleRow,
}

fn sampled_rows(step: &Step) -> Vec<Sampling<'_>> {
    let rows = step.decode.iter().map(|row| (row.seq, row.tokens.len(), &row.sample));
    let chunks = step.prefill.iter().map(|chunk| (chunk.seq, chunk.asked().len(), &chunk.sample));
    let mut end = 0;
    let samples = rows.chain(chunks).filter_map(|(seq, hidden, sample)| {
        end += hidden as u32;
        let sample = sample.as_ref()?;
        Some(Sampling { seq, at: end - 1, sample })
    });
    samples.collect()
}
