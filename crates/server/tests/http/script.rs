//! `Script`: a runner that answers each prompt with itself, and does what a test tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use kvant_engine::{Heartbeat, RunError, Runner, SampleRow, Sampled, SeqId, Step, TokenLogprob};

/// What a test tells the runner while it runs.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// The next step waits, without a heartbeat, until it is false.
    pub(crate) hold: AtomicBool,
    /// The next step panics.
    pub(crate) panic: AtomicBool,
    /// Every step takes so long.
    pub(crate) step_ms: AtomicU64,
    /// Steps that have begun.
    pub(crate) steps: AtomicU64,
    /// Prompt tokens seen.
    pub(crate) prompt_tokens: AtomicU64,
}

/// The engine's side.
#[derive(Debug)]
pub(crate) struct Scripted(pub(crate) Arc<Script>);

impl Runner for Scripted {
    fn run(&mut self, step: &Step, _alive: &Heartbeat) -> Result<Vec<Sampled>, RunError> {
        let script = &self.0;
        script.steps.fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_millis(script.step_ms.load(SeqCst)));
        while script.hold.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!script.panic.load(SeqCst), "secret of the engine");
        let rows = step.decode.iter();
        let rows = rows.filter_map(|row| Some(choose(row.seq, row.sample.as_ref()?)));
        let mut sampled: Vec<Sampled> = rows.collect();
        for chunk in &step.prefill {
            script.prompt_tokens.fetch_add(chunk.tokens.len() as u64, SeqCst);
            let none = Sampled {
                seq: chunk.seq,
                prompt: Vec::new(),
                token: None,
                logprob: None,
                pooled: None,
            };
            let sample = chunk.sample.as_ref();
            let mut one = sample.map_or(none, |sample| choose(chunk.seq, sample));
            if let Some(asked) = &chunk.prompt_logprobs {
                one.prompt = asked.targets.iter().map(|token| score(*token, asked.top)).collect();
            }
            if chunk.pooling.is_some() {
                one.pooled = Some(hidden(&chunk.tokens[chunk.pooled()]));
            }
            let told = sample.is_some() || !one.prompt.is_empty() || one.pooled.is_some();
            sampled.extend(told.then_some(one));
        }
        Ok(sampled)
    }

    fn forget(&mut self, _seq: SeqId) {}
}

/// A prompt that begins with it has no finite logits after the first token.
pub(crate) const BROKEN: u32 = 2000;

/// The prompt's token at the place of the output's, and from the start again after its end.
fn choose(seq: SeqId, row: &SampleRow) -> Sampled {
    let places = (0..row.prompt.len()).map(|skip| (row.index as usize + skip) % row.prompt.len());
    let mut tokens = places.map(|place| row.prompt[place]);
    let may = |token: &u32| {
        let allowed = row.allowed.as_ref().is_none_or(|allowed| allowed.contains(*token));
        allowed && !row.forbidden.contains(token)
    };
    let token = tokens.find(may).or_else(|| (0..2048).find(may)).unwrap_or(3);
    if row.prompt[0] == BROKEN && row.index > 0 {
        return Sampled { seq, prompt: Vec::new(), token: None, logprob: None, pooled: None };
    }
    let logprob = row.params.logprobs.map(|top| score(token, top));
    Sampled { seq, prompt: Vec::new(), token: Some(token), logprob, pooled: None }
}

/// The sum of the hidden states of these tokens: a token's is its id, and three numbers more.
fn hidden(tokens: &[u32]) -> Vec<f32> {
    let mut sum = vec![0.0; 4];
    for token in tokens {
        for (sum, part) in sum.iter_mut().zip([*token as f32, 1.0, 0.0, -2.0]) {
            *sum += part;
        }
    }
    sum
}

/// The chosen token is the likeliest; the last alternative is impossible.
fn score(token: u32, top: u32) -> TokenLogprob {
    let others = (1..top).map(|rank| {
        let last = rank + 1 == top;
        (token + rank, if last { f32::NEG_INFINITY } else { -0.5 - rank as f32 })
    });
    let top = (top > 0).then_some((token, -0.5)).into_iter().chain(others).collect();
    TokenLogprob { token, logprob: -0.5, top }
}
