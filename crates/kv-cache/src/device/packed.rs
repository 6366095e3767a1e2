//! `GpuPacked`: rotated codes of one layer, in pages, and the 16-bit tail of each sequence.

use std::sync::Arc;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::{
    Activations, Arg, AttendParams, Gpu, GpuBuffer, GpuError, GpuProgram, Kernel, PagesParams,
    Place, Spec, rule_code, sign_words,
};
use kvant_turboquant::{PageLayout, Rotation, Width, Widths};

use super::lists::{List, PackedRows};
use super::pages::GpuPages;
use super::scratch::Scratch;
use super::store::{Asked, DeviceAttention};
use crate::error::Error;
use crate::format::{CacheShape, Format, LayerShape};
use crate::packed::PackedSpec;
use crate::pages::PageId;

/// Memory of one packed layer.
#[derive(Debug)]
pub(super) struct GpuPacked {
    shape: LayerShape,
    /// Bytes of a page, all heads.
    page_bytes: usize,
    /// `[page][kv_heads][tile_bytes]`
    tiles: GpuBuffer,
    /// One page a tail.
    pub(super) tails: GpuPages,
    /// The tile of each head of a prompt's page before it is packed.
    pub(super) staging: GpuPages,
    /// Signs of the rotations, or their matrices, and codes of the scale rules.
    signs: [[u32; 8]; 2],
    matrices: Option<GpuBuffer>,
    rules: [u32; 2],
    encode: Arc<GpuProgram>,
    pub(super) attend: Arc<GpuProgram>,
    /// Query vectors that share a read of a page.
    queries: usize,
}

/// How many pages of each kind a packed layer has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) pages: usize,
    pub(super) tails: usize,
    pub(super) tiles: usize,
}

impl GpuPacked {
    pub(super) fn new(
        gpu: &Gpu,
        spec: PackedSpec,
        room: Room,
        q_heads: usize,
    ) -> Result<Self, Error> {
        let PackedSpec { shape, widths, rules, .. } = spec;
        let layout = PageLayout::new(shape.dim, widths);
        let queries = queries(q_heads, shape);
        let [encode, attend] = specs_of(shape, widths, q_heads)?;
        let page_bytes = shape.kv_heads * layout.tile_bytes();
        let rotations = spec.rotations();
        Ok(Self {
            shape,
            page_bytes,
            tiles: gpu.alloc(room.pages * page_bytes)?,
            tails: GpuPages::new(gpu, shape, room.tails)?,
            staging: GpuPages::new(gpu, shape, room.tiles)?,
            matrices: matrices(gpu, &rotations)?,
            signs: rotations.each_ref().map(sign_words),
            rules: rules.map(rule_code),
            encode: gpu.program(&encode)?,
            attend: gpu.program(&attend)?,
            queries,
        })
    }

