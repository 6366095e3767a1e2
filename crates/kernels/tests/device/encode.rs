//! `encode` gives the bytes of the CPU twin, and `gather` the numbers of the codec.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{PageSource, encode};
use kvant_kernels::device::{Kernel, PagesParams, Spec, rule_code, sign_words};
use kvant_turboquant::{Codec, Encoded, ScaleRule, Side, Width};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, each, floats};
use crate::random::{DIMS, Random, codecs, matrices, paired, spec, turning};

const KV_HEADS: usize = 2;

/// Dense pages `[page][kv_heads][64][dim]`; page 0 of the list is the last one in memory.
struct Pages {
    tokens: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
    list: Vec<u32>,
}

impl Pages {
    fn new(dim: usize, tokens: usize, random: &mut Random) -> Self {
        let count = tokens.div_ceil(PAGE_TOKENS);
        let numbers = count * KV_HEADS * PAGE_TOKENS * dim;
        let list = (0..count as u32).flat_map(|page| [count as u32 - 1 - page, page + 1]);
        Self {
            tokens,
            keys: random.floats(numbers),
            values: random.floats(numbers),
            list: list.collect(),
        }
    }

    fn count(&self) -> usize {
        self.list.len() / 2
    }

    /// `[tokens of whole pages, kv_heads, dim]` with zeros behind the last token.
    fn token_major(&self, numbers: &[f32], dim: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for token in 0..self.count() * PAGE_TOKENS {
            let page = self.list[2 * (token / PAGE_TOKENS)] as usize;
            for head in 0..KV_HEADS {
                let at = ((page * KV_HEADS + head) * PAGE_TOKENS + token % PAGE_TOKENS) * dim;
                let vector = numbers[at..at + dim].iter();
                out.extend(vector.map(|x| if token < self.tokens { *x } else { 0.0 }));
            }
        }
        out
    }

    fn params(&self, dim: usize, codecs: &(Codec, Codec), rules: [ScaleRule; 2]) -> PagesParams {
        PagesParams {
            key_signs: sign_words(codecs.0.rotation()),
            value_signs: sign_words(codecs.1.rotation()),
            tokens: self.tokens as u32,
            kv_heads: KV_HEADS as u32,
            page_stride: (KV_HEADS * PAGE_TOKENS * dim) as u32,
            head_stride: (PAGE_TOKENS * dim) as u32,
            token_stride: dim as u32,
            key_rule: rule_code(rules[0]),
            value_rule: rule_code(rules[1]),
            apart: 0,
        }
    }

    /// Tiles `[page][kv_heads][tile_bytes]` of the CPU twin, in the order of the list.
    fn tiles(&self, spec: &Spec, codecs: &(Codec, Codec)) -> Vec<u8> {
        let layout = spec.layout();
        let keys = self.token_major(&self.keys, layout.dim());
        let values = self.token_major(&self.values, layout.dim());
        let mut tiles = vec![0; self.count() * KV_HEADS * layout.tile_bytes()];
        let source = PageSource { keys: &keys, values: &values, kv_heads: KV_HEADS };
        // What is not finite is tested by what is stored for it.
        let _ = encode(&mut tiles, source, layout, (&codecs.0, &codecs.1));
        tiles
    }

    /// The same by the device's kernel, and the counts of strange vectors.
    fn encoded(
        &self,
        machine: &impl Machine,
        (spec, codecs): (&Spec, &(Codec, Codec)),
        params: &PagesParams,
    ) -> [Vec<u8>; 2] {
        let matrices = matrices([codecs.0.rotation(), codecs.1.rotation()]);
        let tile_bytes = spec.layout().tile_bytes();
        let one_page = KV_HEADS * tile_bytes;
        let [keys, values] = [&self.keys, &self.values].map(|side| bytes_of_floats(side));
        let list = bytes_of_words(&self.list);
        let buffers = [
            Buffer::Input(&keys),
            Buffer::Input(&values),
            Buffer::Input(&list),
            Buffer::Output((self.count() + 1) * one_page),
            Buffer::Output(4 * self.count() * KV_HEADS * 2),
        ];
        let grid = [2, KV_HEADS, self.count()];
        let buffers = turning(buffers, &matrices);
        let mut outputs = machine.run((Kernel::Encode, grid), &buffers, params);
        let strange = outputs.pop().unwrap();
        let mut tiles = outputs.pop().unwrap();
        let untouched: Vec<u8> = tiles.drain(..one_page).collect();
        assert!(untouched.iter().all(|byte| *byte == 0xFF), "page 0 is in no list");
        [tiles, strange]
    }
}

fn rules(codecs: &(Codec, Codec), rule: Option<ScaleRule>) -> [ScaleRule; 2] {
    let of = |side, codec: &Codec| rule.unwrap_or(ScaleRule::for_side(side, codec.book().width()));
    [of(Side::Keys, &codecs.0), of(Side::Values, &codecs.1)]
}

#[test]
fn tiles_have_the_bytes_of_the_cpu() {
    check(Emulator::new);
}

pub(crate) fn check<M: Machine>(make: impl Fn(&Spec) -> M + Sync) {
    let mut specs = Vec::new();
    for (index, dim) in DIMS.into_iter().enumerate() {
        for (at, keys) in Width::CACHE.into_iter().enumerate() {
            specs.push(spec(dim, keys.bits(), paired(index, at).bits()));
        }
    }
    each::<M, _>(&specs, |spec| {
        check_spec(&make(spec), spec, &[1, 15, 16, 17, 63, 64, 65]);
    });
}

