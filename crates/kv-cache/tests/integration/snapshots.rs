//! Export and import: the same tokens give the same bytes by every road, and nothing else is read.

use std::io::Write;
use std::sync::{Arc, Mutex};

use kvant_kv_cache::{CacheShape, Error, PAGE_TOKENS, PageStore, Row, Span, Staging};
use kvant_turboquant::ScaleRule;

use crate::oracle::{Oracle, Tokens, given};
use crate::random::{Random, shape};

const SEED: u64 = 11;

fn mixed() -> CacheShape {
    shape(&[(2, 16, (16, 16)), (1, 16, (8, 8)), (1, 64, (4, 4))])
}

fn row(pages: &[u32], tail: u32) -> Row<'_> {
    Row { pages, tail, position: 0, tokens: 0 }
}

/// A store whose memory was used by somebody else before.
fn used_store(pages: usize, tails: usize, seed: u64) -> PageStore {
    let mut store = PageStore::new(&mixed(), (pages, tails), SEED);
    let oracle = Oracle::new(&mixed(), SEED);
    let mut random = Random(seed);
    for tail in 0..tails as u32 {
        let order: Vec<u32> = (0..pages as u32).collect();
        for position in (0..pages * PAGE_TOKENS).step_by(PAGE_TOKENS) {
            let tokens: Tokens = (0..PAGE_TOKENS).map(|_| oracle.token(&mut random)).collect();
            append(&mut store, &tokens, Row { position, ..row(&order, tail) });
        }
    }
    store
}

/// Tokens of one page.
fn append(store: &mut PageStore, tokens: &Tokens, row: Row<'_>) {
    for layer in 0..3 {
        let [k, v] = given(layer, tokens);
        store.append(layer, &[Row { tokens: tokens.len(), ..row }], &k, &v);
    }
}

/// The first `prefill` tokens through staging in chunks, the others one by one.
fn by_road(store: &mut PageStore, tokens: &Tokens, row: Row<'_>, (prefill, chunk): (usize, usize)) {
    let mut staging = Staging::new(&mixed(), prefill);
    staging.open(1, prefill).unwrap();
    for start in (0..prefill).step_by(chunk) {
        let end = prefill.min(start + chunk);
        for layer in 0..3 {
            let [k, v] = given(layer, &tokens[start..end]);
            staging.append(layer, (1, start), &k, &v).unwrap();
            let span = Span { start, end, total: prefill };
            store.convert(layer, (&staging, 1), span, row).unwrap();
        }
    }
    for (position, token) in tokens.iter().enumerate().skip(prefill) {
        append(store, &vec![token.clone()], Row { position, ..row });
    }
}

