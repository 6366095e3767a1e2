//! `agreement`: two runners compute the same steps, the first one's tokens go on: how often the
//! second would have chosen the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvant_engine::{
    GenerateRequest, Heartbeat, Runner, SamplingParams, Scheduler, SchedulerLimits, SeqId,
    StopRules,
};

use crate::random;

/// What two runners have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Tokens that the first one chose.
    pub tokens: usize,
    /// At which the second one chose the same.
    pub same: usize,
    /// The largest difference of the log-probabilities of tokens that both chose.
    pub logprob: f32,
    /// Pages that the second one packed, each layer's for itself.
    pub packed: u64,
    /// Steps that were computed.
    pub steps: u64,
    /// How often the host has waited for the GPU in them, where one was asked.
    pub waits: u64,
}

impl Agreement {
    /// Part of the tokens that are the same, percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.same as f64 / self.tokens.max(1) as f64
    }
}

/// Greedy requests of lengths around page borders, with the step at which each comes.
pub fn sample_requests(
    vocab: u32,
    count: usize,
    output_tokens: u32,
) -> Vec<(usize, GenerateRequest)> {
    const LENGTHS: [usize; 8] = [1, 63, 64, 65, 130, 17, 200, 128];
    let request = |number: usize| {
        let mut state = random::nth(3, number as u64);
        let length = LENGTHS[number % LENGTHS.len()];
        let id = |_| (random::next(&mut state) % u64::from(vocab)) as u32;
        let prompt: Vec<u32> = (0..length).map(id).collect();
        GenerateRequest {
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams {
                temperature: 0.0,
                logprobs: Some(0),
                ..SamplingParams::default()
            }),
            // They end one after the other.
            stop: StopRules {
                max_tokens: output_tokens + number as u32 % 5,
                min_tokens: 0,
                eos_tokens: Vec::new(),
                stop_tokens: Vec::new(),
            },
            prompt_logprobs: None,
            constraint: None,
            pooling: None,
        }
    };
    (0..count).map(|number| (5 * number, request(number))).collect()
}

/// Runs the requests to their end on both.
pub fn agreement(
    reference: &mut impl Runner,
    other: &mut impl Runner,
    (limits, step_tokens): (SchedulerLimits, usize),
    requests: Vec<(usize, GenerateRequest)>,
) -> Result<Agreement> {
    let mut scheduler = Scheduler::new(limits);
    let alive = Heartbeat::new(Duration::MAX);
    let mut waiting = requests.into_iter().peekable();
    let mut agreement = Agreement::default();
    for number in 0.. {
        while let Some((_, request)) = waiting.next_if(|(at, _)| *at <= number) {
            scheduler.submit(request);
        }
        if scheduler.is_idle() && waiting.peek().is_none() {
            break;
        }
        let step = scheduler.plan(step_tokens);
        for seq in scheduler.take_preempted() {
            reference.forget(seq);
            other.forget(seq);
        }
        if step.decode.is_empty() && step.prefill.is_empty() {
            continue;
        }
        agreement.steps += 1;
        let wanted = reference.run(&step, &alive)?;
        let got = other.run(&step, &alive)?;
        let got: BTreeMap<SeqId, _> =
            got.into_iter().map(|sampled| (sampled.seq, sampled)).collect();
        ensure!(got.len() == wanted.len(), "a runner left a sequence out");
        for wanted in wanted.iter().filter(|wanted| wanted.token.is_some()) {
            let Some(got) = got.get(&wanted.seq) else { continue };
            agreement.tokens += 1;
            if got.token == wanted.token {
                agreement.same += 1;
                if let (Some(a), Some(b)) = (&got.logprob, &wanted.logprob) {
                    let difference = (a.logprob - b.logprob).abs();
                    agreement.logprob = agreement.logprob.max(difference);
                }
            }
        }
        scheduler.commit(&step, wanted);
        scheduler.check();
    }
    agreement.packed = other.conversions().pages;
    Ok(agreement)
}
