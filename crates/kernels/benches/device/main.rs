//! Times of the device kernels on a GPU, beside the bandwidth of a copy on the same one: `encode`
//! of 8,192 tokens, and decode attention over batch × context, cut in parts as the product does.
//!
//! Inputs are as many sets as make 400 MB, so that no cache of the GPU helps; all sets are one
//! graph, and a time is the median of eleven replays over the number of sets.
//!
//! With the argument `dense` it times the kernels over 16-bit pages instead, with `products` those
//! of few rows with matrices, with `cuts` the shapes between 32k and 1M tokens by the pages of a
//! part: what the product's rule is read from.
//! Arguments like `8x16384` are shapes of decode steps in place of the table's.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]
#![expect(unsafe_code, reason = "launches of kernels")]

mod cases;
mod dense;
mod gpu;
mod products;

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::device::Cut;
use kvant_kernels::device::cuda::first_gpu;

use cases::{Attention, Encoding};

/// (batch, context) of decode attention.
const SHAPES: [(usize, usize); 20] = [
    (1, 1024),
    (1, 4096),
    (1, 16_384),
    (1, 32_768),
    (1, 131_072),
    (8, 1024),
    (8, 4096),
    (8, 16_384),
    (8, 32_768),
    (8, 131_072),
    (32, 1024),
    (32, 4096),
    (32, 16_384),
    (32, 32_768),
    (32, 131_072),
    (64, 1024),
    (64, 4096),
    (64, 16_384),
    (64, 32_768),
    (64, 131_072),
];

/// Pages of a part that `cuts` tries.
const CUTS: [usize; 16] = [4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 86, 96, 128, 172, 256, 512];

fn main() -> Result<(), Box<dyn Error>> {
    let Some(stream) = first_gpu() else {
        println!("no CUDA driver or no GPU");
        return Ok(());
    };
    let copy = gpu::copy_rate(&stream)?;
    println!("{}: copy {:.3} TB/s", stream.context().name()?, copy / 1e12);
    if std::env::args().any(|argument| argument == "dense") {
        return dense::print(&stream, copy);
    }
    if std::env::args().any(|argument| argument == "products") {
        return products::print(&stream, copy);
    }
    if std::env::args().any(|argument| argument == "cuts") {
        return cuts(&stream);
    }
    for bits in [(4, 4), (8, 4), (8, 8), (3, 3), (2, 2), (6, 6)] {
        let encoding = Encoding::new(&stream, bits)?;
        let seconds = encoding.time()?;
        let rate = encoding.bytes() as f64 / seconds;
        println!(
            "encode 8192 x 8 x 128, {bits:?} bits: {:.1} us, {:.2} of copy",
            seconds * 1e6,
            rate / copy
        );
    }
    for (bits, group) in
        [((4, 4), 4), ((4, 4), 8), ((8, 4), 4), ((8, 4), 8), ((8, 8), 4), ((8, 8), 8), ((3, 3), 4)]
    {
        println!("attend, {bits:?} bits, group {group}: batch x context, us, share of copy");
        for (batch, context) in shapes(&SHAPES) {
            let attention = Attention::new(&stream, bits, group, (batch, context), false)?;
            let cut = attention.cut()?;
            let seconds = attention.time(cut)?;
            let share = attention.bytes() as f64 / seconds / copy;
            let seconds = seconds * 1e6;
            println!("  {batch:>2} x {context:>6} {seconds:>9.1} {share:.2} {cut:?}");
        }
    }
    let portable = Attention::new(&stream, (4, 4), 4, (64, 4096), true)?;
    println!("portable attend, (4, 4) bits, group 4, 64 x 4096: {:.1} us", {
        portable.time(Cut { split_pages: 32, tail_apart: true })? * 1e6
    });
    Ok(())
}

/// The shapes of arguments, or all of a table.
fn shapes(table: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let named: Vec<_> = std::env::args()
        .filter_map(|argument| {
            let (batch, context) = argument.split_once('x')?;
            Some((batch.parse().ok()?, context.parse().ok()?))
        })
        .collect();
    if named.is_empty() { table.to_vec() } else { named }
}

/// Times by how rows are cut, the product's own cut first.
fn cuts(stream: &Arc<CudaStream>) -> Result<(), Box<dyn Error>> {
    for (bits, group) in
        [((4, 4), 4), ((4, 4), 8), ((8, 4), 4), ((8, 4), 8), ((8, 8), 4), ((3, 3), 4)]
    {
        for (batch, context) in shapes(&SHAPES) {
            if !(32_768..=1 << 20).contains(&(batch * context)) {
                continue;
            }
            let attention = Attention::new(stream, bits, group, (batch, context), false)?;
            let own = attention.cut()?;
            print!("{bits:?} group {group} {batch:>2} x {context:>6}: ");
            print!("{own:?} {:.1}", attention.time(own)? * 1e6);
            for split_pages in CUTS.into_iter().filter(|pages| *pages <= context / PAGE_TOKENS) {
                for tail_apart in [false, true] {
                    let seconds = attention.time(Cut { split_pages, tail_apart })?;
                    let apart = if tail_apart { "+" } else { "" };
                    print!("  {split_pages}{apart} {:.1}", seconds * 1e6);
                }
            }
            println!();
        }
    }
    Ok(())
}
