//! Constraints by script over the built-in model: what they allow is what comes, whoever else is in
//! the batch and whatever is preempted; one that fails ends its own sequence.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod tiny;

use std::time::Duration;

use kvant_engine::{
    Constraint, FinishReason, GenerateRequest, Handle, Health, SamplingParams, StopRules,
    TokenEvent, TokenId, TokenMask, TokenStream,
};
use tiny::start;

const VOCAB: u32 = 2048;
const EOS: TokenId = 5;

/// What goes wrong after so many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    Allow,
    Take,
    Panic,
    Nothing,
}

/// Allows a fifth of the vocabulary, which one depends on the tokens so far.
#[derive(Debug)]
struct Fifths {
    taken: Vec<TokenId>,
    length: usize,
    trouble: Option<(usize, Trouble)>,
}

impl Fifths {
    fn new(length: usize) -> Self {
        Self { taken: Vec::new(), length, trouble: None }
    }

    fn failing(at: usize, trouble: Trouble) -> Self {
        Self { trouble: Some((at, trouble)), ..Self::new(100) }
    }

    fn is(&self, trouble: Trouble) -> bool {
        self.trouble == Some((self.taken.len(), trouble))
    }
}

/// Which fifth comes after some tokens.
fn fifth(taken: &[TokenId]) -> u32 {
    taken.iter().fold(0, |sum, token| (sum * 3 + token + 1) % 5)
}

impl Constraint for Fifths {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        if self.is(Trouble::Allow) {
            return Err("no more is allowed, says the script".to_owned());
        }
        assert!(!self.is(Trouble::Panic), "as the script says");
        if !self.is(Trouble::Nothing) {
            let fifth = fifth(&self.taken);
            (0..VOCAB).filter(|token| token % 5 == fifth).for_each(|token| mask.insert(token));
        }
        Ok(())
    }

    fn take(&mut self, token: TokenId) -> Result<bool, String> {
        if self.is(Trouble::Take) {
            return Err("this one is not taken, says the script".to_owned());
        }
        assert_eq!(token % 5, fifth(&self.taken), "only what was allowed is told");
        self.taken.push(token);
        Ok(self.taken.len() == self.length)
    }
}

