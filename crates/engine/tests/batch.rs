//! The built-in model through the whole engine: a sequence's tokens are the same alone, among
//! others, cut into chunks, and after preemption; log-probabilities agree with the decoder's own.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod tiny;

use kvant_engine::{
    AttentionRoad, GenerateRequest, Handle, Pooling, SamplingParams, StopRules, TokenEvent,
    TokenLogprob,
};
use tiny::{CONTEXT, start, start_on};

/// The `number`th of sixteen requests that differ in everything.
fn request(number: usize) -> GenerateRequest {
    let length = 1 + number * 17;
    let prompt: Vec<u32> =
        (0..length).map(|at| ((at * 131 + number * 977) % 2000) as u32).collect();
    let params = SamplingParams {
        temperature: (number % 4) as f32 * 0.4,
        top_p: if number.is_multiple_of(3) { 0.9 } else { 1.0 },
        top_k: (number % 5 == 1).then_some(40),
        repetition_penalty: if number.is_multiple_of(2) { 1.1 } else { 1.0 },
        seed: 1000 + number as u64,
        ..SamplingParams::default()
    };
    GenerateRequest {
        prompt: prompt.into(),
        sampling: params.into(),
        stop: StopRules {
            max_tokens: 120 + number as u32 * 4,
            min_tokens: 0,
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: None,
        pooling: None,
    }
}

/// Tokens and preemptions of some requests submitted at once.
fn outputs(handle: &Handle, numbers: &[usize]) -> Vec<(Vec<u32>, u32)> {
    let streams: Vec<_> =
        numbers.iter().map(|number| handle.submit(request(*number)).unwrap()).collect();
    let output = |mut stream: kvant_engine::TokenStream| {
        let mut tokens = Vec::new();
        loop {
            match stream.blocking_recv().expect("streams end with Done") {
                TokenEvent::Token { token, .. } => tokens.push(token),
                TokenEvent::Done { usage, .. } => return (tokens, usage.preemptions),
                other => panic!("unexpected {other:?}"),
            }
        }
    };
    streams.into_iter().map(output).collect()
}

#[test]
fn tokens_do_not_depend_on_neighbours_chunks_or_preemption() {
    let all: Vec<usize> = (0..16).collect();
    let mut of_presets = Vec::new();
    for preset in ["f16", "auto", "tq3"] {
        let roomy = start(preset, 200, 512, 16);
        let alone: Vec<_> =
            all.iter().map(|number| outputs(&roomy, &[*number]).remove(0)).collect();
        for (number, (tokens, preemptions)) in alone.iter().enumerate() {
            assert_eq!((tokens.len(), *preemptions), (120 + number * 4, 0), "{number}");
        }
        let together = outputs(&roomy, &all);
        assert_eq!(together, alone, "{preset}: sixteen at once");
        let small_steps = start(preset, 200, 16, 16);
        assert_eq!(outputs(&small_steps, &all), alone, "{preset}: prompts in chunks of sixteen");
        // Room for hardly more than one of the longest.
        let tight = start(preset, 12, 64, 16);
        let preempted = outputs(&tight, &all);
        assert!(preempted.iter().any(|(_, preemptions)| *preemptions > 0), "none was preempted");
        for (number, ((tokens, _), (expected, _))) in preempted.iter().zip(&alone).enumerate() {
            assert_eq!(tokens, expected, "{preset}: sequence {number} with few pages");
        }
        of_presets.push(alone);
    }
    assert_ne!(of_presets[0], of_presets[2], "three bits leave no trace");
}

#[test]
fn prompts_longer_than_staging_do_not_depend_on_neighbours_chunks_or_preemption() {
    let all: Vec<usize> = (0..16).collect();
    for preset in ["f16", "tq3"] {
        // Two tiles: the newest two pages of a prompt of up to four.
        let small = |pages, step_tokens| {
            start_on(AttentionRoad::Fused, preset, (pages, 128), step_tokens, 16)
        };
        let roomy = small(200, 512);
        let alone: Vec<_> =
            all.iter().map(|number| outputs(&roomy, &[*number]).remove(0)).collect();
        assert_eq!(outputs(&roomy, &all), alone, "{preset}: sixteen at once");
        assert_eq!(outputs(&small(200, 16), &all), alone, "{preset}: chunks of sixteen");
        let preempted = outputs(&small(12, 64), &all);
        assert!(preempted.iter().any(|(_, preemptions)| *preemptions > 0), "none was preempted");
        let tokens = |of: &[(Vec<u32>, u32)]| of.iter().map(|o| o.0.clone()).collect::<Vec<_>>();
        assert_eq!(tokens(&preempted), tokens(&alone), "{preset}: few pages");
        let whole = outputs(&start(preset, 200, 512, 16), &all);
        let long = |number: &usize| 1 + number * 17 > 128;
        for number in all.iter().filter(|number| preset == "f16" || !long(number)) {
            assert_eq!(whole[*number], alone[*number], "{preset}: {number} with all of staging");
        }
        let differ = all.iter().any(|number| whole[*number] != alone[*number]);
        assert_eq!(differ, preset == "tq3", "{preset}: pages read packed leave a trace");
        let gauges = roomy.gauges();
        let early = all.iter().filter(|number| long(number)).count() as u64;
        assert_eq!(gauges.early_prompts, 2 * early, "{preset}");
        assert_eq!(gauges.converted_pages > 0, preset == "tq3");
        let limits = roomy.limits();
        assert_eq!((limits.early_tokens(128), limits.early_tokens(129)), (0, 64));
    }
}

#[test]
fn one_tile_of_staging_is_enough() {
    let start = |step_tokens| start_on(AttentionRoad::Fused, "tq3", (200, 64), step_tokens, 16);
    let numbers = [3, 4, 8, 15];
    let whole_pages = outputs(&start(512), &numbers);
    assert_eq!(outputs(&start(16), &numbers), whole_pages, "chunks of sixteen");
    let staged = outputs(&start_on(AttentionRoad::Fused, "tq3", (200, 512), 512, 16), &numbers);
    assert_eq!(staged[0], whole_pages[0], "52 tokens fit a tile");
    assert_ne!(staged[1..], whole_pages[1..], "pages read packed leave a trace");
}

#[test]
fn the_reference_road_has_the_probabilities_of_the_fused_one() {
    for preset in ["f16", "auto", "tq3"] {
        let [fused, reference] = [AttentionRoad::Fused, AttentionRoad::Reference].map(|road| {
            let handle = start_on(road, preset, (200, 2 * CONTEXT), 512, 4);
            let mut request = request(12);
            request.sampling =
                SamplingParams { temperature: 0.0, logprobs: Some(0), ..SamplingParams::default() }
                    .into();
            let mut stream = handle.submit(request).unwrap();
            let mut scores = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                if let TokenEvent::Token { logprob, .. } = event {
                    scores.extend(logprob);
                }
            }
            scores
        });
        assert_eq!(fused.len(), 168);
        for (at, (a, b)) in fused.iter().zip(&reference).enumerate() {
            assert_eq!(a.token, b.token, "{preset}: token {at}");
            assert!((a.logprob - b.logprob).abs() < 2e-3, "{preset}, {at}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn log_probabilities_of_prompt_and_output_are_one_distribution() {
    let handle = start("f16", 200, 512, 4);
    let greedy =
        SamplingParams { temperature: 0.0, logprobs: Some(3), ..SamplingParams::default() };
    let ask = |prompt: Vec<u32>, max_tokens, prompt_logprobs| {
        let mut request = request(0);
        request.prompt = prompt.into();
        request.sampling = greedy.clone().into();
        request.stop.max_tokens = max_tokens;
        request.prompt_logprobs = prompt_logprobs;
        let mut stream = handle.submit(request).unwrap();
        let (mut of_prompt, mut of_output) = (None, Vec::<TokenLogprob>::new());
        while let Some(event) = stream.blocking_recv() {
            match event {
                TokenEvent::Prompt(scores) => of_prompt = Some(scores),
                TokenEvent::Token { logprob, .. } => of_output.extend(logprob),
                TokenEvent::Done { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        (of_prompt, of_output)
    };
    let prompt: Vec<u32> = (0..150).map(|at| (at * 37 % 2000) as u32).collect();
    let (none, output) = ask(prompt.clone(), 30, None);
    assert_eq!((none, output.len()), (None, 30));
    for logprob in &output {
        assert_eq!(logprob.top[0], (logprob.token, logprob.logprob), "greedy takes the likeliest");
    }
    // The same tokens as a prompt have the same log-probabilities, bit for bit.
    let whole: Vec<u32> = prompt.iter().copied().chain(output.iter().map(|o| o.token)).collect();
    let (scores, _) = ask(whole.clone(), 1, Some(3));
    let scores = scores.expect("asked for");
    assert_eq!(scores.len(), whole.len() - 1);
    assert!(scores.iter().zip(&whole[1..]).all(|(score, token)| score.token == *token));
    assert_eq!(scores[prompt.len() - 1..], output);
    let (single, _) = ask(vec![5], 1, Some(0));
    assert_eq!(single, None, "one token has no successor in the prompt");
}

/// Hidden states of some prompts submitted at once.
fn pooled(handle: &Handle, prompts: &[&[u32]], pooling: Pooling) -> Vec<Vec<f32>> {
    let submit = |prompt: &&[u32]| {
        let request = GenerateRequest {
            prompt: (*prompt).into(),
            pooling: Some(pooling),
            stop: StopRules { max_tokens: 0, ..request(0).stop },
            ..request(0)
        };
        handle.submit(request).unwrap()
    };
    let streams: Vec<_> = prompts.iter().map(submit).collect();
    let hidden = |mut stream: kvant_engine::TokenStream| match stream.blocking_recv() {
        Some(TokenEvent::Pooled { hidden, usage }) => {
            assert_eq!((usage.output_tokens, stream.blocking_recv()), (0, None));
            hidden
        }
        other => panic!("unexpected {other:?}"),
    };
    streams.into_iter().map(hidden).collect()
}

#[test]
fn a_prompt_has_the_hidden_states_of_its_beginnings() {
    // 70 tokens: more than a page, more than a step of sixteen.
    let prompt: Vec<u32> = (0..70).map(|at| 3 + at * 7 % 500).collect();
    let beginnings: Vec<&[u32]> = (1..=prompt.len()).map(|end| &prompt[..end]).collect();
    let handle = start("f16", 200, 512, 16);
    let each = pooled(&handle, &beginnings, Pooling::Last);
    assert!(each.iter().all(|hidden| hidden.len() == each[0].len()) && each[0] != each[69]);
    let whole = &beginnings[69..];
    for step_tokens in [512, 16] {
        let handle = start("f16", 200, step_tokens, 16);
        assert_eq!(pooled(&handle, whole, Pooling::Last)[0], each[69], "{step_tokens}");
        assert_eq!(pooled(&handle, whole, Pooling::First)[0], each[0], "{step_tokens}");
        let mean = &pooled(&handle, whole, Pooling::Mean)[0];
        for (at, mean) in mean.iter().enumerate() {
            let sum: f64 = each.iter().map(|hidden| f64::from(hidden[at])).sum();
            assert!((f64::from(*mean) - sum / 70.0).abs() < 1e-5, "{step_tokens}: {at}");
        }
        let gauges = handle.gauges();
        assert_eq!((gauges.running, gauges.pages_used, gauges.output_tokens), (0, 0, 0));
    }
}
