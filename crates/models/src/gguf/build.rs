//! Builds GGUF files for tests, valid ones and, since every part can be replaced, broken ones.

/// A file in the making.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_count: Option<u64>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) weights: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A key and its value: type id and bytes.
pub(crate) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name), kind.to_le_bytes().as_slice(), value].concat()
}

pub(crate) fn key_u32(name: &str, value: u32) -> Vec<u8> {
    key(name, 4, &value.to_le_bytes())
}

pub(crate) fn key_f32(name: &str, value: f32) -> Vec<u8> {
    key(name, 6, &value.to_le_bytes())
}

pub(crate) fn key_text(name: &str, value: &str) -> Vec<u8> {
    key(name, 8, &text(value))
}

/// A key with an array: element type id, count as said, and the bytes of the elements.
pub(crate) fn key_array(name: &str, kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    key(name, 9, &[&kind.to_le_bytes(), count.to_le_bytes().as_slice(), elements].concat())
}

pub(crate) fn key_texts(name: &str, texts: &[&str]) -> Vec<u8> {
    let elements: Vec<u8> = texts.iter().flat_map(|element| text(element)).collect();
    key_array(name, 8, texts.len() as u64, &elements)
}

/// A line of the tensor list; `dims` innermost first, as in the file.
pub(crate) fn tensor(name: &str, dims: &[u64], dtype: u32, offset: u64) -> Vec<u8> {
    let mut line = text(name);
    line.extend((dims.len() as u32).to_le_bytes());
    line.extend(dims.iter().flat_map(|size| size.to_le_bytes()));
    line.extend(dtype.to_le_bytes());
    line.extend(offset.to_le_bytes());
    line
}

impl GgufFile {
    pub(crate) fn empty() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            weights: Vec::new(),
        }
    }

    /// A small valid file: one key of each kind, three tensors, nothing after the last.
    pub(crate) fn small() -> Self {
        let mut file = Self::empty();
        file.keys = vec![
            key_text("general.architecture", "llama"),
            key("n.u8", 0, &[200]),
            key("n.i8", 1, &[0xff]),
            key("n.u16", 2, &[1, 2]),
            key("n.i16", 3, &[0xfe, 0xff]),
            key_u32("n.u32", 70_000),
            key("n.i32", 5, &(-5_i32).to_le_bytes()),
            key_f32("n.f32", 1.5),
            key("n.bool", 7, &[1]),
            key("n.u64", 10, &(1_u64 << 40).to_le_bytes()),
            key("n.i64", 11, &(-9_i64).to_le_bytes()),
            key("n.f64", 12, &0.1_f64.to_le_bytes()),
            key_texts("a.texts", &["", "é", "three"]),
            key_array("a.f32", 6, 2, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]),
            key_array("a.i32", 5, 2, &[3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            key_array("a.bool", 7, 2, &[0, 1]),
            key_array("a.none", 10, 0, &[]),
        ];
        file.tensors = vec![
            tensor("token_embd.weight", &[2, 3], 0, 0),
            tensor("blk.0.attn_q.weight", &[32, 2], 2, 32),
            tensor("output_norm.weight", &[2], 1, 96),
        ];
        file.weights = (0..100).collect();
        file
    }

    /// Metadata of a Llama of hidden size 8 with two query heads and one kv head of size 4; no
    /// tensors yet.
    pub(crate) fn llama() -> Self {
        let mut file = Self::empty();
        file.keys = vec![
            key_text("general.architecture", "llama"),
            key_u32("llama.block_count", 1),
            key_u32("llama.context_length", 64),
            key_u32("llama.embedding_length", 8),
            key_u32("llama.feed_forward_length", 16),
            key_u32("llama.attention.head_count", 2),
            key_u32("llama.attention.head_count_kv", 1),
            key_f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
            key_f32("llama.rope.freq_base", 500_000.0),
            key_texts("tokenizer.ggml.tokens", &["<s>", "</s>", "<|im_end|>", "<|eot_id|>", "a"]),
            key_array(
                "tokenizer.ggml.token_type",
                5,
                5,
                &[3_i32, 3, 3, 1, 1].map(i32::to_le_bytes).concat(),
            ),
            key_u32("tokenizer.ggml.eos_token_id", 1),
        ];
        file
    }

    /// Adds an F32 tensor; `dims` innermost first.
    pub(crate) fn add(&mut self, name: &str, dims: &[u64], elements: &[f32]) {
        self.weights.resize(self.weights.len().next_multiple_of(32), 0);
        self.tensors.push(tensor(name, dims, 0, self.weights.len() as u64));
        self.weights.extend(elements.iter().flat_map(|element| element.to_le_bytes()));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        if !self.weights.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&self.weights);
        }
        out
    }
}
