//! `DeviceSampler`: tokens chosen on the GPU; only their ids and asked-for log-probabilities come
//! back.

use candle_core::Tensor;
use kvant_kernels::device::{
    Arg, Gpu, GpuBuffer, GpuError, GpuResults, Kernel, Params, Place, SampleParams, SampleRowParams,
};

use super::super::Sampling;
use crate::request::{SamplingParams, TokenLogprob};
use crate::sampler::Choice;
use crate::step::SampleRow;

/// What the kernel gives where no logit is finite.
const NONE: u32 = u32::MAX;
/// The likeliest token, of a row that nobody asks for.
const IDLE: SampleRowParams = SampleRowParams {
    seed_low: 0,
    seed_high: 0,
    index: 0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    inverse: 0.0,
    logprob: 0,
};
/// Bytes of a row's rules.
const RULE_BYTES: usize = size_of::<SampleRowParams>();
/// Words of a row's result: its token and the log-probability.
const RESULT_WORDS: usize = 2;

/// Buffers of the rules and results of a step's rows; they grow to the largest step.
#[derive(Debug)]
pub(super) struct DeviceSampler {
    gpu: Gpu,
    buffers: Option<(GpuBuffer, GpuResults)>,
}

/// Whether the kernel knows all of a row's rules.
pub(super) fn on_device(row: &SampleRow) -> bool {
    let params = &row.params;
    let plain = params.logit_bias.is_empty() && row.forbidden.is_empty();
    plain
        && row.allowed.is_none()
        && !params.has_penalty()
        && params.logprobs.is_none_or(|top| top == 0)
}

impl DeviceSampler {
    pub(super) fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), buffers: None }
    }

    /// Rows that there is room for: the buffers are others when they have grown.
    pub(super) fn room(&self) -> usize {
        self.buffers.as_ref().map_or(0, |(rules, _)| rules.bytes() / RULE_BYTES)
    }

    /// Uploads the rules of a step's rows, which are `filled` up with idle ones.
    pub(super) fn begin(&mut self, rows: &[Sampling<'_>], filled: usize) -> Result<(), GpuError> {
        let count = rows.len().max(filled);
        if self.room() < count {
            let room = count.next_power_of_two();
            let rules = self.gpu.alloc(room * RULE_BYTES)?;
            self.buffers = Some((rules, self.gpu.alloc_results(room * RESULT_WORDS)?));
        }
        let Some((rules, _)) = &self.buffers else { return Ok(()) };
        let idle = std::iter::repeat_n(IDLE, count - rows.len());
        let words = rows.iter().map(|row| rule(row.sample)).chain(idle);
        let words = words.flat_map(|rule| rule.words());
        let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        self.gpu.write(rules, 0, &bytes)
    }

    /// Chooses after some rows, the first of them the `first` of the step. logits: `[rows, vocab]`
    pub(super) fn launch(
        &self,
        logits: &Tensor,
        first: usize,
        rows: usize,
    ) -> Result<(), GpuError> {
        let Some((rules, chosen)) = &self.buffers else { return Ok(()) };
        let vocab = logits.elem_count() / rows.max(1);
        let args = [
            Arg::In(Place::tensor(logits)?),
            Arg::In(Place::buffer(rules, first * RULE_BYTES)?),
            Arg::Out(Place::results(chosen, first * RESULT_WORDS)?),
        ];
        let params = SampleParams { vocab: vocab as u32 };
        self.gpu.launch((self.gpu.ops(), Kernel::Sample), [rows, 1, 1], &args, &params)
    }

    /// Fills in the tokens of rows that the kernel knows, once the host has waited for them.
    pub(super) fn finish(
        &self,
        rows: &[Sampling<'_>],
        choices: &mut [Option<Choice>],
    ) -> Result<(), GpuError> {
        let Some((_, chosen)) = &self.buffers else { return Ok(()) };
        let words = chosen.read(0..rows.len() * RESULT_WORDS)?;
        let results = words.as_chunks::<RESULT_WORDS>().0.iter();
        for ((row, choice), result) in rows.iter().zip(choices).zip(results) {
            if on_device(row.sample) {
                *choice = read(&row.sample.params, *result);
            }
        }
        Ok(())
    }
}

fn rule(row: &SampleRow) -> SampleRowParams {
    let params = &row.params;
    let greedy = params.temperature == 0.0;
    SampleRowParams {
        seed_low: params.seed as u32,
        seed_high: (params.seed >> 32) as u32,
        index: row.index,
        // On the CPU a top_k of 0 keeps the likeliest.
        top_k: params.top_k.map_or(0, |k| k.max(1)),
        top_p: params.top_p,
        min_p: params.min_p,
        inverse: if greedy { 0.0 } else { 1.0 / params.temperature },
        logprob: u32::from(params.logprobs.is_some()),
    }
}

fn read(params: &SamplingParams, [token, logprob]: [u32; RESULT_WORDS]) -> Option<Choice> {
    if token == NONE {
        return None;
    }
    let logprob = params.logprobs.map(|_| TokenLogprob {
        token,
        logprob: f32::from_bits(logprob),
        top: Vec::new(),
    });
    Some((token, logprob))
}
