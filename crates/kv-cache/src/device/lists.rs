//! `Lists`: a step as lists of numbers: where its tokens go, which pages are packed, and what its
//! tokens attend over. The same in all layers of a kind, so they are uploaded once a step.

mod places;
mod rows;

use std::ops::Range;

use kvant_kernels::device::{AttendRow, Cut, DenseRowParams, Params, PartParams, parts_of};

use crate::error::Error;
use crate::loans::Loans;
use crate::pages::PageId;
use crate::store::{Row, Span};
use places::Places;
use rows::{Chunked, Rows, parts_over_pages};

/// Consecutive tokens of one prompt.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    /// The prompt's key in staging.
    pub key: u64,
    /// Which of its tokens.
    pub span: Span,
    /// The prompt's pages, with room for all of it.
    pub pages: &'a [PageId],
    /// Its tail.
    pub tail: u32,
    /// Of a prompt longer than staging: how many pages up to and with its own a token reads in 16
    /// bits; older ones it reads packed. Such a chunk is the only one of its step.
    pub recent: Option<usize>,
    /// Those of its tokens whose results the last layer is asked for.
    pub asked: Range<usize>,
}

/// A range of a list, in words from the beginning of all lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct List {
    pub(super) at: usize,
    /// Entries, not words.
    pub(super) count: usize,
}

impl List {
    pub(super) fn byte(&self) -> usize {
        4 * self.at
    }
}

/// Rows over packed pages that one launch takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PackedRows {
    /// The parts of all rows.
    pub(super) parts: List,
    /// The most query tokens of a row.
    pub(super) longest: usize,
}

/// Rows over 16-bit pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct DenseRows {
    pub(super) rows: List,
    /// The most query tokens of a row.
    pub(super) longest: usize,
    /// Parts of a row's pages, each for groups of its own.
    pub(super) parts: usize,
}

/// Rows of chunks in a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChunkRows {
    /// Tokens that the layer is asked for, those of decode rows too.
    pub(super) queries: usize,
    /// Of a prompt longer than staging, packed.
    pub(super) early: PackedRows,
    /// Over pages of 16 bits.
    pub(super) dense: DenseRows,
    /// Over staging.
    pub(super) staged: DenseRows,
}

/// What decides how rows are cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// Multiprocessors of the GPU, and groups over packed pages that each takes.
    pub(super) groups: (usize, usize),
    /// Key heads, query heads of one and their size, and query vectors of a group.
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) queries: usize,
    /// Groups of a few query vectors over 16-bit pages that are well used on a multiprocessor.
    pub(super) few: usize,
    /// Parts times query tokens over 16-bit pages that there is room for.
    pub(super) room: usize,
}

impl Machine {
    /// Groups of a row of so many query tokens.
    pub(super) fn height(&self, tokens: usize) -> usize {
        self.kv_heads * (tokens * self.group).div_ceil(self.queries)
    }
}

/// The rows and chunks of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepRows<'a> {
    pub(super) rows: &'a [Row<'a>],
    pub(super) chunks: &'a [Chunk<'a>],
    /// Tokens that a step of decode rows is filled up to: idle ones are kept nowhere and attend
    /// over nothing. Lists of such a step lie in few different ways.
    pub(super) filled: usize,
}

/// A step's lists.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) words: Vec<u32>,
    /// Tokens of the step.
    pub(super) tokens: usize,
    /// Decode rows' tokens come first.
    pub(super) decoded: usize,
    /// A token's place in the pages of a layer of 16 bits.
    pub(super) to_pages: List,
    /// In the tails of a packed layer.
    pub(super) to_tails: List,
    /// In the staging of a packed layer.
    pub(super) to_staging: List,
    /// Full tails to be packed, and where to.
    pub(super) seals: List,
    /// Full tiles of staging to be packed, and where to.
    pub(super) converts: List,
    /// Numbers of pages, which all rows point into.
    pub(super) pages: List,
    /// Decode rows, packed.
    pub(super) decode: PackedRows,
    /// Decode rows over pages of 16 bits.
    pub(super) dense_decode: DenseRows,
    /// All of the chunks.
    pub(super) chunks: ChunkRows,
    /// What is asked of them in the last layer.
    pub(super) last: ChunkRows,
}

