//! `causal_mask` against the formula of the reference, written a second time.

use kvant_kv_cache::BatchLayout;

use crate::random::Random;

const CASES: usize = 10_000;

/// Arguments of the reference: `create_causal_mask(N, offset, window_size, right_padding,
/// left_padding)`.
struct Arguments {
    new_tokens: i64,
    offset: i64,
    left_padding: Vec<i64>,
    right_padding: Option<Vec<i64>>,
    window: Option<i64>,
}

/// The formula, element by element over a flat index: `linds = offset + i`, `rinds = j`,
/// `linds >= rinds`, `linds < rinds + window`, `rinds < offset + N - right`, `left <= rinds`.
fn create_causal_mask(arguments: &Arguments) -> Vec<bool> {
    let Arguments { new_tokens, offset, left_padding, right_padding, window } = arguments;
    let columns = offset + new_tokens;
    let visible = |index: i64| {
        let (rinds, rest) = (index % columns, index / columns);
        let linds = offset + rest % new_tokens;
        let row = (rest / new_tokens) as usize;
        let mut visible = linds >= rinds;
        if let Some(window) = window {
            visible &= linds < rinds + window;
        }
        if let Some(right_padding) = right_padding {
            visible &= rinds < offset + new_tokens - right_padding[row];
        }
        visible && left_padding[row] <= rinds
    };
    (0..left_padding.len() as i64 * new_tokens * columns).map(visible).collect()
}

/// Rows of all kinds: full, short, empty, and padded beyond the end.
fn random_case(random: &mut Random) -> Arguments {
    let rows = random.below(5);
    let new_tokens = random.below(7);
    let offset = if random.once_in(5) { 0 } else { random.below(24) };
    let padding = |random: &mut Random| match random.below(4) {
        0 => 0,
        1 => offset,
        2 => random.below(offset + 1),
        _ => random.below(offset + new_tokens + 2),
    };
    let left_padding = (0..rows).map(|_| padding(random) as i64).collect();
    let right = |random: &mut Random| match random.below(3) {
        0 => 0,
        1 => new_tokens,
        _ => random.below(offset + new_tokens + 3),
    };
    let right_padding =
        random.once_in(2).then(|| (0..rows).map(|_| right(random) as i64).collect());
    let window = random.once_in(2).then(|| random.below(offset + new_tokens + 3) as i64);
    let (new_tokens, offset) = (new_tokens as i64, offset as i64);
    Arguments { new_tokens, offset, left_padding, right_padding, window }
}

#[test]
fn masks_are_those_of_the_reference() {
    let mut random = Random(4);
    let (mut blind_rows, mut empty_caches, mut by_lengths) = (0, 0, 0);
    for case in 0..CASES {
        let arguments = random_case(&mut random);
        let want = create_causal_mask(&arguments);
        let unsigned = |numbers: &Vec<i64>| numbers.iter().map(|n| *n as usize).collect::<Vec<_>>();
        let (end, new_tokens) = (arguments.offset as usize, arguments.new_tokens as usize);
        let left_padding = unsigned(&arguments.left_padding);
        let right_padding = arguments.right_padding.as_ref().map(unsigned);
        let window = arguments.window.map(|window| window as usize);
        let layout = BatchLayout::padded(left_padding.clone(), end);
        let mask = layout.causal_mask(new_tokens, right_padding.as_deref(), window);
        assert_eq!(mask.as_slice(), want, "case {case}, {layout:?}, {right_padding:?}, {window:?}");
        for (row, query) in
            (0..left_padding.len()).flat_map(|row| (0..new_tokens).map(move |query| (row, query)))
        {
            let at = (row * new_tokens + query) * mask.columns();
            assert_eq!(mask.seen(row, query), &want[at..at + mask.columns()]);
            blind_rows += usize::from(!mask.seen(row, query).contains(&true));
        }
        empty_caches += usize::from(end == 0);
        // Where a row fills the frame, lengths say the same.
        if left_padding.contains(&0) && left_padding.iter().all(|padding| *padding <= end) {
            assert_eq!(BatchLayout::new(layout.lengths()), layout, "case {case}");
            by_lengths += 1;
        }
    }
    let seen = (blind_rows, empty_caches, by_lengths);
    assert!(seen.0 > 1_000 && seen.1 > 1_000 && seen.2 > 1_000, "{seen:?} of {CASES}");
}

#[test]
fn rows_end_at_one_column() {
    let layout = BatchLayout::new(&[3, 0, 5]);
    assert_eq!((layout.left_padding(), layout.end()), (&[2, 5, 0][..], 5));
    // A length of its own must not be taken for a column (the seeds' worst bug): the row of 3
    // tokens sees its columns 2, 3, 4 and the new one.
    let mask = layout.causal_mask(1, None, None);
    let columns = |row| (0..6).filter(|column| mask.seen(row, 0)[*column]).collect::<Vec<_>>();
    assert_eq!([columns(0), columns(1), columns(2)], [vec![2, 3, 4, 5], vec![5], (0..6).collect()]);
    assert_eq!(BatchLayout::new(&[]).end(), 0);
    assert!(BatchLayout::new(&[]).causal_mask(2, None, None).as_slice().is_empty());
    assert!(BatchLayout::new(&[0, 0]).causal_mask(0, None, None).as_slice().is_empty());
}

#[test]
#[should_panic(expected = "padding of 2 rows")]
fn padding_of_another_number_of_rows_is_refused() {
    let _ = BatchLayout::new(&[1, 2]).causal_mask(1, Some(&[0]), None);
}
