//! Lists by hand: where tokens go, what is packed, what is read.

use kvant_kernels::device::NOWHERE;

use super::*;

const MACHINE: Machine =
    Machine { groups: (132, 4), kv_heads: 2, group: 1, dim: 64, queries: 1, few: 2, room: 16 };

fn step<'a>(rows: &'a [Row<'a>], chunks: &'a [Chunk<'a>]) -> StepRows<'a> {
    StepRows { rows, chunks, filled: 0 }
}

fn entries(lists: &Lists, list: List, width: usize) -> Vec<&[u32]> {
    lists.words[list.at..][..list.count * width].chunks(width).collect()
}

#[test]
fn tokens_go_where_the_cpu_writes_them() {
    let mut loans = Loans::new(1, 4);
    loans.open(9, 150).unwrap();
    // A prompt of three pages whose second chunk ends it, beside two rows; the second begins a
    // page.
    let rows = [
        Row { pages: &[7], tail: 1, position: 5, tokens: 2 },
        Row { pages: &[3, 8], tail: 0, position: 64, tokens: 1 },
    ];
    let chunk = |start, end| Chunk {
        key: 9,
        span: Span { start, end, total: 150 },
        pages: &[4, 5, 6],
        tail: 2,
        recent: None,
        asked: 0..end - start,
    };
    let first = Lists::new(step(&[], &[chunk(0, 130)]), &mut loans, true, MACHINE).unwrap();
    assert_eq!(entries(&first, first.converts, 2), [[0, 4], [1, 5]]);
    assert_eq!(entries(&first, first.to_tails, 1)[127..129], [[NOWHERE], [128]]);
    let lists = Lists::new(step(&rows, &[chunk(130, 150)]), &mut loans, true, MACHINE).unwrap();
    assert_eq!((lists.tokens, lists.decoded), (23, 3));
    let place = |page: u32, slot: u32| page * 64 + slot;
    let places = entries(&lists, lists.to_pages, 1).concat();
    assert_eq!(places[..4], [place(7, 5), place(7, 6), place(8, 0), place(6, 2)]);
    let places = entries(&lists, lists.to_tails, 1).concat();
    assert_eq!(places[..4], [place(1, 5), place(1, 6), place(0, 0), place(2, 2)]);
    let places = entries(&lists, lists.to_staging, 1).concat();
    assert_eq!(places[..4], [NOWHERE, NOWHERE, NOWHERE, place(2, 2)]);
    assert_eq!(entries(&lists, lists.seals, 2), [[0, 3]]);
    assert_eq!(lists.converts.count, 0, "the last page is in the tail");
    assert_eq!(lists.chunks.dense.longest, 20);
    let at = entries(&lists, lists.chunks.staged.rows, 4)[0];
    assert_eq!(at[..3], [3, 20, 130]);
    assert_eq!(entries(&lists, lists.pages, 1)[at[3] as usize..][..3].concat(), [0, 1, 2]);
}

#[test]
fn where_nothing_is_packed_there_are_no_lists_for_it() {
    let row = Row { pages: &[0, 1], tail: 0, position: 64, tokens: 1 };
    let lists = Lists::new(step(&[row], &[]), &mut Loans::new(1, 1), false, MACHINE).unwrap();
    assert_eq!((lists.seals.count, lists.to_tails.count, lists.decode.parts.count), (0, 0, 0));
    assert_eq!((lists.to_pages.count, lists.dense_decode.rows.count), (1, 1));
}

#[test]
fn rows_are_cut_into_parts() {
    let pages: Vec<u32> = (0..10).collect();
    let row = |position, tokens| Row { pages: &pages, tail: 0, position, tokens };
    let rows = [row(600, 1), row(3, 1), row(0, 16), row(639, 1)];
    let lists = Lists::new(step(&rows, &[]), &mut Loans::new(1, 1), true, MACHINE).unwrap();
    let PackedRows { parts, longest } = lists.decode;
    // 9 packed pages in parts of 4; one part where nothing is packed.
    assert_eq!((parts.count, longest), (3 + 1 + 1 + 3, 16));
    assert_eq!(lists.dense_decode.parts, 1, "19 tokens in the room of 16");
}

#[test]
fn a_prompt_longer_than_staging_reads_its_oldest_pages_packed() {
    let mut loans = Loans::new(1, 2);
    loans.open(1, 200).unwrap();
    let pages = [10, 11, 12, 13];
    let chunk = |start, end| Chunk {
        key: 1,
        span: Span { start, end, total: 200 },
        pages: &pages,
        tail: 0,
        recent: Some(2),
        asked: 0..end - start,
    };
    for (start, end) in [(0, 64), (64, 128)] {
        Lists::new(step(&[], &[chunk(start, end)]), &mut loans, true, MACHINE).unwrap();
    }
    let lists = Lists::new(step(&[], &[chunk(128, 140)]), &mut loans, true, MACHINE).unwrap();
    assert_eq!(lists.chunks.staged.rows.count, 0);
    let part = entries(&lists, lists.chunks.early.parts, size_of::<PartParams>() / 4)[0].to_vec();
    let of = |name: &str| {
        let field = PartParams::FIELDS.iter().find(|field| field.0 == name);
        part[field.unwrap().1 / 4] as usize
    };
    assert_eq!((of("tokens"), of("position"), of("packed")), (12, 128, 1));
    let list = entries(&lists, lists.pages, 1).concat();
    assert_eq!(list[of("pages_at")], 10, "the oldest page");
    assert_eq!(list[of("tail_at")..][..2], [1, 0], "tiles of pages 1 and 2 in the ring");
    // Of the last two tokens alone, the first of which ends a page.
    let chunk = Chunk { asked: 51..53, ..chunk(140, 193) };
    let lists = Lists::new(step(&[], &[chunk]), &mut loans, true, MACHINE).unwrap();
    let rows = entries(&lists, lists.last.early.parts, size_of::<PartParams>() / 4);
    let field = |row: &[u32], name: &str| {
        row[PartParams::FIELDS.iter().find(|field| field.0 == name).unwrap().1 / 4]
    };
    let told =
        |row: &&[u32]| ["query", "tokens", "position", "packed"].map(|name| field(row, name));
    let rows = rows.iter().filter(|row| field(row, "part") == 0);
    assert_eq!(rows.map(told).collect::<Vec<_>>(), [[0, 1, 191, 1], [1, 1, 192, 2]]);
    assert_eq!((lists.last.queries, lists.chunks.queries, lists.last.early.longest), (2, 53, 1));
}

#[test]
fn the_last_layer_has_rows_of_what_it_is_asked_for() {
    let pages: Vec<u32> = (0..40).collect();
    let mut loans = Loans::new(1, 81);
    let rows = [Row { pages: &[90], tail: 0, position: 5, tokens: 2 }];
    let mut lists = |asked: [Range<usize>; 3], packed| {
        let chunk = |(key, asked): (u64, Range<usize>)| {
            let (start, end) = if key == 1 { (0, 20) } else { (0, 2500) };
            let span = Span { start, end, total: 2500 };
            Chunk { key, span, pages: &pages, tail: key as u32, recent: None, asked }
        };
        let chunks: Vec<_> = (0..).zip(asked).map(chunk).collect();
        for chunk in &chunks {
            loans.close(chunk.key);
            loans.open(chunk.key, chunk.span.end).unwrap();
        }
        Lists::new(step(&rows, &chunks), &mut loans, packed, MACHINE).unwrap()
    };
    // Of the first prompt no token, of the second all, of the third the last one.
    let found = lists([0..0, 0..20, 2499..2500], true);
    assert_eq!((found.tokens, found.chunks.queries, found.last.queries), (5022, 5022, 23));
    let of = |rows: DenseRows| entries(&found, rows.rows, 4);
    let [all, last] =
        [found.chunks, found.last].map(|chunks| (of(chunks.dense), of(chunks.staged)));
    assert_eq!(
        all.0.iter().map(|row| &row[..3]).collect::<Vec<_>>(),
        [[2, 2500, 0], [2502, 20, 0], [2522, 2500, 0]]
    );
    assert_eq!(last.0.iter().map(|row| &row[..3]).collect::<Vec<_>>(), [[2, 20, 0], [22, 1, 2499]]);
    // They read the same pages and tiles as the rows of all tokens.
    let at = |rows: &[&[u32]]| rows.iter().map(|row| row[3]).collect::<Vec<_>>();
    assert_eq!((at(&last.0), at(&last.1)), (at(&all.0)[1..].to_vec(), at(&all.1)[1..].to_vec()));
    assert_ne!(at(&last.0), at(&last.1));
    assert_eq!((found.chunks.dense.longest, found.last.staged.longest), (2500, 20));
    // Few query tokens over many pages are cut into parts, no more than there is room for.
    let found = lists([2499..2500, 0..0, 2499..2500], true);
    assert_eq!((found.chunks.staged.parts, found.last.queries), (1, 4));
    assert_eq!((found.last.staged.parts, found.last.dense.parts), (16 / 4, 16 / 4));
    let none = lists([0..0, 0..0, 0..0], false);
    assert_eq!((none.last.queries, none.last.dense.rows.count, none.last.dense.parts), (2, 0, 1));
    // What asks for everything has no lists of its own.
    let all = lists([0..2500, 0..20, 0..2500], true);
    assert_eq!(all.last.dense.rows, all.chunks.dense.rows);
    assert!(all.words.len() < found.words.len());
}

#[test]
fn a_short_chunk_of_a_long_prompt_is_cut_into_parts() {
    let (pages, machine) = ((0..40).collect::<Vec<u32>>(), Machine { room: 4096, ..MACHINE });
    let mut loans = Loans::new(1, 40);
    loans.open(0, 2560).unwrap();
    let mut parts = |start, end| {
        let (span, asked) = (Span { start, end, total: 2560 }, 0..end - start);
        let chunk = Chunk { key: 0, span, pages: &pages, tail: 0, recent: None, asked };
        let lists = Lists::new(step(&[], &[chunk]), &mut loans, true, machine).unwrap();
        [lists.chunks.dense, lists.chunks.staged].map(|rows| rows.parts)
    };
    assert_eq!(parts(0, 2500), [1, 1], "more has no room");
    assert_eq!(parts(2500, 2560), [40 / 8, 40 / 8], "eight pages each");
}

#[test]
fn steps_that_are_filled_up_lie_alike() {
    let pages: Vec<u32> = (0..400).collect();
    let lists = |positions: &[usize]| {
        let row = |(tail, position): (u32, &usize)| Row {
            pages: &pages,
            tail,
            position: *position,
            tokens: 1,
        };
        let rows: Vec<Row<'_>> = (0..).zip(positions).map(row).collect();
        let step = StepRows { rows: &rows, chunks: &[], filled: 4 };
        Lists::new(step, &mut Loans::new(1, 1), true, MACHINE).unwrap()
    };
    // 2 + 3 + 1 parts of pages, 3 of tails. A seal, one more page, another number of rows: nothing
    // that a launch is told differs.
    let (three, four) = (lists(&[500, 640, 70]), lists(&[510, 701, 80, 3]));
    let told = |lists: &Lists| (lists.decode, lists.dense_decode.rows, lists.pages.at);
    assert_eq!((three.seals.count, four.seals.count), (1, 0));
    assert_eq!(told(&three), told(&four));
    assert_eq!((three.tokens, three.to_tails.at), (4, four.to_tails.at));
    assert_eq!(entries(&three, three.to_tails, 1)[3], [NOWHERE]);
    assert_eq!(entries(&three, three.to_pages, 1)[3], [NOWHERE]);
    assert_eq!(entries(&three, three.dense_decode.rows, 4)[3], [3, 0, 0, 0]);
    let parts = entries(&three, three.decode.parts, size_of::<PartParams>() / 4);
    let at = PartParams::FIELDS.iter().find(|field| field.0 == "parts").unwrap().1 / 4;
    // Each row's parts say how many they are; behind them is nothing.
    let (real, idle) = parts.split_at(parts.iter().take_while(|part| part[at] > 0).count());
    let rows: f64 = real.iter().map(|part| 1.0 / f64::from(part[at])).sum();
    assert!((rows - 3.0).abs() < 1e-9, "{rows} rows");
    assert!(!idle.is_empty() && idle.iter().all(|part| part.iter().all(|word| *word == 0)));
}
