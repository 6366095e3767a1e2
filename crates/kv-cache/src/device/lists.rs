//! `Lists`: a step as lists of numbers: where its tokens go, which pages are packed, and what its
//! tokens attend over. The same in all layers of a kind, so they are uploaded once a step.

use std::ops::Range;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::{
    AttendRow, Cut, DenseRowParams, NO_MASK, NOWHERE, Params, PartParams, dense_block, dense_parts,
    parts_of,
};

use crate::error::Error;
use crate::loans::Loans;
use crate::pages::{PageId, PageList};
use crate::store::{Row, Span};

/// Query tokens of a row over packed pages at most.
const ROW_TOKENS: usize = 16;

/// Consecutive tokens of one prompt.
#[derive(Clone, Copy, Debug)]
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
    /// Rows of a prompt longer than staging, packed.
    pub(super) early: PackedRows,
    /// Decode rows over pages of 16 bits.
    pub(super) dense_decode: DenseRows,
    /// Chunks over pages of 16 bits.
    pub(super) dense_chunks: DenseRows,
    /// Chunks over staging.
    pub(super) staged_chunks: DenseRows,
}

/// Rows and what they point into, before they are words.
#[derive(Default)]
struct Rows {
    pages: PageList,
    decode: Vec<AttendRow>,
    early: Vec<AttendRow>,
    dense_decode: Vec<DenseRowParams>,
    dense_chunks: Vec<DenseRowParams>,
    staged_chunks: Vec<DenseRowParams>,
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
            build.dense_decode.push(dense_row((query, 0), 0, 0));
            places.idle();
        }
        lists.decoded = places.pages.len();
        for chunk in chunks {
            let tokens = chunk.span.end - chunk.span.start;
            assert!(chunk.pages.len() > chunk.span.last_page(), "pages for a whole prompt");
            // Also where nothing is packed, so that errors are those of the CPU.
            let tiles = loans.fill(0, (chunk.key, chunk.span.start), tokens)?.to_vec();
            build.chunk(chunk, places.pages.len(), &tiles);
            places.chunk(chunk, &tiles);
        }
        lists.tokens = places.pages.len();
        lists.to_pages = lists.put(1, &places.pages);
        let parts = build.dense_parts(machine, lists.decoded);
        lists.dense_decode = lists.put_rows(&build.dense_decode, parts);
        lists.dense_chunks = lists.put_rows(&build.dense_chunks, 1);
        if packed {
            lists.to_tails = lists.put(1, &places.tails);
            lists.to_staging = lists.put(1, &places.staging);
            lists.staged_chunks = lists.put_rows(&build.staged_chunks, 1);
            let filled = filled > 0;
            lists.decode = lists.put_packed((&build.decode, filled), &build.pages, machine);
            lists.early = lists.put_packed((&build.early, false), &build.pages, machine);
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

impl Rows {
    /// Parts of decode rows over 16-bit pages.
    fn dense_parts(&self, machine: Machine, decoded: usize) -> usize {
        let pages = |row: &DenseRowParams| (row.position + row.tokens).div_ceil(PAGE_TOKENS as u32);
        let most = self.dense_decode.iter().map(pages).max().unwrap_or_default() as usize;
        let longest = self.dense_decode.iter().map(|row| row.tokens as usize).max();
        let longest = longest.unwrap_or_default();
        let block = dense_block(machine.dim, longest, machine.group);
        let blocks = (longest * machine.group).div_ceil(block);
        let groups = self.dense_decode.len() * machine.kv_heads * blocks;
        let parts = dense_parts(machine.groups.0, (block, groups), most);
        parts.min(machine.room / decoded.max(1)).max(1)
    }

    fn list(&mut self, pages: impl IntoIterator<Item = PageId>) -> usize {
        let at = self.pages.len();
        self.pages.extend(pages);
        at
    }

    fn decode_row(&mut self, row: &Row<'_>, query: usize) {
        let Row { pages, tail, position, tokens } = *row;
        let (index, _) = row.slots();
        let pages_at = self.list(pages[..=index].iter().copied());
        let tail_at = self.list([tail]);
        self.decode.push(packed_row((query, tokens), position, (pages_at, index), tail_at));
        self.dense_decode.push(dense_row((query, tokens), position, pages_at));
    }

    fn chunk(&mut self, chunk: &Chunk<'_>, query: usize, tiles: &[PageId]) {
        let Span { start, end, .. } = chunk.span;
        let count = end.div_ceil(PAGE_TOKENS);
        let pages_at = self.list(chunk.pages[..count].iter().copied());
        self.dense_chunks.push(dense_row((query, end - start), start, pages_at));
        // From here on the list names tiles: all pages, or, of a ring, those it still holds.
        let tiles_at = self.list((0..count).map(|page| tiles[page % tiles.len()]));
        let Some(recent) = chunk.recent else {
            self.staged_chunks.push(dense_row((query, end - start), start, tiles_at));
            return;
        };
        let mut position = start;
        while position < end {
            let page = position / PAGE_TOKENS;
            let packed = (page + 1).saturating_sub(recent);
            let tokens = (end - position).min(PAGE_TOKENS - position % PAGE_TOKENS).min(ROW_TOKENS);
            let (query, tail_at) = (query + position - start, tiles_at + packed);
            self.early.push(packed_row((query, tokens), position, (pages_at, packed), tail_at));
            position += tokens;
        }
    }
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

/// Where tokens go, a word each, and pages to be packed, two words each.
#[derive(Default)]
struct Places {
    pages: Vec<u32>,
    tails: Vec<u32>,
    staging: Vec<u32>,
    seals: Vec<u32>,
    converts: Vec<u32>,
}

impl Places {
    fn decode_row(&mut self, row: &Row<'_>) {
        let (index, slots) = row.slots();
        if let Some(page) = row.sealed() {
            self.seals.extend([row.tail, page]);
        }
        self.pages.extend(of_page(row.pages[index], slots.clone()));
        self.tails.extend(of_page(row.tail, slots.clone()));
        self.staging.extend(slots.map(|_| NOWHERE));
    }

    fn idle(&mut self) {
        for places in [&mut self.pages, &mut self.tails, &mut self.staging] {
            places.push(NOWHERE);
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>, tiles: &[PageId]) {
        let last = chunk.span.last_page();
        for position in chunk.span.start..chunk.span.end {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            let place = |of: PageId| of * PAGE_TOKENS as u32 + slot as u32;
            self.pages.push(place(chunk.pages[page]));
            self.tails.push(if page == last { place(chunk.tail) } else { NOWHERE });
            self.staging.push(place(tiles[page % tiles.len()]));
        }
        for page in chunk.span.full() {
            self.converts.extend([tiles[page % tiles.len()], chunk.pages[page]]);
        }
    }
}

fn of_page(page: PageId, slots: Range<usize>) -> impl Iterator<Item = u32> {
    slots.map(move |slot| page * PAGE_TOKENS as u32 + slot as u32)
}

#[cfg(test)]
mod tests;
