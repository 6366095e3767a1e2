//! Which instructions the integer kernels use: the best of the machine, or one that a test asks
//! for.

use std::sync::LazyLock;

/// A set of instructions with kernels of its own. Results are the same bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Plain Rust.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VBMI and VNNI.
    Avx512,
    /// ARM with NEON.
    Neon,
}

static BEST: LazyLock<Path> =
    LazyLock::new(|| Path::available().last().expect("plain Rust always is"));

impl Path {
    /// What this machine can run, the fastest last.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512].into_iter().filter(|p| p.is_here())
    }

    /// The fastest of this machine.
    pub fn best() -> Self {
        *BEST
    }

    /// Whether this machine can run it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}
