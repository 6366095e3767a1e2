//! Plans of steps: how much they take of prompts, and those made before the results of the step in
//! front are known.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use kvant_engine::{
    Constraint, FinishReason, GenerateRequest, PhaseKind, Pooling, Sampled, SamplingParams,
    Scheduler, SchedulerLimits, SeqId, Step, StopRules, TokenEvent, TokenId, TokenMask,
};

const LIMITS: SchedulerLimits = SchedulerLimits { sequences: 4, cache_pages: 8, staging_tiles: 8 };
const STOP: TokenId = 3;

fn request(prompt: Vec<TokenId>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        sampling: SamplingParams::default().into(),
        stop: StopRules {
            max_tokens,
            min_tokens: 0,
            eos_tokens: vec![STOP],
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: None,
        pooling: None,
    }
}

/// The results of a step: of everything that is asked for, one and the same token.
fn say(step: &Step, token: TokenId) -> Vec<Sampled> {
    let rows = step.decode.iter().map(|row| (row.seq, &row.sample));
    let chunks = step.prefill.iter().map(|chunk| (chunk.seq, &chunk.sample));
    let asked = rows.chain(chunks).filter(|(_, sample)| sample.is_some());
    let said = |(seq, _)| Sampled {
        seq,
        prompt: Vec::new(),
        token: Some(token),
        logprob: None,
        pooled: None,
    };
    asked.map(said).collect()
}

/// Sequences in decode with one token each.
fn decoding(requests: Vec<GenerateRequest>) -> (Scheduler, Vec<SeqId>) {
    let mut scheduler = Scheduler::new(LIMITS);
    let seqs = requests.into_iter().map(|request| scheduler.submit(request)).collect();
    let step = scheduler.plan(1000);
    let results = say(&step, 7);
    scheduler.commit(&step, results);
    (scheduler, seqs)
}

fn rows(step: &Step) -> Vec<(u64, u32, u32, Option<u32>)> {
    let row = |row: &kvant_engine::DecodeRow| {
        assert_eq!(row.tokens, [0]);
        (row.seq.0, row.position, row.sample.as_ref().unwrap().index, row.follows)
    };
    step.decode.iter().map(row).collect()
}

#[test]
fn the_rows_of_a_step_ahead_are_those_that_go_on() {
    let mut scheduler = Scheduler::new(LIMITS);
    for (prompt, tokens) in [(10, 3), (63, 2), (20, 3)] {
        scheduler.submit(request(vec![1; prompt], tokens));
    }
    // Also behind prompts: their first tokens are taken like others.
    let prompts = scheduler.plan(1000);
    let first = scheduler.plan_ahead(&prompts).unwrap();
    let all = [(0, 10, 1, Some(0)), (1, 63, 1, Some(1)), (2, 20, 1, Some(2))];
    assert_eq!(rows(&first), all);
    let results = say(&prompts, 7);
    assert_eq!(scheduler.commit(&prompts, results).len(), 3);
    // The second sequence ends with the token of that step, whatever it is.
    let second = scheduler.plan_ahead(&first).unwrap();
    assert_eq!(rows(&second), [(0, 11, 2, Some(0)), (2, 21, 2, Some(2))]);
    assert_eq!(scheduler.pool().used(), 3, "nobody needs a page yet");
    let results = say(&first, 8);
    assert_eq!(scheduler.commit(&first, results).len(), 4);
    assert!(scheduler.plan_ahead(&second).is_none(), "all end");
    let results = say(&second, 9);
    let emits = scheduler.commit(&second, results);
    let done = |event: &TokenEvent| match event {
        TokenEvent::Done { usage, .. } => Some(usage.output_tokens),
        _ => None,
    };
    let done: Vec<_> = emits.iter().filter_map(|emit| done(&emit.event)).collect();
    assert_eq!(done, [3, 3]);
    assert!(scheduler.is_idle());
    scheduler.check();
}

#[test]
fn results_of_sequences_that_have_ended_are_dropped() {
    let requests = (0..3).map(|_| request(vec![1; 10], 50)).collect();
    let (mut scheduler, seqs) = decoding(requests);
    let step = scheduler.plan(1000);
    let ahead = scheduler.plan_ahead(&step).unwrap();
    // The first stops, the second leaves; both are in the step ahead.
    let mut results = say(&step, 7);
    results[0].token = Some(STOP);
    let emits = scheduler.commit(&step, results);
    let TokenEvent::Done { reason, usage } = &emits[0].event else { panic!("{emits:?}") };
    assert_eq!((*reason, usage.output_tokens), (FinishReason::Stop(STOP), 2));
    assert_eq!(scheduler.cancel(seqs[1]), Some(PhaseKind::Decode));
    let next = scheduler.plan_ahead(&ahead).unwrap();
    assert_eq!(rows(&next), [(2, 12, 3, Some(2))], "by their rows of the step that still has all");
    let results = say(&ahead, 8);
    assert_eq!(results.len(), 3);
    let emits = scheduler.commit(&ahead, results);
    assert!(emits.iter().all(|emit| emit.seq == seqs[2]) && emits.len() == 1, "{emits:?}");
    scheduler.check();
}

/// What is allowed does not matter here.
#[derive(Debug)]
struct Anything;

impl Constraint for Anything {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        mask.insert(7);
        Ok(())
    }

    fn take(&mut self, _: TokenId) -> Result<bool, String> {
        Ok(false)
    }
}

