//! Times of `append` and of `attend_dense` with `merge`: decode steps over batch × context beside
//! the bandwidth of a copy, and chunks of prompts in products and sums a second.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::cuda::{CudaBuffer, CudaProgram, few_groups};
use kvant_kernels::device::{
    Activations, AppendParams, DENSE_FEW, DenseParams, DenseRowParams, FEW_GROUPS, Kernel, Params,
    Spec, dense_block, dense_parts,
};
use kvant_turboquant::{Width, Widths};

use crate::gpu::{multiprocessors, replay};
use crate::shapes;

/// Heads of a model: numbers of one, key heads, query heads of a key head.
#[derive(Clone, Copy)]
struct Shape {
    dim: usize,
    kv_heads: usize,
    group: usize,
}

/// Bytes that all sets of one case have at least.
const ENOUGH: usize = 400_000_000;
const LLAMA: Shape = Shape { dim: 128, kv_heads: 8, group: 4 };

/// (batch, context) of decode steps.
const STEPS: [(usize, usize); 11] = [
    (1, 4096),
    (1, 32_768),
    (1, 131_072),
    (8, 4096),
    (8, 16_384),
    (8, 32_768),
    (32, 4096),
    (32, 16_384),
    (64, 1024),
    (64, 4096),
    (64, 16_384),
];

type Fallible<T> = Result<T, Box<dyn Error>>;

/// All tables; `copy` is in bytes a second.
pub(crate) fn print(stream: &Arc<CudaStream>, copy: f64) -> Fallible<()> {
    let multiprocessors = multiprocessors(stream)?;
    let capability = stream.context().compute_capability()?;
    for tokens in [64, 8192] {
        let seconds = append(stream, tokens)?;
        let bytes = 12 * tokens * LLAMA.kv_heads * LLAMA.dim;
        let share = bytes as f64 / seconds / copy;
        println!("append {tokens} x 8 x 128: {:.1} us, {share:.2} of copy", seconds * 1e6);
    }
    for (shape, portable) in [
        (LLAMA, false),
        (Shape { group: 1, ..LLAMA }, false),
        (Shape { dim: 64, ..LLAMA }, false),
        (Shape { dim: 256, kv_heads: 4, group: 4 }, false),
        (LLAMA, true),
    ] {
        let case = |rows| Dense::new(stream, shape, portable, rows);
        let Shape { dim, kv_heads, group } = shape;
        let few = if portable { FEW_GROUPS } else { few_groups(capability, dim) };
        let text = if portable { "portable attend_dense" } else { "attend_dense" };
        println!("{text}, heads of {dim}, {} and {kv_heads}", kv_heads * group);
        for (position, tokens) in
            [(0, 1024), (0, 4096), (0, 8192), (30_720, 2048), (32_256, 512), (32_704, 64)]
        {
            let block = dense_block(dim, tokens, group);
            let groups = (tokens * group).div_ceil(block) * kv_heads;
            let pages = (position + tokens).div_ceil(PAGE_TOKENS);
            let parts = dense_parts((multiprocessors, few), (block, groups), pages);
            let seconds = case((1, position, tokens))?.time(block, parts)?;
            let seen = tokens * position + tokens * (tokens + 1) / 2;
            let work = (4 * dim * kv_heads * group * seen) as f64;
            let (us, rate) = (seconds * 1e6, work / seconds / 1e12);
            println!(
                "  {tokens} tokens at {position}: {us:.0} us, {rate:.0} TFLOP/s, {parts} parts"
            );
        }
        for (batch, context) in shapes(&STEPS) {
            let case = case((batch, context - 1, 1))?;
            let blocks = (DENSE_FEW, batch * kv_heads);
            let chosen = dense_parts((multiprocessors, few), blocks, context / PAGE_TOKENS);
            let seconds = case.time(DENSE_FEW, chosen)?;
            let mut others = String::new();
            for parts in [1, 2, 3, 4, 6, 8, 16, 32].into_iter().filter(|parts| *parts != chosen) {
                write!(others, " {parts}:{:.1}", case.time(DENSE_FEW, parts)? * 1e6)?;
            }
            let share = (4 * batch * kv_heads * context * dim) as f64 / seconds / copy;
            let us = seconds * 1e6;
            print!("  {batch:>2} x {context:>6} {us:>9.1} us {share:.2} of copy, {chosen} parts");
            println!(" |{others}");
        }
    }
    Ok(())
}

