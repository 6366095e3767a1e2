//! Codes in a tile lie where the format says, for every width and size.

#![cfg(test)]

use half::f16;
use kvant_turboquant::{PAGE_TOKENS, PageLayout, Width, Widths, width_pairs};

fn widths(keys: usize, values: usize) -> Widths {
    Widths { keys: Width::new(keys).unwrap(), values: Width::new(values).unwrap() }
}

/// Any code at any place.
fn code(token: usize, dim: usize, bits: usize, salt: u64) -> u8 {
    let counter = (token * 977 + dim * 31 + bits) as u64 + salt;
    let mixed = counter.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as u8 & ((1_u16 << bits) - 1) as u8
}

fn codes(dim: usize, bits: usize, salt: u64) -> Vec<u8> {
    (0..PAGE_TOKENS * dim).map(|at| code(at / dim, at % dim, bits, salt)).collect()
}

fn packed(layout: &PageLayout) -> Vec<u8> {
    let (dim, widths) = (layout.dim(), layout.widths());
    let mut tile = vec![0xFF; layout.tile_bytes()];
    let scales = |first: u16| std::array::from_fn(|t| f16::from_bits(first + t as u16));
    layout.pack_keys(&mut tile, &scales(0x2000), &codes(dim, widths.keys.bits(), 1));
    layout.pack_values(&mut tile, &scales(0x3000), &codes(dim, widths.values.bits(), 2));
    tile
}

#[test]
fn everything_is_read_back() {
    for dim in [1, 7, 20, 64, 72, 80, 96, 100, 112, 128, 160, 192, 256, 320] {
        for bits in 1..=8 {
            let layout = PageLayout::new(dim, widths(bits, 9 - bits));
            let tile = packed(&layout);
            assert_eq!(tile.len() % 128, 0);
            for token in 0..PAGE_TOKENS {
                for d in 0..dim {
                    let key = layout.key_code(&tile, token, d);
                    assert_eq!(key, code(token, d, bits, 1), "dim {dim}, {bits} bits");
                    let value = layout.value_code(&tile, token, d);
                    assert_eq!(value, code(token, d, 9 - bits, 2), "dim {dim}, {} bits", 9 - bits);
                }
                assert_eq!(layout.key_scale(&tile, token).to_bits(), 0x2000 + token as u16);
                assert_eq!(layout.value_scale(&tile, token).to_bits(), 0x3000 + token as u16);
            }
        }
    }
}

#[test]
fn packing_what_was_read_gives_the_same_bytes() {
    for pair in width_pairs() {
        for dim in [64, 80, 128, 256] {
            let layout = PageLayout::new(dim, pair);
            let tile = packed(&layout);
            let all = |read: &dyn Fn(usize, usize) -> u8| -> Vec<u8> {
                (0..PAGE_TOKENS * dim).map(|at| read(at / dim, at % dim)).collect()
            };
            let mut again = vec![0xAA; tile.len()];
            let scales = std::array::from_fn(|t| layout.key_scale(&tile, t));
            layout.pack_keys(&mut again, &scales, &all(&|t, d| layout.key_code(&tile, t, d)));
            let scales = std::array::from_fn(|t| layout.value_scale(&tile, t));
            layout.pack_values(&mut again, &scales, &all(&|t, d| layout.value_code(&tile, t, d)));
            assert!(again == tile, "{pair:?} {dim}");
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().unwrap())
}

/// A key's code as the CUDA prototype reads it, for 128 dimensions.
fn key_of_128(codes: &[u8], bits: usize, token: usize, d: usize) -> u8 {
    match bits {
        8 => codes[(d >> 6) * 4096 + token * 64 + (d & 63)],
        4 => {
            let byte = codes[token * 64 + (d >> 1)];
            if d & 1 == 1 { byte >> 4 } else { byte & 15 }
        }
        _ => {
            let (w, r) = (d >> 4, d & 15);
            let low = word(&codes[token * 32 + w * 4..]) >> (4 * (r & 7) + 2 * (r >> 3)) & 3;
            if bits == 2 {
                return low as u8;
            }
            let (w, r) = (d >> 5, d & 31);
            let high = word(&codes[2048 + token * 16 + w * 4..]) >> (4 * (r & 7) + (r >> 3)) & 1;
            (low | high << 2) as u8
        }
    }
}

/// A value's code as the CUDA prototype reads it, for 128 dimensions.
fn value_of_128(codes: &[u8], bits: usize, token: usize, d: usize) -> u8 {
    let (block, dd) = (d >> 3, d & 7);
    match bits {
        8 => codes[block * 512 + (token >> 2) * 32 + dd * 4 + (token & 3)],
        4 => {
            let byte = codes[block * 256 + (token >> 3) * 32 + dd * 4 + ((token & 7) >> 1)];
            if token & 1 == 1 { byte >> 4 } else { byte & 15 }
        }
        _ => {
            let r = token & 15;
            let x = word(&codes[block * 128 + (token >> 4) * 32 + dd * 4..]);
            let low = x >> (4 * (r & 7) + 2 * (r >> 3)) & 3;
            if bits == 2 {
                return low as u8;
            }
            let r = token & 31;
            let x = word(&codes[2048 + block * 64 + (token >> 5) * 32 + dd * 4..]);
            (low | (x >> (4 * (r & 7) + (r >> 3)) & 1) << 2) as u8
        }
    }
}

#[test]
fn the_cuda_prototype_reads_the_same_codes() {
    for (keys, values, bytes) in
        [(4, 4, 8448), (8, 8, 16640), (8, 4, 12544), (3, 3, 6400), (2, 2, 4352)]
    {
        let layout = PageLayout::new(128, widths(keys, values));
        assert_eq!(layout.tile_bytes(), bytes);
        let tile = packed(&layout);
        assert_eq!(layout.values_at(), 256 + 1024 * keys);
        for token in 0..PAGE_TOKENS {
            for d in 0..128 {
                let key = key_of_128(&tile[256..], keys, token, d);
                assert_eq!(key, code(token, d, keys, 1), "{keys} bits");
                let value = value_of_128(&tile[layout.values_at()..], values, token, d);
                assert_eq!(value, code(token, d, values, 2), "{values} bits");
            }
        }
    }
}

#[test]
fn bytes_per_token_are_the_formula() {
    // Two 16-bit scales and 4·ceil(D·b/32) bytes of codes for each of key and value.
    let pairs = [(2, 2), (3, 3), (3, 4), (4, 4), (6, 6), (8, 4), (8, 8)];
    let table = [
        (64, [36, 52, 60, 68, 100, 100, 132]),
        (96, [52, 76, 88, 100, 148, 148, 196]),
        (128, [68, 100, 116, 132, 196, 196, 260]),
        (192, [100, 148, 172, 196, 292, 292, 388]),
        (256, [132, 196, 228, 260, 388, 388, 516]),
    ];
    for (dim, row) in table {
        for ((keys, values), bytes) in pairs.into_iter().zip(row) {
            let layout = PageLayout::new(dim, widths(keys, values));
            assert_eq!(layout.tile_bytes(), bytes * PAGE_TOKENS, "{dim}: {keys} and {values}");
        }
    }
}
