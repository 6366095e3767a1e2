//! The built-in model through the runner on candle's Metal device, beside the CPU: few and short
//! requests, since `scripts/check-metal` runs the GPU's kernels on the CPU. The tests of a real GPU
//! are in `device.rs`.

#![cfg(feature = "metal")]
#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

use std::path::Path;
use std::sync::Arc;

use kvant_bench::{PairLoad, model_agreement};
use kvant_engine::{Device, DeviceName};
use kvant_models::ModelFiles;

#[test]
fn short_requests_on_a_gpu_get_the_tokens_of_the_cpu() {
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
