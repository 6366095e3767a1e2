//! `load`: from named tensors to a `Decoder`.

use crate::decoder::Block;
use crate::dummy::Dummy;
use crate::experts::Experts;
use crate::mlp::{Gated, Mlp};
use crate::{
    Decoder, DecoderSpec, Embedding, Error, Linear, ModelFiles, RmsNorm, Rotary, Site, TensorView,
    family,
};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl ModelFiles {
    /// Shape and arithmetic of the decoder.
    pub fn spec(&self) -> Result<DecoderSpec, Error> {
        family::spec(self.config(), self.config_file())
    }

    /// Bytes of all weights: as stored, or, where there is a configuration alone, as `load_dummy`
    /// makes them.
    pub fn weight_bytes(&self) -> Result<u64, Error> {
        if self.names().is_empty() {
            return Ok(self.dummy(0).bytes_of(self.spec()?.numbers()));
        }
        Ok(self.total_bytes())
    }

    /// Makes the decoder. Float matrices stay mapped where they need not be joined; quantized ones
    /// are copied. `progress` gets the bytes of the tensors taken so far and of all; the last call
    /// has both equal.
    pub fn load(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Decoder, Error> {
        self.load_at(&Site::Cpu, progress)
    }

    /// The same somewhere: on a GPU everything is copied into its memory.
    pub fn load_at(
        &self,
        site: &Site,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Decoder, Error> {
        let (spec, total) = (self.spec()?, self.total_bytes());
        let mut done = 0;
        let mut take = |name: &str, shape: &[usize]| {
            let view = self.tensor(name)?;
            if view.shape != shape {
                return Err(Error::Shape {
                    file: self.config_file().into(),
                    tensor: name.into(),
                    found: view.shape,
                    expected: shape.into(),
                });
            }
            done += view.bytes.len() as u64;
            progress(done.min(total), total);
            Ok(view)
        };
        let file = self.config_file();
        let decoder = Loader { spec: &spec, site, file, take: &mut take }.decoder()?;
        progress(total, total);
        Ok(decoder)
    }

    /// Makes a decoder of random weights from the configuration alone; see `dummy` for which. The
    /// same seed gives the same weights on every machine.
    pub fn load_dummy(&self, seed: u64) -> Result<Decoder, Error> {
        self.load_dummy_at(&Site::Cpu, seed)
    }

    /// The same somewhere.
    pub fn load_dummy_at(&self, site: &Site, seed: u64) -> Result<Decoder, Error> {
        let spec = self.spec()?;
        let dummy = self.dummy(seed);
        let mut take = |name: &str, shape: &[usize]| Ok(dummy.tensor(name, shape));
        Loader { spec: &spec, site, file: self.config_file(), take: &mut take }.decoder()
    }

    fn dummy(&self, seed: u64) -> Dummy {
        Dummy::new(seed, self.config().output.torch_dtype.as_deref())
    }
}

/// A tensor by name and shape.
type Take<'a> = dyn FnMut(&str, &[usize]) -> Result<TensorView, Error> + 'a;

struct Loader<'a> {
    spec: &'a DecoderSpec,
    site: &'a Site,
    /// In messages.
    file: &'a str,
    take: &'a mut Take<'a>,
}

impl Loader<'_> {
    fn decoder(self) -> Result<Decoder, Error> {
        let file = self.file;
        // What joins the weights knows their shapes, not where they are from.
        self.joined().map_err(|error| match error {
            Error::Candle(error) => Error::malformed(file, "weights", error.to_string()),
            other => other,
        })
    }

    fn joined(mut self) -> Result<Decoder, Error> {
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
        let norm = self.norm("model.norm.weight", spec.hidden)?;
        let embedding = (self.take)(EMBEDDING, &[spec.vocab, spec.hidden])?;
        let head = if spec.ends.tied_head {
            embedding.clone()
        } else {
            (self.take)(HEAD, &[spec.vocab, spec.hidden])?
        };
        let head = Linear::joined_at(self.site, &[head], None)?;
        let shared = if spec.ends.tied_head { head.matrix() } else { None };
        Ok(Decoder {
            spec: spec.clone(),
            site: self.site.clone(),
            embedding: Embedding::new(embedding)?.at(self.site, shared)?,
            blocks,
            norm,
            head,
            rotaries,
        })
    }

    fn block(&mut self, layer: &str, rotary: usize) -> Result<Block, Error> {
        let DecoderSpec { heads, bias, norm, hidden, .. } = *self.spec;
        let (q, kv) = (heads.q * heads.dim, heads.kv * heads.dim);
        let parts: &[_] = if self.spec.fused {
            &[("qkv_proj", q + 2 * kv)]
        } else {
            &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)]
        };
        // A trap: `post_attention_layernorm` is the norm before the MLP, or, where results are
        // normed too, the norm after attention.
        let (mlp_norm, post) = if norm.post {
            let post = ["post_attention_layernorm", "post_feedforward_layernorm"];
            ("pre_feedforward_layernorm", Some(post))
        } else {
            ("post_attention_layernorm", None)
        };
        let attention = format!("{layer}.self_attn");
        let qk = norm.qk.then_some(["self_attn.q_norm", "self_attn.k_norm"]);
        Ok(Block {
            attention_norm: self.norm(&format!("{layer}.input_layernorm.weight"), hidden)?,
            qkv: self.linear(&attention, parts, hidden, bias.qkv)?,
            qk_norms: qk.map(|names| self.norms(layer, names, heads.dim)).transpose()?,
            output: self.linear(&attention, &[("o_proj", hidden)], q, bias.output)?,
            mlp_norm: self.norm(&format!("{layer}.{mlp_norm}.weight"), hidden)?,
            mlp: self.mlp(layer)?,
            post_norms: post.map(|names| self.norms(layer, names, hidden)).transpose()?,
            rotary,
        })
    }

    fn mlp(&mut self, layer: &str) -> Result<Mlp, Error> {
        let DecoderSpec { hidden, mlp, .. } = *self.spec;
        let plain = ["gate_proj", "up_proj", "down_proj"];
        let Some(experts) = mlp.experts else {
            return Ok(Mlp::Dense(self.gated(&format!("{layer}.mlp"), plain)?));
        };
        if self.site.device().is_metal() {
            // candle's product for so few columns has lanes that leave before others read them.
            let what = "a mixture of experts is not served on Metal; use --device cpu";
            return Err(Error::unsupported(self.file, "experts", what));
        }
        let (part, names) = if experts.mixtral_names {
            ("block_sparse_moe", ["w1", "w3", "w2"])
        } else {
            ("mlp", plain)
        };
        let layer = format!("{layer}.{part}");
        let router = self.linear(&layer, &[("gate", experts.count)], hidden, false)?;
        let gated = |expert| self.gated(&format!("{layer}.experts.{expert}"), names);
        let all = (0..experts.count).map(gated).collect::<Result<Vec<_>, _>>()?;
        Ok(Mlp::Experts(Experts::new(experts, router, all)))
    }

    /// An MLP by the names of its gate, up and down.
    fn gated(&mut self, mlp: &str, [gate, up, down]: [&str; 3]) -> Result<Gated, Error> {
        let DecoderSpec { hidden, intermediate: wide, bias, .. } = *self.spec;
        let parts: &[_] = if self.spec.fused {
            &[("gate_up_proj", 2 * wide)]
        } else {
            &[(gate, wide), (up, wide)]
        };
        let gate_up = self.linear(mlp, parts, hidden, bias.mlp)?;
        let down = self.linear(mlp, &[(down, hidden)], wide, bias.mlp)?;
        Ok(Gated::new(gate_up, down, self.spec.mlp.activation))
    }

    /// Matrices below `place`, of the names and rows given, all of `input` columns, as one.
    fn linear(
        &mut self,
        place: &str,
        parts: &[(&str, usize)],
        input: usize,
        bias: bool,
    ) -> Result<Linear, Error> {
        let (mut views, mut biases) = (Vec::new(), Vec::new());
        for (name, rows) in parts {
            views.push((self.take)(&format!("{place}.{name}.weight"), &[*rows, input])?);
            if bias {
                biases.extend(self.vector(&format!("{place}.{name}.bias"), *rows)?);
            }
        }
        Ok(Linear::joined_at(self.site, &views, bias.then_some(biases))?)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<RmsNorm, Error> {
        let mut weight = self.vector(name, width)?;
        for weight in &mut weight {
            *weight += self.spec.norm.offset;
        }
        Ok(RmsNorm::new(weight, self.spec.norm.eps)?.at(self.site)?)
    }

    fn norms(
        &mut self,
        layer: &str,
        [a, b]: [&str; 2],
        width: usize,
    ) -> Result<[RmsNorm; 2], Error> {
        let mut norm = |name| self.norm(&format!("{layer}.{name}.weight"), width);
        Ok([norm(a)?, norm(b)?])
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let view = (self.take)(name, &[length])?;
        view.f32s().ok_or_else(|| {
            let what =
                format!("{:?} is not served for a norm or a bias; served: floats", view.dtype);
            Error::unsupported(self.file, format!("tensor {name}"), what)
        })
    }
}
