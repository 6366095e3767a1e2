//! `Places`: where a step's tokens go, and which pages are packed.

use std::ops::Range;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::NOWHERE;

use super::Chunk;
use crate::pages::PageId;
use crate::store::Row;

/// Where tokens go, a word each, and pages to be packed, two words each.
#[derive(Default)]
pub(super) struct Places {
    pub(super) pages: Vec<u32>,
    pub(super) tails: Vec<u32>,
    pub(super) staging: Vec<u32>,
    pub(super) seals: Vec<u32>,
    pub(super) converts: Vec<u32>,
}

impl Places {
    pub(super) fn decode_row(&mut self, row: &Row<'_>) {
        let (index, slots) = row.slots();
        if let Some(page) = row.sealed() {
            self.seals.extend([row.tail, page]);
        }
        self.pages.extend(of_page(row.pages[index], slots.clone()));
        self.tails.extend(of_page(row.tail, slots.clone()));
        self.staging.extend(slots.map(|_| NOWHERE));
    }

    pub(super) fn idle(&mut self) {
        for places in [&mut self.pages, &mut self.tails, &mut self.staging] {
            places.push(NOWHERE);
        }
    }

    pub(super) fn chunk(&mut self, chunk: &Chunk<'_>, tiles: &[PageId]) {
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
