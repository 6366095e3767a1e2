//! Logits of tiny decoders against those that the reference library gave for the same weights:
//! tests/golden, made by scripts/make-golden.py. Attention is a plain one in f64, so that nothing
//! but this crate is tested.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod plain;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use candle_core::Device;
use kvant_models::{Decoder, ModelFiles, Site, WeightDtype};
use plain::{Piece, Plain, PlainAttend};

/// Runs steps of (sequence, first position, tokens) pieces; returns the logits of every sequence,
/// in order.
fn run(decoder: &Decoder, ids: &[u32], steps: &[&[Piece]]) -> HashMap<usize, Vec<Vec<f32>>> {
    let mut plain = Plain::new(decoder);
    let mut logits: HashMap<usize, Vec<Vec<f32>>> = HashMap::new();
    for step in steps {
        for ((row, _), out) in plain.step(ids, step, None).unwrap() {
            logits.entry(row).or_default().push(out);
        }
    }
    logits
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

struct Golden {
    decoder: Decoder,
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn golden(name: &str) -> Golden {
    golden_at(&Site::Cpu, name)
}

fn golden_at(site: &Site, name: &str) -> Golden {
    let files = ModelFiles::open(&folder(name)).unwrap();
    let decoder = files.load_at(site, &mut |_, _| {}).unwrap();
    let path = folder(name).join("reference.safetensors");
    let reference = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let ids = reference["ids"].to_vec1::<i64>().unwrap().iter().map(|&id| id as u32).collect();
    Golden { decoder, ids, logits: reference["logits"].to_vec2().unwrap() }
}

fn largest_gap(ours: &[Vec<f32>], reference: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let pairs = ours.iter().flatten().zip(reference.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, gap| if gap > most { gap } else { most })
}

/// Whole, in pieces, and beside a second sequence: within `bound` of the reference, and the same
/// bit for bit.
fn check(name: &str, bound: f32) {
    let Golden { decoder, ids, logits } = golden(name);
    let n = ids.len();
    let whole = &run(&decoder, &ids, &[&[(0, 0, n)]])[&0];
    assert!(whole.iter().flatten().all(|logit| logit.is_finite()), "{name}");
    let gap = largest_gap(whole, &logits);
    eprintln!("{name}: largest gap {gap:e}");
    assert!(gap <= bound, "{name}: {gap} from the reference");
    let pieces: [&[_]; 5] =
        [&[(0, 0, 17)], &[(0, 17, 1)], &[(0, 18, 1)], &[(0, 19, 5)], &[(0, 24, n - 24)]];
    assert_eq!(&run(&decoder, &ids, &pieces)[&0], whole, "{name} in pieces");
    let beside: [&[_]; 4] = [
        &[(7, 0, 3), (0, 0, 11)],
        &[(0, 11, 1), (7, 3, 20)],
        &[(7, 23, 1), (0, 12, 1)],
        &[(0, 13, n - 13), (7, 24, n - 24)],
    ];
    let both = run(&decoder, &ids, &beside);
    assert_eq!(&both[&0], whole, "{name} beside another sequence");
    assert_eq!(&both[&7], whole, "{name} beside another sequence");
}

/// Every case of scripts/make-golden.py, by family.
const CASES: [(&str, &[&str]); 8] = [
    (
        "llama",
        &[
            "llama-gqa-tied",
            "llama-rope-llama3",
            "llama-rope-linear",
            "llama-bias",
            "llama-bias-gguf",
            "llama-gguf-f32",
            "llama-gguf-q8_0",
        ],
    ),
    ("qwen2", &["qwen2", "qwen2-gguf", "qwen2-window", "qwen2-yarn", "qwen2-yarn-gguf"]),
    ("qwen3", &["qwen3", "qwen3-gguf"]),
    ("mistral", &["mistral-window", "mistral-nemo", "mistral-nemo-gguf"]),
    (
        "gemma",
        &[
            "gemma",
            "gemma-gguf",
            "gemma2",
            "gemma2-gguf",
            "gemma2-scale",
            "gemma3",
            "gemma3-gguf",
            "gemma3-linear",
            "gemma3-linear-gguf",
        ],
    ),
    (
        "phi3",
        &[
            "phi3",
            "phi3-longrope-long",
            "phi3-longrope-long-gguf",
            "phi3-longrope-short",
            "phi4-mini",
            "phi4-mini-gguf",
        ],
    ),
    ("smollm3", &["smollm3", "smollm3-gguf"]),
    ("experts", &["qwen3-moe", "qwen3-moe-gguf", "qwen3-moe-unnormed", "mixtral", "mixtral-gguf"]),
];

fn check_family(family: &str) {
    let (_, names) = CASES.iter().find(|(name, _)| *name == family).unwrap();
    for name in *names {
        // Products with blocks take their input to sixteen bits.
        check(name, if name.ends_with("q8_0") { 1e-3 } else { 1e-4 });
    }
}

/// Every family on a GPU, in one step and in pieces with steps of one token. Products take 16-bit
/// weights with activations of the same type, and their library another road for few rows.
#[test]
fn every_family_agrees_on_a_gpu() {
    let site = match Site::cuda(0, None).or_else(|_| Site::metal(0, None)) {
        Ok(site) => site,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    eprintln!("on {:?}", site.gpu().unwrap());
    let mut wrong = Vec::new();
    for name in CASES.iter().flat_map(|(_, names)| names.iter()) {
        let files = ModelFiles::open(&folder(name)).unwrap();
        if site.device().is_metal() && files.spec().unwrap().mlp.experts.is_some() {
            let error = files.load_at(&site, &mut |_, _| {}).unwrap_err().to_string();
            assert!(error.contains("--device cpu"), "{error}");
            continue;
        }
        let Golden { decoder, ids, logits } = golden_at(&site, name);
        let n = ids.len();
        let whole = &run(&decoder, &ids, &[&[(0, 0, n)]])[&0];
        let pieces: [&[_]; 4] = [&[(0, 0, 17)], &[(0, 17, 1)], &[(0, 18, 1)], &[(0, 19, n - 19)]];
        let pieces = &run(&decoder, &ids, &pieces)[&0];
        // Few of the tokens, and none.
        let mut plain = Plain::new(&decoder);
        let asked: [(Piece, &[u32]); 3] =
            [((0, 0, 9), &[]), ((0, 9, 8), &[1, 2, 7]), ((0, 17, n - 17), &[0])];
        let mut few = (Vec::new(), Vec::new());
        for (piece, asked) in asked {
            for ((_, position), found) in plain.step(&ids, &[piece], Some(asked)).unwrap() {
                few.0.push(found);
                few.1.push(logits[position].clone());
            }
        }
        let bound = gpu_bound(name, &files);
        let found = [("whole", whole, &logits), ("in pieces", pieces, &logits)];
        for (how, found, logits) in found.into_iter().chain([("few", &few.0, &few.1)]) {
            let gap = largest_gap(found, logits);
            eprintln!("{name} {how}: largest gap {gap:e}");
            if gap.is_nan() || gap > bound {
                wrong.push(format!("{name} {how}: {gap} from the reference"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How far logits may be from the reference, by the format of the products.
fn gpu_bound(name: &str, files: &ModelFiles) -> f32 {
    let name_of = |part: &str| format!("model.layers.0.self_attn.{part}_proj.weight");
    let tensor = files.tensor(&name_of("q")).or_else(|_| files.tensor(&name_of("qkv"))).unwrap();
    match tensor.dtype {
        WeightDtype::F32 => 1e-4,
        // On Metal results of a product have its operands' type.
        WeightDtype::F16 => 2e-2,
        WeightDtype::BF16 => 1e-1,
        // candle's products with blocks take activations of 8 bits.
        _ if name.ends_with("q8_0") => 3e-1,
        other => panic!("{name} has weights of {other:?}"),
    }
}

#[test]
fn every_golden_folder_is_checked() {
    let listed: BTreeSet<&str> =
        CASES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let has = |name: &str| folder(name).join("reference.safetensors").is_file();
    let found = std::fs::read_dir(folder("")).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<String> = found.filter(|name| has(name)).collect();
    assert_eq!(found.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
}

#[test]
fn llama_scales_rope_joins_biases_and_reads_gguf() {
    check_family("llama");
}

#[test]
fn qwen2_has_biases() {
    check_family("qwen2");
}

#[test]
fn qwen3_norms_q_and_k() {
    check_family("qwen3");
}

#[test]
fn mistral_slides_and_has_heads_of_its_own_size() {
    check_family("mistral");
}

#[test]
fn gemma_scales_caps_slides_and_norms_twice() {
    check_family("gemma");
}

#[test]
fn phi3_joins_matrices_and_turns_parts_of_heads() {
    check_family("phi3");
}

#[test]
fn smollm3_leaves_layers_unturned() {
    check_family("smollm3");
}

#[test]
fn experts_are_picked_by_token() {
    check_family("experts");
}

#[test]
fn dummy_weights_need_a_configuration_only_and_repeat() {
    let files = ModelFiles::open_config_only(&folder("llama-bias")).unwrap();
    let logits = |seed| {
        let decoder = files.load_dummy(seed).unwrap();
        run(&decoder, &[3, 1, 4, 1, 5], &[&[(0, 0, 5)]])[&0].clone()
    };
    assert_eq!(logits(1), logits(1));
    assert_ne!(logits(1), logits(2));
    assert!(logits(1).iter().flatten().all(|logit| logit.is_finite() && logit.abs() < 100.0));
}

#[test]
fn dummy_weights_are_made_for_every_family() {
    for name in CASES.iter().flat_map(|(_, names)| names.iter()) {
        if folder(name).join("config.json").is_file() {
            let files = ModelFiles::open_config_only(&folder(name)).unwrap();
            let logits = run(&files.load_dummy(3).unwrap(), &[3, 1, 4], &[&[(0, 0, 3)]]);
            assert!(logits[&0].iter().flatten().all(|logit| logit.is_finite()), "{name}");
        }
    }
}

#[test]
fn dummy_weights_are_as_large_as_those_of_the_files() {
    for name in CASES.iter().flat_map(|(_, names)| names.iter()) {
        if folder(name).join("config.json").is_file() {
            let files = ModelFiles::open(&folder(name)).unwrap();
            let tensors = files.names().into_iter().map(|name| files.tensor(name).unwrap());
            let stored: usize = tensors.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            assert_eq!(files.spec().unwrap().numbers(), stored as u64, "{name}");
            let wide = files.config().output.torch_dtype.as_deref() == Some("float32");
            let alone = ModelFiles::open_config_only(&folder(name)).unwrap();
            let bytes = stored as u64 * if wide { 4 } else { 2 };
            assert_eq!(alone.weight_bytes().unwrap(), bytes, "{name}");
            assert_eq!(files.weight_bytes().unwrap(), files.total_bytes(), "{name}");
        }
    }
}

#[test]
fn loading_tells_how_far_it_is() {
    let files = ModelFiles::open(&folder("llama-rope-llama3")).unwrap();
    let mut told = Vec::new();
    let decoder = files.load(&mut |done, total| told.push((done, total))).unwrap();
    assert!(told.is_sorted() && told.iter().all(|&(_, total)| total == files.total_bytes()));
    assert_eq!(told.last(), Some(&(files.total_bytes(), files.total_bytes())));
    // Five norms of 64 elements are widened from 2 bytes to 4.
    assert_eq!(decoder.weight_bytes(), files.total_bytes() + 5 * 64 * 2);
}

#[test]
fn wrong_steps_are_errors() {
    let Golden { decoder, .. } = golden("llama-gqa-tied");
    let mut attend = PlainAttend::new(decoder.spec());
    let mut workspace = decoder.workspace();
    assert!(decoder.logits(&[0], &mut workspace).is_err());
    attend.rows = vec![0];
    let mut run = |ids: &[u32], positions: &[u32]| {
        decoder.forward(ids, positions, &mut attend, &mut workspace)
    };
    assert!(run(&[], &[]).is_err());
    assert!(run(&[1, 2], &[0]).is_err());
    assert!(run(&[95], &[0]).is_ok());
    assert!(run(&[96], &[1]).is_err());
    assert!(decoder.logits(&[1], &mut workspace).is_err());
}
