//! The runner on a GPU beside the runner on the CPU, where there is a GPU: the same steps, with
//! joins and leaves, several chunks, page borders, preemption and prompts longer than staging.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use kvant_bench::{
    Check, PairLoad, ahead_agreement, check_cache, model_agreement, replay_agreement,
};
use kvant_engine::{Device, DeviceName};
use kvant_models::ModelFiles;

static DEVICE: LazyLock<Option<Mutex<Device>>> = LazyLock::new(|| {
    let opened = [DeviceName::Cuda(0), DeviceName::Metal].map(|name| Device::open(name, None));
    let said: Vec<String> =
        opened.iter().filter_map(|opened| Some(opened.as_ref().err()?.to_string())).collect();
    let device = opened.into_iter().find_map(Result::ok);
    match &device {
        Some(device) => eprintln!("on {device}"),
        None => eprintln!("skipped: {}", said.join("; ")),
    }
    device.map(Mutex::new)
});

/// One test at a time has the GPU.
fn device() -> Option<MutexGuard<'static, Device>> {
    let device = DEVICE.as_ref()?;
    Some(device.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Tokens that are the CPU's, percent, over several presets.
fn check(files: &ModelFiles, presets: &[&str], load: &PairLoad, dummy: bool) {
    let Some(device) = device() else { return };
    let gpu = device.gpu().unwrap();
    let (cpu, on_gpu) = if dummy {
        (files.load_dummy(1).unwrap(), files.load_dummy_at(&device.site, 1).unwrap())
    } else {
        let load_at = |site| files.load_at(site, &mut |_, _| {}).unwrap();
        (files.load(&mut |_, _| {}).unwrap(), load_at(&device.site))
    };
    let (cpu, on_gpu) = (Arc::new(cpu), Arc::new(on_gpu));
    let mut wrong = Vec::new();
    for preset in presets {
        let found = model_agreement(&cpu, (&on_gpu, gpu), preset, load).unwrap();
        eprintln!("{preset}: {found:?}, {:.2} %", found.percent());
        assert_eq!(found.waits, found.steps, "{preset}: the host waits once a step");
        if found.percent() < 99.0 {
            wrong.push(format!("{preset}: {:.2} % of {}", found.percent(), found.tokens));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn tiny() -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    ModelFiles::open(&folder).unwrap()
}

/// A folder with the config.json of a made-up model.
fn made_up(name: &str, [q_heads, kv_heads, dim]: [usize; 3], dtype: &str) -> ModelFiles {
    let hidden = q_heads * dim / 2;
    let folder: PathBuf = std::env::temp_dir().join(format!("kvant-{name}-{}", std::process::id()));
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden},
        "intermediate_size": {}, "num_hidden_layers": 3, "num_attention_heads": {q_heads},
        "num_key_value_heads": {kv_heads}, "head_dim": {dim}, "vocab_size": 1000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "{dtype}"}}"#,
        3 * hidden
    );
    files_of(&folder, &text)
}

fn files_of(folder: &Path, text: &str) -> ModelFiles {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), text).unwrap();
    let files = ModelFiles::open_config_only(folder).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    files
}

const PRESETS: [&str; 5] = ["f16", "auto", "tq8", "k8v4", "tq4"];

#[test]
fn the_cache_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut wrong = Vec::new();
    let mut each = |check: Check| {
        eprintln!("{check}");
        if check.outcome.is_err() {
            wrong.push(check.to_string());
        }
    };
    check_cache(device.gpu().unwrap(), &mut each).unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_built_in_model_gives_the_tokens_of_the_cpu() {
    check(&tiny(), &PRESETS, &PairLoad::default(), false);
}

#[test]
fn sequences_are_preempted_and_go_on() {
    let load = PairLoad { pages: 8, requests: 6, output_tokens: 60, ..PairLoad::default() };
    check(&tiny(), &["f16", "auto"], &load, false);
}

#[test]
fn prompts_longer_than_staging_are_read_packed() {
    let load = PairLoad { staging_tokens: 64, ..PairLoad::default() };
    check(&tiny(), &["f16", "tq4"], &load, false);
}

#[test]
fn large_chunks_and_small_ones() {
    for step_tokens in [16, 512] {
        let load = PairLoad { step_tokens, ..PairLoad::default() };
        check(&tiny(), &["auto"], &load, false);
    }
}

