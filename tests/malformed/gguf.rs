//! Every way to damage a small GGUF model.

mod valid;

use crate::draw::Draw;
use crate::gguf_file::{GgufFile, key, key_array, key_f32, key_text, key_texts, key_u32, text};

pub(crate) use valid::valid;

/// Names and the ways they stand for.
pub(crate) const KINDS: [(&str, Damage); 24] = [
    ("bits", Damage::Bytes(|bytes, end, draw| draw.flip(bytes, end))),
    ("bits-anywhere", Damage::Bytes(|bytes, _, draw| draw.flip(bytes, usize::MAX))),
    ("cut", Damage::Bytes(|bytes, _, draw| bytes.truncate(draw.below(bytes.len())))),
    ("word", Damage::Bytes(|bytes, end, draw| any_word(bytes, end, draw))),
    ("trailing", Damage::Bytes(trailing)),
    ("version", Damage::Parts(|file, draw| file.version = draw.odd() as u32)),
    ("tensor-count", Damage::Parts(|file, draw| file.tensor_count = Some(draw.odd()))),
    ("key-count", Damage::Parts(|file, draw| file.key_count = Some(draw.odd()))),
    ("key-twice", Damage::Parts(|file, draw| twice(&mut file.keys, draw))),
    ("tensor-twice", Damage::Parts(|file, draw| twice(&mut file.tensors, draw))),
    ("key-lost", Damage::Parts(|file, draw| lost(&mut file.keys, draw))),
    ("tensor-lost", Damage::Parts(|file, draw| lost(&mut file.tensors, draw))),
    ("key-type", Damage::Parts(key_type)),
    ("key-number", Damage::Parts(key_number)),
    ("float", Damage::Parts(float)),
    ("length", Damage::Parts(length)),
    ("array", Damage::Parts(array)),
    ("alignment", Damage::Parts(alignment)),
    ("dimensions", Damage::Parts(dimensions)),
    ("offset", Damage::Parts(offset)),
    ("dtype", Damage::Parts(dtype)),
    ("utf-8", Damage::Parts(not_utf8)),
    ("vocabulary", Damage::Parts(vocabulary)),
    ("family", Damage::Parts(family)),
];

/// One way to damage a file: in its parts, or in its bytes, of which the header ends at `end`.
#[derive(Clone, Copy)]
pub(crate) enum Damage {
    Parts(fn(&mut GgufFile, &mut Draw)),
    Bytes(fn(&mut Vec<u8>, usize, &mut Draw)),
}

pub(crate) fn damaged(damage: Damage, draw: &mut Draw) -> Vec<u8> {
    let models = valid();
    let mut file = models[draw.below(models.len())].clone();
    match damage {
        Damage::Parts(change) => {
            change(&mut file, draw);
            file.bytes()
        }
        Damage::Bytes(change) => {
            let mut bytes = file.bytes();
            let end = bytes.len() - file.weights.len();
            change(&mut bytes, end, draw);
            bytes
        }
    }
}

fn any_word(bytes: &mut [u8], end: usize, draw: &mut Draw) {
    let at = draw.below(end - 8);
    let odd = draw.odd().to_le_bytes();
    let width = draw.of(&[1, 2, 4, 8]);
    bytes[at..at + width].copy_from_slice(&odd[..width]);
}

fn trailing(bytes: &mut Vec<u8>, _: usize, draw: &mut Draw) {
    for _ in 0..draw.of(&[1, 31, 32, 1000, 100_000]) {
        bytes.push(draw.next() as u8);
    }
}

fn twice(entries: &mut Vec<Vec<u8>>, draw: &mut Draw) {
    let entry = entries[draw.below(entries.len())].clone();
    let at = draw.below(entries.len());
    entries.insert(at, entry);
}

fn lost(entries: &mut Vec<Vec<u8>>, draw: &mut Draw) {
    for _ in 0..=draw.below(3) {
        let at = draw.below(entries.len());
        entries.remove(at);
    }
}

/// Where an entry's name ends.
fn after_name(entry: &[u8]) -> usize {
    8 + u64::from_le_bytes(entry[..8].try_into().unwrap()) as usize
}

fn put(entry: &mut [u8], at: usize, bytes: &[u8]) {
    entry[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An entry of the list, by chance.
fn any<'a>(entries: &'a mut [Vec<u8>], draw: &mut Draw) -> &'a mut Vec<u8> {
    let at = draw.below(entries.len());
    &mut entries[at]
}

fn key_type(file: &mut GgufFile, draw: &mut Draw) {
    let entry = any(&mut file.keys, draw);
    let kind = draw.of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, u32::MAX]);
    let at = after_name(entry);
    put(entry, at, &kind.to_le_bytes());
}

