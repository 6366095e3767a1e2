//! How the attention of a step is cut in parts, so that all of a GPU's groups have work.

use std::ops::Range;

use crate::PAGE_TOKENS;

use super::PartParams;

/// Parts of a row that a merge reads at a time.
const MERGED: usize = 16;

/// Pages of a part whose beginning and end are little beside it.
const LONG_PAGES: usize = 60;

/// The most pages of a part where groups take their places one after the other: multiprocessors end
/// apart, the less the shorter the last parts are.
const MOST_PAGES: usize = 128;

/// The same where each group has a place from the start.
const PLACED_PAGES: usize = MOST_PAGES + MOST_PAGES / 2;

/// `mask_at` of a part without a mask.
pub const NO_MASK: u32 = u32::MAX;

/// Consecutive query tokens of one sequence. Packed pages hold positions from 0 on; 16-bit pages
/// hold what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendRow {
    /// Index of the first among all query tokens.
    pub query: u32,
    /// Number of query tokens.
    pub tokens: u32,
    /// Position of the first.
    pub position: u32,
    /// Where its packed pages begin in the list of pages.
    pub packed_at: u32,
    /// Packed pages, from position 0 on.
    pub packed: u32,
    /// Where its 16-bit pages begin in the list of pages.
    pub tail_at: u32,
    /// Tokens from position 0 on that are read from a 16-bit page instead, at most a page and no
    /// more than are packed; and that page.
    pub sinks: (u32, u32),
    /// Where `[tokens, position + tokens]` begins in the mask; `NO_MASK` for none.
    pub mask_at: u32,
}

/// How rows are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The most packed pages of a part.
    pub split_pages: usize,
    /// Whether 16-bit tokens have a part of their own, where a row has packed pages at all. It pays
    /// where a step is a matter of latency.
    pub tail_apart: bool,
}

impl Cut {
    /// For a grid of such a height, key heads times blocks of query vectors, on a GPU with so many
    /// multiprocessors, each of which takes so many groups: as many groups as there are places for
    /// if their parts stay long, else two for each multiprocessor if the pages suffice. Depends on
    /// the pages of the rows alone. The rule is a reading of measurements.
    pub fn of(rows: &[AttendRow], height: usize, gpu: (usize, usize), window: usize) -> Self {
        let pages = |row: &AttendRow| (row.packed - first_page(row, window)) as usize;
        let (total, most) = rows.iter().map(pages).fold((0, 0), |(a, b), n| (a + n, b.max(n)));
        let (multiprocessors, each) = gpu;
        let (groups, places) = (rows.len() * height, multiprocessors * each);
        let shared = |places: usize| {
            let fits = |split: usize| {
                let parts = rows.iter().map(|row| pages(row).div_ceil(split));
                parts.sum::<usize>() * height <= places
            };
            let even = (total * height).div_ceil(places);
            if even < LONG_PAGES { even } else { least(even..most.max(even), fits) }
        };
        let (two, all) = (shared(2 * multiprocessors), shared(places));
        let shared = if all >= LONG_PAGES { all } else { two.next_multiple_of(4) };
        let fewest = if most <= 16 { 4 } else { 8 };
        // Whole rows of any length are best where every multiprocessor gets about as many of them
        // as it takes.
        let whole = (each.saturating_sub(1).max(1)..=each).any(|each| {
            let all = multiprocessors * each;
            groups <= all && 4 * groups > 3 * all
        });
        // Rows that do not all find a place at once leave places empty at their end, fewer if
        // halved.
        let halves = groups > places && most >= LONG_PAGES / 2;
        // Parts that each find a place stay so up to half as long again: shorter ones would be a
        // few more than there are places, and take a turn of their own.
        let longest = match all {
            _ if halves => most.div_ceil(2).min(MOST_PAGES),
            MOST_PAGES..=PLACED_PAGES => all,
            _ => MOST_PAGES,
        };
        let mut split_pages =
            if whole { most.max(fewest) } else { shared.clamp(fewest, longest.max(fewest)) };
        let tail_apart = split_pages <= 16 && 2 * groups <= multiprocessors;
        // Parts are merged by sixteens: no more sixteens for a few parts.
        let last = |split: usize| (most.div_ceil(split) + usize::from(tail_apart)) % MERGED;
        while most > MERGED * split_pages && (1..=MERGED / 4).contains(&last(split_pages)) {
            split_pages += 4;
        }
        Self { split_pages, tail_apart }
    }
}

/// The least number of a range for which something holds that holds for all above it too; the end
/// of the range if for none.
fn least(range: Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start.midpoint(end);
        if holds(middle) {
            end = middle;
        } else {
            start = middle + 1;
        }
    }
    end
}

