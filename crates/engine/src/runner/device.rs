//! `DeviceRunner`: a decoder and its cache on a GPU. A step is queued as a whole; the host waits
//! once, for the tokens, and by then the next step may be in the queue.

mod replay;
mod sample;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Error, Result as TensorResult, Tensor};
use kvant_kernels::device::{Activations, Gpu, GpuMark, Place};
use kvant_kv_cache::{Chunk, Conversions, DeviceAttention, DeviceStore, PageId, Row, Span};
use kvant_models::{Attend, Decoder, LayerSpec, Workspace};

use super::attend::row_of;
use super::{LOGIT_ROWS, RunError, Runner, Sampling, Tokens, pool, results, sampled_rows};
use crate::heartbeat::Heartbeat;
use crate::request::{SeqId, TokenLogprob};
use crate::sampler::{self, Choice};
use crate::step::{PrefillChunk, PromptLogprobs, Sampled, Step, early_recent};
use replay::{Kept, Launches};
use sample::{DeviceSampler, Side};

pub use replay::Replay;

/// A decoder on a GPU with the pages of all sequences and the staging of those in prefill.
#[derive(Debug)]
pub struct DeviceRunner {
    decoder: Arc<Decoder>,
    store: DeviceStore,
    workspace: Workspace,
    sampler: DeviceSampler,
    gpu: Gpu,
    kept: Kept,
    /// Whether a step may be queued behind another one.
    ahead: bool,
    /// Oldest first; two at most.
    flights: VecDeque<Flight>,
}

/// A step in the queue whose results have not been read.
#[derive(Debug)]
struct Flight {
    end: GpuMark,
    /// Those that the host has made.
    choices: Vec<Option<Choice>>,
    /// Where those of the GPU are.
    side: Side,
    /// Whether nothing else is read of it.
    plain: bool,
}

impl DeviceRunner {
    /// Joins a decoder to a cache of its shape on the same GPU.
    pub fn new(decoder: impl Into<Arc<Decoder>>, gpu: &Gpu, store: DeviceStore) -> Self {
        let decoder = decoder.into();
        let workspace = decoder.workspace();
        let (sampler, gpu) = (DeviceSampler::new(gpu), gpu.clone());
        let (kept, ahead, flights) = (Kept::default(), false, VecDeque::new());
        Self { decoder, store, workspace, sampler, gpu, kept, ahead, flights }
    }

    /// Lets it queue a step before the host has read the tokens of the one in front, or not. It
    /// gains nothing where the host cannot wait for the one alone ([`Gpu::waits_for_marks`]).
    #[must_use]
    pub fn running_ahead(mut self, ahead: bool) -> Self {
        self.ahead = ahead && self.decoder.queues();
        self
    }

    /// Lets it replay steps of decoding, or not, where the GPU and the decoder allow that.
    #[must_use]
    pub fn replaying(mut self, replay: Replay) -> Self {
        let can = self.decoder.repeats() && (self.gpu.records() || replay == Replay::Filled);
        self.kept = Kept::new(if can { replay } else { Replay::Off });
        self
    }

    /// Steps of decoding that were replayed.
    pub fn replayed(&self) -> u64 {
        self.kept.replayed()
    }

    /// Memory of the driver that recorded steps have taken.
    pub fn recorded_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    pub(super) fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Brings a prompt from the pages of another runner, which keeps 16 bits.
    pub(super) fn take(
        &mut self,
        source: &Self,
        from: &[PageId],
        row: Row<'_>,
        tokens: usize,
    ) -> Result<(), RunError> {
        Ok(self.store.take((&source.store, from), row, tokens)?)
    }

    /// Leaves the hidden states of a step's tokens that are asked for in the workspace, and keeps
    /// the keys and values of all.
    pub(super) fn forward(&mut self, step: &Step, alive: &Heartbeat) -> Result<(), RunError> {
        for chunk in step.prefill.iter().filter(|chunk| chunk.start == 0) {
            self.store.open(chunk.seq.0, chunk.total as usize)?;
        }
        let rows: Vec<Row<'_>> = step.decode.iter().map(row_of).collect();
        let chunks: Vec<Chunk<'_>> = step.prefill.iter().map(chunk_of).collect();
        self.store.begin(&rows, &chunks)?;
        self.begin(step, 0)?;
        let layers = &self.decoder.spec().layers;
        let mut attend =
            DeviceAttend { layers, store: &mut self.store, asked: step.asked(), alive };
        self.decoder.compute(&mut attend, &mut self.workspace)?;
        for chunk in step.prefill.iter().filter(|chunk| chunk.is_last()) {
            self.store.close(chunk.seq.0);
        }
        Ok(())
    }

