//! The codec's kernels alone: rotation and back, pages to tiles and back, bit for bit.

use anyhow::{Result, ensure};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{PageSource, encode};
use kvant_kernels::device::{
    Activations, Arg, GROUP_VECTORS, Gpu, GpuBuffer, GpuProgram, Kernel, MAX_QUERIES, PagesParams,
    Place, RotateParams, Spec, rule_code, sign_words,
};
use kvant_turboquant::{Codec, Encoded, Key, Rotation, ScaleRule, Side, Widths};

use crate::random;

const KV_HEADS: usize = 2;

/// One page on both sides.
struct Pair<'a> {
    gpu: &'a Gpu,
    spec: Spec,
    codecs: (Codec, Codec),
    params: PagesParams,
    /// `[tokens, kv_heads, dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
    on_gpu: [GpuBuffer; 2],
}

/// One page of keys and values through the kernels and the CPU.
pub(super) fn bits_are_equal(
    gpu: &Gpu,
    (dim, group): (usize, usize),
    widths: Widths,
) -> Result<String> {
    // The queries decide nothing here, but a program is compiled for a number of them.
    let spec = Spec::new(dim, widths, Activations::F32)?.with_queries(group.clamp(1, MAX_QUERIES));
    let pair = Pair::new(gpu, spec, widths)?;
    let program = gpu.program(&pair.spec)?;
    pair.rotate(&program)?;
    let (on_gpu, tiles) = pair.encode(&program)?;
    pair.gather(&program, &on_gpu, &tiles)?;
    Ok("the bits of the CPU".to_owned())
}

impl<'a> Pair<'a> {
    fn new(gpu: &'a Gpu, spec: Spec, widths: Widths) -> Result<Self> {
        let dim = spec.layout().dim();
        let rules = [(Side::Keys, widths.keys), (Side::Values, widths.values)]
            .map(|(side, width)| ScaleRule::for_side(side, width));
        let rotation = |side| Rotation::new(dim, Key { layer: 3, side, seed: 1 });
        let codecs = (
            Codec::new(rotation(Side::Keys), widths.keys, rules[0]),
            Codec::new(rotation(Side::Values), widths.values, rules[1]),
        );
        let count = PAGE_TOKENS * KV_HEADS * dim;
        let params = PagesParams {
            key_signs: sign_words(codecs.0.rotation()),
            value_signs: sign_words(codecs.1.rotation()),
            tokens: PAGE_TOKENS as u32,
            kv_heads: KV_HEADS as u32,
            page_stride: count as u32,
            head_stride: dim as u32,
            token_stride: (KV_HEADS * dim) as u32,
            key_rule: rule_code(rules[0]),
            value_rule: rule_code(rules[1]),
            apart: 0,
        };
        let mut state = random::nth(7, dim as u64);
        let mut numbers = || (0..count).map(|_| random::normal(&mut state)).collect::<Vec<f32>>();
        let (keys, values) = (numbers(), numbers());
        let upload = |numbers: &[f32]| -> Result<GpuBuffer> {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
            let buffer = gpu.alloc(bytes.len())?;
            gpu.write(&buffer, 0, &bytes)?;
            Ok(buffer)
        };
        let on_gpu = [upload(&keys)?, upload(&values)?];
        Ok(Self { gpu, spec, codecs, params, keys, values, on_gpu })
    }

    fn read(&self, buffer: &GpuBuffer) -> Result<Vec<f32>> {
        let bytes = self.gpu.read(buffer, 0..buffer.bytes())?;
        Ok(bytes.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect())
    }

