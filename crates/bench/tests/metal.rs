//! The built-in model through the runner on candle's Metal device, beside the CPU: few and short
//! requests, since `scripts/check-metal` runs the GPU's kernels on the CPU. The tests of a real GPU
//! are in `device.rs`.

#![cfg(feature = "metal")]
#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvant_bench::{PairLoad, ahead_agreement, model_agreement};
use kvant_engine::{Device, DeviceName};
use kvant_models::ModelFiles;

/// One test at a time has the GPU.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn short_requests_on_a_gpu_get_the_tokens_of_the_cpu() {
    let _turn = turn();
    let device = Device::open(DeviceName::Metal, None).unwrap();
    eprintln!("on {device}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    let files = ModelFiles::open(&folder).unwrap();
    let load_at = |site| Arc::new(files.load_at(site, &mut |_, _| {}).unwrap());
    let cpu = Arc::new(files.load(&mut |_, _| {}).unwrap());
    let on_gpu = load_at(&device.site);
    // Prompts of 1, 63, 64 and 65 tokens, in chunks.
    let load = PairLoad { requests: 4, output_tokens: 3, ..PairLoad::default() };
    for preset in ["f16", "tq4"] {
        let found = model_agreement(&cpu, (&on_gpu, device.gpu().unwrap()), preset, &load).unwrap();
        eprintln!("{preset}: {found:?}");
        assert_eq!(found.same, found.tokens, "{preset}");
        assert_eq!(found.waits, found.steps, "{preset}: the host waits once a step");
        assert_eq!(found.packed > 0, preset == "tq4", "{preset}: {} pages packed", found.packed);
    }
}

/// Bit for bit, over borders of pages, with tokens that no host has read in between. On Metal the
/// host waits for all steps of the queue, so the engine does not do it there; here it shows what a
/// GPU leaves for the next step.
#[test]
fn steps_ahead_on_a_gpu_are_those_one_after_the_other() {
    let _turn = turn();
    let device = Device::open(DeviceName::Metal, None).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let load = PairLoad { requests: 3, output_tokens: 8, ..PairLoad::default() };
    // Filled up with idle rows, and as other steps.
    for model in ["models/tiny-llama-1m", "tests/golden/llama-gguf-q8_0/model.gguf"] {
        let files = ModelFiles::open(&root.join(model)).unwrap();
        let on_gpu = Arc::new(files.load_at(&device.site, &mut |_, _| {}).unwrap());
        let found = ahead_agreement((&on_gpu, device.gpu().unwrap()), "tq4", &load).unwrap();
        eprintln!("{model}: {found:?}");
        assert_eq!((found.same, found.logprob), (found.tokens, 0.0), "{model}");
        assert!(found.ahead >= 8 && found.packed > 0, "{model}");
    }
}