fn request(number: usize, constraint: Option<Fifths>) -> GenerateRequest {
    let prompt: Vec<u32> =
        (0..=number * 17).map(|at| ((at * 131 + number * 977) % 2000) as u32).collect();
    let params = SamplingParams {
        temperature: (number % 3) as f32 * 0.5,
        top_k: number.is_multiple_of(5).then_some(40),
        repetition_penalty: if number.is_multiple_of(2) { 1.1 } else { 1.0 },
        seed: number as u64,
        ..SamplingParams::default()
    };
    GenerateRequest {
        prompt: prompt.into(),
        sampling: params.into(),
        stop: StopRules {
            max_tokens: 130,
            min_tokens: 0,
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: constraint.map(|constraint| Box::new(constraint) as Box<dyn Constraint>),
        pooling: None,
    }
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Done(FinishReason, u32),
    Stuck(String),
}

fn read(mut stream: TokenStream) -> (Vec<TokenId>, End, u32) {
    let mut tokens = Vec::new();
    loop {
        match stream.blocking_recv().expect("streams end with an event") {
            TokenEvent::Token { token, .. } => tokens.push(token),
            TokenEvent::Done { reason, usage } => {
                return (tokens, End::Done(reason, usage.output_tokens), usage.preemptions);
            }
            TokenEvent::Stuck(why) => return (tokens, End::Stuck(why), 0),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn all(handle: &Handle, requests: Vec<GenerateRequest>) -> Vec<(Vec<TokenId>, End, u32)> {
    let streams: Vec<_> =
        requests.into_iter().map(|request| handle.submit(request).unwrap()).collect();
    streams.into_iter().map(read).collect()
}

/// Odd ones are constrained.
fn mixed(number: usize) -> GenerateRequest {
    request(number, (number % 2 == 1).then(|| Fifths::new(40 + 5 * number)))
}

#[test]
fn constrained_rows_obey_and_change_no_neighbour_and_survive_preemption() {
    let roomy = start("auto", 200, 512, 16);
    let alone: Vec<_> = (0..12).map(|number| all(&roomy, vec![mixed(number)]).remove(0)).collect();
    for (number, (tokens, end, _)) in alone.iter().enumerate() {
        if number % 2 == 1 {
            let length = 40 + 5 * number;
            assert_eq!(*end, End::Done(FinishReason::Complete, length as u32), "{number}");
            for (at, token) in tokens.iter().enumerate() {
                assert_eq!(token % 5, fifth(&tokens[..at]), "{number}: token {at}");
            }
        } else {
            assert_eq!(*end, End::Done(FinishReason::Length, 130), "{number}");
        }
    }
    assert_eq!(all(&roomy, (0..12).map(mixed).collect()), alone, "twelve at once");
    let tight = all(&start("auto", 10, 64, 16), (0..12).map(mixed).collect());
    let preempted = |(_, _, preemptions): &(_, _, u32)| *preemptions > 0;
    assert!(tight.iter().skip(1).step_by(2).any(preempted), "no constrained one was preempted");
    for (number, (found, expected)) in tight.iter().zip(&alone).enumerate() {
        assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{number} with few pages");
    }
}

#[test]
fn a_constraint_that_fails_ends_its_sequence_and_no_other() {
    let handle = start("auto", 200, 512, 16);
    let neighbour = all(&handle, vec![request(6, None)]).remove(0);
    for (trouble, told) in [
        (Trouble::Allow, "no more is allowed, says the script"),
        (Trouble::Take, "this one is not taken, says the script"),
        (Trouble::Panic, "the constraint of the output has failed"),
        (
            Trouble::Nothing,
            "no token is allowed here by the constraint of the output and the other rules",
        ),
    ] {
        for at in [0, 7] {
            let failing = request(3, Some(Fifths::failing(at, trouble)));
            let mut results = all(&handle, vec![request(6, None), failing]);
            let (tokens, end, _) = results.pop().unwrap();
            assert_eq!((tokens.len(), end), (at, End::Stuck(told.to_owned())), "{trouble:?}");
            assert_eq!(results.pop().unwrap(), neighbour, "{trouble:?}: the neighbour");
        }
    }
    assert_eq!(handle.health(), Health::Ok);
    // Counters are published after the events.
    let start = std::time::Instant::now();
    while handle.gauges().running > 0 || handle.gauges().pages_used > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", handle.gauges());
        std::thread::yield_now();
    }
}

/// Allows the end token and one other.
#[derive(Debug)]
struct OneOrEnd(TokenId);

impl Constraint for OneOrEnd {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        mask.insert(self.0);
        mask.insert(EOS);
        Ok(())
    }

    fn take(&mut self, token: TokenId) -> Result<bool, String> {
        assert_eq!(token, self.0, "an end token is not told");
        Ok(false)
    }
}

#[test]
fn end_tokens_and_biases_and_log_probabilities_work_under_a_constraint() {
    let handle = start("auto", 200, 512, 16);
    let mut ended = request(0, None);
    ended.constraint = Some(Box::new(OneOrEnd(7)));
    ended.stop.eos_tokens = vec![EOS];
    ended.stop.min_tokens = 4;
    let mut params = SamplingParams {
        temperature: 0.0,
        logit_bias: vec![(EOS, 100.0)],
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    ended.sampling = params.clone().into();
    let mut stream = handle.submit(ended).unwrap();
    let mut tokens = Vec::new();
    let mut first = None;
    let end = loop {
        match stream.blocking_recv().unwrap() {
            TokenEvent::Token { token, logprob } => {
                tokens.push(token);
                first = first.or(logprob);
            }
            TokenEvent::Done { reason, .. } => break reason,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!((tokens, end), (vec![7, 7, 7, 7], FinishReason::Stop(EOS)));
    params.logit_bias = Vec::new();
    let mut free = request(0, None);
    free.sampling = params.into();
    let mut stream = handle.submit(free).unwrap();
    let Some(TokenEvent::Token { logprob, .. }) = stream.blocking_recv() else { panic!() };
    // The model's own distribution, whatever the constraint forbids.
    assert_eq!(first.unwrap().top, logprob.unwrap().top);
}
