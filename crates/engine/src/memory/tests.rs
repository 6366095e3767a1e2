//! Plans by hand: a decoder whose page costs a round number.

use kvant_kv_cache::{Format, LayerShape, average_bits};
use kvant_models::{Bias, Ends, Heads, LayerSpec, MlpSpec, NormSpec, Rope, RopeScaling};

use super::*;

const MIB: u64 = 1 << 20;

fn spec() -> DecoderSpec {
    let rope = Rope { theta: 1e4, rotated: 64, scaling: RopeScaling::None, magnitude: 1.0 };
    DecoderSpec {
        family: "llama",
        hidden: 64,
        intermediate: 128,
        vocab: 1000,
        context: 8192,
        heads: Heads { q: 2, kv: 2, dim: 64 },
        norm: NormSpec { eps: 1e-5, offset: 0.0, post: false, qk: false },
        bias: Bias::default(),
        fused: false,
        mlp: MlpSpec::default(),
        ends: Ends { embedding_scale: 1.0, tied_head: true, logit_softcap: None },
        layers: vec![LayerSpec { window: None, scale: 0.125, softcap: None, rope }; 32],
    }
}

/// A page of 32 layers of 2 heads of 64 takes 64 * 32 * 2 * 64 * 4 bytes: 1 MiB.
fn plan(
    available_mib: u64,
    change: impl FnOnce(&mut MemoryInputs<'_>),
) -> Result<MemoryPlan, MemoryError> {
    let spec = spec();
    let mut inputs = MemoryInputs {
        available_bytes: available_mib * MIB,
        weight_bytes: 100 * MIB,
        shape: CacheShape::dense([LayerShape { kv_heads: 2, dim: 64 }; 32]),
        spec: &spec,
        context_tokens: None,
        cache_tokens: None,
        staging_tokens: None,
        sequences: 4,
        step_tokens: 512,
        on_gpu: false,
        records: false,
    };
    change(&mut inputs);
    // Beside what steps take.
    let available = inputs.available_bytes.saturating_add(workspace_bytes(&inputs));
    inputs.available_bytes = available;
    MemoryPlan::new(&inputs)
}

#[test]
fn what_is_left_becomes_pages_as_far_as_they_are_of_use() {
    // 300 MiB beside the weights: staging of one context (128 MiB), the rest pages.
    let some = plan(400, |_| {}).unwrap();
    assert_eq!((some.page_bytes, some.context_tokens), (MIB, 8192));
    assert_eq!((some.staging_tokens, some.staging_bytes), (8192, 128 * MIB));
    assert_eq!(some.cache_pages, 172);
    assert_eq!(some.total_bytes(), some.available_bytes);
    // More than four sequences can fill is not taken.
    assert_eq!(plan(4000, |_| {}).unwrap().cache_pages, 512);
}

#[test]
fn short_prompts_are_staged_as_many_as_a_step_takes() {
    let short = |mib, sequences| {
        let plan = plan(mib, |inputs| {
            inputs.context_tokens = Some(100);
            inputs.sequences = sequences;
        });
        plan.unwrap().staging_tokens
    };
    assert_eq!(short(400, 32), 512, "a step");
    assert_eq!(short(400, 3), 384, "three contexts of two pages");
    assert_eq!(short(140, 32), 320, "an eighth of what is left");
    assert_eq!(short(104, 32), 128, "one context");
}

#[test]
fn the_context_shrinks_to_what_fits_unless_it_was_asked_for() {
    let small = plan(120, |_| {}).unwrap();
    assert_eq!((small.context_tokens, small.cache_pages), (640, 10));
    let least = plan(102, |_| {}).unwrap();
    assert_eq!((least.context_tokens, least.cache_pages), (64, 1));
    assert!(matches!(plan(101, |_| {}), Err(MemoryError::Model { .. })));
    let asked = |tokens| plan(120, |inputs| inputs.context_tokens = Some(tokens));
    assert_eq!(asked(640).unwrap().context_tokens, 640);
    // The context comes first, staging takes what it leaves; at least one tile.
    for (tokens, staging) in [(641, 576), (1216, 64)] {
        let early = asked(tokens).unwrap();
        assert_eq!((early.context_tokens, early.staging_tokens), (tokens, staging));
        assert_eq!(early.total_bytes(), early.available_bytes);
    }
    assert!(asked(1217).unwrap_err().to_string().contains("a cache of 1280 tokens"));
    // So does a small staging that was asked for.
    let small = plan(120, |inputs| inputs.staging_tokens = Some(65)).unwrap();
    assert_eq!((small.context_tokens, small.staging_tokens), (1152, 128));
    assert!(plan(120, |inputs| inputs.staging_tokens = Some(1281)).is_err());
}

#[test]
fn what_was_asked_for_is_given_or_refused_with_the_key() {
    let two = plan(400, |inputs| {
        inputs.context_tokens = Some(1000);
        inputs.cache_tokens = Some(2000);
    })
    .unwrap();
    assert_eq!((two.cache_pages, two.staging_tokens), (31, 1024));
    let longest = plan(400, |inputs| inputs.context_tokens = Some(8192));
    assert_eq!(longest.unwrap().context_tokens, 8192);
    let longer = plan(400, |inputs| inputs.context_tokens = Some(8193)).unwrap_err();
    assert_eq!(longer, MemoryError::Context { asked: 8193, model: 8192 });
    let refused = plan(400, |inputs| {
        (inputs.context_tokens, inputs.cache_tokens) = (Some(1000), Some(1023));
    })
    .unwrap_err();
    assert!(refused.to_string().starts_with("cache.tokens is 960, less than"), "{refused}");
    let much = plan(400, |inputs| inputs.cache_tokens = Some(1_000_000)).unwrap_err();
    assert!(much.to_string().contains("cache of 1000000 tokens"), "{much}");
    assert_eq!(much.to_string().lines().count(), 1);
}

#[test]
fn absurd_numbers_do_not_overflow() {
    for weights in [u64::MAX, u64::MAX - 1, 1 << 62] {
        assert!(plan(400, |inputs| inputs.weight_bytes = weights).is_err());
    }
    assert!(plan(400, |inputs| inputs.cache_tokens = Some(usize::MAX)).is_err());
    assert!(plan(400, |inputs| inputs.staging_tokens = Some(usize::MAX)).is_err());
    assert!(plan(400, |inputs| inputs.sequences = usize::MAX).is_err());
}

#[test]
fn a_gpu_stages_packed_layers_alone() {
    let on_gpu = |inputs: &mut MemoryInputs<'_>| {
        inputs.on_gpu = true;
        inputs.available_bytes += GPU_BYTES + DeviceStore::scratch_bytes(&inputs.shape, 2);
    };
    let dense = plan(400, on_gpu).unwrap();
    assert_eq!((dense.staging_bytes, dense.staging_tokens), (0, 8192));
    assert_eq!(dense.cache_pages, 300);
    let packed = plan(400, |inputs| {
        on_gpu(inputs);
        let layer = &mut inputs.shape.layers[0];
        layer.format = Format::TurboQuant(average_bits("4").unwrap());
    });
    // One of 32 layers of a context of 128 pages.
    assert_eq!(packed.unwrap().staging_bytes, 4 * MIB);
    // Recorded steps are an item of their own.
    let recorded = plan(400, |inputs| {
        on_gpu(inputs);
        inputs.records = true;
    });
    let recorded = recorded.unwrap();
    assert_eq!(recorded.recording_bytes, RECORDING_BYTES);
    assert_eq!(recorded.cache_pages, 300 - (RECORDING_BYTES / MIB) as usize);
    assert!(recorded.to_string().contains(", recordings 256.0 MiB, "), "{recorded}");
}