#[test]
fn no_step_runs_ahead_of_what_the_host_must_read_or_know() {
    let with = |change: fn(&mut GenerateRequest)| {
        let mut request = request(vec![1; 10], 50);
        change(&mut request);
        request
    };
    let params = |params: SamplingParams| {
        let mut request = request(vec![1; 10], 50);
        request.sampling = params.into();
        request
    };
    let cases = [
        ("plain", true, with(|_| ())),
        ("seeded", true, params(SamplingParams { seed: 5, top_p: 0.9, ..plain() })),
        ("of the chosen", true, params(SamplingParams { logprobs: Some(0), ..plain() })),
        ("constrained", false, with(|request| request.constraint = Some(Box::new(Anything)))),
        ("pooled", false, with(|request| request.pooling = Some(Pooling::Last))),
        ("of the prompt", false, with(|request| request.prompt_logprobs = Some(0))),
        ("not yet to end", false, with(|request| request.stop.min_tokens = 20)),
        ("of others too", false, params(SamplingParams { logprobs: Some(1), ..plain() })),
        ("biased", false, params(SamplingParams { logit_bias: vec![(1, 2.0)], ..plain() })),
        ("penalised", false, params(SamplingParams { presence_penalty: 0.5, ..plain() })),
    ];
    for (what, ahead, asked) in cases {
        let mut scheduler = Scheduler::new(LIMITS);
        // Among others that could.
        scheduler.submit(request(vec![1; 10], 50));
        scheduler.submit(asked);
        let mut step = scheduler.plan(1000);
        scheduler.constrain(&mut step);
        assert_eq!(scheduler.plan_ahead(&step).is_some(), ahead, "{what}");
        if matches!(what, "pooled" | "of the prompt") {
            continue;
        }
        let results = say(&step, 7);
        scheduler.commit(&step, results);
        let mut step = scheduler.plan(1000);
        scheduler.constrain(&mut step);
        assert_eq!(scheduler.plan_ahead(&step).is_some(), ahead, "{what}, in decode");
    }
}

fn plain() -> SamplingParams {
    SamplingParams::default()
}

#[test]
fn rows_in_decode_take_nothing_from_a_prompt_that_fills_its_steps() {
    let requests = (0..2).map(|_| request(vec![1; 10], 50)).collect();
    let (mut scheduler, _) = decoding(requests);
    let prompt = scheduler.submit(request(vec![1; 128], 50));
    for start in [0, 64] {
        let step = scheduler.plan(64);
        let chunks: Vec<_> =
            step.prefill.iter().map(|chunk| (chunk.seq, chunk.start, chunk.tokens.len())).collect();
        assert_eq!((step.decode.len(), chunks), (2, vec![(prompt, start, 64)]));
        let results = say(&step, 7);
        scheduler.commit(&step, results);
    }
    let step = scheduler.plan(64);
    assert_eq!((step.decode.len(), step.prefill.len()), (3, 0));
}

#[test]
fn no_step_runs_ahead_of_prompts_or_of_who_could_begin() {
    let (mut scheduler, _) = decoding(vec![request(vec![1; 10], 50)]);
    // A prompt that takes two steps.
    scheduler.submit(request(vec![1; 40], 50));
    let step = scheduler.plan(30);
    assert_eq!((step.decode.len(), step.prefill.len()), (1, 1));
    assert!(scheduler.plan_ahead(&step).is_none(), "the rest of the prompt comes next");
    let results = say(&step, 7);
    scheduler.commit(&step, results);
    let step = scheduler.plan(30);
    assert!(step.prefill[0].is_last());
    let waiting = scheduler.submit(request(vec![1; 10], 50));
    assert!(scheduler.plan_ahead(&step).is_none(), "there is room for the one that waits");
    scheduler.cancel(waiting);
    assert!(scheduler.plan_ahead(&step).is_some());
    // No place: all four are taken.
    let requests = (0..4).map(|number| request(vec![1; 10], 50 + number)).collect();
    let (mut scheduler, _) = decoding(requests);
    scheduler.submit(request(vec![1; 10], 50));
    let mut step = scheduler.plan(1000);
    for _ in 0..47 {
        let ahead = scheduler.plan_ahead(&step).expect("nobody can begin");
        let results = say(&step, 7);
        scheduler.commit(&step, results);
        step = ahead;
    }
    // The first one ends with its 50th token, and then there is a place.
    assert_eq!(step.decode[0].sample.as_ref().unwrap().index, 48);
    let ahead = scheduler.plan_ahead(&step).unwrap();
    let results = say(&step, 7);
    scheduler.commit(&step, results);
    assert!(scheduler.plan_ahead(&ahead).is_none(), "the one that waits begins next");
}

#[test]
fn nobody_is_preempted_for_a_step_ahead() {
    let requests = (0..4).map(|_| request(vec![1; 63], 100)).collect();
    let (mut scheduler, _) = decoding(requests);
    // Each has a page, which the token of this step fills. There are four more.
    let step = scheduler.plan(1000);
    let ahead = scheduler.plan_ahead(&step).expect("a page for each");
    assert_eq!(scheduler.pool().free(), 0);
    let mut step = step;
    let mut next = Some(ahead);
    let mut steps = 0;
    while let Some(ahead) = next {
        let results = say(&step, 7);
        scheduler.commit(&step, results);
        scheduler.check();
        step = ahead;
        next = scheduler.plan_ahead(&step);
        steps += 1;
    }
    assert_eq!(steps, 64, "to the end of the second page");
    assert!(scheduler.take_preempted().is_empty());
    let results = say(&step, 7);
    scheduler.commit(&step, results);
    scheduler.plan(1000);
    assert_eq!(scheduler.take_preempted().len(), 2, "the plan itself makes room");
    scheduler.check();
}
