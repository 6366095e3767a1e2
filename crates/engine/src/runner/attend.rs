//! `StepAttend`: the join of decoder and cache: where a step's keys and values go, and what its
//! tokens attend over.

use std::ops::Range;

use candle_core::{Error, Result, Tensor};
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, Path, attend_dense, attend_packed,
};
use kvant_kv_cache::{
    PAGE_TOKENS, PageStore, ReferenceParams, Row, Span, Staging, Tiles, attend_reference,
};
use kvant_models::{Attend, LayerSpec, with_floats, with_floats_mut};

use crate::heartbeat::Heartbeat;
use crate::step::{DecodeRow, PrefillChunk, Step};

/// Attention of one step: decode rows over pages, chunks over staging.
pub(super) struct StepAttend<'a> {
    pub(super) step: &'a Step,
    pub(super) asked: Option<Vec<u32>>,
    pub(super) rows: Rows<'a>,
    pub(super) layers: &'a [LayerSpec],
    pub(super) store: &'a mut PageStore,
    pub(super) staging: &'a mut Staging,
    pub(super) road: AttentionRoad,
    pub(super) alive: &'a Heartbeat,
}

/// How decode rows attend. Prompts attend over staging on either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionRoad {
    /// Kernels that read pages in place.
    #[default]
    Fused,
    /// Gather, decode, mask, softmax in the left-padded frame: slow, and what the kernels are
    /// tested against.
    Reference,
}

/// Keys, values and queries of a layer, `[tokens, heads, dim]`, and where the results go. Of the
/// last layer queries and results are of the tokens alone that are asked for.
pub(super) struct Layer<'a> {
    pub(super) index: usize,
    /// Numbers of a token's keys, and of its queries.
    pub(super) widths: (usize, usize),
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) out: &'a mut [f32],
    pub(super) params: AttendParams,
}

/// Decode rows as the store and the kernels want them, the same in all layers.
pub(super) struct Rows<'a> {
    stored: Vec<Row<'a>>,
    dense: Vec<AttendRow<'a>>,
    packed: Vec<PackedRow<'a>>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(step: &'a Step) -> Self {
        let dense = |row: &'a DecodeRow| AttendRow {
            pages: &row.place.pages,
            position: row.position as usize,
            tokens: row.tokens.len(),
        };
        let packed = |row: &'a DecodeRow| PackedRow {
            pages: &row.place.pages[..row.position as usize / PAGE_TOKENS],
            tail: std::slice::from_ref(&row.place.tail),
            sinks: None,
            position: row.position as usize,
            tokens: row.tokens.len(),
            mask: None,
        };
        Self {
            stored: step.decode.iter().map(row_of).collect(),
            dense: step.decode.iter().map(dense).collect(),
            packed: step.decode.iter().map(packed).collect(),
        }
    }
}

impl Attend for StepAttend<'_> {
    fn asked(&self) -> Option<&[u32]> {
        self.asked.as_deref()
    }

    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor; 3], out: &Tensor) -> Result<()> {
        self.alive.beat();
        let (_, kv_heads, dim) = k.dims3()?;
        let (_, q_heads, _) = q.dims3()?;
        let LayerSpec { window, scale, softcap, .. } = self.layers[layer];
        let params = AttendParams { q_heads, scale, window, softcap };
        let widths = (kv_heads * dim, q_heads * dim);
        with_floats_mut(out, |out| {
            with_floats(q, |q| {
                with_floats(k, |k| {
                    with_floats(v, |v| {
                        self.layer(Layer { index: layer, widths, q, k, v, out, params })
                    })
                })
            })
        })
    }
}

