//! From a path and a format, known at run time, to the kernel compiled for both.

use super::activations::{Cell, Codebook};
use super::format::BlockFormat;
use super::lanes::{Lanes, Portable, Sums};
use super::layout::{Halves, Layout, Nested, Offset, Plain};
use super::tile::Tile;
use crate::cpu::Path;

/// Instructions that this processor has, chosen once a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon),
    Portable(Portable),
}

impl Kernel {
    /// Plain Rust where the processor has not all that the path needs here.
    pub(super) fn new(path: Path) -> Self {
        let kernel = match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => super::avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => super::avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => super::neon::Neon::detect().map(Self::Neon),
            _ => None,
        };
        kernel.unwrap_or(Self::Portable(Portable))
    }

    /// Adds to sums: `[rows][16]`; cells: `[block][row]`.
    pub(super) fn multiply(
        self,
        format: BlockFormat,
        tile: Tile<'_>,
        cells: &[Cell],
        sums: &mut [Sums],
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => by_format(lanes, format, tile, (cells, sums)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => by_format(lanes, format, tile, (cells, sums)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(lanes) => by_format(lanes, format, tile, (cells, sums)),
            Self::Portable(lanes) => by_format(lanes, format, tile, (cells, sums)),
        }
    }
}

fn by_format<I: Lanes>(
    lanes: I,
    format: BlockFormat,
    tile: Tile<'_>,
    (cells, sums): (&[Cell], &mut [Sums]),
) {
    match format {
        BlockFormat::Q4_0 => lanes.tile::<Plain<4, 8>>(tile, cells, sums),
        BlockFormat::Q4_1 => lanes.tile::<Offset<4>>(tile, cells, sums),
        BlockFormat::Q5_0 => lanes.tile::<Plain<5, 16>>(tile, cells, sums),
        BlockFormat::Q5_1 => lanes.tile::<Offset<5>>(tile, cells, sums),
        BlockFormat::Q8_0 => lanes.tile::<Plain<8, 128>>(tile, cells, sums),
        BlockFormat::Q4K => lanes.tile::<Nested<4>>(tile, cells, sums),
        BlockFormat::Q5K => lanes.tile::<Nested<5>>(tile, cells, sums),
        BlockFormat::Q6K => lanes.tile::<Halves>(tile, cells, sums),
    }
}

impl BlockFormat {
    /// What activations must know about the codes.
    pub(super) fn codebook(self) -> Codebook {
        fn of<L: Layout>() -> Codebook {
            Codebook { zero: L::ZERO, halves: L::HALVES }
        }
        match self {
            Self::Q4_0 => of::<Plain<4, 8>>(),
            Self::Q4_1 | Self::Q5_1 => of::<Offset<4>>(),
            Self::Q5_0 => of::<Plain<5, 16>>(),
            Self::Q8_0 => of::<Plain<8, 128>>(),
            Self::Q4K | Self::Q5K => of::<Nested<4>>(),
            Self::Q6K => of::<Halves>(),
        }
    }
}
