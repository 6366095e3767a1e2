//! `agreement`: two runners compute the same steps, the first one's tokens go on: how often the
//! second would have chosen the same. Where the second runs ahead, it goes on by tokens of its own
//! that nobody has read, and the first computes the same rows when they are known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use kvant_engine::{
    GenerateRequest, Heartbeat, Runner, SamplingParams, Scheduler, SchedulerLimits, SeqId, Step,
    StopRules, TokenId,
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
    /// Those of them that the second one had queued before its tokens of the step in front were
    /// read.
    pub ahead: u64,
    /// Results of sequences that had ended by then.
    pub dropped: usize,
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

/// A step with the tokens that it takes from the results of the one in front.
fn known(step: &Step, last: &[Option<TokenId>]) -> Step {
    let mut step = step.clone();
    for row in &mut step.decode {
        let result = row.follows.take().and_then(|result| *last.get(result as usize)?);
        row.tokens.iter_mut().zip(result).for_each(|(token, result)| *token = result);
    }
    step
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
    let mut under_way = None;
    let mut last = Vec::new();
    for number in 0.. {
        while let Some((_, request)) = waiting.next_if(|(at, _)| *at <= number) {
            scheduler.submit(request);
        }
        if scheduler.is_idle() && under_way.is_none() && waiting.peek().is_none() {
            break;
        }
        let step = if let Some(step) = under_way.take() {
            step
        } else {
            let step = scheduler.plan(step_tokens);
            for seq in scheduler.take_preempted() {
                reference.forget(seq);
                other.forget(seq);
            }
            if step.decode.is_empty() && step.prefill.is_empty() {
                continue;
            }
            other.start(&step, &alive)?;
            step
        };
        agreement.steps += 1;
        if other.follows()
            && let Some(next) = scheduler.plan_ahead(&step)
        {
            let queued = other.follow(&next, &alive)?;
            agreement.ahead += u64::from(queued);
            under_way = queued.then_some(next);
        }
        let wanted = reference.run(&known(&step, &last), &alive)?;
        let got = other.finish(&step, &alive)?;
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
        last = wanted.iter().map(|wanted| wanted.token).collect();
        let asked: Vec<SeqId> = wanted.iter().map(|wanted| wanted.seq).collect();
        let emits = scheduler.commit(&step, wanted);
        let told: BTreeSet<SeqId> = emits.iter().map(|emit| emit.seq).collect();
        agreement.dropped += asked.iter().filter(|seq| !told.contains(seq)).count();
        scheduler.check();
    }
    agreement.packed = other.conversions().pages;
    Ok(agreement)
}
