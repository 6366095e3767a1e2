//! Steps compute in the last layer what is asked of them: tokens and log-probabilities are those of
//! the same steps when every hidden state is asked for.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvant_engine::{
    AttentionRoad, DecodeRow, Heartbeat, ModelRunner, Place, Pooling, PrefillChunk, PromptLogprobs,
    Runner, SampleRow, Sampled, SamplingParams, SeqId, Step,
};
use kvant_kv_cache::{
    CacheShape, Format, LayerShape, LayerTraits, PageStore, Staging, Wish, decide, pages_for,
};
use kvant_models::{Decoder, ModelFiles};

/// Pages of each of four sequences.
const PAGES: usize = 4;

fn load(folder: &str) -> Arc<Decoder> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    Arc::new(ModelFiles::open(&folder).unwrap().load(&mut |_, _| {}).unwrap())
}

fn shape(decoder: &Decoder, preset: &str) -> CacheShape {
    let heads = decoder.spec().heads;
    let layers = decoder.spec().layers.iter().map(|layer| LayerTraits {
        shape: LayerShape { kv_heads: heads.kv, dim: heads.dim },
        queries_per_key: heads.q / heads.kv,
        key_bias: false,
        window: layer.window,
    });
    let wish = Wish { preset: preset.parse().unwrap(), ..Wish::default() };
    decide(&layers.collect::<Vec<_>>(), &wish).unwrap()
}

fn runner(decoder: &Arc<Decoder>, shape: &CacheShape, staging_tokens: usize) -> ModelRunner {
    let store = PageStore::new(shape, (4 * PAGES, 4), 1);
    ModelRunner::new(decoder.clone(), store, Staging::new(shape, staging_tokens))
}

fn run(runner: &mut ModelRunner, step: &Step) -> Vec<Sampled> {
    runner.run(step, &Heartbeat::new(Duration::MAX)).unwrap()
}

/// The steps of some sequences of one model.
struct Steps {
    vocab: usize,
    staging_tokens: usize,
}

impl Steps {
    fn tokens(&self, seq: u64, from: usize, count: usize) -> Vec<u32> {
        let token = |at: usize| ((at * 131 + seq as usize * 977) % self.vocab) as u32;
        (from..from + count).map(token).collect()
    }

    fn place(seq: u64) -> Place {
        let first = seq as u32 * PAGES as u32;
        Place { pages: (first..first + PAGES as u32).collect(), tail: seq as u32 }
    }

    fn sample(position: usize) -> SampleRow {
        let params =
            SamplingParams { temperature: 0.0, logprobs: Some(3), ..SamplingParams::default() };
        SampleRow {
            params: Arc::new(params),
            index: position as u32,
            forbidden: Vec::new(),
            prompt: Arc::from([]),
            output: Vec::new(),
            allowed: None,
        }
    }

    fn row(&self, seq: u64, position: usize, tokens: usize) -> DecodeRow {
        DecodeRow {
            seq: SeqId(seq),
            tokens: self.tokens(seq, position, tokens),
            position: position as u32,
            place: Self::place(seq),
            sample: Some(Self::sample(position)),
            follows: None,
        }
    }

    /// Some tokens of a prompt of `total`; after the last of them one is sampled.
    fn chunk(&self, seq: u64, (start, end): (usize, usize), total: usize) -> PrefillChunk {
        PrefillChunk {
            seq: SeqId(seq),
            start: start as u32,
            total: total as u32,
            tiles: pages_for(total).min(pages_for(self.staging_tokens)) as u32,
            tokens: self.tokens(seq, start, end - start),
            place: Self::place(seq),
            prompt_logprobs: None,
            pooling: None,
            sample: (end == total).then(|| Self::sample(total)),
        }
    }

    fn scored(&self, chunk: PrefillChunk) -> PrefillChunk {
        let (next, count) = (chunk.start as usize + 1, chunk.tokens.len());
        let count = count.min(chunk.total as usize - next);
        let targets = self.tokens(chunk.seq.0, next, count);
        PrefillChunk { prompt_logprobs: Some(PromptLogprobs { top: 1, targets }), ..chunk }
    }

    /// Prompts in chunks, several in a step, beside rows of one token and of several.
    fn mixed(&self) -> Vec<Step> {
        let step = |decode, prefill| Step { decode, prefill };
        vec![
            step(vec![], vec![self.chunk(0, (0, 60), 150), self.chunk(1, (0, 70), 70)]),
            step(vec![self.row(1, 70, 1)], vec![self.chunk(0, (60, 130), 150)]),
            step(
                vec![self.row(1, 71, 5)],
                vec![self.chunk(2, (0, 40), 129), self.chunk(0, (130, 150), 150)],
            ),
            step(
                vec![self.row(0, 150, 1), self.row(1, 76, 1)],
                vec![self.chunk(2, (40, 129), 129), self.chunk(3, (0, 1), 1)],
            ),
            step(vec![self.row(3, 1, 1), self.row(2, 129, 1), self.row(0, 151, 1)], vec![]),
        ]
    }

    /// A prompt longer than two tiles of staging, beside a row.
    fn long(&self) -> Vec<Step> {
        let borders = [(0, 64), (64, 100), (100, 128), (128, 192), (192, 209), (209, 210)];
        let first = Step { decode: vec![], prefill: vec![self.chunk(1, (0, 66), 66)] };
        let steps = borders.into_iter().zip(66..).map(|(border, position)| Step {
            decode: vec![self.row(1, position, 1)],
            prefill: vec![self.chunk(0, border, 210)],
        });
        let last = Step { decode: vec![self.row(0, 210, 1)], prefill: vec![] };
        [first].into_iter().chain(steps).chain([last]).collect()
    }