/// Another number, of another width, in place of a number.
fn key_number(file: &mut GgufFile, draw: &mut Draw) {
    let is_number = |entry: &&mut Vec<u8>| entry[after_name(entry)] == 4;
    let mut numbers: Vec<_> = file.keys.iter_mut().filter(is_number).collect();
    for _ in 0..=draw.below(2) {
        let at = draw.below(numbers.len());
        let name = after_name(numbers[at]);
        let (kind, width) = draw.of(&[(0_u32, 1), (4, 4), (4, 4), (5, 4), (10, 8), (11, 8)]);
        let near = [48, 64, 100, 128, 1 << 10, 4096, 4097].map(|n| n + draw.below(2) as u64);
        let number = if draw.below(3) == 0 { draw.of(&near) } else { draw.odd() };
        numbers[at].truncate(name);
        numbers[at].extend(kind.to_le_bytes());
        numbers[at].extend(&number.to_le_bytes()[..width]);
    }
}

fn float(file: &mut GgufFile, draw: &mut Draw) {
    let key = draw.of(&[
        "rope.freq_base",
        "attention.layer_norm_rms_epsilon",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    ]);
    let value = draw.of(&[
        0.0,
        -0.0,
        -1.0,
        1.0,
        1e-45,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ]);
    for family in ["llama", "qwen2", "gemma3", "phi3"] {
        let name = format!("{family}.{key}");
        file.keys.retain(|entry| entry[8..after_name(entry)] != *name.as_bytes());
        file.keys.push(key_f32(&name, value));
        if draw.below(2) == 0 && key.starts_with("rope.scaling") {
            let kind = draw.of(&["linear", "yarn", "longrope", "llama3", "none", "odd\nkind"]);
            file.keys.push(key_text(&format!("{family}.rope.scaling.type"), kind));
        }
    }
}

/// A name or a text that says it is longer or shorter than it is.
fn length(file: &mut GgufFile, draw: &mut Draw) {
    let odd = draw.odd().to_le_bytes();
    if draw.below(3) == 0 {
        put(any(&mut file.tensors, draw), 0, &odd);
        return;
    }
    let entry = any(&mut file.keys, draw);
    let at = after_name(entry);
    let is_text = entry[at] == 8;
    put(entry, if is_text && draw.below(2) == 0 { at + 4 } else { 0 }, &odd);
}

/// An array of another count, of other elements, or of arrays that go down and down.
fn array(file: &mut GgufFile, draw: &mut Draw) {
    let is_array = |entry: &&mut Vec<u8>| entry[after_name(entry)] == 9;
    let mut arrays: Vec<_> = file.keys.iter_mut().filter(is_array).collect();
    let at = draw.below(arrays.len());
    let entry = &mut *arrays[at];
    let place = after_name(entry) + 4;
    match draw.below(3) {
        0 => put(entry, place, &(draw.below(14) as u32).to_le_bytes()),
        1 => put(entry, place + 4, &draw.odd().to_le_bytes()),
        _ => {
            let one = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat();
            entry.truncate(place);
            entry.extend(one.repeat(draw.of(&[1, 2, 100, 100_000])));
        }
    }
}

fn alignment(file: &mut GgufFile, draw: &mut Draw) {
    let odd = draw.odd();
    let other = draw.of(&[0, 1, 3, 8, 16, 64, 1 << 20, 1 << 21, 1 << 30, u32::MAX]);
    file.keys.push(match draw.below(4) {
        0 => key("general.alignment", 10, &odd.to_le_bytes()),
        1 => key("general.alignment", 11, &odd.to_le_bytes()),
        _ => key_u32("general.alignment", other),
    });
    if other.is_power_of_two() && other <= 64 && draw.below(2) == 0 {
        file.alignment = other as usize;
    }
}

/// Other sizes, or another number of them, in a line of the list of tensors.
fn dimensions(file: &mut GgufFile, draw: &mut Draw) {
    let entry = any(&mut file.tensors, draw);
    let at = after_name(entry);
    let rank = u32::from_le_bytes(entry[at..at + 4].try_into().unwrap()) as usize;
    match draw.below(4) {
        0 => put(entry, at, &(draw.of(&[0, 1, 2, 3, 4, 5, 1 << 20, u32::MAX])).to_le_bytes()),
        1 => {
            // A product that overflows to what it was.
            let more = [1_u64 << 32, 1 << 32].map(u64::to_le_bytes).concat();
            put(entry, at, &((rank + 2) as u32).to_le_bytes());
            entry.splice(at + 4..at + 4, more);
        }
        _ => {
            for _ in 0..=draw.below(rank) {
                let place = at + 4 + 8 * draw.below(rank);
                put(entry, place, &draw.odd().to_le_bytes());
            }
        }
    }
}