/// The parts of rows, in order, all parts of a row but that of 16-bit tokens alone as long as whole
/// pages allow. Pages that the window has left behind are in no part.
pub fn parts_of(rows: &[AttendRow], pages: &[u32], cut: Cut, window: usize) -> Vec<PartParams> {
    let mut parts = Vec::new();
    for row in rows {
        let begin = first_page(row, window);
        let packed = row.packed - begin;
        let count = packed.div_ceil(cut.split_pages as u32).max(1);
        let apart = u32::from(cut.tail_apart && packed > 0);
        let mut first = begin;
        for part in 0..count + apart {
            let behind = u64::from(packed) * u64::from((part + 1).min(count)) / u64::from(count);
            let (end, at) = (begin + behind as u32, row.packed_at + first);
            let own = &pages[at as usize..][..(end - first) as usize];
            let mut ahead = [0; 4];
            ahead.iter_mut().zip(own).for_each(|(ahead, page)| *ahead = *page);
            parts.push(PartParams {
                query: row.query,
                tokens: row.tokens,
                position: row.position,
                part,
                parts: count + apart,
                first,
                pages: end - first,
                pages_at: at,
                packed: row.packed,
                tail_at: row.tail_at,
                sinks: row.sinks.0,
                sink_page: row.sinks.1,
                mask_at: row.mask_at,
                ahead,
                tail_page: pages[row.tail_at as usize],
            });
            first = end;
        }
    }
    parts
}

/// The first packed page that any query token of the row sees.
fn first_page(row: &AttendRow, window: usize) -> u32 {
    if window == 0 {
        return 0;
    }
    let seen = (row.position + 1).saturating_sub(window as u32);
    (seen / PAGE_TOKENS as u32).min(row.packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(packed: u32, packed_at: u32) -> AttendRow {
        let position = packed * PAGE_TOKENS as u32 + 5;
        let tail_at = packed_at + packed;
        let (sinks, mask_at) = ((0, 0), NO_MASK);
        AttendRow { query: 0, tokens: 1, position, packed_at, packed, tail_at, sinks, mask_at }
    }

    #[test]
    fn parts_hold_every_page_once() {
        let pages: Vec<u32> = (100..300).collect();
        let rows = [row(0, 0), row(7, 1), row(130, 20), row(1, 180)];
        for (split_pages, tail_apart) in [(1, false), (3, true), (64, false), (500, true)] {
            let parts = parts_of(&rows, &pages, Cut { split_pages, tail_apart }, 0);
            let mut left = parts.as_slice();
            for row in &rows {
                let (own, rest) = left.split_at(left[0].parts as usize);
                left = rest;
                let mut next = 0;
                for (index, part) in (0..).zip(own) {
                    assert_eq!((part.part, part.first), (index, next));
                    assert_eq!(part.pages_at, row.packed_at + next);
                    assert!(part.pages as usize <= split_pages);
                    for (at, page) in part.ahead.iter().enumerate().take(part.pages as usize) {
                        assert_eq!(*page, pages[part.pages_at as usize + at]);
                    }
                    assert_eq!(part.tail_page, pages[row.tail_at as usize]);
                    next += part.pages;
                }
                assert_eq!(next, row.packed);
                assert_eq!(
                    tail_apart && row.packed > 0,
                    own.last().unwrap().pages == 0 && own.len() > 1
                );
            }
            assert!(left.is_empty());
        }
    }

    #[test]
    fn pages_behind_the_window_are_in_no_part() {
        let pages: Vec<u32> = (0..40).collect();
        let cut = Cut { split_pages: 4, tail_apart: false };
        let parts = parts_of(&[row(30, 0)], &pages, cut, 200);
        assert_eq!((parts[0].first, parts.iter().map(|part| part.pages).sum::<u32>()), (26, 4));
    }

    #[test]
    fn few_rows_are_cut_finer_than_many() {
        let cut =
            |rows: usize, packed, each| Cut::of(&vec![row(packed, 0); rows], 8, (132, each), 0);
        assert_eq!(cut(1, 512, 4), Cut { split_pages: 20, tail_apart: true });
        assert_eq!(cut(1, 16, 4), Cut { split_pages: 4, tail_apart: true });
        assert_eq!(cut(8, 256, 4), Cut { split_pages: 64, tail_apart: false });
        assert_eq!(cut(8, 512, 4).split_pages, 64, "four groups for each");
        assert_eq!(cut(8, 512, 3).split_pages, 86, "three, and no part that finds no place");
        let ragged: Vec<AttendRow> = (0..8).map(|n| row(400 + 30 * n, 0)).collect();
        let split = Cut::of(&ragged, 8, (132, 4), 0).split_pages as u32;
        let parts = |split: u32| ragged.iter().map(|row| row.packed.div_ceil(split)).sum::<u32>();
        assert!(8 * parts(split) <= 528 && 8 * parts(split - 1) > 528, "the least that fits");
        assert_eq!(cut(32, 512, 4).split_pages, 128, "two of four groups are too few");
        for (rows, packed, each, split) in [(16, 513, 4, 129), (16, 513, 3, 171), (32, 130, 4, 65)]
        {
            assert_eq!(cut(rows, packed, each).split_pages, split, "all have a place");
        }
        assert_eq!(cut(16, 768, 4).split_pages, 192, "the longest that keeps its place");
        assert_eq!(cut(16, 769, 4).split_pages, 128, "one page more");
        assert_eq!(cut(64, 64, 3).split_pages, 32, "more rows than places");
        assert!(cut(64, 2048, 4).split_pages >= 2048);
        assert_eq!(cut(64, 2048, 3).split_pages, 128);
        assert!(cut(32, 256, 3).split_pages >= 256);
    }
}