    /// The same tokens and log-probabilities as by asking for everything; returns them.
    fn check(&self, what: &str, steps: &[Step], [few, all]: [&mut ModelRunner; 2]) -> Vec<Sampled> {
        let mut found = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (own, mut scored) = (run(few, step), step.clone());
            scored.prefill = scored.prefill.into_iter().map(|chunk| self.scored(chunk)).collect();
            let mut whole = run(all, &scored);
            let scores: usize = whole.iter().map(|sampled| sampled.prompt.len()).sum();
            let asked = scored.prefill.iter().flat_map(|chunk| &chunk.prompt_logprobs);
            assert_eq!(scores, asked.map(|asked| asked.targets.len()).sum::<usize>());
            whole.retain(|sampled| sampled.token.is_some());
            for sampled in &mut whole {
                sampled.prompt.clear();
            }
            assert!(own.iter().all(|sampled| sampled.logprob.is_some()), "{what}, step {index}");
            assert_eq!(own, whole, "{what}, step {index}");
            found.extend(own);
        }
        found
    }
}

#[test]
fn results_are_those_of_asking_for_everything() {
    let tiny = load("models/tiny-llama-1m");
    let last = tiny.spec().layers.len() - 1;
    let mut shapes: Vec<(String, CacheShape)> =
        ["f16", "auto", "tq8", "k8v4", "tq4", "k4v3", "tq3", "tq2"]
            .map(|preset| (preset.to_string(), shape(&tiny, preset)))
            .into();
    let of = |preset: &str| shape(&tiny, preset);
    let (mut packed, mut dense) = (of("f16"), of("tq3"));
    packed.layers[last].format = dense.layers[last].format;
    dense.layers[last].format = Format::Dense;
    shapes.extend([("packed last".into(), packed), ("dense last".into(), dense)]);
    let mut different = Vec::new();
    for (name, shape) in &shapes {
        let mut both = Vec::new();
        for (staging_tokens, long) in [(512, false), (128, true)] {
            let steps = Steps { vocab: tiny.spec().vocab, staging_tokens };
            let script = if long { steps.long() } else { steps.mixed() };
            let [mut few, mut all] = [(); 2].map(|()| runner(&tiny, shape, staging_tokens));
            both.extend(steps.check(name, &script, [&mut few, &mut all]));
        }
        assert_eq!(both.len(), 11 + 9, "{name}");
        different.push(both);
    }
    assert_ne!(different[0], different[6], "three bits leave no trace");
    let steps = Steps { vocab: tiny.spec().vocab, staging_tokens: 512 };
    let [few, all] = [(); 2].map(|()| runner(&tiny, &shape(&tiny, "tq4"), 512));
    let [mut few, mut all] = [few, all].map(|runner| runner.on(AttentionRoad::Reference));
    steps.check("reference", &steps.mixed(), [&mut few, &mut all]);
}

#[test]
fn windows_experts_and_second_norms_end_alike() {
    for name in ["mistral-window", "qwen2-window", "gemma2", "gemma3", "qwen3-moe", "mixtral"] {
        let decoder = load(&format!("tests/golden/{name}"));
        for preset in ["f16", "auto"] {
            let shape = shape(&decoder, preset);
            let steps = Steps { vocab: decoder.spec().vocab, staging_tokens: 512 };
            let [mut few, mut all] = [(); 2].map(|()| runner(&decoder, &shape, 512));
            steps.check(&format!("{name} {preset}"), &steps.mixed(), [&mut few, &mut all]);
        }
    }
}

#[test]
fn chunks_that_ask_for_different_things_get_each_its_own() {
    let decoder = load("models/tiny-llama-1m");
    let steps = Steps { vocab: decoder.spec().vocab, staging_tokens: 512 };
    let pooled = |seq, range, pooling| PrefillChunk {
        pooling: Some(pooling),
        sample: None,
        ..steps.chunk(seq, range, 100)
    };
    let chunks = [
        pooled(0, (0, 100), Pooling::Last),
        steps.scored(steps.chunk(1, (0, 30), 30)),
        pooled(2, (0, 40), Pooling::First),
        steps.chunk(3, (0, 77), 77),
    ];
    let again = [
        pooled(0, (0, 40), Pooling::Mean),
        steps.chunk(1, (0, 30), 31),
        pooled(2, (40, 100), Pooling::Mean),
        steps.scored(steps.chunk(3, (0, 77), 80)),
    ];
    let shape = shape(&decoder, "tq4");
    let new = || runner(&decoder, &shape, 512);
    let (mut together, mut alone) = (new(), [(); 4].map(|()| new()));
    for chunks in [chunks, again] {
        let step = Step { decode: vec![], prefill: chunks.to_vec() };
        let mut found = run(&mut together, &step);
        let mut each = Vec::new();
        for (runner, chunk) in alone.iter_mut().zip(chunks) {
            each.extend(run(runner, &Step { decode: vec![], prefill: vec![chunk] }));
        }
        // These begin afresh.
        for seq in [0, 1, 3] {
            together.forget(SeqId(seq));
            alone[seq as usize].forget(SeqId(seq));
        }
        found.sort_by_key(|sampled| sampled.seq.0);
        assert_eq!(found, each);
        let numbers = |sampled: &Sampled| sampled.pooled.as_ref().map(Vec::len);
        assert_eq!(numbers(&found[0]), Some(decoder.spec().hidden));
    }
}