#[test]
fn every_road_to_the_same_tokens_gives_the_same_bytes() {
    let oracle = Oracle::new(&mixed(), SEED);
    for length in [1, 17, 63, 64, 65, 128, 150] {
        let mut random = Random(length as u64);
        let tokens: Tokens = (0..length).map(|_| oracle.token(&mut random)).collect();
        let mut first = None;
        for prefill in [1, 16, 64, 65, 128, 150].into_iter().filter(|prefill| *prefill <= length) {
            for (chunk, pages, tail) in
                [(150, [0, 1, 2], 0), (16, [2, 0, 1], 1), (37, [1, 2, 0], 0)]
            {
                let mut store = used_store(3, 2, prefill as u64);
                let row = row(&pages, tail);
                by_road(&mut store, &tokens, row, (prefill, chunk));
                oracle.check(&store, &tokens, row);
                let bytes = store.export(row, length);
                let first = first.get_or_insert_with(|| bytes.clone());
                assert!(*first == bytes, "{length} tokens, prefill {prefill}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn an_imported_sequence_goes_on_like_the_first() {
    let oracle = Oracle::new(&mixed(), SEED);
    for length in [1, 64, 65, 127, 128] {
        let mut random = Random(length as u64);
        let mut tokens: Tokens = (0..length).map(|_| oracle.token(&mut random)).collect();
        let mut stores = [used_store(4, 1, 1), used_store(3, 2, 2)];
        let rows = [row(&[3, 1, 0], 0), row(&[0, 2, 1], 1)];
        by_road(&mut stores[0], &tokens, rows[0], (length, 40));
        let bytes = stores[0].export(rows[0], length);
        assert_eq!(stores[1].import(rows[1], &bytes), Ok(length));
        for position in length..length + 3 {
            let token = oracle.token(&mut random);
            for (store, row) in stores.iter_mut().zip(rows) {
                append(store, &vec![token.clone()], Row { position, ..row });
            }
            tokens.push(token);
        }
        oracle.check(&stores[1], &tokens, rows[1]);
        let [first, second] = [0, 1].map(|at| stores[at].export(rows[at], tokens.len()));
        assert!(first == second, "{length} tokens");
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn pages_have_the_scales_of_the_rule() {
    let mut random = Random(3);
    let mut numbers = Vec::new();
    for rule in ScaleRule::ALL {
        let ruled = CacheShape { scale_rule: Some(rule), ..mixed() };
        let oracle = Oracle::new(&ruled, SEED);
        let tokens: Tokens = (0..130).map(|_| oracle.token(&mut random)).collect();
        let mut store = PageStore::new(&ruled, (3, 1), SEED);
        by_road(&mut store, &tokens, row(&[2, 0, 1], 0), (100, 37));
        oracle.check(&store, &tokens, row(&[2, 0, 1], 0));
        numbers.push(store.signature().number());
    }
    // Where the defaults are asked for by name, the pages are the same.
    let of = |bits, scale_rule| CacheShape { scale_rule, ..shape(&[(1, 64, bits)]) };
    let number = |bits, rule| PageStore::new(&of(bits, rule), (1, 1), SEED).signature().number();
    assert_eq!(number((8, 8), None), number((8, 8), Some(ScaleRule::Plain)));
    for rule in ScaleRule::ALL {
        assert_ne!(number((4, 3), None), number((4, 3), Some(rule)), "{rule}");
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ScaleRule::ALL.len());
}

#[test]
fn what_is_not_ours_is_refused_and_changes_nothing() {
    let store = used_store(3, 1, 5);
    let whole = row(&[0, 1, 2], 0);
    let bytes = store.export(whole, 130);
    let ours = store.signature().number();
    let layers = |middle| shape(&[(2, 16, (16, 16)), (1, 16, middle), (1, 64, (4, 4))]);
    for (other, seed) in [
        (mixed(), SEED + 1),
        (layers((8, 4)), SEED),
        (layers((16, 16)), SEED),
        (shape(&[(2, 16, (16, 16))]), SEED),
        (CacheShape { scale_rule: Some(ScaleRule::Plain), ..mixed() }, SEED),
    ] {
        let mut other = PageStore::new(&other, (3, 1), seed);
        let before = other.export(whole, 130);
        let error = Error::OtherSignature { theirs: ours, ours: other.signature().number() };
        assert_eq!(other.import(whole, &bytes), Err(error));
        assert!(other.export(whole, 130) == before, "a refused import wrote");
    }
    let mut store = used_store(3, 1, 6);
    let before = store.export(whole, 130);
    let mut flipped = [bytes.clone(), bytes.clone(), bytes.clone()];
    flipped[0][3] ^= 1; // the name of the format
    flipped[1][16] ^= 64; // the length, to a page less
    flipped[2][23] ^= 128; // the length, far too long
    let cut = [0, 7, 8, 23, 24, bytes.len() - 1].map(|len| bytes[..len].to_vec());
    let longer = [bytes.iter().copied().chain([0]).collect::<Vec<u8>>()];
    for damaged in flipped.iter().chain(&cut).chain(&longer) {
        let refused = Err(Error::Damaged { bytes: damaged.len() });
        assert_eq!(store.import(whole, damaged), refused, "{} bytes", damaged.len());
    }
    let mut other_bit = bytes.clone();
    other_bit[8] ^= 1;
    let theirs = ours ^ 1;
    let log = Log::default();
    let heard = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || heard.clone()).finish();
    let miss = tracing::subscriber::with_default(subscriber, || store.import(whole, &other_bit));
    assert_eq!(miss, Err(Error::OtherSignature { theirs, ours }));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains(&format!("{theirs:016x}, this cache {ours:016x}")), "{log}");
    let short = store.import(row(&[0, 1], 0), &bytes);
    assert_eq!(short, Err(Error::Damaged { bytes: bytes.len() }), "two pages for 130 tokens");
    assert!(store.export(whole, 130) == before, "a refused import wrote");
}

#[test]
fn vectors_that_are_not_finite_become_zeros_and_are_counted() {
    let mut store = PageStore::new(&shape(&[(1, 16, (4, 4))]), (2, 1), 1);
    let mut k = Random(2).floats(PAGE_TOKENS * 16, 1.0);
    k[16 * 5 + 3] = f32::NAN;
    let pages = row(&[0, 1], 0);
    store.append(0, &[Row { tokens: PAGE_TOKENS, ..pages }], &k, &k);
    assert_eq!(store.conversions().not_finite, 0);
    store.append(0, &[Row { position: 64, tokens: 1, ..pages }], &k[..16], &k[..16]);
    assert!(store.conversions().not_finite > 0);
    assert_eq!(store.token(0, pages, 5, 65), (vec![0.0; 16], vec![0.0; 16]));
    assert!(store.token(0, pages, 4, 65).0.iter().any(|k| *k != 0.0));
}