/// Buffers of one case: as many sets of pages as make `ENOUGH` bytes.
struct Dense {
    stream: Arc<CudaStream>,
    program: CudaProgram,
    shape: Shape,
    /// Number, position and tokens of rows, all alike.
    rows: (usize, usize, usize),
    q: CudaSlice<u8>,
    sides: [CudaSlice<u8>; 2],
    /// Of each set.
    row_sets: Vec<CudaSlice<u8>>,
    list: CudaSlice<u8>,
    out: RefCell<CudaSlice<u8>>,
}

impl Dense {
    fn new(
        stream: &Arc<CudaStream>,
        shape: Shape,
        portable: bool,
        rows: (usize, usize, usize),
    ) -> Fallible<Self> {
        let Shape { dim, kv_heads, group } = shape;
        let (count, position, tokens) = rows;
        let pages = (position + tokens).div_ceil(PAGE_TOKENS);
        let page_bytes = 2 * kv_heads * PAGE_TOKENS * dim;
        let sets = if tokens > 1 { 1 } else { ENOUGH.div_ceil(2 * count * pages * page_bytes) };
        let sets = sets.min(200);
        let all = sets * count * pages;
        let mut order: Vec<u32> = (0..all as u32).collect();
        let mut state = 12_345_u64;
        for last in (1..all).rev() {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            order.swap(last, (state >> 33) as usize % (last + 1));
        }
        let mut row_sets = Vec::new();
        for set in 0..sets {
            let row = |row: usize| DenseRowParams {
                query: (row * tokens) as u32,
                tokens: tokens as u32,
                position: position as u32,
                pages_at: ((set * count + row) * pages) as u32,
            };
            let of_set: Vec<u32> = (0..count).flat_map(|index| row(index).words()).collect();
            row_sets.push(words(stream, &of_set)?);
        }
        let numbers = count * tokens * kv_heads * group * dim;
        Ok(Self {
            program: program(stream, dim, portable)?,
            shape,
            rows,
            q: repeated(stream, 4 * numbers, |x| x.to_ne_bytes().to_vec())?,
            sides: [halves(stream, all * page_bytes)?, halves(stream, all * page_bytes)?],
            row_sets,
            list: words(stream, &order)?,
            out: RefCell::new(stream.alloc_zeros(4 * numbers)?),
            stream: stream.clone(),
        })
    }

    /// Seconds of one launch, and of `merge` where there are several parts.
    fn time(&self, block: usize, parts: usize) -> Fallible<f64> {
        let Shape { dim, kv_heads, group } = self.shape;
        let (count, _, tokens) = self.rows;
        let params = DenseParams {
            q_heads: (kv_heads * group) as u32,
            kv_heads: kv_heads as u32,
            parts: parts as u32,
            block: block as u32,
            window: 0,
            scale: 1.0 / (dim as f32).sqrt(),
            soft_cap: 0.0,
            numbers: 0,
        };
        let scratch = params.scratch_bytes(count * tokens, dim);
        let sums = RefCell::new(self.stream.alloc_zeros::<u8>(scratch[0].max(4))?);
        let ends = RefCell::new(self.stream.alloc_zeros::<u8>(scratch[1].max(4))?);
        let seconds = replay(&self.stream, || {
            let (mut sums, mut ends) = (sums.borrow_mut(), ends.borrow_mut());
            let mut out = self.out.borrow_mut();
            for rows in &self.row_sets {
                let mut buffers = [
                    CudaBuffer::Input(&self.q),
                    CudaBuffer::Input(&self.sides[0]),
                    CudaBuffer::Input(&self.sides[1]),
                    CudaBuffer::Input(rows),
                    CudaBuffer::Input(&self.list),
                    CudaBuffer::Output(&mut out),
                    CudaBuffer::Output(&mut sums),
                    CudaBuffer::Output(&mut ends),
                ];
                let grid = params.grid(tokens, count);
                // SAFETY: all buffers were made for these rows, lists and parts.
                unsafe { self.program.launch(params.kernel(), grid, &mut buffers, &params)? };
                if parts > 1 {
                    let mut buffers = [
                        CudaBuffer::Input(&sums),
                        CudaBuffer::Input(&ends),
                        CudaBuffer::Input(rows),
                        CudaBuffer::Output(&mut out),
                    ];
                    let grid = params.merge_grid(tokens, count);
                    // SAFETY: as above.
                    unsafe { self.program.launch(Kernel::Merge, grid, &mut buffers, &params)? };
                }
            }
            Ok(())
        })?;
        Ok(seconds / self.row_sets.len() as f64)
    }
}

