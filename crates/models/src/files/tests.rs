//! Models in folders of their own: which files make a model, and what they say.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::gguf::build::GgufFile;
use crate::safetensors::build::f32_file;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 2, "max_position_embeddings": 64, "eos_token_id": 1}"#;
const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Names and contents of files.
type Contents<'a> = &'a [(&'a str, &'a [u8])];

/// A folder that is gone when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(files: Contents<'_>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("kvant-models-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for (name, content) in files {
            fs::write(path.join(name), content).unwrap();
        }
        Self(path)
    }

    fn refused(&self) -> String {
        let error = ModelFiles::open(&self.0).expect_err("a folder without a usable model");
        let error = error.to_string();
        assert!(error.contains(self.0.to_str().unwrap()), "{error}");
        error
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn two_tensors() -> Vec<u8> {
    let embedding: Vec<f32> = (0..16).map(|i| i as f32).collect();
    f32_file(&[(EMBEDDING, &[2, 8], &embedding), (NORM, &[8], &[1.0; 8])])
}

#[test]
fn a_folder_of_one_safetensors_file() {
    let generation = br#"{"eos_token_id": [0, 1]}"#;
    let folder = Folder::new(&[
        ("config.json", CONFIG.as_bytes()),
        ("generation_config.json", generation),
        ("model.safetensors", &two_tensors()),
    ]);
    let files = ModelFiles::open(&folder.0).unwrap();
    assert_eq!(files.names(), [EMBEDDING, NORM]);
    assert!(files.has(NORM) && !files.has(HEAD));
    assert_eq!(files.total_bytes(), 24 * 4);
    let embedding = files.tensor(EMBEDDING).unwrap();
    assert_eq!(embedding.shape, [2, 8]);
    assert_eq!(embedding.f32s().unwrap()[9], 9.0);
    assert_eq!(files.eos_tokens(), [0, 1]);
    assert_eq!(files.name(), folder.0.file_name().unwrap().to_str().unwrap());
    assert_eq!(files.folder(), folder.0);
    assert!(files.gguf().is_none());
    let error = files.tensor(HEAD).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: tensor lm_head.weight is missing"), "{error}");
}

#[test]
fn weights_say_whether_the_head_is_tied_unless_the_configuration_does() {
    let headed = f32_file(&[(HEAD, &[1], &[1.0])]);
    let untied = CONFIG.replace('{', r#"{"tie_word_embeddings": false, "#);
    let cases = [
        (CONFIG, &two_tensors(), true),
        (CONFIG, &headed, false),
        (&untied, &two_tensors(), false),
    ];
    for (config, weights, expected) in cases {
        let folder =
            Folder::new(&[("config.json", config.as_bytes()), ("model.safetensors", weights)]);
        let files = ModelFiles::open(&folder.0).unwrap();
        assert_eq!(files.config().output.tie_word_embeddings, Some(expected));
    }
}

fn sharded(weight_map: &str) -> Folder {
    Folder::new(&[
        ("config.json", CONFIG.as_bytes()),
        ("model.safetensors.index.json", format!(r#"{{"weight_map":{weight_map}}}"#).as_bytes()),
        ("one.safetensors", &f32_file(&[(EMBEDDING, &[1], &[5.0]), ("unlisted", &[1], &[0.0])])),
        ("two.safetensors", &f32_file(&[(NORM, &[2], &[6.0, 7.0])])),
        ("damaged.safetensors", &two_tensors()[..200]),
    ])
}

#[test]
fn a_folder_of_shards() {
    let folder =
        sharded(&format!(r#"{{"{NORM}":"two.safetensors","{EMBEDDING}":"one.safetensors"}}"#));
    let files = ModelFiles::open(&folder.0).unwrap();
    assert_eq!(files.names(), [EMBEDDING, NORM]);
    assert_eq!(files.tensor(EMBEDDING).unwrap().f32s().unwrap(), [5.0]);
    assert_eq!(files.tensor(NORM).unwrap().f32s().unwrap(), [6.0, 7.0]);
    assert!(files.tensor("unlisted").is_err());
    assert_eq!(files.total_bytes(), 12);
}

#[test]
fn broken_indexes_are_refused() {
    let cases = [
        (format!(r#"{{"{NORM}":"one.safetensors"}}"#), "is said to be in one.safetensors"),
        (format!(r#"{{"{NORM}":"three.safetensors"}}"#), "three.safetensors: cannot be read"),
        (format!(r#"{{"{NORM}":"damaged.safetensors"}}"#), "damaged.safetensors: tensor"),
        (r#"{"x":"../one.safetensors"}"#.into(), "is not the plain name"),
        (r#"{"x":"/etc/one.safetensors"}"#.into(), "is not the plain name"),
        (r#"{"x":"..\\one.safetensors"}"#.into(), "is not the plain name"),
        (r#"{"x":"sub/one.safetensors"}"#.into(), "is not the plain name"),
        (r#"{"x":"config.json"}"#.into(), "is not the plain name"),
        (r#"{"x":"one.safetensors","x":"two.safetensors"}"#.into(), "\"x\" is there twice"),
        (r#"{"x":1}"#.into(), "line 1 column"),
        ("[]".into(), "line 1 column"),
    ];
    for (weight_map, expected) in cases {
        let error = sharded(&weight_map).refused();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
}

/// A Llama of one layer whose q and k rows are numbered in the order of the file.
fn llama() -> GgufFile {
    let rows = |rows: usize| (0..rows * 8).map(|i| (i / 8) as f32).collect::<Vec<_>>();
    let mut file = GgufFile::llama();
    file.add("token_embd.weight", &[8, 6], &rows(6));
    file.add("blk.0.attn_q.weight", &[8, 8], &rows(8));
    file.add("blk.0.attn_k.weight", &[8, 4], &rows(4));
    file.add("blk.0.attn_v.weight", &[8, 4], &rows(4));
    file.add("blk.0.attn_q.bias", &[8], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    file.add("rope_freqs.weight", &[2], &[1.0, 2.0]);
    file
}

fn first_column(files: &ModelFiles, name: &str) -> Vec<f32> {
    files.tensor(name).unwrap().f32s().unwrap().into_iter().step_by(8).collect()
}

#[test]
fn a_gguf_file_by_itself_or_in_a_folder() {
    let folder = Folder::new(&[("tiny.Q8.gguf", &llama().bytes())]);
    for path in [folder.0.clone(), folder.0.join("tiny.Q8.gguf")] {
        let files = ModelFiles::open(&path).unwrap();
        assert_eq!(files.name(), "tiny.Q8");
        assert_eq!(files.folder(), folder.0);
        assert_eq!(files.eos_tokens(), [1, 2]);
        assert_eq!(files.config().size.vocab_size, 6);
        assert_eq!(files.gguf().unwrap().architecture(), "llama");
        assert_eq!(files.total_bytes(), 4 * (48 + 64 + 32 + 32 + 8 + 2));
        assert!(files.has("rope_freqs.weight") && !files.has("token_embd.weight"));
    }
}

#[test]
fn rows_of_q_and_k_come_in_the_order_of_half_split_rope() {
    let folder = Folder::new(&[("tiny.gguf", &llama().bytes())]);
    let files = ModelFiles::open(&folder.0).unwrap();
    let layer = "model.layers.0.self_attn";
    let cases: [(&str, &[f32]); 3] = [
        ("q_proj.weight", &[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]),
        ("k_proj.weight", &[0.0, 2.0, 1.0, 3.0]),
        ("v_proj.weight", &[0.0, 1.0, 2.0, 3.0]),
    ];
    for (part, expected) in cases {
        assert_eq!(first_column(&files, &format!("{layer}.{part}")), expected, "{part}");
    }
    let bias = files.tensor(&format!("{layer}.q_proj.bias")).unwrap();
    assert_eq!(bias.f32s().unwrap(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(first_column(&files, EMBEDDING), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_gguf_file_with_impossible_q_rows_or_two_names_of_a_tensor_is_refused() {
    let mut odd = GgufFile::llama();
    odd.add("blk.0.attn_q.weight", &[8, 6], &[0.0; 48]);
    let folder = Folder::new(&[("tiny.gguf", &odd.bytes())]);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let error = ModelFiles::open(&folder.0).unwrap().tensor(name).unwrap_err().to_string();
    assert!(error.contains("has 6 rows, no 2 heads of even size"), "{error}");

    let mut twice = llama();
    twice.add(EMBEDDING, &[8], &[0.0; 8]);
    let error = Folder::new(&[("tiny.gguf", &twice.bytes())]).refused();
    assert!(error.contains("two tensors that mean model.embed_tokens.weight"), "{error}");
}

#[test]
fn what_is_no_model_is_refused_with_what_to_give() {
    let gguf = llama().bytes();
    let cases: [(Contents<'_>, &str); 7] = [
        (&[], "has neither config.json with safetensors nor a .gguf file"),
        (&[("config.json", CONFIG.as_bytes())], "has config.json but no weights"),
        (&[("a.gguf", &gguf), ("b.gguf", &gguf)], "has 2 .gguf files"),
        (&[("a.gguf", &[])], "a.gguf: byte 0: the magic number needs 4 bytes, 0 are left"),
        (&[("a.gguf", &gguf[..gguf.len() - 1])], "a.gguf: tensor rope_freqs.weight"),
        (
            &[("config.json", b"{"), ("model.safetensors", &[])],
            "model.safetensors: byte 0: the file",
        ),
        (&[("config.json", b"\xff"), ("model.safetensors", &two_tensors())], "cannot be read"),
    ];
    for (files, expected) in cases {
        let error = Folder::new(files).refused();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
    let folder = Folder::new(&[("weights.bin", &gguf)]);
    for (name, expected) in [("absent", "cannot be read"), ("weights.bin", "is no .gguf file")] {
        let error = ModelFiles::open(&folder.0.join(name)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_configuration_alone_has_no_tensors() {
    let folder = Folder::new(&[("config.json", CONFIG.as_bytes()), ("other.json", b"{}")]);
    for path in [folder.0.clone(), folder.0.join("config.json")] {
        let files = ModelFiles::open_config_only(&path).unwrap();
        assert_eq!(files.config().size.hidden_size, 8);
        assert_eq!(files.config().output.tie_word_embeddings, None);
        assert_eq!((files.names().len(), files.total_bytes()), (0, 0));
        let error = files.tensor(NORM).unwrap_err().to_string();
        assert!(error.contains("config.json: tensor model.norm.weight is missing"), "{error}");
    }
    assert!(ModelFiles::open_config_only(&folder.0.join("other.json")).is_err());
    assert!(ModelFiles::open_config_only(&folder.0.join("absent")).is_err());
}

#[test]
fn configurations_are_limited_in_size() {
    let padded = |length: usize| {
        let config = format!("{CONFIG}{}", " ".repeat(length - CONFIG.len()));
        let folder = Folder::new(&[("config.json", config.as_bytes())]);
        ModelFiles::open_config_only(&folder.0).map_err(|error| error.to_string())
    };
    let most = open::CONFIG_BYTES as usize;
    assert!(padded(most).is_ok());
    assert!(padded(most + 1).unwrap_err().contains("has more than 1048576 bytes"));
}

#[test]
fn the_fixture_of_this_repository_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama-1m");
    let files = ModelFiles::open(&path).unwrap();
    assert_eq!(files.name(), "tiny-llama-1m");
    assert_eq!(files.eos_tokens(), [0, 2]);
    // Two matrices and norms outside, nine tensors a layer.
    assert_eq!(files.names().len(), 2 + 4 * 9);
    let q = files.tensor("model.layers.3.self_attn.q_proj.weight").unwrap();
    assert_eq!((q.dtype, q.shape.as_slice()), (WeightDtype::F16, [128, 128].as_slice()));
}

#[test]
fn elements_of_float_tensors_are_converted() {
    let view = |dtype, bytes: &[u8]| TensorView {
        dtype,
        shape: vec![1],
        bytes: Bytes::from(bytes.to_vec()),
    };
    assert_eq!(view(WeightDtype::F32, &[0, 0, 0x20, 0xc1]).f32s().unwrap(), [-10.0]);
    assert_eq!(view(WeightDtype::F16, &[0, 0x3e]).f32s().unwrap(), [1.5]);
    assert_eq!(view(WeightDtype::BF16, &[0x20, 0xc1]).f32s().unwrap(), [-10.0]);
    assert_eq!(view(WeightDtype::Q4_0, &[0; 18]).f32s(), None);
}
