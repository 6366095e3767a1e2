//! The engine's thread with a scripted runner: cancelling, overload, stall, panic, drain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvant_engine::{
    Engine, EngineOptions, FinishReason, Gauges, GenerateRequest, Handle, Health, Heartbeat,
    Rejected, RunError, Runner, Sampled, SamplingParams, SeqId, Step, StopRules, TokenEvent,
};

/// How long a test waits for what must happen soon.
const SOON: Duration = Duration::from_secs(10);

/// What the scripted runner does with a step.
#[derive(Default)]
struct Script {
    /// Steps wait while it is set.
    hold: AtomicBool,
    panic: AtomicBool,
    fail: AtomicBool,
    forgotten: Mutex<Vec<SeqId>>,
}

struct Scripted(Arc<Script>);

impl Runner for Scripted {
    fn run(&mut self, step: &Step, _: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        while self.0.hold.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!self.0.panic.load(Ordering::Relaxed), "as the script says");
        if self.0.fail.load(Ordering::Relaxed) {
            return Err(RunError::Cache(kvant_kv_cache::Error::Closed { key: 7 }));
        }
        // Slow enough that a sequence does not end before it is looked at.
        std::thread::sleep(Duration::from_millis(1));
        let decode = step.decode.iter().map(|row| (row.seq, &row.sample));
        let chunks = step.prefill.iter().map(|chunk| (chunk.seq, &chunk.sample));
        let rows = decode.chain(chunks);
        let rows = rows.filter_map(|(seq, sample)| Some((seq, sample.as_ref()?.index)));
        let say = |(seq, index)| Sampled {
            seq,
            prompt: Vec::new(),
            token: Some(10 + index),
            logprob: None,
            pooled: None,
        };
        Ok(rows.map(say).collect())
    }

    fn forget(&mut self, seq: SeqId) {
        self.0.forgotten.lock().expect("no test panics while it holds this").push(seq);
    }
}

fn start(stall: Duration) -> (Arc<Script>, Handle) {
    let script = Arc::<Script>::default();
    let handle = Engine::start(
        Scripted(script.clone()),
        EngineOptions {
            sequences: 2,
            step_tokens: 32,
            waiting_requests: 3,
            waiting_tokens: 4000,
            context_tokens: 2048,
            cache_pages: 64,
            staging_tokens: 2048,
            vocab: 5000,
            unread_tokens: 1024,
            stall,
        },
    );
    (script, handle)
}

fn request(prompt: usize, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: vec![1; prompt].into(),
        sampling: SamplingParams::default().into(),
        stop: StopRules {
            max_tokens,
            min_tokens: 0,
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: None,
        pooling: None,
    }
}

