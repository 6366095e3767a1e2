//! What is timed: buffers on the GPU and the launches over them. Activations are bf16.

use std::cell::RefCell;
use std::error::Error;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::cuda::{CudaBuffer, CudaProgram};
use kvant_kernels::device::{
    Activations, AttendParams, AttendRow, Cut, Kernel, NO_MASK, PagesParams, Params, Spec,
    override_occupancy, parts_of,
};
use kvant_turboquant::{Width, Widths};

use crate::gpu::{multiprocessors, replay};

const DIM: usize = 128;
const KV_HEADS: usize = 8;
/// Bytes that all sets of one case have at least.
const ENOUGH: usize = 400_000_000;
/// Signs of the rotations; any will do.
const SIGNS: [u32; 8] = [0x5A5A_1234, 0x0F0F_FEDC, 0x1357_9BDF, 0x89AB_CDEF, 0, 0, 0, 0];
/// Tokens of the 16-bit tail.
const TAIL: usize = 32;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn program(
    stream: &Arc<CudaStream>,
    bits: (usize, usize),
    queries: usize,
    portable: bool,
) -> Fallible<(Spec, CudaProgram)> {
    let widths = Widths { keys: Width::new(bits.0)?, values: Width::new(bits.1)? };
    let spec = Spec::new(DIM, widths, Activations::BF16)?.with_queries(queries);
    let program = CudaProgram::new(stream, &spec, portable, Some(&std::env::temp_dir()))?;
    Ok((spec, program))
}

fn words(stream: &Arc<CudaStream>, words: &[u32]) -> Fallible<CudaSlice<u8>> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(stream.clone_htod(&bytes)?)
}

/// Roughly normal numbers of 16 bits: bf16 without the low bits of f32, or f16.
fn numbers(count: usize, to_bits: fn(f32) -> u16) -> Vec<u8> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let numbers = (0..count).map(|_| 2.0 * (uniform() + uniform() + uniform()));
    numbers.flat_map(|x| to_bits(x).to_ne_bytes()).collect()
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

