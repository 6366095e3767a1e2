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
    result: 0,
};
/// Bytes of a row's rules.
const RULE_BYTES: usize = size_of::<SampleRowParams>();
/// Words of a row's result: its token and the log-probability.
const RESULT_WORDS: usize = 2;

/// Buffers of the rules and results of a step's rows; they grow to the largest step. There are
/// results of two steps: one is read while the next one is written.
#[derive(Debug)]
pub(super) struct DeviceSampler {
    gpu: Gpu,
    buffers: Option<(GpuBuffer, GpuResults)>,
    side: Side,
}

/// Which of the two a step's results are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Side {
    #[default]
    First,
    Second,
}

impl DeviceSampler {
    pub(super) fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), buffers: None, side: Side::default() }
    }

    /// Rows that there is room for: the buffers are others when they have grown.
    pub(super) fn room(&self) -> usize {
        self.buffers.as_ref().map_or(0, |(rules, _)| rules.bytes() / RULE_BYTES)
    }

    /// Where the results of the step go that has begun last.
    pub(super) fn side(&self) -> Side {
        self.side
    }

    /// Uploads the rules of a step's rows, which are `filled` up with idle ones.
    pub(super) fn begin(&mut self, rows: &[Sampling<'_>], filled: usize) -> Result<(), GpuError> {
        let count = rows.len().max(filled);
        if self.room() < count {
            let room = count.next_power_of_two();
            let rules = self.gpu.alloc(room * RULE_BYTES)?;
            self.buffers = Some((rules, self.gpu.alloc_results(2 * room * RESULT_WORDS)?));
        }
        self.side = match self.side {
            Side::First => Side::Second,
            Side::Second => Side::First,
        };
        let first = self.first(self.side) as u32;
        let Some((buffer, _)) = &self.buffers else { return Ok(()) };
        let idle = std::iter::repeat_n(IDLE, count - rows.len());
        let rules = rows.iter().map(|row| rule(row.sample)).chain(idle).zip(first..);
        let words = rules.flat_map(|(rule, result)| SampleRowParams { result, ..rule }.words());
        let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        self.gpu.write(buffer, 0, &bytes)
    }

    /// The first row of results of a side.
    fn first(&self, side: Side) -> usize {
        match side {
            Side::First => 0,
            Side::Second => self.room(),
        }
    }

    /// Chooses after some rows, the first of them the `first` of the step; their tokens are left in
    /// `chosen` too. logits: `[rows, vocab]`
    pub(super) fn launch(
        &self,
        logits: &Tensor,
        (first, rows): (usize, usize),
        chosen: Place<'_>,
    ) -> Result<(), GpuError> {
        let Some((rules, results)) = &self.buffers else { return Ok(()) };
        chosen.holds("tokens", rows * size_of::<u32>())?;
        let vocab = logits.elem_count() / rows.max(1);
        let args = [
            Arg::In(Place::tensor(logits)?),
            Arg::In(Place::buffer(rules, first * RULE_BYTES)?),
            Arg::Out(Place::results(results, 0)?),
            Arg::Out(chosen),
        ];
        let params = SampleParams { vocab: vocab as u32 };
        self.gpu.launch((self.gpu.ops(), Kernel::Sample), [rows, 1, 1], &args, &params)
    }

    /// Fills in the tokens of rows that the kernel knows, once the host has waited for them.
    pub(super) fn finish(
        &self,
        (rows, side): (&[Sampling<'_>], Side),
        choices: &mut [Option<Choice>],
    ) -> Result<(), GpuError> {
        let Some((_, results)) = &self.buffers else { return Ok(()) };
        let first = self.first(side);
        let words = results.read(first * RESULT_WORDS..(first + rows.len()) * RESULT_WORDS)?;
        let results = words.as_chunks::<RESULT_WORDS>().0.iter();
        for ((row, choice), result) in rows.iter().zip(choices).zip(results) {
            if row.sample.is_plain() {
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
        result: 0,
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