    /// Uploads the tokens of a step, filled up with idle ones.
    fn begin(&mut self, step: &Step, filled: usize) -> Result<(), RunError> {
        let Tokens { mut ids, mut positions } = Tokens::of(step);
        let count = ids.len().max(filled);
        positions.resize(count, 0);
        if let Some(mut results) = step.followed() {
            results.resize(count, 0);
            self.decoder.begin_chosen(&results, &positions, &mut self.workspace)?;
        } else {
            ids.resize(count, 0);
            self.decoder.begin(&ids, &positions, &mut self.workspace)?;
        }
        Ok(())
    }

    /// Queues the choice of the tokens after some of the step's; those whose rules the GPU does
    /// not know are chosen here.
    fn choose(&mut self, rows: &[Sampling<'_>]) -> Result<Vec<Option<Choice>>, RunError> {
        let mut choices = vec![None; rows.len()];
        self.sampler.begin(rows, 0)?;
        for (group, rows) in rows.chunks(LOGIT_ROWS).enumerate() {
            let first = group * LOGIT_ROWS;
            let at: Vec<u32> = rows.iter().map(|row| row.at).collect();
            let logits = self.decoder.logits(&at, &mut self.workspace)?.clone();
            self.sampler.launch(&logits, (first, rows.len()), self.workspace.chosen(first)?)?;
            for (index, row) in rows.iter().enumerate() {
                if !row.sample.is_plain() {
                    let mut logits = host_row(&logits, index)?;
                    choices[first + index] = sampler::sample(&mut logits, row.sample);
                }
            }
        }
        Ok(choices)
    }

    /// A step of decoding, a token a row, as launches that are equal from step to step.
    fn decode(
        &mut self,
        step: &Step,
        (rows, filled): (&[Sampling<'_>], usize),
        alive: &Heartbeat,
    ) -> Result<Vec<Option<Choice>>, RunError> {
        alive.beat();
        let places: Vec<Row<'_>> = step.decode.iter().map(row_of).collect();
        let layout = self.store.begin_filled(&places, filled)?;
        self.begin(step, filled)?;
        self.sampler.begin(rows, filled)?;
        let launches =
            Launches { layout, workspace: self.workspace.rooms(), sampler: self.sampler.room() };
        let Self { decoder, store, workspace, sampler, gpu, kept, .. } = self;
        kept.run(gpu, launches, || {
            let layers = &decoder.spec().layers;
            let mut attend = DeviceAttend { layers, store, asked: None, alive };
            decoder.compute(&mut attend, workspace)?;
            let all: Vec<u32> = (0..filled as u32).collect();
            let logits = decoder.logits(&all, workspace)?.clone();
            Ok(sampler.launch(&logits, (0, filled), workspace.chosen(0)?)?)
        })?;
        let mut choices = vec![None; rows.len()];
        for (row, choice) in rows.iter().zip(&mut choices) {
            if !row.sample.is_plain() {
                let mut logits = host_row(self.workspace.logits(filled)?, row.at as usize)?;
                *choice = sampler::sample(&mut logits, row.sample);
            }
        }
        Ok(choices)
    }

    /// Puts a step into the queue as a whole.
    fn queue(&mut self, step: &Step, alive: &Heartbeat) -> Result<(), RunError> {
        let rows = sampled_rows(step);
        let choices = if let Some(filled) = self.kept.filled(step) {
            self.decode(step, (&rows, filled), alive)?
        } else {
            self.forward(step, alive)?;
            self.choose(&rows)?
        };
        let (end, side, plain) = (self.gpu.mark()?, self.sampler.side(), step.is_plain());
        self.flights.push_back(Flight { end, choices, side, plain });
        Ok(())
    }

    /// Ends a step that was computed by `forward` alone.
    pub(super) fn settle(&mut self) -> Result<(), RunError> {
        Ok(self.store.finish()?)
    }

    /// Logits after some tokens of the last step, as of `ModelRunner`: `[vocab]` on the host.
    pub(super) fn logits<T: Send>(
        &mut self,
        rows: &[u32],
        each: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Result<Vec<T>, RunError> {
        use rayon::prelude::*;
        let vocab = self.decoder.spec().vocab;
        let mut results = Vec::with_capacity(rows.len());
        for (group, rows) in rows.chunks(LOGIT_ROWS).enumerate() {
            let first = group * LOGIT_ROWS;
            let logits = self.decoder.logits(rows, &mut self.workspace)?;
            let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let rows = logits.par_chunks_mut(vocab).enumerate();
            results.par_extend(rows.map(|(row, logits)| each(first + row, logits)));
        }
        Ok(results)
    }

    /// Sum of some hidden states of the last step, on the host.
    fn hidden_sum(&self, rows: Range<usize>) -> Result<Vec<f32>, RunError> {
        let hidden = self.workspace.hidden().expect("a step was computed");
        let rows = hidden.narrow(0, rows.start, rows.len())?.flatten_all()?.to_vec1::<f32>()?;
        Ok(super::sum(&rows, self.decoder.spec().hidden))
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

impl Runner for DeviceRunner {
    fn run(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        self.start(step, alive)?;
        self.finish(step, alive)
    }

    fn start(&mut self, step: &Step, alive: &Heartbeat) -> Result<(), RunError> {
        self.queue(step, alive)
    }

    fn follows(&self) -> bool {
        self.ahead
    }

    fn follow(&mut self, step: &Step, alive: &Heartbeat) -> Result<bool, RunError> {
        let rows = self.kept.filled(step).unwrap_or(step.decode.len());
        // What grows now loses what the step in flight leaves.
        let room = self.workspace.rooms()[0].min(self.sampler.room());
        let alone = self.flights.len() == 1 && self.flights.iter().all(|flight| flight.plain);
        let can = self.ahead && alone && step.is_plain() && rows <= room;
        if can {
            self.queue(step, alive)?;
        }
        Ok(can)
    }

    fn finish(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        let flight = self.flights.pop_front().expect("a step was started");
        let Flight { end, mut choices, side, .. } = flight;
        self.gpu.wait(&end)?;
        self.store.count()?;
        let rows = sampled_rows(step);
        self.sampler.finish((&rows, side), &mut choices)?;
        let mut sampled = results(step, (&rows, choices), |first, asked| {
            alive.beat();
            self.prompt_scores(first, asked)
        })?;
        pool(step, &mut sampled, |rows| self.hidden_sum(rows))?;
        Ok(sampled)
    }

    fn forget(&mut self, seq: SeqId) {
        self.store.close(seq.0);
    }

    fn conversions(&self) -> Conversions {
        self.store.conversions()
    }
}

/// The join of decoder and cache.
struct DeviceAttend<'a> {
    layers: &'a [LayerSpec],
    store: &'a mut DeviceStore,
    asked: Option<Vec<u32>>,
    alive: &'a Heartbeat,
}

impl Attend for DeviceAttend<'_> {
    fn asked(&self) -> Option<&[u32]> {
        self.asked.as_deref()
    }

    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3], out: &Tensor) -> TensorResult<()> {
        self.alive.beat();
        let (_, q_heads, _) = qkv[0].dims3()?;
        let LayerSpec { window, scale, softcap, .. } = self.layers[layer];
        let numbers = match out.dtype() {
            DType::F16 => Activations::F16,
            DType::BF16 => Activations::BF16,
            _ => Activations::F32,
        };
        let attention = DeviceAttention { q_heads, scale, window, soft_cap: softcap, numbers };
        let place = |tensor| Place::tensor(tensor).map_err(Error::wrap);
        let [q, k, v] = qkv;
        let qkv = [place(q)?, place(k)?, place(v)?];
        self.store.attend(layer, qkv, &place(out)?, &attention).map_err(Error::wrap)
    }
}

/// A row of logits on the host.
fn host_row(logits: &Tensor, row: usize) -> TensorResult<Vec<f32>> {
    logits.get(row)?.to_vec1()
}

fn chunk_of(chunk: &PrefillChunk) -> Chunk<'_> {
    let (start, total) = (chunk.start as usize, chunk.total as usize);
    Chunk {
        key: chunk.seq.0,
        span: Span { start, end: start + chunk.tokens.len(), total },
        pages: &chunk.place.pages,
        tail: chunk.place.tail,
        recent: chunk.is_early().then(|| early_recent(chunk.tiles as usize)),
        asked: chunk.asked(),
    }
}