/// Full matrices for rotations: a size that has no other, and the sizes of the table of `attend`.
pub(crate) fn check_dense<M: Machine>(make: impl Fn(&Spec) -> M) {
    for (dim, keys, values) in [(144, 4, 4), (64, 3, 6), (128, 8, 2), (256, 2, 8)] {
        let spec = spec(dim, keys, values).with_dense_rotation();
        check_spec(&make(&spec), &spec, &[17, 64, 65]);
    }
}

/// One program that may be compiled already, for machines where compiling takes long.
#[cfg(feature = "metal")]
pub(crate) fn check_one<M: Machine>(make: impl Fn(&Spec) -> M) {
    let spec = spec(64, 3, 6);
    check_spec(&make(&spec), &spec, &[65]);
}

/// Both ways.
fn check_spec(machine: &impl Machine, spec: &Spec, lengths: &[usize]) {
    let dim = spec.layout().dim();
    let codecs = codecs(spec, None);
    for &tokens in lengths {
        let pages = Pages::new(dim, tokens, &mut Random((dim * tokens) as u64));
        let params = pages.params(dim, &codecs, rules(&codecs, None));
        let [tiles, strange] = pages.encoded(machine, (spec, &codecs), &params);
        let widths = spec.layout().widths();
        assert!(tiles == pages.tiles(spec, &codecs), "{tokens} of {dim}, {widths:?}");
        assert!(strange.iter().all(|byte| *byte == 0));
    }
    gathers(machine, spec, &codecs);
}

/// `gather` gives what the codec decodes.
fn gathers(machine: &impl Machine, spec: &Spec, codecs: &(Codec, Codec)) {
    let layout = spec.layout();
    let dim = layout.dim();
    let pages = Pages::new(dim, 70, &mut Random(dim as u64));
    let params = pages.params(dim, codecs, rules(codecs, None));
    let one_page = KV_HEADS * layout.tile_bytes();
    let mut tiles = vec![0xFF; one_page];
    tiles.extend(pages.tiles(spec, codecs));
    let numbers = pages.keys.len();
    let list = bytes_of_words(&pages.list);
    let matrices = matrices([codecs.0.rotation(), codecs.1.rotation()]);
    let buffers = [
        Buffer::Input(&tiles),
        Buffer::Input(&list),
        Buffer::Output(4 * numbers),
        Buffer::Output(4 * numbers),
    ];
    let buffers = turning(buffers, &matrices);
    let found = machine.run((Kernel::Gather, [2, KV_HEADS, pages.count()]), &buffers, &params);
    let (keys, values) = (floats(&found[0]), floats(&found[1]));
    for token in 0..pages.count() * PAGE_TOKENS {
        let (page, slot) = (token / PAGE_TOKENS, token % PAGE_TOKENS);
        for head in 0..KV_HEADS {
            let tile = &tiles[(page + 1) * one_page + head * layout.tile_bytes()..];
            let at = (pages.list[2 * page] as usize * KV_HEADS + head) * PAGE_TOKENS + slot;
            let at = at * dim..(at + 1) * dim;
            if token >= pages.tokens {
                assert!(keys[at.clone()].iter().chain(&values[at]).all(|x| x.is_nan()));
                continue;
            }
            let codes = (0..dim).map(|d| layout.key_code(tile, slot, d)).collect();
            let key = Encoded { scale: layout.key_scale(tile, slot), codes };
            assert_eq!(keys[at.clone()], codecs.0.decode(&key), "key {token}");
            let codes = (0..dim).map(|d| layout.value_code(tile, slot, d)).collect();
            let value = Encoded { scale: layout.value_scale(tile, slot), codes };
            assert_eq!(values[at], codecs.1.decode(&value), "value {token}");
        }
    }
}

#[test]
fn tiles_of_dense_rotations_have_the_bytes_of_the_cpu() {
    check_dense(Emulator::new);
}

#[test]
fn every_scale_rule_and_strange_vectors_have_the_bytes_of_the_cpu() {
    check_strange(Emulator::new);
}

pub(crate) fn check_strange<M: Machine>(make: impl Fn(&Spec) -> M) {
    let dim = 64;
    let spec = spec(dim, 3, 6);
    let machine = make(&spec);
    for rule in ScaleRule::ALL {
        let codecs = codecs(&spec, Some(rule));
        let mut pages = Pages::new(dim, 64, &mut Random(5));
        // Tokens 0 to 7 of head 0: nothing, too small, just large enough, large, past all scales,
        // not finite twice, and one number alone.
        for (token, factor) in [0.0, 1e-13, 1e-11, 1e11, 1e36].into_iter().enumerate() {
            pages.keys[token * dim..][..dim].iter_mut().for_each(|x| *x *= factor);
        }
        pages.keys[5 * dim + 9] = f32::NAN;
        pages.keys[6 * dim + 63] = f32::NEG_INFINITY;
        pages.keys[7 * dim..][..dim].fill(0.0);
        pages.keys[7 * dim + 2] = f16::MAX.to_f32();
        pages.values[dim] = f32::INFINITY;
        let params = pages.params(dim, &codecs, rules(&codecs, Some(rule)));
        let [tiles, strange] = pages.encoded(&machine, (&spec, &codecs), &params);
        assert!(tiles == pages.tiles(&spec, &codecs), "{rule}");
        assert_eq!(strange, bytes_of_words(&[2, 1, 0, 0]), "{rule}");
        let apart = PagesParams { apart: 1, ..params };
        assert!(pages.encoded(&machine, (&spec, &codecs), &apart)[0] == tiles, "{rule} apart");
        assert_eq!(spec.layout().key_scale(&tiles, 0).to_bits(), 0);
        assert_eq!(spec.layout().key_scale(&tiles, 4), f16::MAX);
        assert_eq!(spec.layout().key_scale(&tiles, Side::Values as usize + 4).to_bits(), 0);
    }
}