    fn rotate(&self, program: &GpuProgram) -> Result<()> {
        let count = self.keys.len();
        let vectors = count / self.spec.layout().dim();
        let (rotated, restored) = (self.gpu.alloc(4 * count)?, self.gpu.alloc(4 * count)?);
        let params = RotateParams { signs: self.params.key_signs, vectors: vectors as u32 };
        let through = |kernel, from, to| -> Result<()> {
            let args = [Arg::In(Place::buffer(from, 0)?), Arg::Out(Place::buffer(to, 0)?)];
            let grid = [vectors.div_ceil(GROUP_VECTORS), 1, 1];
            Ok(self.gpu.launch((program, kernel), grid, &args, &params)?)
        };
        through(Kernel::Rotate, &self.on_gpu[0], &rotated)?;
        through(Kernel::Restore, &rotated, &restored)?;
        let rotation = self.codecs.0.rotation();
        let want = rotation.rotate(self.keys.clone());
        ensure!(self.read(&rotated)? == want.as_slice(), "kv_rotate differs from the CPU");
        let same = self.read(&restored)? == rotation.restore(want);
        ensure!(same, "kv_restore differs from the CPU");
        Ok(())
    }

    /// The tiles on the GPU and here.
    fn encode(&self, program: &GpuProgram) -> Result<(GpuBuffer, Vec<u8>)> {
        let layout = self.spec.layout();
        let mut want = vec![0; KV_HEADS * layout.tile_bytes()];
        let (tiles, strange) = (self.gpu.alloc(want.len())?, self.gpu.alloc(8 * KV_HEADS)?);
        // Both the dense page and the packed one are number 0.
        let pages = self.gpu.alloc(8)?;
        let args = [
            Arg::In(Place::buffer(&self.on_gpu[0], 0)?),
            Arg::In(Place::buffer(&self.on_gpu[1], 0)?),
            Arg::In(Place::buffer(&pages, 0)?),
            Arg::Out(Place::buffer(&tiles, 0)?),
            Arg::Out(Place::buffer(&strange, 0)?),
        ];
        let grid = [2, KV_HEADS, 1];
        self.gpu.launch((program, Kernel::Encode), grid, &args, &self.params)?;
        let source = PageSource { keys: &self.keys, values: &self.values, kv_heads: KV_HEADS };
        encode(&mut want, source, layout, (&self.codecs.0, &self.codecs.1))?;
        let same = self.gpu.read(&tiles, 0..want.len())? == want;
        ensure!(same, "kv_encode differs from the CPU");
        Ok((tiles, want))
    }

    fn gather(&self, program: &GpuProgram, on_gpu: &GpuBuffer, tiles: &[u8]) -> Result<()> {
        let (layout, count) = (self.spec.layout(), self.keys.len());
        let (keys, values) = (self.gpu.alloc(4 * count)?, self.gpu.alloc(4 * count)?);
        let pages = self.gpu.alloc(8)?;
        let args = [
            Arg::In(Place::buffer(on_gpu, 0)?),
            Arg::In(Place::buffer(&pages, 0)?),
            Arg::Out(Place::buffer(&keys, 0)?),
            Arg::Out(Place::buffer(&values, 0)?),
        ];
        self.gpu.launch((program, Kernel::Gather), [2, KV_HEADS, 1], &args, &self.params)?;
        let (keys, values) = (self.read(&keys)?, self.read(&values)?);
        let dim = layout.dim();
        for vector in 0..PAGE_TOKENS * KV_HEADS {
            let (slot, head) = (vector / KV_HEADS, vector % KV_HEADS);
            let tile = &tiles[head * layout.tile_bytes()..][..layout.tile_bytes()];
            let key = Encoded {
                scale: layout.key_scale(tile, slot),
                codes: (0..dim).map(|d| layout.key_code(tile, slot, d)).collect(),
            };
            let value = Encoded {
                scale: layout.value_scale(tile, slot),
                codes: (0..dim).map(|d| layout.value_code(tile, slot, d)).collect(),
            };
            let range = vector * dim..(vector + 1) * dim;
            let same = keys[range.clone()] == self.codecs.0.decode(&key)
                && values[range] == self.codecs.1.decode(&value);
            ensure!(same, "kv_gather differs from the CPU at token {slot}, head {head}");
        }
        Ok(())
    }
}
