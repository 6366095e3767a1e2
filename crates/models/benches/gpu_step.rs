//! Time of a decoder's step on the first NVIDIA GPU, without attention: random weights of a
//! published shape. `TOKENS=1,8 cargo bench -p kvant-models --features cuda --bench gpu_step`.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::time::Instant;

use candle_core::{Result, Tensor};
use kvant_kernels::device::{Arg, Kernel, Params, Place, SampleParams, SampleRowParams};
use kvant_models::{Attend, Decoder, ModelFiles, Site};

/// Steps of which the median counts.
const STEPS: usize = 21;

/// Shapes by name: hidden, intermediate, layers, query heads, key heads, vocabulary.
const SHAPES: [(&str, [usize; 6]); 2] = [
    ("Qwen2.5-0.5B", [896, 4864, 24, 14, 2, 151_936]),
    ("Qwen2.5-1.5B", [1536, 8960, 28, 12, 2, 151_936]),
];

/// Leaves what is in the buffer.
struct Nothing;

impl Attend for Nothing {
    fn attend(&mut self, _: usize, _: [&Tensor; 3], _: &Tensor) -> Result<()> {
        Ok(())
    }
}

fn decoder(site: &Site, [hidden, wide, layers, q, kv, vocab]: [usize; 6]) -> Decoder {
    let folder = std::env::temp_dir().join(format!("kvant-gpu-step-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = format!(
        r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": {hidden},
        "intermediate_size": {wide}, "num_hidden_layers": {layers}, "num_attention_heads": {q},
        "num_key_value_heads": {kv}, "vocab_size": {vocab}, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "max_position_embeddings": 32768, "tie_word_embeddings": true,
        "hidden_act": "silu", "torch_dtype": "bfloat16"}}"#
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
    let files = ModelFiles::open_config_only(&folder).unwrap();
    let decoder = files.load_dummy_at(site, 1).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    decoder
}

/// Median milliseconds until calls are made, and until the GPU has done what they ask.
fn time(site: &Site, mut call: impl FnMut()) -> [f64; 2] {
    let gpu = site.gpu().unwrap();
    let mut times = Vec::new();
    for _ in 0..=STEPS {
        gpu.synchronize().unwrap();
        let begin = Instant::now();
        call();
        let called = begin.elapsed();
        gpu.synchronize().unwrap();
        times.push([called, begin.elapsed()].map(|time| time.as_secs_f64() * 1e3));
    }
    [0, 1].map(|at| {
        let mut column: Vec<f64> = times[1..].iter().map(|times| times[at]).collect();
        column.sort_by(f64::total_cmp);
        column[STEPS / 2]
    })
}

fn main() {
    let site = match Site::cuda(0, None) {
        Ok(site) => site,
        Err(error) => return println!("skipped: {error}"),
    };
    let gpu = site.gpu().unwrap();
    println!("{}", gpu.name());
    let asked = std::env::var("TOKENS").unwrap_or("1,8,64,512".into());
    let counts: Vec<usize> = asked.split(',').map(|count| count.parse().unwrap()).collect();
    for (name, shape) in SHAPES {
        let begin = Instant::now();
        let decoder = decoder(&site, shape);
        println!("{name}: made in {:.1} s", begin.elapsed().as_secs_f64());
        let mut workspace = decoder.workspace();
        for tokens in counts.iter().rev() {
            let ids: Vec<u32> = (0..*tokens as u32).collect();
            let rows: Vec<u32> = ids.iter().copied().take(64).collect();
            let rule = |inverse, top_k, top_p| {
                let rest = |row: &u32| SampleRowParams {
                    seed_low: 1,
                    seed_high: 0,
                    index: 5,
                    top_k,
                    top_p,
                    min_p: 0.0,
                    inverse,
                    logprob: 0,
                    result: *row,
                };
                let words: Vec<u32> = rows.iter().flat_map(|row| rest(row).words()).collect();
                words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()
            };
            let forward = time(&site, || {
                decoder.forward(&ids, &ids, &mut Nothing, &mut workspace).unwrap();
            });
            let logits = time(&site, || {
                decoder.logits(&rows, &mut workspace).unwrap();
            });
            let out = gpu.alloc(8 * rows.len()).unwrap();
            let next = gpu.alloc(4 * rows.len()).unwrap();
            let mut sample = |rule: Vec<u8>| {
                let rules = gpu.alloc(rule.len()).unwrap();
                gpu.write(&rules, 0, &rule).unwrap();
                let logits = decoder.logits(&rows, &mut workspace).unwrap();
                let args = [
                    Arg::read(logits).unwrap(),
                    Arg::In(Place::buffer(&rules, 0).unwrap()),
                    Arg::Out(Place::buffer(&out, 0).unwrap()),
                    Arg::Out(Place::buffer(&next, 0).unwrap()),
                ];
                let params = SampleParams { vocab: shape[5] as u32 };
                let grid = [rows.len(), 1, 1];
                let launch = || gpu.launch((gpu.ops(), Kernel::Sample), grid, &args, &params);
                time(&site, || launch().unwrap())[1]
            };
            let samples = [rule(0.0, 0, 1.0), rule(1.4, 20, 1.0), rule(1.4, 20, 0.9)];
            let samples = samples.map(&mut sample);
            println!(
                "{name}, {tokens} tokens: forward {:.3} ms (called in {:.3}), logits of {} {:.3} \
                 ms, greedy {:.3}, top_k {:.3}, top_k and top_p {:.3}",
                forward[1],
                forward[0],
                rows.len(),
                logits[1],
                samples[0],
                samples[1],
                samples[2]
            );
        }
    }
}
