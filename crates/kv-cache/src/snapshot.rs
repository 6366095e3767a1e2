//! `export` and `import`: a sequence's keys and values as bytes, for another store of the same
//! signature.
//!
//! `[magic][signature number u64][length u64]`, then for each layer its pages in token order; of a
//! packed layer the full pages, then the tail. Room behind the last token is zeros, so that the
//! same tokens give the same bytes.

use kvant_kernels::PAGE_TOKENS;

use crate::error::Error;
use crate::format::pages_for;
use crate::store::{LayerPages, PageStore, Row};

const MAGIC: [u8; 8] = *b"KVANTKV1";
const HEADER_BYTES: usize = 24;

impl PageStore {
    /// The first `length` tokens of a sequence, at least one.
    pub fn export(&self, row: Row<'_>, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.snapshot_bytes(length));
        bytes.extend(MAGIC);
        bytes.extend(self.signature().number().to_le_bytes());
        bytes.extend((length as u64).to_le_bytes());
        let last = (length - 1) / PAGE_TOKENS;
        for layer in &self.layers {
            match layer {
                LayerPages::Dense(pages) => {
                    for (index, page) in row.pages[..=last].iter().enumerate() {
                        pages.export(*page, length - index * PAGE_TOKENS, &mut bytes);
                    }
                }
                LayerPages::Packed(pages) => {
                    for page in &row.pages[..last] {
                        bytes.extend(pages.page(*page));
                    }
                    pages.tails().export(row.tail, length - last * PAGE_TOKENS, &mut bytes);
                }
            }
        }
        bytes
    }

    /// Writes an exported sequence to `row`'s pages and tail and returns its length. Nothing is
    /// changed if it is refused; another signature leaves a line in the log, as it costs the time
    /// that the import was to save.
    pub fn import(&mut self, row: Row<'_>, bytes: &[u8]) -> Result<usize, Error> {
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let damaged = || Error::Damaged { bytes: bytes.len() };
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(damaged());
        }
        let (theirs, ours) = (word(8).ok_or_else(damaged)?, self.signature().number());
        if theirs != ours {
            let error = Error::OtherSignature { theirs, ours };
            tracing::warn!("{error}");
            return Err(error);
        }
        let length = word(16).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| (1..=row.pages.len() * PAGE_TOKENS).contains(length));
        let length = length.ok_or_else(damaged)?;
        if bytes.len() != self.snapshot_bytes(length) {
            return Err(damaged());
        }
        let mut rest = &bytes[HEADER_BYTES..];
        let last = (length - 1) / PAGE_TOKENS;
        for layer in &mut self.layers {
            match layer {
                LayerPages::Dense(pages) => {
                    for page in &row.pages[..=last] {
                        rest = pages.import(*page, rest);
                    }
                }
                LayerPages::Packed(pages) => {
                    for page in &row.pages[..last] {
                        let (own, others) = rest.split_at(pages.page_bytes());
                        pages.page_mut(*page).copy_from_slice(own);
                        rest = others;
                    }
                    rest = pages.tails_mut().import(row.tail, rest);
                }
            }
        }
        Ok(length)
    }

    fn snapshot_bytes(&self, length: usize) -> usize {
        let pages = pages_for(length);
        let of = |layer: &LayerPages| match layer {
            LayerPages::Dense(dense) => pages * dense.page_bytes(),
            LayerPages::Packed(packed) => {
                (pages - 1) * packed.page_bytes() + packed.tails().page_bytes()
            }
        };
        HEADER_BYTES + self.layers.iter().map(of).sum::<usize>()
    }
}