/// Seconds of one `append`.
fn append(stream: &Arc<CudaStream>, tokens: usize) -> Fallible<f64> {
    let Shape { dim, kv_heads, .. } = LLAMA;
    let program = program(stream, dim, false)?;
    let numbers = tokens * kv_heads * dim;
    let sets = ENOUGH.div_ceil(12 * numbers).min(200);
    let mut memory = Vec::new();
    for _ in 0..sets {
        let input = repeated(stream, 4 * numbers, |x| x.to_ne_bytes().to_vec())?;
        memory.push((input, [halves(stream, 2 * numbers)?, halves(stream, 2 * numbers)?]));
    }
    let memory = RefCell::new(memory);
    let places: Vec<u32> = (0..tokens as u32).collect();
    let places = words(stream, &places)?;
    let params = AppendParams { tokens: tokens as u32, kv_heads: kv_heads as u32, targets: 1 };
    let unused = RefCell::new([words(stream, &[0])?, words(stream, &[0])?]);
    let seconds = replay(stream, || {
        let [other_keys, other_values] = &mut *unused.borrow_mut();
        for (input, [keys, values]) in memory.borrow_mut().iter_mut() {
            let mut buffers = [
                CudaBuffer::Input(input),
                CudaBuffer::Input(input),
                CudaBuffer::Input(&places),
                CudaBuffer::Output(keys),
                CudaBuffer::Output(values),
                CudaBuffer::Input(&places),
                CudaBuffer::Output(other_keys),
                CudaBuffer::Output(other_values),
            ];
            // SAFETY: the buffers were made for these tokens.
            unsafe { program.launch(Kernel::Append, params.grid(dim), &mut buffers, &params)? };
        }
        Ok(())
    })?;
    Ok(seconds / sets as f64)
}

fn program(stream: &Arc<CudaStream>, dim: usize, portable: bool) -> Fallible<CudaProgram> {
    let widths = Widths { keys: Width::new(4)?, values: Width::new(4)? };
    let spec = Spec::new(dim, widths, Activations::F32)?;
    Ok(CudaProgram::new(stream, &spec, portable, None)?)
}

fn words(stream: &Arc<CudaStream>, words: &[u32]) -> Fallible<CudaSlice<u8>> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(stream.clone_htod(&bytes)?)
}

fn halves(stream: &Arc<CudaStream>, bytes: usize) -> Fallible<CudaSlice<u8>> {
    repeated(stream, bytes, |x| half::f16::from_f32(x).to_ne_bytes().to_vec())
}

/// Roughly normal numbers, a few megabytes of them again and again.
fn repeated(
    stream: &Arc<CudaStream>,
    bytes: usize,
    to_bytes: fn(f32) -> Vec<u8>,
) -> Fallible<CudaSlice<u8>> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let numbers = (0..1_000_000).map(|_| 2.0 * (uniform() + uniform() + uniform()));
    let block = stream.clone_htod(&numbers.flat_map(to_bytes).collect::<Vec<u8>>())?;
    let mut all = stream.alloc_zeros::<u8>(bytes)?;
    for at in (0..bytes).step_by(block.len()) {
        let count = block.len().min(bytes - at);
        stream.memcpy_dtod(&block.slice(..count), &mut all.slice_mut(at..at + count))?;
    }
    Ok(all)
}