/// Past the end, odd, or on another tensor.
fn offset(file: &mut GgufFile, draw: &mut Draw) {
    let most = file.weights.len() as u64;
    let entry = any(&mut file.tensors, draw);
    let at = entry.len() - 8;
    let offset = match draw.below(4) {
        0 => draw.odd(),
        1 => draw.below(most as usize / 32) as u64 * 32,
        2 => draw.below(most as usize) as u64,
        _ => (most.next_multiple_of(32)).wrapping_sub(draw.of(&[0, 32, 64])),
    };
    put(entry, at, &offset.to_le_bytes());
}

fn dtype(file: &mut GgufFile, draw: &mut Draw) {
    for _ in 0..=draw.below(2) {
        let entry = any(&mut file.tensors, draw);
        let at = entry.len() - 12;
        put(entry, at, &(draw.below(42) as u32).to_le_bytes());
    }
}

fn not_utf8(file: &mut GgufFile, draw: &mut Draw) {
    let lists = draw.below(3);
    let entry = any(if lists == 0 { &mut file.tensors } else { &mut file.keys }, draw);
    let end = if lists == 1 { after_name(entry) } else { entry.len() };
    let at = 8 + draw.below(end - 8);
    entry[at] = draw.of(&[0, b'\n', 0x1b, 0x7f, 0x80, 0xc0, 0xed, 0xf8, 0xff]);
}

/// Tokens, types, merges and templates that contradict each other.
fn vocabulary(file: &mut GgufFile, draw: &mut Draw) {
    let long = "▁".repeat(5000);
    let deep = format!("{}1{}", "{{ (".repeat(20_000), ") }}".repeat(20_000));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
    let blocks = format!("{}x", "{% if a %}".repeat(20_000));
    let list = format!("{{{{ {}{} }}}}", "[".repeat(50_000), "]".repeat(50_000));
    let minus = format!("{{{{ {}1 }}}}", "-".repeat(50_000));
    let tokens: [&[&str]; 6] = [
        &[],
        &[""],
        &["a"; 8],
        &["a", "", "a", "b", "ab", "b", "a", "\n"],
        &[long.as_str(); 8],
        &["<s>"],
    ];
    let (name, entry) = match draw.below(6) {
        0 => {
            let name = "tokenizer.ggml.tokens";
            (name, key_texts(name, tokens[draw.below(tokens.len())]))
        }
        1 => {
            let name = "tokenizer.ggml.merges";
            let merges: [&[&str]; 5] = [&[], &["a"], &["a b", "a b"], &["b a"], &[" ", "a  b"]];
            (name, key_texts(name, merges[draw.below(merges.len())]))
        }
        2 => {
            let name = "tokenizer.chat_template";
            let bad = ["{% for %}", "{{ x", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"];
            let deep = [&deep, &nested, &blocks, &list, &minus].map(String::as_str);
            (name, key_text(name, draw.of(&[bad.as_slice(), &deep].concat())))
        }
        3 => {
            let name = "tokenizer.ggml.scores";
            let scores: Vec<u8> =
                (0..8).flat_map(|_| f32::from_bits(draw.next() as u32).to_le_bytes()).collect();
            (name, key_array(name, 6, 8, &scores))
        }
        4 => {
            let name = "tokenizer.ggml.token_type";
            let types: Vec<u8> =
                (0..8).flat_map(|_| (draw.below(9) as i32 - 1).to_le_bytes()).collect();
            (name, key_array(name, 5, 8, &types))
        }
        _ => {
            let name = draw.of(&["tokenizer.ggml.model", "tokenizer.ggml.pre"]);
            (name, key_text(name, draw.of(&["llama", "gpt2", "bert", "", "default", "\u{1b}[0m"])))
        }
    };
    file.keys.retain(|entry| !entry.starts_with(&text(name)));
    file.keys.push(entry);
}

/// The keys and tensors of one family under the name of another.
fn family(file: &mut GgufFile, draw: &mut Draw) {
    let families =
        ["qwen3", "qwen3moe", "gemma", "gemma2", "smollm3", "mamba", "", "phi3", "llama", "gemma3"];
    let (from, to) = (file.keys[0][12 + after_name(&file.keys[0])..].to_vec(), draw.of(&families));
    let from = String::from_utf8(from).unwrap();
    file.keys[0] = key_text("general.architecture", to);
    for entry in &mut file.keys[1..] {
        let end = after_name(entry);
        let name = String::from_utf8(entry[8..end].to_vec()).unwrap();
        if let Some(rest) = name.strip_prefix(&format!("{from}.")) {
            *entry = [&text(&format!("{to}.{rest}")), &entry[end..]].concat();
        }
    }
}
