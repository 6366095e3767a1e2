//! `Engine`: the loop and its thread: take, plan, run, commit. Where the runner can, the next step
//! is planned and queued before the results of the one under way are waited for.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use kvant_kv_cache::{Conversions, PAGE_TOKENS, pages_for};
use tokio::sync::mpsc::{self, error::TryRecvError};

use crate::handle::{Handle, Limits, Shared, Submission};
use crate::pace::Pace;
use crate::queue::Ticket;
use crate::request::{FinishReason, SeqId, TokenEvent, Usage};
use crate::runner::{RunError, Runner};
use crate::scheduler::{Emit, Scheduler, SchedulerLimits};
use crate::sequence::PhaseKind;
use crate::step::Step;

/// Sizes and bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Sequences in prefill and decode together.
    pub sequences: usize,
    /// Prompt tokens of one step at most.
    pub step_tokens: usize,
    /// Requests that may wait.
    pub waiting_requests: usize,
    /// Their prompt tokens together.
    pub waiting_tokens: usize,
    /// Longest prompt and output together.
    pub context_tokens: usize,
    /// Pages of the runner's cache; at least one whole context.
    pub cache_pages: usize,
    /// Tokens of the runner's staging, at least a page; longer prompts convert early.
    pub staging_tokens: usize,
    /// Token ids are below it.
    pub vocab: usize,
    /// Tokens of a sequence that nobody has read yet; with one more it is given up.
    pub unread_tokens: usize,
    /// Silence at work after which the engine counts as stalled.
    pub stall: Duration,
}

/// Everything that the engine's thread owns.
#[derive(Debug)]
pub struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
    pace: Pace,
    submissions: mpsc::UnboundedReceiver<Submission>,
    clients: HashMap<SeqId, Client>,
    under_way: Option<UnderWay>,
    shared: Arc<Shared>,
}

/// A step that was started or follows one that was; the runner is to finish it.
#[derive(Debug)]
struct UnderWay {
    step: Step,
    start: Instant,
}

/// Who waits for a sequence.
#[derive(Debug)]
struct Client {
    events: mpsc::Sender<TokenEvent>,
    /// Until the first admission.
    ticket: Option<Arc<Ticket>>,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
}

impl Client {
    /// What its sequence took, which ends now.
    fn tell_times(&self, usage: &mut Usage, now: Instant) {
        let first = self.first_token.unwrap_or(now);
        let admitted = self.admitted.unwrap_or(first);
        usage.queued = admitted.duration_since(self.submitted);
        usage.prefill = first.duration_since(admitted);
        usage.decode = now.duration_since(first);
    }
}