impl StepAttend<'_> {
    fn layer(&mut self, layer: Layer<'_>) -> Result<()> {
        let Layer { index, widths, q, k, v, out, params } = layer;
        let (width, q_width) = widths;
        let decoded: usize = self.rows.stored.iter().map(|row| row.tokens).sum();
        let (row_q, chunk_q) = q.split_at(decoded * q_width);
        let (row_out, chunk_out) = out.split_at_mut(decoded * q_width);
        let (row_k, chunk_k) = k.split_at(decoded * width);
        let (row_v, chunk_v) = v.split_at(decoded * width);
        if decoded > 0 {
            self.store.append(index, &self.rows.stored, row_k, row_v);
            self.decode(index, (row_out, row_q), &params);
        }
        match self.step.prefill.as_slice() {
            [] => Ok(()),
            [chunk] if chunk.is_early() => {
                let (q, k, v, out) = (chunk_q, chunk_k, chunk_v, chunk_out);
                self.early(Layer { index, widths, q, k, v, out, params }, chunk)
            }
            _ => {
                self.stage(index, chunk_k, chunk_v, width)?;
                self.prefill(index, chunk_out, chunk_q, &params)?;
                self.convert(index)
            }
        }
    }

    /// Those of a chunk's tokens that attend.
    pub(super) fn queries(&self, layer: usize, chunk: &PrefillChunk) -> Range<usize> {
        if layer + 1 == self.layers.len() { chunk.asked() } else { 0..chunk.tokens.len() }
    }

    fn decode(&self, layer: usize, (out, q): (&mut [f32], &[f32]), params: &AttendParams) {
        let Rows { stored, dense, packed } = &self.rows;
        if self.road == AttentionRoad::Reference {
            let AttendParams { q_heads, scale, window, softcap: soft_cap } = *params;
            let params = ReferenceParams { q_heads, scale, window, soft_cap };
            attend_reference(out, q, (self.store, layer), stored, &params);
            return;
        }
        match self.store.tiles(layer) {
            Tiles::Dense(tiles) => attend_dense(out, q, tiles, dense, params),
            Tiles::Packed(tiles) => attend_packed(out, q, tiles, packed, &packed_params(params)),
        }
    }

    /// Keys and values of the chunks, `[tokens, width]`, to staging.
    fn stage(&mut self, layer: usize, k: &[f32], v: &[f32], width: usize) -> Result<()> {
        let (mut k, mut v) = (k, v);
        for chunk in &self.step.prefill {
            let (own_k, rest_k) = k.split_at(chunk.tokens.len() * width);
            let (own_v, rest_v) = v.split_at(chunk.tokens.len() * width);
            (k, v) = (rest_k, rest_v);
            let place = (chunk.seq.0, chunk.start as usize);
            self.staging.append(layer, place, own_k, own_v).map_err(Error::wrap)?;
        }
        Ok(())
    }

    /// The 16-bit keys and values of staging: a chunk never sees packed earlier ones.
    fn prefill(
        &self,
        layer: usize,
        out: &mut [f32],
        q: &[f32],
        params: &AttendParams,
    ) -> Result<()> {
        let mut rows = Vec::with_capacity(self.step.prefill.len());
        let mut staged = None;
        for chunk in &self.step.prefill {
            let view = self.staging.view(layer, chunk.seq.0);
            let (tiles, pages) = view.map_err(Error::wrap)?;
            let queries = self.queries(layer, chunk);
            if !queries.is_empty() {
                staged = Some(tiles);
                let position = chunk.start as usize + queries.start;
                rows.push(AttendRow { pages, position, tokens: queries.len() });
            }
        }
        if let Some(tiles) = staged {
            attend_dense(out, q, tiles, &rows, params);
        }
        Ok(())
    }

    /// What has become full of each prompt goes from staging to its pages, layer by layer and chunk
    /// by chunk, so that no step has a whole prompt to convert.
    pub(super) fn convert(&mut self, layer: usize) -> Result<()> {
        for chunk in &self.step.prefill {
            let (start, total) = (chunk.start as usize, chunk.total as usize);
            let span = Span { start, end: start + chunk.tokens.len(), total };
            let converted =
                self.store.convert(layer, (self.staging, chunk.seq.0), span, row_of_chunk(chunk));
            converted.map_err(Error::wrap)?;
        }
        Ok(())
    }
}

/// The same parameters for packed pages.
pub(super) fn packed_params(params: &AttendParams) -> PackedParams<'static> {
    let AttendParams { q_heads, scale, window, softcap: soft_cap } = *params;
    PackedParams { q_heads, scale, window, soft_cap, sink_logits: None, path: Path::best() }
}

pub(super) fn row_of(row: &DecodeRow) -> Row<'_> {
    Row {
        pages: &row.place.pages,
        tail: row.place.tail,
        position: row.position as usize,
        tokens: row.tokens.len(),
    }
}

fn row_of_chunk(chunk: &PrefillChunk) -> Row<'_> {
    let place = &chunk.place;
    Row { pages: &place.pages, tail: place.tail, position: 0, tokens: 0 }
}
