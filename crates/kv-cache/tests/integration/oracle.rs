//! `Oracle`: what every layer must answer for a token, from plain vectors.

use std::cell::OnceCell;
use std::rc::Rc;

use half::f16;
use kvant_kernels::cpu::DenseTiles;
use kvant_kv_cache::{CacheShape, Format, PAGE_TOKENS, PageStore, Row, Tiles};
use kvant_turboquant::{Codec, Key, Rotation, ScaleRule, Side, Width};

use crate::random::Random;

/// Length of the error of an 8-bit vector over its own length, for vectors of uniform numbers. A
/// code is off by at most half a step, evenly, and a step is the largest rotated coordinate over
/// 127. If that is c root mean squares, the error is c / (127 · √12) = c / 440, and c is at most 4
/// of 16 coordinates and hardly ever above 5 of 64: 1.14 %.
const ERROR_8_BITS: f64 = 0.0125;
/// The largest number of an ordinary vector.
const ORDINARY: f32 = 4.0;

/// Keys and values of one token of one layer, each `[kv_heads, dim]`.
pub(crate) type Pair = [Vec<f32>; 2];

/// A token of all layers.
pub(crate) struct Token {
    layers: Vec<Vectors>,
}

struct Vectors {
    /// As given to the cache.
    given: Pair,
    /// In 16 bits.
    rounded: Pair,
    /// What codes stand for, once a page with it is looked at.
    decoded: OnceCell<Pair>,
}

/// The tokens of a sequence.
pub(crate) type Tokens = Vec<Rc<Token>>;

pub(crate) struct Oracle {
    shape: CacheShape,
    /// Of packed layers: those of keys and values.
    codecs: Vec<Option<[Codec; 2]>>,
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| f16::from_f32(v.clamp(-65504.0, 65504.0)).to_f32()).collect()
}

/// One token, gathered from tiles by hand.
fn gather(tiles: DenseTiles<'_>, page: u32, slot: usize) -> Pair {
    let read = |numbers: &[f16]| {
        let mut token = Vec::new();
        for head in 0..tiles.kv_heads {
            let row = (page as usize * tiles.kv_heads + head) * PAGE_TOKENS + slot;
            token.extend(numbers[row * tiles.dim..][..tiles.dim].iter().map(|n| n.to_f32()));
        }
        token
    };
    [read(tiles.keys), read(tiles.values)]
}

/// Keys and values of consecutive tokens as a model gives them.
pub(crate) fn given<'a>(layer: usize, tokens: impl IntoIterator<Item = &'a Rc<Token>>) -> Pair {
    let mut pair = [Vec::new(), Vec::new()];
    for token in tokens {
        for (all, own) in pair.iter_mut().zip(&token.layers[layer].given) {
            all.extend(own);
        }
    }
    pair
}

/// Asserts that staged tokens are those of the oracle.
pub(crate) fn check_staged(
    layer: usize,
    (tiles, pages): (DenseTiles<'_>, &[u32]),
    tokens: &[Rc<Token>],
) {
    for (position, token) in tokens.iter().enumerate() {
        let got = gather(tiles, pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
        assert_eq!(&got, token.rounded(layer), "staged: layer {layer}, position {position}");
    }
}

impl Oracle {
    pub(crate) fn new(shape: &CacheShape, seed: u64) -> Self {
        let codecs = shape.layers.iter().enumerate().map(|(index, layer)| {
            let codec = |side, width: Width| {
                let key = Key { layer: index as u32, side, seed };
                let rotation = Rotation::new(layer.shape.dim, key);
                let rule = shape.scale_rule.unwrap_or(ScaleRule::for_side(side, width));
                Codec::new(rotation, width, rule)
            };
            match layer.format {
                Format::Dense => None,
                Format::TurboQuant(widths) => {
                    Some([codec(Side::Keys, widths.keys), codec(Side::Values, widths.values)])
                }
            }
        });
        Self { codecs: codecs.collect(), shape: shape.clone() }
    }

    /// A token as a model might give it; now and then zeros, or numbers beyond 16 bits.
    pub(crate) fn token(&self, random: &mut Random) -> Rc<Token> {
        let scale = match random.below(32) {
            0 => 0.0,
            1 => 1e6,
            _ => ORDINARY,
        };
        let layers = self.shape.layers.iter().map(|layer| {
            let mut side = || random.floats(layer.shape.token_len(), scale);
            let given = [side(), side()];
            let rounded = [rounded(&given[0]), rounded(&given[1])];
            Vectors { given, rounded, decoded: OnceCell::new() }
        });
        Rc::new(Token { layers: layers.collect() })
    }

    /// What a full page of a packed layer must answer: codes of the 16-bit numbers.
    fn decoded<'a>(&self, layer: usize, token: &'a Token) -> &'a Pair {
        let vectors = &token.layers[layer];
        vectors.decoded.get_or_init(|| {
            let codecs = self.codecs[layer].as_ref().unwrap();
            let side = |side: usize| {
                let codec: &Codec = &codecs[side];
                let mut decoded = Vec::new();
                for vector in vectors.rounded[side].chunks_exact(self.shape.layers[layer].shape.dim)
                {
                    let own = codec.decode(&codec.encode(vector).unwrap());
                    if codec.book().width().bits() == 8 {
                        within(&own, vector, codec.rotation());
                    }
                    decoded.extend(own);
                }
                decoded
            };
            [side(0), side(1)]
        })
    }

    /// Asserts that a sequence's tokens in the store are those of the oracle.
    pub(crate) fn check(&self, store: &PageStore, tokens: &Tokens, row: Row<'_>) {
        let length = tokens.len();
        for layer in 0..self.shape.layers.len() {
            let tiles = store.tiles(layer);
            for (position, token) in tokens.iter().enumerate() {
                let (index, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
                let open = index == (length - 1) / PAGE_TOKENS;
                let answer = || {
                    let (k, v) = store.token(layer, row, position, length);
                    [k, v]
                };
                let (got, want) = match tiles {
                    Tiles::Dense(tiles) => (gather(tiles, row.pages[index], slot), false),
                    Tiles::Packed(tiles) if open => (gather(tiles.dense, row.tail, slot), false),
                    Tiles::Packed(_) => (answer(), true),
                };
                let want = if want { self.decoded(layer, token) } else { token.rounded(layer) };
                assert_eq!(&got, want, "layer {layer}, position {position} of {length}, {row:?}");
                if position + 1 == length {
                    assert_eq!(answer(), got, "the newest token of layer {layer}, {row:?}");
                }
            }
        }
    }
}

impl Token {
    fn rounded(&self, layer: usize) -> &Pair {
        &self.layers[layer].rounded
    }
}

/// The bounds of 8 bits: half a step a coordinate and the rounding of the scale for every vector,
/// less for ordinary ones.
fn within(got: &[f32], want: &[f32], rotation: &Rotation) {
    let root = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|n| n * n).sum::<f64>().sqrt();
    let largest = |numbers: &[f32]| numbers.iter().fold(0.0_f32, |most, n| most.max(n.abs()));
    let length = root(&mut want.iter().map(|w| f64::from(*w)));
    let error = root(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    let step = f64::from(largest(rotation.rotate(want.to_vec()).as_slice())) / 127.0;
    let worst = (want.len() as f64).sqrt() * step / 2.0 + length / 2048.0;
    assert!(error <= worst * 1.001, "8 bits: error {error}, {worst} at worst");
    if largest(want) <= ORDINARY {
        assert!(error <= ERROR_8_BITS * length, "8 bits: error {error} of length {length}");
    }
}