impl Lists {
    /// Of decode rows and chunks; where nothing is packed, `packed` is false.
    ///
    /// # Panics
    /// If pages do not exist: an error of ours.
    pub(super) fn new(
        StepRows { rows, chunks, filled }: StepRows<'_>,
        loans: &mut Loans,
        packed: bool,
        machine: Machine,
    ) -> Result<Self, Error> {
        let mut lists = Self::default();
        let mut build = Rows::default();
        let mut places = Places::default();
        for row in rows {
            build.decode_row(row, places.pages.len());
            places.decode_row(row);
        }
        for query in places.pages.len()..filled {
            build.idle(query);
            places.idle();
        }
        lists.decoded = places.pages.len();
        (build.chunks.queries, build.asked.queries) = (lists.decoded, lists.decoded);
        for chunk in chunks {
            let tokens = chunk.span.end - chunk.span.start;
            assert!(chunk.pages.len() > chunk.span.last_page(), "pages for a whole prompt");
            // Also where nothing is packed, so that errors are those of the CPU.
            let tiles = loans.fill(0, (chunk.key, chunk.span.start), tokens)?.to_vec();
            build.chunk(chunk, &tiles);
            places.chunk(chunk, &tiles);
        }
        lists.tokens = places.pages.len();
        lists.to_pages = lists.put(1, &places.pages);
        let parts = parts_over_pages(&build.dense_decode, machine, lists.decoded);
        lists.dense_decode = lists.put_rows(&build.dense_decode, parts);
        if packed {
            lists.to_tails = lists.put(1, &places.tails);
            lists.to_staging = lists.put(1, &places.staging);
            let filled = filled > 0;
            lists.decode = lists.put_packed((&build.decode, filled), &build.pages, machine);
        }
        let pages = packed.then_some(&*build.pages);
        lists.chunks = lists.put_chunks(&build.chunks, pages, machine);
        lists.last = lists.chunks;
        if build.asked.queries < build.chunks.queries {
            lists.last = lists.put_chunks(&build.asked, pages, machine);
        }
        // Of any length, so behind what a filled step has in its place.
        lists.pages = lists.put(1, &build.pages);
        if packed {
            lists.seals = lists.put(2, &places.seals);
            lists.converts = lists.put(2, &places.converts);
        }
        Ok(lists)
    }

    /// Appends a list whose entries are of `width` words.
    fn put(&mut self, width: usize, words: &[u32]) -> List {
        let at = self.words.len();
        self.words.extend(words);
        // Kernels read some lists in vectors of four.
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        List { at, count: words.len() / width }
    }

    fn put_rows(&mut self, rows: &[DenseRowParams], parts: usize) -> DenseRows {
        let words: Vec<u32> = rows.iter().flat_map(Params::words).collect();
        let longest = rows.iter().map(|row| row.tokens as usize).max().unwrap_or_default();
        DenseRows { rows: self.put(1, &words).of(rows.len()), longest, parts }
    }

    /// Rows of chunks, with those that only a packed layer has if there are `pages` for them.
    fn put_chunks(&mut self, rows: &Chunked, pages: Option<&[u32]>, machine: Machine) -> ChunkRows {
        // Few tokens behind many: the GPU is not busy with one part of each row.
        let parts = parts_over_pages(&rows.dense, machine, rows.queries);
        let dense = self.put_rows(&rows.dense, parts);
        let mut chunks = ChunkRows { queries: rows.queries, dense, ..ChunkRows::default() };
        if let Some(pages) = pages {
            chunks.staged = self.put_rows(&rows.staged, parts);
            chunks.early = self.put_packed((&rows.early, false), pages, machine);
        }
        chunks
    }

    /// A filled list has parts of nothing at its end, which kernels skip.
    fn put_packed(
        &mut self,
        (rows, filled): (&[AttendRow], bool),
        pages: &[u32],
        machine: Machine,
    ) -> PackedRows {
        let longest = rows.iter().map(|row| row.tokens as usize).max().unwrap_or_default();
        // Pages that a layer's window has left behind are skipped by its kernel.
        let cut = Cut::of(rows, machine.height(longest), machine.groups, 0);
        let parts = parts_of(rows, pages, cut, 0);
        let mut words: Vec<u32> = parts.iter().flat_map(Params::words).collect();
        let mut count = parts.len();
        if filled {
            count = count.next_multiple_of((count.next_power_of_two() / 8).max(4));
            words.resize(count * size_of::<PartParams>() / 4, 0);
        }
        PackedRows { parts: self.put(1, &words).of(count), longest }
    }
}

impl List {
    fn of(self, count: usize) -> Self {
        Self { count, ..self }
    }
}

#[cfg(test)]
mod tests;
