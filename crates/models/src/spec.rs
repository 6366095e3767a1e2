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
    /// Width of the MLP.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Projections that have a bias.
    pub bias: Bias,
    /// The output matrix is the embedding.
    pub tied_head: bool,
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
    /// Rotary embedding.
    pub rope: Rope,
}

/// Rotary position embedding, half-split ("neox") pairing.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
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
    /// Every frequency divided by its own factor: `dim / 2` of them, as GGUF files of Llama 3 carry
    /// them.
    Factors(Vec<f32>),
}
