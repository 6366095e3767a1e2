//! `GpuPages`: 16-bit keys and values of one layer, in pages.

use kvant_kernels::device::{
    AppendParams, Arg, DenseParams, Gpu, GpuBuffer, GpuError, GpuProgram, Kernel, Place,
    dense_block,
};

use super::lists::DenseRows;
use super::scratch::Scratch;
use super::store::{Asked, DeviceAttention};
use crate::format::LayerShape;
use crate::pages::PageId;

/// Memory of one layer, `[page][kv_heads][PAGE_TOKENS][dim]` of f16 for keys and for values.
#[derive(Debug)]
pub(super) struct GpuPages {
    shape: LayerShape,
    pub(super) keys: GpuBuffer,
    pub(super) values: GpuBuffer,
}

/// Keys and values of a step's tokens, each `[tokens, kv_heads, dim]` f32.
#[derive(Clone, Debug)]
pub(super) struct NewTokens<'a> {
    pub(super) k: Place<'a>,
    pub(super) v: Place<'a>,
    pub(super) tokens: usize,
}

impl GpuPages {
    pub(super) fn new(gpu: &Gpu, shape: LayerShape, pages: usize) -> Result<Self, GpuError> {
        let bytes = 2 * shape.page_len() * pages;
        Ok(Self { shape, keys: gpu.alloc(bytes)?, values: gpu.alloc(bytes)? })
    }

    /// Writes the tokens to their places, and to those of other pages of the same shape, rounded
    /// to 16 bits as on the CPU. places: a word a token.
    pub(super) fn append(
        &self,
        (gpu, program): (&Gpu, &GpuProgram),
        new: &NewTokens<'_>,
        places: Place<'_>,
        others: Option<(&Self, Place<'_>)>,
    ) -> Result<(), GpuError> {
        let NewTokens { k, v, tokens } = new.clone();
        let params = AppendParams {
            tokens: tokens as u32,
            kv_heads: self.shape.kv_heads as u32,
            targets: 1 + u32::from(others.is_some()),
        };
        let grid = params.grid(self.shape.dim);
        let [keys, values] = self.places()?;
        // With one target any place will do for the other.
        let (other_pages, other_places) = others.unwrap_or((self, places.clone()));
        let [other_keys, other_values] = other_pages.places()?;
        let args = [
            Arg::In(k),
            Arg::In(v),
            Arg::In(places),
            Arg::Out(keys),
            Arg::Out(values),
            Arg::In(other_places),
            Arg::Out(other_keys),
            Arg::Out(other_values),
        ];
        gpu.launch((program, Kernel::Append), grid, &args, &params)
    }

    /// Attention of rows over these pages.
    pub(super) fn attend(
        &self,
        (gpu, program): (&Gpu, &GpuProgram),
        asked: &Asked<'_>,
        scratch: &Scratch,
        rows: DenseRows,
    ) -> Result<(), GpuError> {
        let Asked { q, out, pages, attention } = asked;
        let DeviceAttention { q_heads, scale, window, soft_cap, numbers } = **attention;
        let kv_heads = self.shape.kv_heads;
        let params = DenseParams {
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            parts: rows.parts as u32,
            block: dense_block(self.shape.dim, rows.longest, q_heads / kv_heads) as u32,
            window: window.unwrap_or_default() as u32,
            scale,
            soft_cap: soft_cap.unwrap_or_default(),
            numbers: numbers as u32,
        };
        let Scratch { lists, sums, ends, .. } = scratch;
        let list = Place::buffer(lists, rows.rows.byte())?;
        let [keys, values] = self.places()?;
        let args = [
            Arg::In((*q).clone()),
            Arg::In(keys),
            Arg::In(values),
            Arg::In(list.clone()),
            Arg::In(Place::buffer(lists, pages.byte())?),
            Arg::Out((*out).clone()),
            Arg::Out(Place::buffer(sums, 0)?),
            Arg::Out(Place::buffer(ends, 0)?),
        ];
        let grid = params.grid(rows.longest, rows.rows.count);
        gpu.launch((program, params.kernel()), grid, &args, &params)?;
        if rows.parts == 1 {
            return Ok(());
        }
        let args = [
            Arg::In(Place::buffer(sums, 0)?),
            Arg::In(Place::buffer(ends, 0)?),
            Arg::In(list),
            Arg::Out((*out).clone()),
        ];
        let grid = params.merge_grid(rows.longest, rows.rows.count);
        gpu.launch((program, Kernel::Merge), grid, &args, &params)
    }

    /// Copies a page out of `source`, which has the same shape.
    pub(super) fn copy_from(
        &self,
        gpu: &Gpu,
        page: PageId,
        (source, source_page): (&Self, PageId),
    ) -> Result<(), GpuError> {
        assert_eq!(self.shape, source.shape, "pages of different shapes cannot be copied");
        let bytes = 2 * self.shape.page_len();
        let (to, from) = (page as usize * bytes, source_page as usize * bytes);
        gpu.copy((&self.keys, to), (&source.keys, from), bytes)?;
        gpu.copy((&self.values, to), (&source.values, from), bytes)
    }

    /// Keys and values from the first page on.
    pub(super) fn places(&self) -> Result<[Place<'_>; 2], GpuError> {
        Ok([Place::buffer(&self.keys, 0)?, Place::buffer(&self.values, 0)?])
    }

    /// The bits of one page: keys, then values, each `[kv_heads, PAGE_TOKENS, dim]`.
    pub(super) fn read(&self, gpu: &Gpu, page: PageId) -> Result<[Vec<u8>; 2], GpuError> {
        let bytes = 2 * self.shape.page_len();
        let range = page as usize * bytes..(page as usize + 1) * bytes;
        Ok([gpu.read(&self.keys, range.clone())?, gpu.read(&self.values, range)?])
    }

    /// Bytes allocated for all pages.
    pub(super) fn bytes(&self) -> u64 {
        (self.keys.bytes() + self.values.bytes()) as u64
    }

    pub(super) fn shape(&self) -> LayerShape {
        self.shape
    }
}
