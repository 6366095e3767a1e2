//! The engine's thread with a runner that queues steps: it keeps one in front of the one whose
//! results it takes, and clients hear what they hear without that.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kvant_engine::{
    Engine, EngineOptions, FinishReason, GenerateRequest, Handle, Health, Heartbeat, RunError,
    Runner, Sampled, SamplingParams, SeqId, Step, StopRules, TokenEvent, TokenId, TokenStream,
};

/// How long a test waits for what must happen soon.
const SOON: Duration = Duration::from_secs(10);
const STOP: TokenId = 0;

/// What a test says to a runner and sees of it.
#[derive(Default)]
struct Shared {
    /// Steps wait while it is set.
    hold: AtomicBool,
    fail: AtomicBool,
    /// Steps that followed on one that was not read yet.
    followed: AtomicUsize,
    /// Steps that were never read, when the runner has gone.
    unread: AtomicUsize,
    gone: AtomicBool,
}

/// Computes a step when it is queued, as a GPU would: from its own memory.
struct Queued {
    shared: Arc<Shared>,
    follows: bool,
    /// The tokens of each sequence that were computed, without those of its output that were
    /// computed again.
    computed: HashMap<SeqId, Vec<TokenId>>,
    queue: VecDeque<Vec<Sampled>>,
}