/// Waits until the gauges are as wanted.
fn until(handle: &Handle, what: &str, wanted: impl Fn(&Gauges) -> bool) {
    let start = Instant::now();
    while !wanted(&handle.gauges()) {
        assert!(start.elapsed() < SOON, "{what}: {:?}", handle.gauges());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stream_carries_its_tokens_and_ends() {
    let (_, handle) = start(SOON);
    let mut stream = handle.submit(request(100, 3)).unwrap();
    for expected in 10..13 {
        let event = stream.blocking_recv().unwrap();
        assert_eq!(event, TokenEvent::Token { token: expected, logprob: None });
    }
    let Some(TokenEvent::Done { reason, usage }) = stream.blocking_recv() else { panic!() };
    assert_eq!(reason, FinishReason::Length);
    assert_eq!((usage.prompt_tokens, usage.output_tokens), (100, 3));
    assert!(usage.prefill > Duration::ZERO && usage.decode > Duration::ZERO);
    assert_eq!(stream.blocking_recv(), None);
    let gauges = handle.gauges();
    assert_eq!((gauges.prompt_tokens, gauges.output_tokens), (100, 3));
    assert_eq!((gauges.pages_used, gauges.pages), (0, 64));
}

#[test]
fn a_dropped_stream_frees_everything_in_every_phase() {
    let (script, handle) = start(SOON);
    // Two that decode, one that waits behind them.
    let running: Vec<_> = (0..2).map(|_| handle.submit(request(10, 2000)).unwrap()).collect();
    until(&handle, "both run", |gauges| gauges.running == 2);
    let waiting = handle.submit(request(500, 10)).unwrap();
    until(&handle, "one waits", |gauges| gauges.waiting == 1);
    drop(waiting);
    until(&handle, "left the queue", |g| g.cancelled_waiting == 1 && g.waiting_tokens == 0);
    drop(running);
    until(&handle, "left decode", |g| g.cancelled_decode == 2 && g.pages_used == 0);
    // One whose prompt takes more than one step.
    let prefill = handle.submit(request(2000, 10)).unwrap();
    until(&handle, "in prefill", |gauges| gauges.staging_tokens_used > 0);
    script.hold.store(true, Ordering::Relaxed);
    drop(prefill);
    script.hold.store(false, Ordering::Relaxed);
    until(&handle, "left prefill", |g| g.cancelled_prefill + g.cancelled_decode == 3);
    until(&handle, "all free", |g| g.pages_used == 0 && g.staging_tokens_used == 0);
    until(&handle, "none left", |g| g.running == 0);
    assert_eq!(script.forgotten.lock().unwrap().len(), 4);
    assert_eq!(handle.health(), Health::Ok);
}

#[test]
fn what_is_out_of_bounds_is_refused_at_once() {
    let (script, handle) = start(SOON);
    script.hold.store(true, Ordering::Relaxed);
    for (prompt, output, refused) in [
        (0, 1, Some(Rejected::Invalid("the prompt has no tokens".into()))),
        (1, 0, Some(Rejected::Invalid("max_tokens is 0, it must be at least 1".into()))),
        (2000, 48, None),
        (2000, 49, Some(Rejected::TooLong { limit: 2048, prompt: 2000, output: 49 })),
    ] {
        let request = request(prompt, output);
        assert_eq!(handle.check(&request).err(), refused, "{prompt} {output}");
        assert_eq!(handle.submit(request).err(), refused, "{prompt} {output}");
    }
    let mut outside = request(1, 1);
    outside.prompt = vec![4999, 5000].into();
    assert!(matches!(handle.submit(outside), Err(Rejected::Invalid(_))));
    script.hold.store(false, Ordering::Relaxed);
}

#[test]
fn the_queue_is_bounded_by_requests_and_by_tokens() {
    let (script, handle) = start(SOON);
    script.hold.store(true, Ordering::Relaxed);
    let first = handle.submit(request(10, 10)).unwrap();
    // Admitted into the step that hangs.
    until(&handle, "admitted", |gauges| gauges.waiting == 0);
    let mut waiting: Vec<_> = (0..3).map(|_| handle.submit(request(1000, 10)).unwrap()).collect();
    let full = Rejected::QueueFull { waiting_requests: 3, waiting_tokens: 3000 };
    assert_eq!(handle.submit(request(10, 10)).err(), Some(full));
    waiting.pop();
    script.hold.store(false, Ordering::Relaxed);
    drop((first, waiting));
    until(&handle, "empty", |gauges| gauges.waiting == 0 && gauges.running == 0);
    script.hold.store(true, Ordering::Relaxed);
    let _first = handle.submit(request(10, 10)).unwrap();
    until(&handle, "admitted", |gauges| gauges.waiting == 0);
    let _some = [handle.submit(request(2000, 10)), handle.submit(request(2000, 10))];
    let full = Rejected::QueueFull { waiting_requests: 2, waiting_tokens: 4000 };
    assert_eq!(handle.submit(request(1, 1)).err(), Some(full));
    script.hold.store(false, Ordering::Relaxed);
}

#[test]
fn a_stalled_step_shows_in_health_and_passes() {
    let (script, handle) = start(Duration::from_millis(50));
    assert_eq!(handle.health(), Health::Ok);
    script.hold.store(true, Ordering::Relaxed);
    let mut stream = handle.submit(request(10, 1)).unwrap();
    let start = Instant::now();
    while !matches!(handle.health(), Health::Stalled(_)) {
        assert!(start.elapsed() < SOON, "{:?}", handle.health());
        std::thread::sleep(Duration::from_millis(1));
    }
    script.hold.store(false, Ordering::Relaxed);
    while stream.blocking_recv().is_some() {}
    let start = Instant::now();
    while handle.health() != Health::Ok {
        assert!(start.elapsed() < SOON, "{:?}", handle.health());
    }
}

#[test]
fn a_panic_or_an_error_ends_the_streams_and_shows_in_health() {
    for panic in [true, false] {
        let (script, handle) = start(SOON);
        script.hold.store(true, Ordering::Relaxed);
        let mut streams: Vec<_> = (0..3).map(|_| handle.submit(request(10, 10)).unwrap()).collect();
        script.panic.store(panic, Ordering::Relaxed);
        script.fail.store(!panic, Ordering::Relaxed);
        script.hold.store(false, Ordering::Relaxed);
        let what = if panic { "as the script says" } else { "sequence 7 is not open" };
        for stream in &mut streams {
            let Some(TokenEvent::Failed(why)) = stream.blocking_recv() else { panic!() };
            assert!(!why.contains(what), "clients are not told our insides: {why}");
            assert_eq!(stream.blocking_recv(), None);
        }
        assert!(matches!(handle.health(), Health::Dead(why) if why.contains(what)));
        assert_eq!(handle.submit(request(10, 10)).err(), Some(Rejected::Dead));
    }
}

#[test]
fn draining_takes_nothing_new_and_finishes_what_runs() {
    let (_, handle) = start(SOON);
    let mut stream = handle.submit(request(10, 50)).unwrap();
    handle.drain();
    assert_eq!(handle.health(), Health::Draining);
    assert_eq!(handle.submit(request(10, 10)).err(), Some(Rejected::Closing));
    let mut tokens = 0;
    while let Some(event) = stream.blocking_recv() {
        tokens += usize::from(matches!(event, TokenEvent::Token { .. }));
    }
    assert_eq!(tokens, 50);
}
