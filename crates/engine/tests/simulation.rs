//! Thousands of seeds of random traffic through the scheduler with a scripted model. `SEED=…`
//! repeats one run.
//!
//! After every call each page is held once or free; every sequence gets exactly its scripted
//! tokens, whatever was cancelled or preempted around it; and nobody starves. Every second run
//! plans steps ahead, as for a GPU: computed before the results of those in front are taken.

use std::collections::{BTreeMap, HashMap, HashSet};

use kvant_engine::{
    Emit, FinishReason, GenerateRequest, PhaseKind, Sampled, SamplingParams, Scheduler,
    SchedulerLimits, SeqId, Step, StopRules, TokenEvent,
};
use kvant_kv_cache::PAGE_TOKENS;

const SEEDS: u64 = 2500;
const STEPS: usize = 300;
/// Steps that a full house may take to give the oldest sequence one more token.
const PATIENCE: usize = 200;

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The token that the scripted model says at `index` of a sequence. 0 ends it.
fn script(seq: SeqId, index: usize) -> u32 {
    let x = Random(seq.0 << 20 | index as u64).next();
    if x.is_multiple_of(60) { 0 } else { 1 + (x % 1000) as u32 }
}

/// A model that keeps, for every sequence, which tokens it has seen, and insists on seeing each
/// position once in order.
#[derive(Default)]
struct ScriptedModel {
    staged: HashMap<SeqId, Vec<u32>>,
    paged: HashMap<SeqId, Vec<u32>>,
    prompts: HashMap<SeqId, usize>,
    /// Of the last step.
    results: Vec<u32>,
    /// Prompts longer than staging that were completed.
    early: usize,
}

impl ScriptedModel {
    fn run(&mut self, step: &Step, limits: &SchedulerLimits) -> Vec<Sampled> {
        let seen: HashSet<_> = step.decode.iter().map(|row| row.seq).collect();
        let all = seen.len() + step.prefill.len();
        assert!(all <= limits.sequences);
        let mut sampled = Vec::new();
        let mut say = |seq, index| {
            let token = Some(script(seq, index));
            sampled.push(Sampled { seq, prompt: Vec::new(), token, logprob: None, pooled: None });
        };
        let (mut written, mut tails) = (HashSet::new(), HashSet::new());
        for row in &step.decode {
            let tokens = self.paged.get_mut(&row.seq).expect("decode follows a prefill");
            assert_eq!(tokens.len(), row.position as usize, "positions come in order");
            let page = tokens.len() / PAGE_TOKENS;
            match row.follows {
                None => tokens.extend(&row.tokens),
                Some(result) => {
                    assert_eq!(row.tokens, [0], "it is not known yet");
                    tokens.push(self.results[result as usize]);
                }
            }
            assert_eq!((tokens.len() - 1) / PAGE_TOKENS, page, "a row is of one page");
            assert!(written.insert(row.place.pages[page]), "two rows write one page");
            assert!(tails.insert(row.place.tail), "two rows have one tail");
            let index = tokens.len() - self.prompts[&row.seq];
            let output = &tokens[self.prompts[&row.seq]..];
            for (at, token) in output.iter().enumerate() {
                assert_eq!(*token, script(row.seq, at), "its own tokens, also when again");
            }
            if let Some(sample) = &row.sample {
                assert_eq!(sample.index as usize, index);
                say(row.seq, index);
            }
        }
        for chunk in &step.prefill {
            assert!(!seen.contains(&chunk.seq) && !chunk.tokens.is_empty());
            assert!(tails.insert(chunk.place.tail), "two rows have one tail");
            let staged = self.staged.entry(chunk.seq).or_default();
            assert_eq!(staged.len(), chunk.start as usize, "chunks come in order");
            staged.extend(&chunk.tokens);
            assert_eq!(chunk.total as usize, self.prompts[&chunk.seq], "prompts alone");
            assert_eq!(chunk.is_last(), staged.len() == chunk.total as usize);
            assert!(chunk.place.pages.len() >= staged.len().div_ceil(PAGE_TOKENS));
            let pages = self.prompts[&chunk.seq].div_ceil(PAGE_TOKENS);
            assert_eq!(chunk.tiles as usize, pages.min(limits.staging_tiles));
            if chunk.is_early() {
                let first = chunk.start as usize / PAGE_TOKENS;
                let touched = staged.len().div_ceil(PAGE_TOKENS) - first;
                assert!(touched <= (limits.staging_tiles / 4).max(1), "the ring is overrun");
                self.early += usize::from(chunk.is_last());
            }
            if chunk.is_last() {
                self.paged.insert(chunk.seq, self.staged.remove(&chunk.seq).expect("just staged"));
            }
            if chunk.sample.is_some() {
                say(chunk.seq, 0);
            }
        }
        // A prompt longer than staging has all of it.
        let room = limits.staging_tiles;
        let tiles = self.staged.keys().map(|seq| self.prompts[seq].div_ceil(PAGE_TOKENS).min(room));
        assert!(tiles.sum::<usize>() <= room);
        self.results = sampled.iter().filter_map(|sampled| sampled.token).collect();
        sampled
    }