/// What comes after some tokens: another one, now and then the end.
fn next(tokens: &[TokenId]) -> TokenId {
    let mix = |sum: u64, token: &TokenId| {
        (sum ^ u64::from(*token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    };
    let sum = tokens.iter().fold(tokens.len() as u64, mix);
    if sum.is_multiple_of(40) { STOP } else { 1 + (sum >> 32) as u32 % 1000 }
}

impl Queued {
    fn compute(&mut self, step: &Step) {
        let last = self.queue.back();
        let of_last = |result: u32| last.and_then(|last| last[result as usize].token).unwrap();
        let mut sampled = Vec::new();
        let rows = step.decode.iter().map(|row| {
            let tokens = row.follows.map_or(row.tokens.clone(), |result| vec![of_last(result)]);
            (row.seq, row.position, tokens, &row.sample)
        });
        let chunks = step
            .prefill
            .iter()
            .map(|chunk| (chunk.seq, chunk.start, chunk.tokens.clone(), &chunk.sample));
        for (seq, at, tokens, sample) in rows.chain(chunks) {
            let computed = self.computed.entry(seq).or_default();
            assert!(computed.len() >= at as usize, "a hole before position {at}");
            computed.truncate(at as usize);
            computed.extend(tokens);
            if sample.is_some() {
                let token = Some(next(computed));
                let (prompt, logprob, pooled) = (Vec::new(), None, None);
                sampled.push(Sampled { seq, prompt, token, logprob, pooled });
            }
        }
        self.queue.push_back(sampled);
        assert!(self.queue.len() <= 2);
    }
}

impl Runner for Queued {
    fn run(&mut self, step: &Step, alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        self.start(step, alive)?;
        self.finish(step, alive)
    }

    fn start(&mut self, step: &Step, _: &Heartbeat) -> Result<(), RunError> {
        assert!(self.queue.is_empty(), "a step is begun while one is in the queue");
        self.compute(step);
        Ok(())
    }

    fn follows(&self) -> bool {
        self.follows
    }

    fn follow(&mut self, step: &Step, _: &Heartbeat) -> Result<bool, RunError> {
        assert_eq!(self.queue.len(), 1);
        let number = self.shared.followed.load(Relaxed);
        // It refuses one now and then.
        self.shared.followed.store(number + 1, Relaxed);
        let takes = number % 10 != 9;
        if takes {
            self.compute(step);
        }
        Ok(takes)
    }

    fn finish(&mut self, _: &Step, _: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        while self.shared.hold.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.shared.fail.load(Relaxed) {
            return Err(RunError::Cache(kvant_kv_cache::Error::Closed { key: 7 }));
        }
        // Slow enough that a sequence does not end before it is looked at.
        std::thread::sleep(Duration::from_millis(1));
        Ok(self.queue.pop_front().expect("a step was started"))
    }

    fn forget(&mut self, _: SeqId) {}
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.shared.unread.store(self.queue.len(), Relaxed);
        self.shared.gone.store(true, Relaxed);
    }
}

fn start(follows: bool, stall: Duration) -> (Arc<Shared>, Handle) {
    let shared = Arc::<Shared>::default();
    let (computed, queue) = (HashMap::new(), VecDeque::new());
    let runner = Queued { shared: shared.clone(), follows, computed, queue };
    let handle = Engine::start(
        runner,
        EngineOptions {
            sequences: 6,
            step_tokens: 64,
            waiting_requests: 100,
            waiting_tokens: 50_000,
            context_tokens: 600,
            // Too few for six long sequences.
            cache_pages: 16,
            staging_tokens: 512,
            vocab: 5000,
            unread_tokens: 1024,
            stall,
        },
    );
    (shared, handle)
}

fn request(number: u32, max_tokens: u32) -> GenerateRequest {
    let length = 1 + number * 37 % 200;
    GenerateRequest {
        prompt: (0..length).map(|at| 1 + (at * 7 + number * 31) % 1000).collect(),
        // Every seventh goes by rules that the host must know.
        sampling: SamplingParams {
            presence_penalty: if number % 7 == 6 { 0.5 } else { 0.0 },
            ..SamplingParams::default()
        }
        .into(),
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

/// What a stream says, to its end.
fn heard(mut stream: TokenStream) -> (Vec<TokenId>, FinishReason, u32) {
    let mut tokens = Vec::new();
    loop {
        match stream.blocking_recv().expect("streams end with Done") {
            TokenEvent::Token { token, .. } => tokens.push(token),
            TokenEvent::Done { reason, usage } => return (tokens, reason, usage.output_tokens),
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// What a request must hear.
fn expected(number: u32, max_tokens: u32) -> (Vec<TokenId>, FinishReason, u32) {
    let mut all = request(number, max_tokens).prompt.to_vec();
    let mut tokens = Vec::new();
    while tokens.len() < max_tokens as usize {
        let token = next(&all);
        if token == STOP {
            let count = tokens.len() as u32 + 1;
            return (tokens, FinishReason::Stop(STOP), count);
        }
        tokens.push(token);
        all.push(token);
    }
    (tokens, FinishReason::Length, max_tokens)
}

fn until(what: &str, wanted: impl Fn() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn clients_hear_the_same_whether_it_runs_ahead_or_not() {
    for follows in [false, true] {
        let (shared, handle) = start(follows, SOON);
        let (mut streams, mut left) = (Vec::new(), Vec::new());
        let mut tokens = 0;
        for number in 0..60 {
            let max_tokens = 1 + number * 53 % 190;
            let stream = handle.submit(request(number, max_tokens)).unwrap();
            if number % 9 == 8 {
                left.push(stream);
            } else {
                streams.push((number, max_tokens, stream));
            }
            if number % 12 == 11 {
                std::thread::sleep(Duration::from_millis(2));
                left.clear();
            }
        }
        drop(left);
        for (number, max_tokens, stream) in streams {
            let heard = heard(stream);
            assert_eq!(heard, expected(number, max_tokens), "request {number}");
            tokens += u64::from(heard.2);
        }
        let idle = || {
            let gauges = handle.gauges();
            (gauges.running, gauges.pages_used, gauges.waiting) == (0, 0, 0)
        };
        until("all is given back", idle);
        let gauges = handle.gauges();
        assert!(gauges.output_tokens >= tokens, "those of who left come on top");
        assert_eq!(gauges.steps_ahead > 0, follows, "{gauges:?}");
        assert!(shared.followed.load(Relaxed) as u64 >= gauges.steps_ahead);
        assert!(gauges.steps_ahead < gauges.steps);
        assert_eq!(handle.health(), Health::Ok);
    }
}

#[test]
fn tokens_that_are_dropped_are_not_counted() {
    let (_, handle) = start(true, SOON);
    // One after the other, so that all that is heard is all that is counted.
    let all = (0..30).filter(|number| number % 7 != 6);
    let mut tokens = 0;
    for number in all {
        let heard = heard(handle.submit(request(number, 150)).unwrap());
        assert_eq!(heard, expected(number, 150));
        tokens += u64::from(heard.2);
    }
    let gauges = handle.gauges();
    assert_eq!(gauges.output_tokens, tokens);
    // Every one that stops has a step ahead that is dropped, most of the time.
    assert!(gauges.steps > tokens && gauges.steps_ahead > tokens / 2, "{gauges:?} {tokens}");
}

#[test]
fn no_step_is_left_unread() {
    let (shared, handle) = start(true, SOON);
    let streams: Vec<_> =
        (0..4).map(|number| handle.submit(request(number, 190)).unwrap()).collect();
    until("it runs ahead", || handle.gauges().steps_ahead > 5);
    drop((streams, handle));
    until("the engine has ended", || shared.gone.load(Relaxed));
    assert_eq!(shared.unread.load(Relaxed), 0);
}

#[test]
fn draining_finishes_what_runs_ahead() {
    let (shared, handle) = start(true, SOON);
    let stream = handle.submit(request(1, 100)).unwrap();
    handle.drain();
    assert_eq!(heard(stream), expected(1, 100));
    drop(handle);
    until("the engine has ended", || shared.gone.load(Relaxed));
    assert_eq!(shared.unread.load(Relaxed), 0);
}

#[test]
fn a_stall_or_an_error_with_a_step_ahead_is_seen() {
    let (shared, handle) = start(true, Duration::from_millis(50));
    let mut streams: Vec<_> =
        (0..3).map(|number| handle.submit(request(number, 190)).unwrap()).collect();
    until("it runs ahead", || handle.gauges().steps_ahead > 0);
    shared.hold.store(true, Relaxed);
    until("the stall is seen", || matches!(handle.health(), Health::Stalled(_)));
    shared.hold.store(false, Relaxed);
    until("it goes on", || handle.health() == Health::Ok);
    shared.hold.store(true, Relaxed);
    streams.push(handle.submit(request(3, 190)).unwrap());
    shared.fail.store(true, Relaxed);
    shared.hold.store(false, Relaxed);
    let last = |mut stream: TokenStream| {
        let mut last = None;
        while let Some(event) = stream.blocking_recv() {
            last = Some(event);
        }
        last.unwrap()
    };
    for stream in streams {
        let last = last(stream);
        assert!(matches!(last, TokenEvent::Failed(_) | TokenEvent::Done { .. }), "{last:?}");
    }
    assert!(matches!(handle.health(), Health::Dead(why) if why.contains("sequence 7")));
}