fn f16(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

/// Bulk conversion of 8,192 tokens, keys and values.
pub(crate) struct Encoding {
    stream: Arc<CudaStream>,
    spec: Spec,
    program: CudaProgram,
    sides: Vec<[CudaSlice<u8>; 2]>,
    tiles: RefCell<Vec<CudaSlice<u8>>>,
    strange: RefCell<CudaSlice<u8>>,
    list: CudaSlice<u8>,
}

impl Encoding {
    const TOKENS: usize = 8192;
    const PAGES: usize = Self::TOKENS / PAGE_TOKENS;

    pub(crate) fn new(stream: &Arc<CudaStream>, bits: (usize, usize)) -> Fallible<Self> {
        let (spec, program) = program(stream, bits, 4, false)?;
        let input = numbers(Self::TOKENS * KV_HEADS * DIM, bf16);
        let sets = ENOUGH.div_ceil(2 * input.len());
        let tile_bytes = Self::PAGES * KV_HEADS * spec.layout().tile_bytes();
        let mut sides = Vec::new();
        let mut tiles = Vec::new();
        for _ in 0..sets {
            sides.push([stream.clone_htod(&input)?, stream.clone_htod(&input)?]);
            tiles.push(stream.alloc_zeros(tile_bytes)?);
        }
        let list: Vec<u32> = (0..Self::PAGES as u32).flat_map(|page| [page, page]).collect();
        Ok(Self {
            stream: stream.clone(),
            spec,
            program,
            sides,
            tiles: RefCell::new(tiles),
            strange: RefCell::new(stream.alloc_zeros(8 * Self::PAGES * KV_HEADS)?),
            list: words(stream, &list)?,
        })
    }

    /// Bytes that one conversion reads and writes.
    pub(crate) fn bytes(&self) -> usize {
        let read = 2 * 2 * Self::TOKENS * KV_HEADS * DIM;
        read + Self::PAGES * KV_HEADS * self.spec.layout().tile_bytes()
    }

    /// Seconds of one conversion.
    pub(crate) fn time(&self) -> Fallible<f64> {
        let page = (KV_HEADS * PAGE_TOKENS * DIM) as u32;
        let params = PagesParams {
            key_signs: SIGNS,
            value_signs: SIGNS,
            tokens: Self::TOKENS as u32,
            kv_heads: KV_HEADS as u32,
            page_stride: page,
            head_stride: (PAGE_TOKENS * DIM) as u32,
            token_stride: DIM as u32,
            key_rule: 3,
            value_rule: 3,
            apart: 0,
        };
        let sets = self.sides.len();
        let seconds = replay(&self.stream, || {
            let mut tiles = self.tiles.borrow_mut();
            let mut strange = self.strange.borrow_mut();
            for ([keys, values], tiles) in self.sides.iter().zip(tiles.iter_mut()) {
                let mut buffers = [
                    CudaBuffer::Input(keys),
                    CudaBuffer::Input(values),
                    CudaBuffer::Input(&self.list),
                    CudaBuffer::Output(tiles),
                    CudaBuffer::Output(&mut strange),
                ];
                let grid = [2, KV_HEADS, Self::PAGES];
                // SAFETY: the buffers were made for these pages.
                unsafe { self.program.launch(Kernel::Encode, grid, &mut buffers, &params)? };
            }
            Ok(())
        })?;
        Ok(seconds / sets as f64)
    }
}

/// One decode step's attention of a batch of rows of one length.
pub(crate) struct Attention {
    stream: Arc<CudaStream>,
    spec: Spec,
    program: CudaProgram,
    group: usize,
    rows: Vec<AttendRow>,
    tiles: CudaSlice<u8>,
    tail: [CudaSlice<u8>; 2],
    q: CudaSlice<u8>,
    /// Of each set.
    lists: Vec<Vec<u32>>,
    out: RefCell<CudaSlice<u8>>,
}

impl Attention {
    pub(crate) fn new(
        stream: &Arc<CudaStream>,
        bits: (usize, usize),
        group: usize,
        (batch, context): (usize, usize),
        portable: bool,
    ) -> Fallible<Self> {
        let (spec, program) = program(stream, bits, group, portable)?;
        let pages = context / PAGE_TOKENS;
        let page_bytes = KV_HEADS * spec.layout().tile_bytes();
        let sets = ENOUGH.div_ceil(batch * pages * page_bytes).min(200);
        let all = sets * batch * pages;
        let tiles = filled(stream, &spec, all)?;
        let mut order: Vec<u32> = (0..all as u32).collect();
        let mut state = 12_345_u64;
        for last in (1..all).rev() {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            order.swap(last, (state >> 33) as usize % (last + 1));
        }
        let rows = (0..batch).map(|row| AttendRow {
            query: row as u32,
            tokens: 1,
            position: (context + TAIL - 1) as u32,
            packed_at: (row * (pages + 1)) as u32,
            packed: pages as u32,
            tail_at: (row * (pages + 1) + pages) as u32,
            sinks: (0, 0),
            mask_at: NO_MASK,
        });
        let lists = order.chunks(batch * pages).map(|set| {
            let rows = set.chunks(pages).zip(0_u32..);
            rows.flat_map(|(own, row)| own.iter().copied().chain([row])).collect()
        });
        let vectors = batch * KV_HEADS * group;
        let tail = stream.clone_htod(&numbers(batch * KV_HEADS * PAGE_TOKENS * DIM, f16))?;
        Ok(Self {
            spec,
            program,
            group,
            rows: rows.collect(),
            tiles,
            tail: [tail.try_clone()?, tail],
            q: stream.clone_htod(&numbers(vectors * DIM, bf16))?,
            lists: lists.collect(),
            out: RefCell::new(stream.alloc_zeros(2 * vectors * DIM)?),
            stream: stream.clone(),
        })
    }

    /// Bytes of packed pages that a step reads.
    pub(crate) fn bytes(&self) -> usize {
        let pages: usize = self.rows.iter().map(|row| row.packed as usize).sum();
        pages * KV_HEADS * self.spec.layout().tile_bytes()
    }

    /// How the product cuts these rows.
    pub(crate) fn cut(&self) -> Fallible<Cut> {
        let gpu = (multiprocessors(&self.stream)?, override_occupancy(&self.spec));
        Ok(Cut::of(&self.rows, KV_HEADS, gpu, 0))
    }

    /// Seconds of one step.
    pub(crate) fn time(&self, cut: Cut) -> Fallible<f64> {
        let lists = self.lists.iter().map(|list| {
            let parts = parts_of(&self.rows, list, cut, 0);
            let all: Vec<u32> = parts.iter().flat_map(Params::words).collect();
            Ok((words(&self.stream, &all)?, words(&self.stream, list)?))
        });
        let lists = lists.collect::<Fallible<Vec<_>>>()?;
        let parts = parts_of(&self.rows, &self.lists[0], cut, 0).len();
        let q_heads = KV_HEADS * self.group;
        let mut sums = self.stream.alloc_zeros::<u8>(4 * parts * q_heads * DIM)?;
        let mut ends = self.stream.alloc_zeros::<u8>(8 * parts * q_heads)?;
        let mut counters = self.stream.alloc_zeros::<u8>(4 * parts * KV_HEADS)?;
        let nothing = self.stream.alloc_zeros::<u8>(4)?;
        let outputs = RefCell::new([&mut sums, &mut ends, &mut counters]);
        let params = AttendParams {
            key_signs: SIGNS,
            value_signs: SIGNS,
            q_heads: q_heads as u32,
            kv_heads: KV_HEADS as u32,
            tokens: 1,
            window: 0,
            sink_logits: 0,
            scale: 0.088_388_35,
            soft_cap: 0.0,
            numbers: 0,
        };
        let seconds = replay(&self.stream, || {
            let mut out = self.out.borrow_mut();
            let mut outputs = outputs.borrow_mut();
            let [sums, ends, counters] = &mut *outputs;
            for (list, pages) in &lists {
                let mut buffers = [
                    CudaBuffer::Input(&self.q),
                    CudaBuffer::Input(&self.tiles),
                    CudaBuffer::Input(&self.tail[0]),
                    CudaBuffer::Input(&self.tail[1]),
                    CudaBuffer::Input(list),
                    CudaBuffer::Input(pages),
                    CudaBuffer::Input(&nothing),
                    CudaBuffer::Input(&nothing),
                    CudaBuffer::Output(sums),
                    CudaBuffer::Output(ends),
                    CudaBuffer::Output(counters),
                    CudaBuffer::Output(&mut out),
                ];
                let grid = [parts, KV_HEADS, 1];
                // SAFETY: all buffers were made for these rows, lists and parts.
                unsafe { self.program.launch(Kernel::Attend, grid, &mut buffers, &params)? };
                if self.program.attend_combines() {
                    continue;
                }
                let mut buffers = [
                    CudaBuffer::Input(sums),
                    CudaBuffer::Input(ends),
                    CudaBuffer::Input(list),
                    CudaBuffer::Input(&nothing),
                    CudaBuffer::Output(&mut out),
                ];
                let grid = [q_heads, 1, parts];
                // SAFETY: as above.
                unsafe { self.program.launch(Kernel::Combine, grid, &mut buffers, &params)? };
            }
            Ok(())
        })?;
        Ok(seconds / lists.len() as f64)
    }
}

/// Pages of random codes with scales as of numbers near 1, repeated over the memory.
fn filled(stream: &Arc<CudaStream>, spec: &Spec, pages: usize) -> Fallible<CudaSlice<u8>> {
    let tile_bytes = spec.layout().tile_bytes();
    let page_bytes = KV_HEADS * tile_bytes;
    let block = pages.min(64);
    let mut bytes = Vec::with_capacity(block * page_bytes);
    let mut state = 99_u64;
    while bytes.len() < block * page_bytes {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        bytes.extend_from_slice(&(state >> 16).to_ne_bytes()[..4]);
    }
    for tile in bytes.chunks_exact_mut(tile_bytes) {
        for (index, scale) in tile[..4 * PAGE_TOKENS].chunks_exact_mut(2).enumerate() {
            scale.copy_from_slice(&f16(0.012 + 0.0002 * (index % 60) as f32).to_le_bytes());
        }
    }
    let block = stream.clone_htod(&bytes)?;
    let mut tiles = stream.alloc_zeros::<u8>(pages * page_bytes)?;
    let mut at = 0;
    while at < tiles.len() {
        let count = block.len().min(tiles.len() - at);
        let mut into = tiles.slice_mut(at..at + count);
        stream.memcpy_dtod(&block.slice(..count), &mut into)?;
        at += count;
    }
    Ok(tiles)
}
