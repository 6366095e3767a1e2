//! Limits of staging, at the limit and one past it.

use kvant_kv_cache::{CacheShape, LayerShape, PageStore, Row, Span, Staging};

fn small() -> CacheShape {
    CacheShape::dense([LayerShape { kv_heads: 1, dim: 2 }])
}

#[test]
fn staging_fits_exactly_and_refuses_one_tile_more() {
    for (capacity, tokens, fits) in
        [(64, 64, true), (64, 640, true), (65, 128, true), (0, 1, false)]
    {
        let mut staging = Staging::new(&small(), capacity);
        assert_eq!(staging.has_room(tokens), fits, "{tokens} in {capacity}");
        assert_eq!(staging.open(1, tokens).is_ok(), fits, "{tokens} in {capacity}");
    }
    let mut staging = Staging::new(&small(), 128);
    staging.open(1, 65).unwrap();
    assert_eq!((staging.used_tokens(), staging.capacity_tokens()), (128, 128));
    let error = staging.open(2, 1).unwrap_err().to_string();
    assert!(error.contains("1 tokens") && error.contains("0 of 2"), "{error}");
    assert!(staging.close(1));
    assert_eq!(staging.used_tokens(), 0);
    // Longer than all of staging: it waits until nobody else is in it.
    staging.open(1, 1).unwrap();
    assert!(!staging.has_room(1000) && staging.open(2, 1000).is_err());
    staging.close(1);
    staging.open(2, 1000).unwrap();
    assert_eq!(staging.used_tokens(), 128);
}

#[test]
fn a_prompt_longer_than_staging_keeps_its_newest_tokens() {
    let mut staging = Staging::new(&small(), 128);
    staging.open(1, 200).unwrap();
    for start in (0..192).step_by(64) {
        let rows: Vec<f32> = (2 * start..2 * (start + 64)).map(|number| number as f32).collect();
        staging.append(0, (1, start), &rows, &rows).unwrap();
    }
    let (tiles, pages) = staging.part(0, 1, 1..3).unwrap();
    let first = |page: u32| tiles.keys[page as usize * 128].to_f32();
    assert_eq!((first(pages[0]), first(pages[1])), (128.0, 256.0));
}

#[test]
#[should_panic(expected = "3 pages do not go into 2 tiles")]
fn an_append_over_its_own_beginning_is_refused() {
    let mut staging = Staging::new(&small(), 128);
    staging.open(1, 200).unwrap();
    let rows = vec![1.0; 2 * 129];
    let _ = staging.append(0, (1, 0), &rows, &rows);
}

#[test]
fn an_append_fills_what_was_reserved_and_no_more() {
    let mut staging = Staging::new(&small(), 128);
    staging.open(9, 3).unwrap();
    let rows = |tokens: usize| vec![1.0; 2 * tokens];
    assert!(staging.append(0, (9, 0), &rows(4), &rows(4)).is_err());
    staging.append(0, (9, 0), &rows(2), &rows(2)).unwrap();
    let gap = staging.append(0, (9, 3), &rows(0), &rows(0)).unwrap_err().to_string();
    assert!(gap.contains("2 staged tokens") && gap.contains("at 3"), "{gap}");
    staging.append(0, (9, 2), &rows(1), &rows(1)).unwrap();
    assert!(staging.append(0, (9, 3), &rows(1), &rows(1)).is_err());
    assert_eq!(staging.length(0, 9), Ok(3));
}

#[test]
#[should_panic(expected = "pages for a prompt of 65 tokens")]
fn a_conversion_wants_the_pages_that_the_prompt_needs() {
    let mut store = PageStore::new(&small(), (4, 1), 0);
    let staging = Staging::new(&small(), 128);
    let row = Row { pages: &[0], tail: 0, position: 0, tokens: 0 };
    let _ = store.convert(0, (&staging, 1), Span { start: 0, end: 65, total: 65 }, row);
}

#[test]
#[should_panic(expected = "1 pages end before a row")]
fn a_row_past_its_pages_is_refused() {
    let mut store = PageStore::new(&small(), (4, 1), 0);
    let row = Row { pages: &[0], tail: 0, position: 64, tokens: 1 };
    store.append(0, &[row], &[0.0; 2], &[0.0; 2]);
}

#[test]
#[should_panic(expected = "the tokens of a row are of one page")]
fn a_row_across_a_page_border_is_refused() {
    let mut store = PageStore::new(&small(), (4, 1), 0);
    let row = Row { pages: &[0, 1], tail: 0, position: 63, tokens: 2 };
    store.append(0, &[row], &[0.0; 4], &[0.0; 4]);
}
