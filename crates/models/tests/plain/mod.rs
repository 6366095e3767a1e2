//! A decoder over plain attention in f64, step by step.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use kvant_models::{Attend, Decoder, DecoderSpec, Heads, LayerSpec, Workspace};

/// Of a step: sequence, first position, tokens.
pub(crate) type Piece = (usize, usize, usize);

/// What a step gave: logits after the tokens that were asked for, each by sequence and position.
pub(crate) type Logits = Vec<((usize, usize), Vec<f32>)>;

/// A decoder with its sequences.
pub(crate) struct Plain<'a> {
    decoder: &'a Decoder,
    attend: PlainAttend,
    workspace: Workspace,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(decoder: &'a Decoder) -> Self {
        let (attend, workspace) = (PlainAttend::new(decoder.spec()), decoder.workspace());
        Self { decoder, attend, workspace }
    }

    /// A step of all pieces, each of them tokens of `ids`, of which some are asked for, or all.
    pub(crate) fn step(
        &mut self,
        ids: &[u32],
        pieces: &[Piece],
        asked: Option<&[u32]>,
    ) -> Result<Logits> {
        let tokens = || pieces.iter().flat_map(|&(row, at, n)| (at..at + n).map(move |p| (row, p)));
        self.attend.rows = tokens().map(|(row, _)| row).collect();
        self.attend.asked = asked.map(<[u32]>::to_vec);
        let positions: Vec<u32> = tokens().map(|(_, position)| position as u32).collect();
        let ids: Vec<u32> = tokens().map(|(_, position)| ids[position]).collect();
        self.decoder.forward(&ids, &positions, &mut self.attend, &mut self.workspace)?;
        let places: Vec<(usize, usize)> = tokens().collect();
        let places: Vec<_> = match asked {
            Some(asked) => asked.iter().map(|token| places[*token as usize]).collect(),
            None => places,
        };
        let hidden = self.workspace.hidden().map(|hidden| hidden.dims().to_vec());
        assert_eq!(hidden, Some(vec![places.len(), self.decoder.spec().hidden]));
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<u32> = (0..places.len() as u32).collect();
        let logits = self.decoder.logits(&rows, &mut self.workspace)?.to_vec2::<f32>()?;
        Ok(places.into_iter().zip(logits).collect())
    }
}

/// Causal attention over every sequence's keys and values, kept whole.
pub(crate) struct PlainAttend {
    heads: Heads,
    layers: Vec<LayerSpec>,
    /// Keys and values of (sequence, layer), each `[tokens, heads.kv, dim]`.
    cache: HashMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
    /// Sequence of every token of the step.
    pub(crate) rows: Vec<usize>,
    /// Which of them are asked for.
    pub(crate) asked: Option<Vec<u32>>,
}

impl PlainAttend {
    pub(crate) fn new(spec: &DecoderSpec) -> Self {
        let layers = spec.layers.clone();
        Self { heads: spec.heads, layers, cache: HashMap::new(), rows: Vec::new(), asked: None }
    }

    /// One query head over the keys and values of its sequence so far.
    fn head(&self, layer: &LayerSpec, q: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let (stride, dim) = (self.heads.kv * self.heads.dim, self.heads.dim);
        let tokens = keys.len().div_ceil(stride);
        let unseen = layer.window.map_or(0, |window| tokens.saturating_sub(window)) * stride;
        let (keys, values) = (&keys[unseen..], &values[unseen..]);
        let dot = |key: &[f32]| q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let scores: Vec<f64> = keys.chunks(stride).map(|k| dot(&k[..dim])).collect();
        let scores = scores.iter().map(|score: &f64| {
            let score = score * f64::from(layer.scale);
            layer.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
        });
        let highest = scores.clone().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.map(|score| (score - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let column = |d: usize| {
            let values = values.chunks(stride).map(|v| f64::from(v[d]));
            (weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total) as f32
        };
        (0..dim).map(column).collect()
    }
}

impl Attend for PlainAttend {
    fn asked(&self) -> Option<&[u32]> {
        self.asked.as_deref()
    }

    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3], out: &Tensor) -> Result<()> {
        let [q, k, v] = qkv;
        let Heads { q: q_heads, kv, dim } = self.heads;
        // The last layer has queries of what is asked for alone.
        let last = layer + 1 == self.layers.len();
        let all = || (0..self.rows.len() as u32).collect();
        let asked = self.asked.clone().filter(|_| last).unwrap_or_else(all);
        assert_eq!(q.dims(), [asked.len(), q_heads, dim]);
        assert_eq!((k.dims(), v.dims()), (&[self.rows.len(), kv, dim][..], k.dims()));
        assert_eq!(out.dims(), q.dims());
        let floats = |x: &Tensor| match x.elem_count() {
            0 => Vec::new(),
            _ => x.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        };
        let [q, k, v] = [q, k, v].map(floats);
        let mut attended = Vec::new();
        let mut queries = q.chunks(q_heads * dim);
        for (token, &row) in (0..).zip(&self.rows) {
            let new = token as usize * kv * dim..(token as usize + 1) * kv * dim;
            let (keys, values) = self.cache.entry((row, layer)).or_default();
            keys.extend_from_slice(&k[new.clone()]);
            values.extend_from_slice(&v[new]);
            if !asked.contains(&token) {
                continue;
            }
            let (keys, values) = &self.cache[&(row, layer)];
            for (head, q) in queries.next().unwrap().chunks(dim).enumerate() {
                let first = head / (q_heads / kv) * dim;
                let (keys, values) = (&keys[first..], &values[first..]);
                attended.extend(self.head(&self.layers[layer], q, keys, values));
            }
        }
        if attended.is_empty() {
            return Ok(());
        }
        // On a GPU what is asked for may be of 16 bits.
        let attended = Tensor::from_vec(attended, out.dims(), out.device())?;
        out.slice_set(&attended.to_dtype(out.dtype())?, 0, 0)
    }
}