    /// Packs pages of 16-bit tokens. pages: pairs of page and target; strange: two words a page and
    /// head; apart: whether the launches around it pack pages of other layers, and nothing else.
    pub(super) fn pack(
        &self,
        gpu: &Gpu,
        source: &GpuPages,
        (lists, pages): (&GpuBuffer, List),
        (strange, apart): (Place<'_>, bool),
    ) -> Result<(), GpuError> {
        let LayerShape { kv_heads, dim } = self.shape;
        let params = PagesParams {
            key_signs: self.signs[0],
            value_signs: self.signs[1],
            tokens: (pages.count * PAGE_TOKENS) as u32,
            kv_heads: kv_heads as u32,
            page_stride: self.shape.page_len() as u32,
            head_stride: (PAGE_TOKENS * dim) as u32,
            token_stride: dim as u32,
            key_rule: self.rules[0],
            value_rule: self.rules[1],
            apart: u32::from(apart),
        };
        let [keys, values] = source.places()?;
        let args = self.turning([
            Arg::In(keys),
            Arg::In(values),
            Arg::In(Place::buffer(lists, pages.byte())?),
            Arg::Out(Place::buffer(&self.tiles, 0)?),
            Arg::Out(strange),
        ])?;
        let grid = [2, kv_heads, pages.count];
        gpu.launch((&self.encode, Kernel::Encode), grid, &args, &params)
    }

    /// Attention of rows over packed pages, then 16-bit ones.
    pub(super) fn attend(
        &self,
        gpu: &Gpu,
        asked: &Asked<'_>,
        scratch: &Scratch,
        (dense, rows): (&GpuPages, PackedRows),
    ) -> Result<(), GpuError> {
        let Asked { q, out, pages, attention } = asked;
        if rows.parts.count == 0 {
            return Ok(());
        }
        let DeviceAttention { q_heads, scale, window, soft_cap, numbers } = **attention;
        let params = AttendParams {
            key_signs: self.signs[0],
            value_signs: self.signs[1],
            q_heads: q_heads as u32,
            kv_heads: self.shape.kv_heads as u32,
            tokens: rows.longest as u32,
            window: window.unwrap_or_default() as u32,
            sink_logits: 0,
            scale,
            soft_cap: soft_cap.unwrap_or_default(),
            numbers: numbers as u32,
        };
        let group = q_heads / self.shape.kv_heads;
        let height = self.shape.kv_heads * (rows.longest * group).div_ceil(self.queries);
        let Scratch { lists, sums, ends, counters, .. } = scratch;
        let parts = Place::buffer(lists, rows.parts.byte())?;
        // Neither masks nor logits of sinks: any place will do.
        let none = Place::buffer(ends, 0)?;
        let [keys, values] = dense.places()?;
        let args = self.turning([
            Arg::In((*q).clone()),
            Arg::In(Place::buffer(&self.tiles, 0)?),
            Arg::In(keys),
            Arg::In(values),
            Arg::In(parts.clone()),
            Arg::In(Place::buffer(lists, pages.byte())?),
            Arg::In(none.clone()),
            Arg::In(none.clone()),
            Arg::Out(Place::buffer(sums, 0)?),
            Arg::Out(Place::buffer(ends, 0)?),
            Arg::Out(Place::buffer(counters, 0)?),
            Arg::Out((*out).clone()),
        ])?;
        let grid = [rows.parts.count, height, 1];
        gpu.launch((&self.attend, Kernel::Attend), grid, &args, &params)?;
        if self.attend.attend_combines() {
            return Ok(());
        }
        let args = self.turning([
            Arg::In(Place::buffer(sums, 0)?),
            Arg::In(Place::buffer(ends, 0)?),
            Arg::In(parts),
            Arg::In(none),
            Arg::Out((*out).clone()),
        ])?;
        let grid = [q_heads, rows.longest, rows.parts.count];
        gpu.launch((&self.attend, Kernel::Combine), grid, &args, &params)
    }

    /// Arguments of a kernel that rotates.
    fn turning<'a, const N: usize>(&'a self, args: [Arg<'a>; N]) -> Result<Vec<Arg<'a>>, GpuError> {
        let matrices = self.matrices.iter().map(|matrices| Place::buffer(matrices, 0).map(Arg::In));
        args.into_iter().map(Ok).chain(matrices).collect()
    }

    /// Copies a page within.
    pub(super) fn copy_within(
        &self,
        gpu: &Gpu,
        page: PageId,
        source: PageId,
    ) -> Result<(), GpuError> {
        let [to, from] = [page, source].map(|page| page as usize * self.page_bytes);
        gpu.copy((&self.tiles, to), (&self.tiles, from), self.page_bytes)
    }

    /// The tiles of one page.
    pub(super) fn page(&self, gpu: &Gpu, page: PageId) -> Result<Vec<u8>, GpuError> {
        let at = page as usize * self.page_bytes;
        gpu.read(&self.tiles, at..at + self.page_bytes)
    }

    /// Bytes allocated for pages, tails and staging.
    pub(super) fn bytes(&self) -> u64 {
        self.tiles.bytes() as u64 + self.tails.bytes() + self.staging.bytes()
    }

    pub(super) fn shape(&self) -> LayerShape {
        self.shape
    }
}

/// What kernels of a layer are compiled for: those that pack, whose vectors are f16 as pages are,
/// and those that attend, whose vectors are f32 as queries are.
pub(super) fn specs_of(
    shape: LayerShape,
    widths: Widths,
    q_heads: usize,
) -> Result<[Spec; 2], Error> {
    let spec = |activations| {
        let spec = Spec::new(shape.dim, widths, activations)?;
        Ok::<_, Error>(spec.with_queries(queries(q_heads, shape)))
    };
    Ok([spec(Activations::F16)?, spec(Activations::F32)?])
}

/// The kernels of a layer that is not packed: those of a packed one of the same heads, if there is
/// one, so that fewer are compiled.
pub(super) fn dense_spec(
    shape: &CacheShape,
    heads: LayerShape,
    q_heads: usize,
) -> Result<Spec, Error> {
    let same = shape.layers.iter().filter(|layer| layer.shape == heads);
    let mut widths = same.filter_map(|layer| match layer.format {
        Format::Dense => None,
        Format::TurboQuant(widths) => Some(widths),
    });
    let any = Widths { keys: Width::CACHE[0], values: Width::CACHE[0] };
    let [_, attend] = specs_of(heads, widths.next().unwrap_or(any), q_heads)?;
    Ok(attend)
}

/// Query vectors of a key head that share one read of its pages.
pub(super) fn queries(q_heads: usize, shape: LayerShape) -> usize {
    (q_heads / shape.kv_heads).clamp(1, kvant_kernels::device::MAX_QUERIES)
}

/// The matrices of dense rotations, keys' and values'; `None` of others.
fn matrices(gpu: &Gpu, rotations: &[Rotation; 2]) -> Result<Option<GpuBuffer>, GpuError> {
    let rows = rotations.iter().filter_map(Rotation::matrix).flatten();
    let bytes: Vec<u8> = rows.flat_map(|x| x.to_ne_bytes()).collect();
    if bytes.is_empty() {
        return Ok(None);
    }
    let buffer = gpu.alloc(bytes.len())?;
    gpu.write(&buffer, 0, &bytes)?;
    Ok(Some(buffer))
}