    fn forget(&mut self, seq: SeqId) {
        self.staged.remove(&seq);
    }
}

/// One run: the scheduler, its model, and what each client has heard.
struct World {
    random: Random,
    limits: SchedulerLimits,
    longest: usize,
    scheduler: Scheduler,
    model: ScriptedModel,
    heard: BTreeMap<SeqId, Heard>,
    ahead: bool,
    under_way: Option<(Step, Vec<Sampled>)>,
    followed: usize,
    /// Results of sequences that had ended.
    dropped: usize,
    finished: usize,
    cancelled: usize,
    preempted: usize,
    waited: usize,
}

struct Heard {
    tokens: Vec<u32>,
    max_tokens: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let pages = 4 + random.below(12);
        let limits = SchedulerLimits {
            sequences: 1 + random.below(8),
            cache_pages: pages,
            staging_tiles: 1 + random.below(11),
        };
        Self {
            longest: pages * PAGE_TOKENS,
            scheduler: Scheduler::new(limits),
            limits,
            random,
            model: ScriptedModel::default(),
            heard: BTreeMap::new(),
            ahead: seed % 2 == 1,
            under_way: None,
            followed: 0,
            dropped: 0,
            finished: 0,
            cancelled: 0,
            preempted: 0,
            waited: 0,
        }
    }

    fn submit(&mut self) {
        let max_tokens = 1 + self.random.below(150.min(self.longest - 1));
        let prompt = 1 + self.random.below(self.longest - max_tokens);
        let prompt: Vec<u32> = (0..prompt).map(|_| self.random.below(1000) as u32).collect();
        let length = prompt.len();
        let seq = self.scheduler.submit(GenerateRequest {
            prompt: prompt.into(),
            sampling: SamplingParams::default().into(),
            stop: StopRules {
                max_tokens: max_tokens as u32,
                min_tokens: 0,
                eos_tokens: vec![0],
                stop_tokens: Vec::new(),
            },
            prompt_logprobs: None,
            constraint: None,
            pooling: None,
        });
        self.model.prompts.insert(seq, length);
        self.heard.insert(seq, Heard { tokens: Vec::new(), max_tokens });
    }

    fn cancel(&mut self) {
        let index = self.random.below(self.heard.len());
        let seq = *self.heard.keys().nth(index).expect("below the number of keys");
        assert!(self.scheduler.cancel(seq).is_some());
        assert_eq!(self.scheduler.cancel(seq), None, "cancelled once");
        self.model.forget(seq);
        self.heard.remove(&seq);
        self.cancelled += 1;
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.under_way.is_none()
    }

    fn begin(&mut self) -> (Step, Vec<Sampled>) {
        let budget = 1 + self.random.below(200);
        let step = self.scheduler.plan(budget);
        for seq in self.scheduler.take_preempted() {
            self.model.forget(seq);
            self.model.paged.remove(&seq);
            self.preempted += 1;
        }
        self.scheduler.check();
        let prefill: usize = step.prefill.iter().map(|chunk| chunk.tokens.len()).sum();
        let again: usize = step.decode.iter().map(|row| row.tokens.len() - 1).sum();
        assert!(prefill <= budget.saturating_sub(again).max(16));
        assert!(self.heard.is_empty() || !step.decode.is_empty() || prefill > 0, "a step idles");
        let sampled = self.model.run(&step, &self.limits);
        (step, sampled)
    }

    fn run_ahead(&mut self, step: &Step) {
        if let Some(next) = self.scheduler.plan_ahead(step) {
            assert!(next.prefill.is_empty() && !next.decode.is_empty());
            // A runner may refuse.
            if self.random.below(10) > 0 {
                let sampled = self.model.run(&next, &self.limits);
                self.under_way = Some((next, sampled));
                self.followed += 1;
            }
        }
        assert!(self.scheduler.take_preempted().is_empty(), "nobody is preempted for it");
        self.scheduler.check();
    }

    fn step(&mut self) {
        let (step, sampled) = self.under_way.take().unwrap_or_else(|| self.begin());
        if self.ahead {
            self.run_ahead(&step);
        }
        self.dropped += sampled.iter().filter(|s| !self.heard.contains_key(&s.seq)).count();
        let oldest = self.heard.keys().next().copied();
        let emits = self.scheduler.commit(&step, sampled);
        self.waited = match oldest {
            Some(seq) if emits.iter().all(|emit| emit.seq != seq) => self.waited + 1,
            _ => 0,
        };
        assert!(self.waited < PATIENCE, "the oldest sequence starves");
        for emit in emits {
            self.hear(emit);
        }
        self.scheduler.check();
    }

    fn hear(&mut self, Emit { seq, event }: Emit) {
        let heard = self.heard.get_mut(&seq).expect("events go to live clients");
        match event {
            TokenEvent::Token { token, .. } => {
                assert_eq!(token, script(seq, heard.tokens.len()));
                heard.tokens.push(token);
            }
            TokenEvent::Done { reason, usage } => {
                let said = heard.tokens.len();
                let length = match reason {
                    FinishReason::Stop(token) => {
                        assert_eq!((token, script(seq, said)), (0, 0));
                        said + 1
                    }
                    FinishReason::Complete => panic!("no constraint was given"),
                    FinishReason::Length => {
                        assert_eq!(said, heard.max_tokens);
                        said
                    }
                };
                assert_eq!(usage.output_tokens as usize, length);
                assert_eq!(usage.prompt_tokens as usize, self.model.prompts[&seq]);
                self.heard.remove(&seq);
                self.finished += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        if world.random.below(6) == 0 && world.heard.len() < 30 {
            world.submit();
        }
        if world.random.below(40) == 0 && !world.heard.is_empty() {
            world.cancel();
        }
        if !world.is_idle() {
            world.step();
        }
    }
    let mut steps = 0;
    while !world.is_idle() {
        world.step();
        steps += 1;
        assert!(steps < 100_000, "what was left does not come to an end");
    }
    assert!(world.heard.is_empty(), "everybody was answered");
    assert_eq!(world.scheduler.pool().used() + world.scheduler.tiles_used(), 0);
    world
}

#[test]
fn random_traffic_keeps_every_invariant() {
    if let Some(seed) = std::env::var_os("SEED") {
        run(seed.to_str().and_then(|seed| seed.parse().ok()).expect("SEED is a number"));
        return;
    }
    let (mut finished, mut cancelled, mut preempted, mut early) = (0, 0, 0, 0);
    let (mut followed, mut dropped) = (0, 0);
    for seed in 0..SEEDS {
        let world = std::panic::catch_unwind(|| run(seed))
            .unwrap_or_else(|_| panic!("run again with SEED={seed}"));
        finished += world.finished;
        cancelled += world.cancelled;
        preempted += world.preempted;
        early += world.model.early;
        followed += world.followed;
        dropped += world.dropped;
        assert!(world.ahead || world.dropped == 0, "only a step ahead computes for nobody");
    }
    eprintln!("{finished} finished, {cancelled} cancelled, {preempted} preempted, {early} early");
    assert!(finished > 50_000 && cancelled > 5_000 && preempted > 1_000, "the traffic is too thin");
    assert!(early > 5_000, "too few prompts are longer than staging");
    eprintln!("{followed} steps ahead, {dropped} results dropped");
    assert!(followed > 50_000 && dropped > 1_000, "too few steps run ahead");
}

#[test]
fn the_youngest_is_preempted_and_goes_on_before_later_ones() {
    let limits = SchedulerLimits { sequences: 4, cache_pages: 4, staging_tiles: 4 };
    let mut scheduler = Scheduler::new(limits);
    let mut model = ScriptedModel::default();
    let mut submit = |prompt: usize| {
        let seq = scheduler.submit(GenerateRequest {
            prompt: vec![1; prompt].into(),
            sampling: SamplingParams::default().into(),
            stop: StopRules {
                max_tokens: 100,
                min_tokens: 0,
                eos_tokens: Vec::new(),
                stop_tokens: Vec::new(),
            },
            prompt_logprobs: None,
            constraint: None,
            pooling: None,
        });
        model.prompts.insert(seq, prompt);
        seq
    };
    // Two pages and one; the third would leave the two no page to grow into.
    let (old, young, late) = (submit(120), submit(60), submit(10));
    let mut preempted = Vec::new();
    let mut turn = |scheduler: &mut Scheduler| {
        let step = scheduler.plan(1000);
        for seq in scheduler.take_preempted() {
            model.forget(seq);
            model.paged.remove(&seq);
            preempted.push(seq);
        }
        let sampled = model.run(&step, &limits);
        scheduler.commit(&step, sampled);
        scheduler.check();
        step
    };
    for _ in 0..60 {
        let step = turn(&mut scheduler);
        assert!(step.prefill.iter().all(|chunk| chunk.seq != late), "nobody is overtaken");
    }
    assert_eq!(scheduler.waiting(), (2, 1));
    assert_eq!(scheduler.cancel(old), Some(PhaseKind::Decode));
    let step = turn(&mut scheduler);
    let resumed: Vec<_> = step.prefill.iter().map(|chunk| chunk.seq).collect();
    assert_eq!(resumed, [young, late]);
    assert_eq!(preempted, [young]);
}
