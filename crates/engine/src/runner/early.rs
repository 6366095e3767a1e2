//! Prompts longer than staging: each token reads its newest pages in 16 bits and older ones as they
//! were packed, at borders that do not depend on the chunks.

use std::ops::Range;

use candle_core::{Error, Result};
use kvant_kernels::cpu::{AttendParams, AttendRow, PackedRow, attend_dense, attend_packed};
use kvant_kv_cache::{PAGE_TOKENS, Row, Tiles};

use super::attend::{Layer, StepAttend, packed_params};
use crate::sequence::REPLAY_TOKENS;
use crate::step::{PrefillChunk, early_recent};

impl StepAttend<'_> {
    /// The only chunk of its step: the prompt has all of staging.
    pub(super) fn early(&mut self, layer: Layer<'_>, chunk: &PrefillChunk) -> Result<()> {
        let Layer { index, k, v, q, out, params, .. } = layer;
        let queries = self.queries(index, chunk);
        if let Tiles::Dense(_) = self.store.tiles(index) {
            // Its pages are of 16 bits themselves.
            self.store.append(index, &pieces(chunk, 0..chunk.tokens.len()), k, v);
            if let Tiles::Dense(tiles) = self.store.tiles(index)
                && !queries.is_empty()
            {
                let row = AttendRow {
                    pages: &chunk.place.pages,
                    position: chunk.start as usize + queries.start,
                    tokens: queries.len(),
                };
                attend_dense(out, q, tiles, &[row], &params);
            }
            return Ok(());
        }
        let place = (chunk.seq.0, chunk.start as usize);
        self.staging.append(index, place, k, v).map_err(Error::wrap)?;
        if !queries.is_empty() {
            let pieces = pieces(chunk, queries);
            self.early_packed(index, (out, q), (chunk, &pieces), &params)?;
        }
        self.convert(index)
    }

    fn early_packed(
        &self,
        layer: usize,
        (out, q): (&mut [f32], &[f32]),
        (chunk, pieces): (&PrefillChunk, &[Row<'_>]),
        params: &AttendParams,
    ) -> Result<()> {
        let Tiles::Packed(mut tiles) = self.store.tiles(layer) else { return Ok(()) };
        let recent = early_recent(chunk.tiles as usize);
        let mut tails = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let page = piece.position / PAGE_TOKENS;
            let packed = (page + 1).saturating_sub(recent);
            let part = self.staging.part(layer, chunk.seq.0, packed..page + 1);
            let (staged, tail) = part.map_err(Error::wrap)?;
            tiles.dense = staged;
            tails.push((packed, tail));
        }
        let rows = pieces.iter().zip(&tails).map(|(piece, (packed, tail))| PackedRow {
            pages: &piece.pages[..*packed],
            tail,
            sinks: None,
            position: piece.position,
            tokens: piece.tokens,
            mask: None,
        });
        attend_packed(out, q, tiles, &rows.collect::<Vec<_>>(), &packed_params(params));
        Ok(())
    }
}

/// Some tokens of a chunk in parts of one page and of no more than attention takes at once.
fn pieces(chunk: &PrefillChunk, tokens: Range<usize>) -> Vec<Row<'_>> {
    let [mut position, end] = [tokens.start, tokens.end].map(|token| chunk.start as usize + token);
    let mut pieces = Vec::new();
    while position < end {
        let of_page = PAGE_TOKENS - position % PAGE_TOKENS;
        let tokens = (end - position).min(of_page).min(REPLAY_TOKENS);
        let pages = &chunk.place.pages;
        pieces.push(Row { pages, tail: chunk.place.tail, position, tokens });
        position += tokens;
    }
    pieces
}
