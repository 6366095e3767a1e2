//! Tiles hold what the codec gives vector by vector, however the work is cut.

use kvant_turboquant::{Key, Rotation, ScaleRule, Widths, width_pairs};

use super::*;

const HEADS: usize = 2;

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 17_u64;
    let next = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn codecs(dim: usize, widths: Widths) -> (Codec, Codec) {
    let of = |side, width| {
        let rotation = Rotation::new(dim, Key { layer: 1, side, seed: 4 });
        Codec::new(rotation, width, ScaleRule::for_side(side, width))
    };
    (of(Side::Keys, widths.keys), of(Side::Values, widths.values))
}

fn tiles(x: &[f32], layout: &PageLayout, codecs: &(Codec, Codec)) -> Vec<u8> {
    let pages = x.len() / (PAGE_TOKENS * HEADS * layout.dim());
    let mut tiles = vec![0xEE; pages * HEADS * layout.tile_bytes()];
    let source = PageSource { keys: x, values: x, kv_heads: HEADS };
    encode(&mut tiles, source, layout, (&codecs.0, &codecs.1)).unwrap();
    tiles
}

#[test]
fn tiles_hold_the_codes_of_every_vector() {
    for widths in width_pairs() {
        for dim in [64, 80, 72] {
            let (layout, codecs) = (PageLayout::new(dim, widths), codecs(dim, widths));
            let x = numbers(2 * PAGE_TOKENS * HEADS * dim);
            let tiles = tiles(&x, &layout, &codecs);
            for (index, tile) in tiles.chunks_exact(layout.tile_bytes()).enumerate() {
                for slot in [0, 1, 31, 62, 63] {
                    let token = index / HEADS * PAGE_TOKENS + slot;
                    let x = &x[(token * HEADS + index % HEADS) * dim..][..dim];
                    let (key, value) = (codecs.0.encode(x).unwrap(), codecs.1.encode(x).unwrap());
                    assert_eq!(layout.key_scale(tile, slot), key.scale);
                    assert_eq!(layout.value_scale(tile, slot), value.scale);
                    for d in 0..dim {
                        assert_eq!(layout.key_code(tile, slot, d), key.codes[d]);
                        assert_eq!(layout.value_code(tile, slot, d), value.codes[d]);
                    }
                }
            }
        }
    }
}

#[test]
fn slices_and_threads_change_no_byte() {
    let widths = Widths::from_average(3.5).unwrap();
    let (layout, codecs) = (PageLayout::new(64, widths), codecs(64, widths));
    let page = PAGE_TOKENS * HEADS * 64;
    let x = numbers(5 * page);
    let whole = tiles(&x, &layout, &codecs);
    let sliced: Vec<u8> = x.chunks(2 * page).flat_map(|x| tiles(x, &layout, &codecs)).collect();
    assert!(whole == sliced);
    for threads in [1, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| tiles(&x, &layout, &codecs)) == whole, "{threads} threads");
    }
}

#[test]
fn what_is_not_finite_is_reported_and_stored_as_zeros() {
    let widths = Widths::from_average(4.0).unwrap();
    let (layout, codecs) = (PageLayout::new(64, widths), codecs(64, widths));
    let x = numbers(2 * PAGE_TOKENS * HEADS * 64);
    let clean = tiles(&x, &layout, &codecs);
    for (side, token, head, wrong) in
        [(Side::Keys, 0, 0, f32::NAN), (Side::Values, 127, 1, f32::INFINITY)]
    {
        let mut bad = x.clone();
        bad[(token * HEADS + head) * 64 + 5] = wrong;
        let (keys, values) = if side == Side::Keys { (&bad, &x) } else { (&x, &bad) };
        let source = PageSource { keys, values, kv_heads: HEADS };
        let mut out = vec![0; clean.len()];
        let error = encode(&mut out, source, &layout, (&codecs.0, &codecs.1)).unwrap_err();
        assert_eq!(error, NonFiniteInput { side, token, head, coordinate: 5 });
        let bytes = layout.tile_bytes();
        for (index, (got, clean)) in out.chunks(bytes).zip(clean.chunks(bytes)).enumerate() {
            let touched = index == token / PAGE_TOKENS * HEADS + head;
            assert_eq!(got != clean, touched, "tile {index}");
            if touched {
                let slot = token % PAGE_TOKENS;
                let scale = match side {
                    Side::Keys => layout.key_scale(got, slot),
                    Side::Values => layout.value_scale(got, slot),
                };
                assert_eq!(scale.to_bits(), 0);
            }
        }
    }
}
