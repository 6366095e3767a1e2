//! `StepAttend`: the join of decoder and cache: where a step's keys and values go, and what its
//! tokens attend over.

use candle_core::{Device, Result, Tensor};
use kvant_kernels::cpu::{AttendParams, AttendRow, attend_dense};
use kvant_kv_cache::{PageStore, RowSlot, Staging};
use kvant_models::{Attend, LayerSpec};

use super::with_floats;
use crate::heartbeat::Heartbeat;
use crate::step::Step;

/// Attention of one step: decode rows over pages, chunks over staging.
pub(super) struct StepAttend<'a> {
    pub(super) step: &'a Step,
    pub(super) layers: &'a [LayerSpec],
    pub(super) store: &'a mut PageStore,
    pub(super) staging: &'a mut Staging,
    pub(super) alive: &'a Heartbeat,
}

impl Attend for StepAttend<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.alive.beat();
        let (_, kv_heads, dim) = k.dims3()?;
        with_floats(k, |k| with_floats(v, |v| self.keep(layer, kv_heads * dim, k, v)))?;
        let (tokens, q_heads, dim) = q.dims3()?;
        let mut out = vec![0.0; tokens * q_heads * dim];
        let LayerSpec { window, scale, softcap, .. } = self.layers[layer];
        let params = AttendParams { q_heads, scale, window, softcap };
        with_floats(q, |q| self.compute(layer, &params, q, &mut out))?;
        Tensor::from_vec(out, (tokens, q_heads, dim), &Device::Cpu)
    }
}

impl StepAttend<'_> {
    /// Keys and values of the decode rows into pages, of the chunks into staging. k, v: `[tokens,
    /// width]`.
    fn keep(&mut self, layer: usize, width: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let slot = |row: &crate::step::DecodeRow| RowSlot::at(&row.pages, row.position as usize);
        let slots: Vec<_> = self.step.decode.iter().map(slot).collect();
        let (row_k, mut k) = k.split_at(slots.len() * width);
        let (row_v, mut v) = v.split_at(slots.len() * width);
        if !slots.is_empty() {
            self.store.append(layer, &slots, row_k, row_v);
        }
        for chunk in &self.step.prefill {
            let (own_k, rest_k) = k.split_at(chunk.tokens.len() * width);
            let (own_v, rest_v) = v.split_at(chunk.tokens.len() * width);
            (k, v) = (rest_k, rest_v);
            let place = (chunk.seq.0, chunk.start as usize);
            self.staging.append(layer, place, own_k, own_v).map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }

    /// q and out: `[tokens, q_heads, dim]`, decode rows first.
    fn compute(
        &self,
        layer: usize,
        params: &AttendParams,
        q: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let tiles = self.store.tiles(layer);
        let rows = self.step.decode.iter().map(|row| AttendRow {
            pages: &row.pages,
            position: row.position as usize,
            tokens: 1,
        });
        let rows: Vec<_> = rows.collect();
        let split = rows.len() * params.q_heads * tiles.dim;
        let (row_q, chunk_q) = q.split_at(split);
        let (row_out, chunk_out) = out.split_at_mut(split);
        if !rows.is_empty() {
            attend_dense(row_out, row_q, tiles, &rows, params);
        }
        let mut rows = Vec::with_capacity(self.step.prefill.len());
        let mut staged = None;
        for chunk in &self.step.prefill {
            let view = self.staging.view(layer, chunk.seq.0);
            let (tiles, pages) = view.map_err(candle_core::Error::wrap)?;
            staged = Some(tiles);
            rows.push(AttendRow {
                pages,
                position: chunk.start as usize,
                tokens: chunk.tokens.len(),
            });
        }
        if let Some(tiles) = staged {
            attend_dense(chunk_out, chunk_q, tiles, &rows, params);
        }
        Ok(())
    }
}