impl<R: Runner + 'static> Engine<R> {
    /// Starts the thread; it ends when all handles are gone and the work is done.
    ///
    /// # Panics
    /// If the cache is smaller than a context, staging than a page, or the system gives no thread.
    pub fn start(runner: R, options: EngineOptions) -> Handle {
        let EngineOptions { context_tokens, cache_pages, staging_tokens, .. } = options;
        assert!(pages_for(context_tokens) <= cache_pages, "a context must fit into the cache");
        assert!(staging_tokens >= PAGE_TOKENS, "staging must have a page");
        let limits = Limits {
            context_tokens,
            vocab: options.vocab,
            sequences: options.sequences,
            waiting_requests: options.waiting_requests,
            // A prompt that fits the context must fit an empty queue.
            waiting_tokens: options.waiting_tokens.max(context_tokens),
            staging_tokens,
            unread_tokens: options.unread_tokens,
        };
        let scheduler = Scheduler::new(SchedulerLimits {
            sequences: options.sequences,
            cache_pages,
            staging_tiles: staging_tokens / PAGE_TOKENS,
        });
        let shared = Arc::new(Shared::new(limits, options.stall));
        shared.figures.pages.store(cache_pages as u64, Relaxed);
        let (sender, submissions) = mpsc::unbounded_channel();
        let handle = Handle::new(sender, shared.clone());
        let pace = Pace::new(options.step_tokens);
        let (clients, under_way) = (HashMap::new(), None);
        let engine = Self { scheduler, runner, pace, submissions, clients, under_way, shared };
        let thread = std::thread::Builder::new().name("engine".into());
        thread.spawn(move || engine.live()).expect("the system gives a thread at start");
        handle
    }

    /// Runs until there is nobody left to serve. Whatever goes wrong ends here: streams end with an
    /// error, and the handle says why.
    fn live(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            while self.take() {
                self.turn()?;
            }
            Ok::<(), RunError>(())
        }));
        let why = match ended {
            Ok(Ok(())) => "the engine has ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("the engine panicked: {}", panic_text(&*panic)),
        };
        if !self.clients.is_empty() {
            tracing::error!("{why}; {} sequences end", self.clients.len());
        }
        // First the reason, so that whoever sees a stream end sees it in the handle's health.
        self.shared.die(why);
        self.submissions.close();
        let failed = || TokenEvent::Failed("the engine has failed; see the server's log".into());
        while let Ok(submission) = self.submissions.try_recv() {
            let _ = submission.events.try_send(failed());
        }
        for client in self.clients.values() {
            let _ = client.events.try_send(failed());
        }
    }

    /// One turn: a step is begun if none is under way, the next one is queued behind it, and its
    /// results are taken.
    fn turn(&mut self) -> Result<(), RunError> {
        self.shared.heartbeat.beat();
        let UnderWay { step, start } = match self.under_way.take() {
            Some(under_way) => under_way,
            None => self.begin()?,
        };
        self.under_way = self.run_ahead(&step)?;
        let sampled = self.runner.finish(&step, &self.shared.heartbeat)?;
        if !step.prefill.is_empty() {
            self.pace.learn(prompt_tokens(&step), start.elapsed());
        }
        let emits = self.scheduler.commit(&step, sampled);
        self.shared.figures.steps.fetch_add(1, Relaxed);
        self.publish();
        self.emit(emits);
        Ok(())
    }

    /// Plans a step and starts it.
    fn begin(&mut self) -> Result<UnderWay, RunError> {
        let mut step = self.scheduler.plan(self.pace.budget_tokens());
        for seq in self.scheduler.take_preempted() {
            self.runner.forget(seq);
            self.shared.figures.preemptions.fetch_add(1, Relaxed);
        }
        self.scheduler.constrain(&mut step);
        self.shared.heartbeat.beat();
        self.admitted(&step);
        // Before it too: the first step may be long.
        self.publish();
        let start = Instant::now();
        self.runner.start(&step, &self.shared.heartbeat)?;
        Ok(UnderWay { step, start })
    }

    /// Queues the next step behind one whose tokens are not known yet, if it can be planned and
    /// the runner takes it.
    fn run_ahead(&mut self, step: &Step) -> Result<Option<UnderWay>, RunError> {
        if !self.runner.follows() {
            return Ok(None);
        }
        let Some(next) = self.scheduler.plan_ahead(step) else { return Ok(None) };
        if !self.runner.follow(&next, &self.shared.heartbeat)? {
            return Ok(None);
        }
        self.shared.figures.steps_ahead.fetch_add(1, Relaxed);
        Ok(Some(UnderWay { step: next, start: Instant::now() }))
    }

    /// Takes what has come, drops whose client has left, and waits if there is nothing to do; false
    /// when nobody is left to ask for more. A step under way is something to do, also where all its
    /// sequences have ended: its results are taken, though they are nobody's.
    fn take(&mut self) -> bool {
        loop {
            let rests = loop {
                match self.submissions.try_recv() {
                    Ok(submission) => self.submit(submission),
                    Err(TryRecvError::Disconnected) if self.clients.is_empty() => break true,
                    Err(_) => break false,
                }
            };
            self.drop_left();
            if self.under_way.is_some() || !self.scheduler.is_idle() {
                return true;
            }
            if rests {
                return false;
            }
            self.scheduler.check();
            self.publish();
            self.shared.heartbeat.rest();
            let Some(submission) = self.submissions.blocking_recv() else { return false };
            self.shared.heartbeat.beat();
            self.submit(submission);
        }
    }

    fn submit(&mut self, Submission { request, events, ticket, at }: Submission) {
        let seq = self.scheduler.submit(request);
        let client = Client {
            events,
            ticket: Some(ticket),
            submitted: at,
            admitted: None,
            first_token: None,
        };
        self.clients.insert(seq, client);
    }

    /// Cancels the sequences whose streams were dropped.
    fn drop_left(&mut self) {
        let left = self.clients.iter().filter(|(_, client)| client.events.is_closed());
        let left: Vec<SeqId> = left.map(|(seq, _)| *seq).collect();
        for seq in left {
            let figures = &self.shared.figures;
            let counter = match self.scheduler.cancel(seq) {
                Some(PhaseKind::Waiting) => &figures.cancelled_waiting,
                Some(PhaseKind::Prefill) => &figures.cancelled_prefill,
                Some(PhaseKind::Decode) | None => &figures.cancelled_decode,
            };
            counter.fetch_add(1, Relaxed);
            self.runner.forget(seq);
            self.clients.remove(&seq);
        }
    }

    /// Notes which sequences are in a step for the first time.
    fn admitted(&mut self, step: &Step) {
        for chunk in step.prefill.iter().filter(|chunk| chunk.start == 0) {
            let Some(client) = self.clients.get_mut(&chunk.seq) else { continue };
            if client.ticket.take().is_some() {
                client.admitted = Some(Instant::now());
                let prompt = u64::from(chunk.total);
                self.shared.figures.prompt_tokens.fetch_add(prompt, Relaxed);
                let early = u64::from(chunk.is_early());
                self.shared.figures.early_prompts.fetch_add(early, Relaxed);
            }
        }
    }

    /// Ends a sequence whose client does not read: what it holds is for others.
    fn give_up(&mut self, seq: SeqId) {
        self.scheduler.cancel(seq);
        self.runner.forget(seq);
        self.clients.remove(&seq);
        self.shared.figures.unread.fetch_add(1, Relaxed);
    }

    fn emit(&mut self, emits: Vec<Emit>) {
        let now = Instant::now();
        for Emit { seq, mut event } in emits {
            let Some(client) = self.clients.get_mut(&seq) else { continue };
            let mut over = false;
            match &mut event {
                TokenEvent::Prompt(_) => {}
                TokenEvent::Token { .. } => {
                    client.first_token.get_or_insert(now);
                    self.shared.figures.output_tokens.fetch_add(1, Relaxed);
                }
                TokenEvent::Pooled { usage, .. } => {
                    client.tell_times(usage, now);
                    over = true;
                }
                TokenEvent::Done { reason, usage } => {
                    client.tell_times(usage, now);
                    // A stop token is generated, but not sent as a token.
                    let stop = u64::from(matches!(reason, FinishReason::Stop(_)));
                    self.shared.figures.output_tokens.fetch_add(stop, Relaxed);
                    over = true;
                }
                TokenEvent::Stuck(_) | TokenEvent::Failed(_) => over = true,
            }
            // The last place is for the last event.
            if !over && client.events.capacity() <= 1 && !client.events.is_closed() {
                self.give_up(seq);
                continue;
            }
            // A client that has left is noticed by the next `take`.
            let _ = client.events.try_send(event);
            if over {
                self.clients.remove(&seq);
            }
        }
    }

    /// Brings the figures up to date.
    fn publish(&self) {
        let figures = &self.shared.figures;
        figures.running.store(self.scheduler.running() as u64, Relaxed);
        figures.preempted.store(self.scheduler.waiting().1 as u64, Relaxed);
        figures.pages_used.store(self.scheduler.pool().used() as u64, Relaxed);
        let staged = self.scheduler.tiles_used() * PAGE_TOKENS;
        figures.staging_tokens_used.store(staged as u64, Relaxed);
        let Conversions { pages, time, not_finite } = self.runner.conversions();
        figures.converted_pages.store(pages, Relaxed);
        figures.conversion_micros.store(time.as_micros() as u64, Relaxed);
        figures.not_finite_pages.store(not_finite, Relaxed);
    }
}

fn prompt_tokens(step: &Step) -> usize {
    step.prefill.iter().map(|chunk| chunk.tokens.len()).sum()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
