//! `DecoderSpec`: everything in which one decoder differs from another. A model family is a
//! function that returns one.

/// Shape and arithmetic of a decoder. A field is admitted if it is a number, a flag or an enum used
/// at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Name for people and metrics, e.g. `llama`.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP; of one expert where there are experts.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Attention heads.
    pub heads: Heads,
    /// RMS norms.
    pub norm: NormSpec,
    /// Projections that have a bias.
    pub bias: Bias,
    /// The files have q, k, v as one matrix, and gate and up as one.
    pub fused: bool,
    /// The feed-forward part of a block.
    pub mlp: MlpSpec,
    /// What is before the first and after the last layer.
    pub ends: Ends,
    /// One entry a layer.
    pub layers: Vec<LayerSpec>,
}

/// Attention heads of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// Key and value heads; divides `q`.
    pub kv: usize,
    /// Size of one head.
    pub dim: usize,
}

/// Which RMS norms there are, and their arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f64,
    /// Added to every stored weight.
    pub offset: f32,
    /// Attention and MLP results are normed too, before they are added to the residual stream.
    pub post: bool,
    /// Every head of q and k is normed, before rope.
    pub qk: bool,
}

/// The feed-forward part of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MlpSpec {
    /// Function of the gate.
    pub activation: Activation,
    /// Several MLPs of which a router picks some for every token; `None`: one.
    pub experts: Option<ExpertSpec>,
}

/// Function of the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    #[default]
    Silu,
    /// The gaussian error unit by its tanh formula.
    GeluTanh,
}

/// Mixture of experts: the softmax of the router's scores picks and weighs experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSpec {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token uses.
    pub used: usize,
    /// The weights of those used are scaled to a sum of 1.
    pub normed: bool,
    /// The files name tensors as Mixtral does: `block_sparse_moe`, w1, w2, w3.
    pub mixtral_names: bool,
}

/// What is before the first and after the last layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// The output matrix is the embedding.
    pub tied_head: bool,
    /// Logits are `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

/// Projections that have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bias {
    /// q, k and v.
    pub qkv: bool,
    /// The output of attention.
    pub output: bool,
    /// All three of the MLP.
    pub mlp: bool,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// A token sees this many tokens including itself; `None` sees all.
    pub window: Option<usize>,
    /// Scores are q·k times this.
    pub scale: f32,
    /// Scaled scores are `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Rotary embedding.
    pub rope: Rope,
}

/// Rotary position embedding, half-split ("neox") pairing.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// First elements of a head that are turned, an even number; 0 for a layer without positions.
    pub rotated: usize,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
    /// Cosines and sines are multiplied by this.
    pub magnitude: f32,
}

/// How rope frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Divided by a factor.
    Linear(f64),
    /// Llama 3: low frequencies divided, high kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original_context / high` are high frequencies.
        high: f64,
        /// Context before stretching.
        original_context: f64,
    },
    /// Yarn: frequencies of many turns kept, of few divided, a ramp between, by index.
    Yarn {
        /// Divisor of the frequencies of few turns.
        factor: f64,
        /// Turns over the original context from which a frequency is kept.
        fast: f64,
        /// Turns below which it is divided.
        slow: f64,
        /// Context before stretching.
        original_context: f64,
    },
    /// Every frequency divided by its own factor, `rotated / 2` of them: longrope, and Llama 3 in
    /// GGUF files.
    Factors(Vec<f32>),
}

impl DecoderSpec {
    /// Numbers of all weights, norms and biases, as files have them.
    pub fn numbers(&self) -> u64 {
        let Self { hidden, intermediate: wide, vocab, heads, norm, bias, mlp, ends, .. } = *self;
        let (q, kv) = (heads.q * heads.dim, heads.kv * heads.dim);
        let mut attention = matrix(hidden, q + 2 * kv) + matrix(q, hidden);
        attention += if bias.qkv { (q + 2 * kv) as u64 } else { 0 };
        attention += if bias.output { hidden as u64 } else { 0 };
        attention += if norm.qk { 2 * heads.dim as u64 } else { 0 };
        let norms = if norm.post { 4 } else { 2 } * hidden as u64;
        let bias = if bias.mlp { (2 * wide + hidden) as u64 } else { 0 };
        let gated = 3 * matrix(hidden, wide) + bias;
        let mlp = mlp.experts.map_or(gated, |experts| {
            matrix(hidden, experts.count).saturating_add(gated.saturating_mul(experts.count as u64))
        });
        let layer = mlp.saturating_add(attention + norms);
        let ends = matrix(vocab, hidden) * if ends.tied_head { 1 } else { 2 } + hidden as u64;
        layer.saturating_mul(self.layers.len() as u64).saturating_add(ends)
    }
}

fn matrix(rows: usize, columns: usize) -> u64 {
    rows as u64 * columns as u64
}
