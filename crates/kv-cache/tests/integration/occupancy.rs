//! Bytes as they are allocated against the formula, and against 16 bits.

use kvant_kv_cache::{
    CacheShape, LayerShape, LayerTraits, PageStore, Preset, Wish, decide, pages_for,
};

use crate::random::shape;

/// A packed cache that is larger has no reason to be.
const MOST: f64 = 0.9;
const PRESETS: [&str; 7] = ["auto", "tq8", "k8v4", "tq4", "k4v3", "tq3", "tq2"];

/// Layers, heads, size, query heads of one key head, bias of keys.
type Model = (usize, usize, usize, usize, bool);

const MODELS: [Model; 6] = [
    (30, 3, 64, 3, false),  // SmolLM2 135M
    (24, 2, 64, 7, true),   // Qwen2.5 0.5B
    (28, 8, 128, 2, false), // Qwen3 0.6B
    (32, 8, 80, 4, false),
    (4, 2, 16, 2, false),
    (2, 1, 256, 4, false),
];

fn layers_of((layers, kv_heads, dim, queries_per_key, key_bias): Model) -> Vec<LayerTraits> {
    let shape = LayerShape { kv_heads, dim };
    vec![LayerTraits { shape, queries_per_key, key_bias, window: None }; layers]
}

fn decided(layers: &[LayerTraits], name: &str, protect: bool) -> CacheShape {
    let preset: Preset = name.parse().unwrap();
    decide(layers, &Wish { preset, protect, ..Wish::default() }).unwrap()
}

fn check_bytes(shape: &CacheShape, what: &str) {
    for (pages, tails) in [(0, 0), (1, 0), (0, 1), (7, 3)] {
        let store = PageStore::new(shape, (pages, tails), 1);
        let formula = pages as u64 * shape.page_bytes() + tails as u64 * shape.tail_bytes();
        assert_eq!(store.bytes(), formula, "{what}: {pages} pages, {tails} tails");
    }
}

#[test]
fn allocated_bytes_are_those_of_the_formula() {
    for model in MODELS {
        for name in PRESETS.into_iter().chain(["f16"]) {
            check_bytes(&decided(&layers_of(model), name, true), name);
        }
    }
    check_bytes(&shape(&[(3, 20, (16, 16)), (1, 64, (4, 4)), (2, 16, (8, 3))]), "mixed");
    check_bytes(&shape(&[(1, 144, (3, 4))]), "dense rotation");
    check_bytes(&shape(&[]), "no layers");
    for widths in kvant_turboquant::width_pairs() {
        let bits = (widths.keys.bits(), widths.values.bits());
        check_bytes(&shape(&[(1, 64, bits), (2, 96, bits)]), "one width");
    }
}

/// Streams of 512 tokens with their tails: what is in use, not only what a full page takes.
#[test]
fn a_packed_cache_in_use_is_well_below_16_bits() {
    let (streams, tokens) = (4, 512);
    let pages = streams * pages_for(tokens);
    for model in MODELS {
        let layers = layers_of(model);
        let dense = PageStore::new(&decided(&layers, "f16", true), (pages, streams), 1);
        for name in PRESETS {
            for protect in [true, false] {
                let shape = decided(&layers, name, protect);
                let store = PageStore::new(&shape, (pages, streams), 1);
                let ratio = store.bytes() as f64 / dense.bytes() as f64;
                let case = format!("{name}, {model:?}, protected {protect}");
                assert!(ratio < MOST, "{ratio:.3} of 16 bits: {case}");
                assert!(shape.bits_per_element() < MOST * 16.0, "{case}");
            }
        }
    }
}

#[test]
fn four_bits_with_the_last_layer_dense_take_31_percent() {
    let mut layers = vec![(3, 64, (4, 4)); 30];
    layers[29].2 = (16, 16);
    let packed = PageStore::new(&shape(&layers), (8, 0), 1);
    let dense = PageStore::new(&shape(&[(3, 64, (16, 16)); 30]), (8, 0), 1);
    let ratio = packed.bytes() as f64 / dense.bytes() as f64;
    assert!(ratio <= 0.3115, "{ratio}");
}
