//! `Rows`: what a step's tokens attend over.

use std::ops::Range;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::{AttendRow, DenseRowParams, NO_MASK, dense_block, dense_parts};

use super::{Chunk, Machine};
use crate::pages::{PageId, PageList};
use crate::store::Row;

/// Query tokens of a row over packed pages at most.
const ROW_TOKENS: usize = 16;

/// Rows and what they point into, before they are words.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) pages: PageList,
    pub(super) decode: Vec<AttendRow>,
    pub(super) dense_decode: Vec<DenseRowParams>,
    /// Of all tokens of chunks.
    pub(super) chunks: Chunked,
    /// Of those that are asked for.
    pub(super) asked: Chunked,
}

/// Rows of chunks.
#[derive(Default)]
pub(super) struct Chunked {
    /// Tokens of decode rows and so far: the index of the next one's query.
    pub(super) queries: usize,
    pub(super) early: Vec<AttendRow>,
    pub(super) dense: Vec<DenseRowParams>,
    pub(super) staged: Vec<DenseRowParams>,
}

impl Rows {
    fn list(&mut self, pages: impl IntoIterator<Item = PageId>) -> usize {
        let at = self.pages.len();
        self.pages.extend(pages);
        at
    }

    pub(super) fn decode_row(&mut self, row: &Row<'_>, query: usize) {
        let Row { pages, tail, position, tokens } = *row;
        let (index, _) = row.slots();
        let pages_at = self.list(pages[..=index].iter().copied());
        let tail_at = self.list([tail]);
        self.decode.push(packed_row((query, tokens), position, (pages_at, index), tail_at));
        self.dense_decode.push(dense_row((query, tokens), position, pages_at));
    }

    /// A row that attends over nothing.
    pub(super) fn idle(&mut self, query: usize) {
        self.dense_decode.push(dense_row((query, 0), 0, 0));
    }

    pub(super) fn chunk(&mut self, chunk: &Chunk<'_>, tiles: &[PageId]) {
        let count = chunk.span.end.div_ceil(PAGE_TOKENS);
        let pages_at = self.list(chunk.pages[..count].iter().copied());
        // From here on the list names tiles: all pages, or, of a ring, those it still holds.
        let tiles_at = self.list((0..count).map(|page| tiles[page % tiles.len()]));
        let all = 0..chunk.span.end - chunk.span.start;
        assert!(chunk.asked.end <= all.end, "tokens of the chunk are asked for");
        self.chunks.add(chunk, all, (pages_at, tiles_at));
        self.asked.add(chunk, chunk.asked.clone(), (pages_at, tiles_at));
    }
}

impl Chunked {
    /// Some of a chunk's tokens.
    fn add(
        &mut self,
        chunk: &Chunk<'_>,
        tokens: Range<usize>,
        (pages_at, tiles_at): (usize, usize),
    ) {
        if tokens.is_empty() {
            return;
        }
        let first = self.queries;
        self.queries += tokens.len();
        let [start, end] = [tokens.start, tokens.end].map(|token| chunk.span.start + token);
        self.dense.push(dense_row((first, tokens.len()), start, pages_at));
        let Some(recent) = chunk.recent else {
            self.staged.push(dense_row((first, tokens.len()), start, tiles_at));
            return;
        };
        let mut position = start;
        while position < end {
            let page = position / PAGE_TOKENS;
            let packed = (page + 1).saturating_sub(recent);
            let tokens = (end - position).min(PAGE_TOKENS - position % PAGE_TOKENS).min(ROW_TOKENS);
            let (query, tail_at) = (first + position - start, tiles_at + packed);
            self.early.push(packed_row((query, tokens), position, (pages_at, packed), tail_at));
            position += tokens;
        }
    }
}

/// Parts of rows over 16-bit pages, in a step of so many query tokens.
pub(super) fn parts_over_pages(rows: &[DenseRowParams], machine: Machine, queries: usize) -> usize {
    let pages = |row: &DenseRowParams| (row.position + row.tokens).div_ceil(PAGE_TOKENS as u32);
    let most = rows.iter().map(pages).max().unwrap_or_default() as usize;
    let longest = rows.iter().map(|row| row.tokens as usize).max().unwrap_or_default();
    let block = dense_block(machine.dim, longest, machine.group);
    let blocks = (longest * machine.group).div_ceil(block);
    let groups = rows.len() * machine.kv_heads * blocks;
    let parts = dense_parts((machine.groups.0, machine.few), (block, groups), most);
    parts.min(machine.room / queries.max(1)).max(1)
}

/// A row over packed pages, then 16-bit ones, by their places in the list of pages.
fn packed_row(
    (query, tokens): (usize, usize),
    position: usize,
    (packed_at, packed): (usize, usize),
    tail_at: usize,
) -> AttendRow {
    AttendRow {
        query: query as u32,
        tokens: tokens as u32,
        position: position as u32,
        packed_at: packed_at as u32,
        packed: packed as u32,
        tail_at: tail_at as u32,
        sinks: (0, 0),
        mask_at: NO_MASK,
    }
}

/// A row over 16-bit pages alone.
fn dense_row((query, tokens): (usize, usize), position: usize, pages_at: usize) -> DenseRowParams {
    DenseRowParams {
        query: query as u32,
        tokens: tokens as u32,
        position: position as u32,
        pages_at: pages_at as u32,
    }
}
