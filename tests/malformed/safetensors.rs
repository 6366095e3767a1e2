//! A small model in a folder that is valid, and every way to damage its header or configuration.

use std::fs;
use std::path::{Path, PathBuf};

use crate::draw::Draw;
use crate::safetensors_file::file;

/// Configuration of the model.
pub(crate) const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 0}"#;

/// Names and the ways they stand for.
pub(crate) const KINDS: [(&str, Damage); 19] = [
    ("bits", Damage::Bytes(|bytes, end, draw| draw.flip(bytes, end))),
    ("cut", Damage::Bytes(|bytes, _, draw| bytes.truncate(draw.below(bytes.len())))),
    ("length", Damage::Bytes(|bytes, end, draw| length(bytes, end, draw))),
    ("trailing", Damage::Bytes(|bytes, _, draw| bytes.resize(bytes.len() + 1 + draw.below(99), 7))),
    ("sign", Damage::Bytes(|bytes, end, draw| sign(bytes, end, draw))),
    ("utf-8", Damage::Bytes(|bytes, end, draw| not_utf8(bytes, end, draw))),
    ("twice", Damage::Entries(twice)),
    ("lost", Damage::Entries(|header, draw| drop(header.entries.remove(header.any(draw))))),
    ("dtype", Damage::Entries(dtype)),
    ("shape", Damage::Entries(shape)),
    ("offsets", Damage::Entries(offsets)),
    ("swapped", Damage::Entries(swapped)),
    ("name", Damage::Entries(name)),
    ("fields", Damage::Entries(fields)),
    ("notes", Damage::Entries(notes)),
    ("deep", Damage::Entries(deep)),
    ("config-number", Damage::Config(config_number)),
    ("config-bits", Damage::Config(|config, draw| draw.flip(config, usize::MAX))),
    ("config-keys", Damage::Config(config_keys)),
];

/// One way to damage a model: in its header's entries, in the bytes of the file, of which the
/// header ends at `end`, or in config.json.
#[derive(Clone, Copy)]
pub(crate) enum Damage {
    Entries(fn(&mut Header, &mut Draw)),
    Bytes(fn(&mut Vec<u8>, usize, &mut Draw)),
    Config(fn(&mut Vec<u8>, &mut Draw)),
}

/// The header, not yet JSON.
pub(crate) struct Header {
    entries: Vec<Entry>,
    /// Written between the braces, before the tensors.
    before: String,
    weights: usize,
}

/// A tensor as written.
#[derive(Clone)]
struct Entry {
    name: String,
    dtype: String,
    shape: Vec<String>,
    offsets: [String; 2],
    /// Further fields.
    more: String,
}

/// config.json and model.safetensors.
pub(crate) fn damaged(damage: Damage, draw: &mut Draw) -> (Vec<u8>, Vec<u8>) {
    let (mut config, mut header) = (CONFIG.as_bytes().to_vec(), valid());
    match damage {
        Damage::Entries(change) => change(&mut header, draw),
        Damage::Config(change) => change(&mut config, draw),
        Damage::Bytes(change) => {
            let mut bytes = header.bytes();
            let end = bytes.len() - header.weights;
            change(&mut bytes, end, draw);
            return (config, bytes);
        }
    }
    (config, header.bytes())
}

/// Writes a folder with the words of the built-in model.
pub(crate) fn write(folder: &Path, config: &[u8], weights: &[u8]) {
    let built_in = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama-1m");
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("model.safetensors"), weights).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(built_in.join(name), folder.join(name)).unwrap();
    }
}