#[test]
fn made_up_models_give_the_tokens_of_the_cpu() {
    for (name, heads) in [("wide", [8, 2, 128]), ("narrow", [6, 3, 64]), ("odd", [4, 4, 80])] {
        check(&made_up(name, heads, "float32"), &PRESETS, &PairLoad::default(), true);
    }
}

#[test]
fn experts_give_the_tokens_of_the_cpu() {
    let folder = std::env::temp_dir().join(format!("kvant-experts-{}", std::process::id()));
    let text = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 192,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 64, "vocab_size": 1000, "max_position_embeddings": 4096, "num_experts": 16,
        "num_experts_per_tok": 4, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float32"}"#;
    check(&files_of(&folder, text), &["f16", "tq4"], &PairLoad::default(), true);
}

/// Joins, leaves, page borders and preemption over thousands of steps: every token and every
/// log-probability of a replayed step is that of the same launches one by one, bit for bit.
#[test]
fn replayed_steps_are_those_of_their_launches() {
    let Some(device) = device() else { return };
    let gpu = device.gpu().unwrap();
    if !gpu.records() {
        return eprintln!("skipped: {} does not record launches", gpu.name());
    }
    let narrow = made_up("replayed", [8, 2, 128], "bfloat16");
    let (files, dummy) = (tiny(), narrow.load_dummy_at(&device.site, 1).unwrap());
    let tiny = files.load_at(&device.site, &mut |_, _| {}).unwrap();
    let plenty = PairLoad { pages: 512, requests: 40, output_tokens: 400, ..PairLoad::default() };
    let few = PairLoad { pages: 24, requests: 10, output_tokens: 200, ..PairLoad::default() };
    // Over 2,000 steps: a request comes every five.
    let long = PairLoad { pages: 160, requests: 401, output_tokens: 100, ..PairLoad::default() };
    let loads = [("tq4", &plenty), ("auto", &few), ("f16", &plenty), ("tq4", &long)];
    for decoder in [Arc::new(tiny), Arc::new(dummy)] {
        for (preset, load) in loads {
            let found = replay_agreement((&decoder, gpu), preset, load).unwrap();
            eprintln!("{preset}: {found:?}");
            assert_eq!((found.same, found.logprob), (found.tokens, 0.0), "{preset}");
            let arrivals = 5 * (load.requests as u64 - 1);
            assert!(found.steps >= arrivals, "{preset}: {} steps", found.steps);
        }
    }
}

/// The same of steps that are queued before the tokens of those in front are read, by sequences
/// that end meanwhile too. Blocks of GGUF files are not replayed, and run ahead all the same.
#[test]
fn steps_ahead_are_those_one_after_the_other() {
    let Some(device) = device() else { return };
    let gpu = device.gpu().unwrap();
    let narrow = made_up("ahead", [8, 2, 128], "bfloat16");
    let dummy = Arc::new(narrow.load_dummy_at(&device.site, 1).unwrap());
    let load_at = |files: &ModelFiles| files.load_at(&device.site, &mut |_, _| {}).unwrap();
    let (tiny, blocks) = (Arc::new(load_at(&tiny())), Arc::new(load_at(&blocks())));
    let plenty = PairLoad { pages: 512, requests: 40, output_tokens: 400, ..PairLoad::default() };
    let few = PairLoad { pages: 24, requests: 10, output_tokens: 200, ..PairLoad::default() };
    let loads = [("tq4", &plenty), ("auto", &few), ("f16", &plenty)];
    let mut dropped = 0;
    for (decoder, loads) in [(tiny, &loads[..]), (dummy, &loads[..]), (blocks, &loads[1..2])] {
        for (preset, load) in loads {
            let found = ahead_agreement((&decoder, gpu), preset, load).unwrap();
            eprintln!("{preset}: {found:?}");
            assert_eq!((found.same, found.logprob), (found.tokens, 0.0), "{preset}");
            assert!(found.ahead > found.steps / 3, "{preset}");
            dropped += found.dropped;
        }
    }
    assert!(dropped > 0, "no sequence ended with a step ahead in the queue");
}

/// A model of a GGUF file in blocks of 8 bits.
fn blocks() -> ModelFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    ModelFiles::open(&folder.join("llama-gguf-q8_0/model.gguf")).unwrap()
}
