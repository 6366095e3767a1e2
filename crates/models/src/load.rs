//! `load`: from named tensors to a `Decoder`.

use crate::decoder::Block;
use crate::dummy::Dummy;
use crate::{
    Decoder, DecoderSpec, Embedding, Error, Linear, Mlp, ModelFiles, RmsNorm, Rotary, TensorView,
    family,
};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl ModelFiles {
    /// Shape and arithmetic of the decoder.
    pub fn spec(&self) -> Result<DecoderSpec, Error> {
        family::spec(self.config(), self.config_file())
    }

    /// Makes the decoder. Float matrices stay mapped where they need not be joined; quantized ones
    /// are copied. `progress` gets the bytes of the tensors taken so far and of all; the last call
    /// has both equal.
    pub fn load(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Decoder, Error> {
        let (spec, total) = (self.spec()?, self.total_bytes());
        let mut done = 0;
        let mut take = |name: &str, shape: &[usize]| {
            let view = self.tensor(name)?;
            if view.shape != shape {
                return Err(Error::Shape {
                    file: self.name().into(),
                    tensor: name.into(),
                    found: view.shape,
                    expected: shape.into(),
                });
            }
            done += view.bytes.len() as u64;
            progress(done.min(total), total);
            Ok(view)
        };
        let decoder = Loader { spec: &spec, take: &mut take }.decoder()?;
        progress(total, total);
        Ok(decoder)
    }

    /// Makes a decoder of random weights from the configuration alone; see [`Dummy`] for which. The
    /// same seed gives the same weights on every machine.
    pub fn load_dummy(&self, seed: u64) -> Result<Decoder, Error> {
        let spec = self.spec()?;
        let dummy = Dummy::new(seed, self.config().output.torch_dtype.as_deref());
        let mut take = |name: &str, shape: &[usize]| Ok(dummy.tensor(name, shape));
        Loader { spec: &spec, take: &mut take }.decoder()
    }
}

/// A tensor by name and shape.
type Take<'a> = dyn FnMut(&str, &[usize]) -> Result<TensorView, Error> + 'a;

struct Loader<'a> {
    spec: &'a DecoderSpec,
    take: &'a mut Take<'a>,
}

impl Loader<'_> {
    fn decoder(mut self) -> Result<Decoder, Error> {
        let spec = self.spec;
        let mut rotaries = Vec::new();
        let mut blocks = Vec::new();
        for (index, layer) in spec.layers.iter().enumerate() {
            let rotary = Rotary::new(&layer.rope, spec.heads.dim)?;
            let known = rotaries.iter().position(|known| *known == rotary).unwrap_or_else(|| {
                rotaries.push(rotary);
                rotaries.len() - 1
            });
            blocks.push(self.block(&format!("model.layers.{index}"), known)?);
        }
        let norm = self.norm("model.norm.weight")?;
        let embedding = (self.take)(EMBEDDING, &[spec.vocab, spec.hidden])?;
        let head = if spec.tied_head {
            embedding.clone()
        } else {
            (self.take)(HEAD, &[spec.vocab, spec.hidden])?
        };
        Ok(Decoder {
            spec: spec.clone(),
            embedding: Embedding::new(embedding)?,
            blocks,
            norm,
            head: Linear::new(&head, None)?,
            rotaries,
        })
    }

    fn block(&mut self, layer: &str, rotary: usize) -> Result<Block, Error> {
        let (heads, bias) = (self.spec.heads, self.spec.bias);
        let (hidden, wide) = (self.spec.hidden, self.spec.intermediate);
        let (q, kv) = (heads.q * heads.dim, heads.kv * heads.dim);
        let attention = [("q", q), ("k", kv), ("v", kv)]
            .map(|(part, rows)| (format!("{layer}.self_attn.{part}_proj"), rows));
        let output = [(format!("{layer}.self_attn.o_proj"), hidden)];
        let gate_up = ["gate", "up"].map(|part| (format!("{layer}.mlp.{part}_proj"), wide));
        let down = [(format!("{layer}.mlp.down_proj"), hidden)];
        Ok(Block {
            attention_norm: self.norm(&format!("{layer}.input_layernorm.weight"))?,
            qkv: self.linear(&attention, hidden, bias.qkv)?,
            output: self.linear(&output, q, bias.output)?,
            mlp_norm: self.norm(&format!("{layer}.post_attention_layernorm.weight"))?,
            mlp: Mlp::new(
                self.linear(&gate_up, hidden, bias.mlp)?,
                self.linear(&down, wide, bias.mlp)?,
            ),
            rotary,
        })
    }

    /// Matrices of the names and rows given, all of `input` columns, as one.
    fn linear(
        &mut self,
        parts: &[(String, usize)],
        input: usize,
        bias: bool,
    ) -> Result<Linear, Error> {
        let (mut views, mut biases) = (Vec::new(), Vec::new());
        for (name, rows) in parts {
            views.push((self.take)(&format!("{name}.weight"), &[*rows, input])?);
            if bias {
                biases.extend(self.vector(&format!("{name}.bias"), *rows)?);
            }
        }
        Ok(Linear::joined(&views, bias.then_some(biases))?)
    }

    fn norm(&mut self, name: &str) -> Result<RmsNorm, Error> {
        let weight = self.vector(name, self.spec.hidden)?;
        Ok(RmsNorm::new(weight, self.spec.norm_eps)?)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let view = (self.take)(name, &[length])?;
        view.f32s().ok_or_else(|| {
            let what =
                format!("{:?} is not served for a norm or a bias; served: floats", view.dtype);
            Error::unsupported("weights", format!("tensor {name}"), what)
        })
    }
}