pub(crate) fn valid() -> Header {
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![64, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
        (layer("input_layernorm"), vec![32]),
        (layer("post_attention_layernorm"), vec![32]),
        (layer("self_attn.q_proj"), vec![32, 32]),
        (layer("self_attn.k_proj"), vec![16, 32]),
        (layer("self_attn.v_proj"), vec![16, 32]),
        (layer("self_attn.o_proj"), vec![32, 32]),
        (layer("mlp.gate_proj"), vec![64, 32]),
        (layer("mlp.up_proj"), vec![64, 32]),
        (layer("mlp.down_proj"), vec![32, 64]),
    ];
    let mut at = 0;
    let entries = tensors.into_iter().map(|(name, shape)| {
        let start = at;
        at += 2 * shape.iter().product::<usize>();
        Entry {
            name,
            dtype: "BF16".to_owned(),
            shape: shape.iter().map(ToString::to_string).collect(),
            offsets: [start.to_string(), at.to_string()],
            more: String::new(),
        }
    });
    let entries = entries.collect();
    Header { entries, before: r#""__metadata__":{"format":"pt"}"#.to_owned(), weights: at }
}

impl Header {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let lines = self.entries.iter().map(|entry| {
            let Entry { name, dtype, shape, offsets: [start, stop], more } = entry;
            let shape = shape.join(",");
            let fields = format!(r#""dtype":{dtype:?},"shape":[{shape}]"#);
            format!(r#","{name}":{{{fields},"data_offsets":[{start},{stop}]{more}}}"#)
        });
        let lines: String = lines.collect();
        let lines = if self.before.is_empty() { &lines[1..] } else { &lines };
        let weights: Vec<u8> =
            (0..self.weights).map(|at| if at % 2 == 0 { 0 } else { 0x3c }).collect();
        file(&format!("{{{}{lines}}}", self.before), &weights)
    }

    fn any(&self, draw: &mut Draw) -> usize {
        draw.below(self.entries.len())
    }
}

fn length(bytes: &mut [u8], end: usize, draw: &mut Draw) {
    let near = (end as u64 - 8).wrapping_add(draw.of(&[1, 2, 8, 100, u64::MAX, u64::MAX - 1]));
    let length = if draw.below(2) == 0 { draw.odd() } else { near };
    bytes[..8].copy_from_slice(&length.to_le_bytes());
}

fn sign(bytes: &mut [u8], end: usize, draw: &mut Draw) {
    for _ in 0..=draw.below(3) {
        let at = 8 + draw.below(end - 8);
        bytes[at] = draw.of(b"0123456789,[]{}\":-.eE \n\t\\u");
    }
}

fn not_utf8(bytes: &mut [u8], end: usize, draw: &mut Draw) {
    let at = 8 + draw.below(end - 8);
    bytes[at] = draw.of(&[0, 0x1b, 0x7f, 0x80, 0xc0, 0xed, 0xf8, 0xff]);
}

fn twice(header: &mut Header, draw: &mut Draw) {
    if draw.below(4) == 0 {
        header.before = [header.before.as_str(); 2].join(",");
        return;
    }
    let entry = header.entries[header.any(draw)].clone();
    header.entries.insert(header.any(draw), entry);
}

fn dtype(header: &mut Header, draw: &mut Draw) {
    let at = header.any(draw);
    let dtypes = ["F16", "F32", "I64", "F4", "F6_E2M3", "BOOL", "U8", "", "Q4_0", "f16", "F\n16"];
    header.entries[at].dtype = draw.of(&dtypes).to_owned();
}

/// A number as JSON may have it, or may not.
fn number(draw: &mut Draw) -> String {
    let written = [
        "-1",
        "-0",
        "1e3",
        "1e999",
        "0.5",
        "18446744073709551616",
        "\"32\"",
        "null",
        "[32]",
        "99999999999999999999999999999999999999999",
        "NaN",
        "0x20",
        "032",
    ];
    if draw.below(2) == 0 { draw.of(&written).to_owned() } else { draw.odd().to_string() }
}

fn shape(header: &mut Header, draw: &mut Draw) {
    let at = header.any(draw);
    let shape = &mut header.entries[at].shape;
    match draw.below(4) {
        0 => shape.extend(vec!["1".to_owned(); draw.of(&[1, 6, 7, 8, 100_000])]),
        1 => shape.clear(),
        // A product that overflows to what it was.
        2 => shape.extend(["4294967296", "4294967297", "4294967296"].map(str::to_owned)),
        _ => {
            let place = draw.below(shape.len());
            shape[place] = number(draw);
        }
    }
}

fn offsets(header: &mut Header, draw: &mut Draw) {
    let at = header.any(draw);
    let offsets = &mut header.entries[at].offsets;
    match draw.below(3) {
        0 => offsets.swap(0, 1),
        1 => offsets[draw.below(2)] = number(draw),
        _ => {
            let place = draw.below(2);
            let near: usize = offsets[place].parse().unwrap();
            offsets[place] = (near + draw.of(&[1, 2, 64, 1 << 20])).to_string();
        }
    }
}

/// Two tensors in each other's place, or on each other.
fn swapped(header: &mut Header, draw: &mut Draw) {
    let (a, b) = (header.any(draw), header.any(draw));
    let of_b = header.entries[b].offsets.clone();
    let of_a = std::mem::replace(&mut header.entries[a].offsets, of_b);
    if draw.below(2) == 0 {
        header.entries[b].offsets = of_a;
    }
}

fn name(header: &mut Header, draw: &mut Draw) {
    let at = header.any(draw);
    let long = "n".repeat(100_000);
    let names = ["", "__metadata__", "\\n\\u001b[0m", "\\ud800", "\n", "lm_head.weight", &long];
    draw.of(&names).clone_into(&mut header.entries[at].name);
}

fn fields(header: &mut Header, draw: &mut Draw) {
    let at = header.any(draw);
    let more = [
        ",\"x\":1",
        ",\"shape\":[1]",
        ",\"data_offsets\":[0,0]",
        ",\"dtype\":\"F32\"",
        ",",
        "}",
        "]",
        ",\"data_offsets\":[0,0,0]",
    ];
    header.entries[at].more = draw.of(&more).to_owned();
}

fn notes(header: &mut Header, draw: &mut Draw) {
    let notes = ["1", "null", "[]", "{\"a\":1}", "{\"a\":null}", "{\"a\":\"1\",\"a\":\"2\"}", "{"];
    header.before = match draw.below(3) {
        0 => String::new(),
        1 => format!(
            "{}\"__metadata__\":{{\"a\":\"{}\"}}",
            " ".repeat(draw.of(&[1, 100_000])),
            "b".repeat(draw.of(&[1, 1_000_000]))
        ),
        _ => format!("\"__metadata__\":{}", draw.of(&notes)),
    };
}

/// Brackets in brackets, where any value may be.
fn deep(header: &mut Header, draw: &mut Draw) {
    let depth = draw.of(&[100, 127, 128, 129, 1000, 200_000]);
    let (open, close) = draw.of(&[("[", "]"), ("{\"a\":", "}")]);
    let value = match draw.below(2) {
        0 => open.repeat(depth),
        _ => format!("{}1{}", open.repeat(depth), close.repeat(depth)),
    };
    let at = header.any(draw);
    match draw.below(4) {
        0 => header.before = format!("\"__metadata__\":{value}"),
        1 => header.before = format!("\"__metadata__\":{{\"a\":{value}}}"),
        2 => header.entries[at].shape = vec![value],
        _ => header.entries[at].more = format!(",\"x\":{value}"),
    }
}

/// Another number in place of one of config.json's.
fn config_number(config: &mut Vec<u8>, draw: &mut Draw) {
    let text = std::str::from_utf8(config).unwrap();
    let starts: Vec<usize> = text.match_indices("\": ").map(|(at, _)| at + 3).collect();
    let at = draw.of(&starts);
    let end = at + text[at..].find([',', '}']).unwrap();
    let near = ["16", "31", "48", "64", "100", "1e-9", "3"].map(str::to_owned);
    let number = if draw.below(3) == 0 { near[draw.below(7)].clone() } else { number(draw) };
    config.splice(at..end, number.into_bytes());
}

/// Keys that decoders differ in, with values that none has.
fn config_keys(config: &mut Vec<u8>, draw: &mut Draw) {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let keys = [
        "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 0}",
        "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 1e-300}",
        "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 1e9, \"beta_fast\": 1e9}",
        "\"rope_scaling\": {\"type\": \"longrope\", \"long_factor\": [], \"short_factor\": [1]}",
        "\"rope_scaling\": {\"type\": \"o\\nd\\u001bd\"}",
        "\"rope_parameters\": {\"full_attention\": {\"rope_theta\": -1}}",
        "\"partial_rotary_factor\": 1e-9",
        "\"attention_bias\": true",
        "\"attention_bias\": 1",
        "\"sliding_window\": 18446744073709551615",
        "\"layer_types\": [\"o\\ndd\"]",
        "\"num_experts\": 18446744073709551615",
        "\"hidden_act\": \"o\\ndd\"",
        "\"architectures\": []",
        "\"architectures\": [\"Qwen3MoeForCausalLM\"]",
        "\"architectures\": [\"Gemma3ForCausalLM\"], \"sliding_window_pattern\": 0",
        "\"architectures\": [\"Phi3ForCausalLM\"]",
        "\"eos_token_id\": [-1]",
        "\"eos_token_id\": \"x\"",
        &deep,
        "\"tie_word_embeddings\": false",
    ];
    let more = format!("{{{}, ", draw.of(&keys));
    // Also instead of the key that is there.
    let text = std::str::from_utf8(config).unwrap();
    let name = more.split(':').next().unwrap_or_default().trim_start_matches('{').to_owned();
    let kept: Vec<&str> = text[1..].split(", ").filter(|part| !part.starts_with(&name)).collect();
    let text = if draw.below(2) == 0 { kept.join(", ") } else { text[1..].to_owned() };
    *config = format!("{more}{text}").into_bytes();
}
