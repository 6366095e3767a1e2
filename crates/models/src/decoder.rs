//! `Decoder`: one decoder for all families, over ragged `[tokens, hidden]` activations.

use candle_core::{Device, Result, Tensor, bail};

use crate::mlp::Mlp;
use crate::rope::Angles;
use crate::{Attend, DecoderSpec, Embedding, Heads, Linear, RmsNorm, Rotary};

/// Weights and arithmetic of a model. Knows neither pages nor sequences: it asks an [`Attend`].
#[derive(Debug)]
pub struct Decoder {
    pub(crate) spec: DecoderSpec,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Linear,
    /// The different rotary embeddings of the layers; a block names its own.
    pub(crate) rotaries: Vec<Rotary>,
}

/// A layer: attention, then the MLP, each on a normed copy and added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) qkv: Linear,
    /// Norms of every head of q and of k.
    pub(crate) qk_norms: Option<[RmsNorm; 2]>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
    /// Norms of what attention and the MLP add to the residual stream.
    pub(crate) post_norms: Option<[RmsNorm; 2]>,
    /// Index into the decoder's rotary embeddings.
    pub(crate) rotary: usize,
}

impl Decoder {
    /// Hidden states after the final norm: `[tokens, hidden]` f32.
    ///
    /// ids and positions: one of each token of the step, of several sequences one after the other.
    /// A token's result depends on its own sequence only, through `attend`.
    pub fn forward(
        &self,
        ids: &[u32],
        positions: &[u32],
        attend: &mut dyn Attend,
    ) -> Result<Tensor> {
        if ids.len() != positions.len() || ids.is_empty() {
            bail!("a step of {} tokens and {} positions", ids.len(), positions.len())
        }
        let angles = self.rotaries.iter().map(|rotary| rotary.angles(positions, &Device::Cpu));
        let angles = angles.collect::<Result<Vec<_>>>()?;
        let mut x = self.embedding.forward(ids)?;
        if self.spec.ends.embedding_scale != 1.0 {
            x = (x * f64::from(self.spec.ends.embedding_scale))?;
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut ask = |q: &Tensor, k: &Tensor, v: &Tensor| attend.attend(layer, q, k, v);
            x = block.forward(&x, self.spec.heads, &angles[block.rotary], &mut ask)?;
        }
        self.norm.forward(&x)
    }

    /// hidden: `[rows, hidden]` of [`Decoder::forward`]; returns `[rows, vocab]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.head.forward(hidden)?;
        match self.spec.ends.logit_softcap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    /// Shape and arithmetic.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Bytes that the weights take, those of mapped files included.
    pub fn weight_bytes(&self) -> u64 {
        // A tied head in blocks is a copy; in floats it is the embedding's own bytes.
        let shared = self.spec.ends.tied_head && !self.embedding.dtype().is_quantized();
        let embedding = if shared { 0 } else { self.embedding.bytes() };
        let blocks = self.blocks.iter().map(Block::bytes).sum::<u64>();
        embedding + blocks + self.norm.bytes() + self.head.bytes()
    }
}

type Ask<'a> = dyn FnMut(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'a;

impl Block {
    /// x: `[tokens, hidden]`; returns the same shape.
    fn forward(
        &self,
        x: &Tensor,
        heads: Heads,
        angles: &Angles,
        attend: &mut Ask<'_>,
    ) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        let part = |first: usize, count: usize| {
            let part = qkv.narrow(1, first * heads.dim, count * heads.dim)?;
            part.contiguous()?.reshape((tokens, count, heads.dim))
        };
        let (mut q, mut k) = (part(0, heads.q)?, part(heads.q, heads.kv)?);
        if let Some([q_norm, k_norm]) = &self.qk_norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (angles.rotate(&q)?, angles.rotate(&k)?);
        let v = part(heads.q + heads.kv, heads.kv)?;
        let attended = attend(&q, &k, &v)?.reshape((tokens, heads.q * heads.dim))?;
        let mut attended = self.output.forward(&attended)?;
        if let Some([norm, _]) = &self.post_norms {
            attended = norm.forward(&attended)?;
        }
        let x = (x + attended)?;
        let mut mlp = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        if let Some([_, norm]) = &self.post_norms {
            mlp = norm.forward(&mlp)?;
        }
        x + mlp
    }

    fn bytes(&self) -> u64 {
        let optional = [&self.qk_norms, &self.post_norms].into_iter().flatten().flatten();
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter().chain(optional);
        norms.map(RmsNorm::bytes).sum::<u64>()
            + self.qkv.bytes()
            + self.output.bytes()
            + self.mlp.bytes()
    }
}
