//! `Copied`: whose numbers lie in 16 bits, for a product to read.

use candle_core::TensorId;
use kvant_kernels::device::Activations;

/// What the kernel that made numbers left of them in 16 bits, and what products take.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Whose, and where. Only until it has been used once: they change.
    of: Option<(TensorId, Lies)>,
    /// The kind that products asked for; nothing is copied before one has.
    numbers: Option<Activations>,
}

/// Where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// In the step's own buffer.
    Beside,
    /// In the memory of the f32, which are not there.
    Instead,
}

impl Copied {
    /// Of numbers that are of 16 bits only.
    pub(super) fn instead(x: TensorId, numbers: Activations) -> Self {
        Self { of: Some((x, Lies::Instead)), numbers: Some(numbers) }
    }

    /// What a kernel that makes x is to leave beside it.
    pub(super) fn leaves(&mut self, x: TensorId) -> Option<Activations> {
        self.of = self.numbers.map(|_| (x, Lies::Beside));
        self.numbers
    }

    /// Where x lies in such numbers, if it does; from now on kernels that can leave them do.
    pub(super) fn take(&mut self, x: TensorId, numbers: Activations) -> Option<Lies> {
        let known = self.numbers.replace(numbers) == Some(numbers);
        self.of.take().filter(|(of, _)| *of == x && known).map(|(_, lies)| lies)
    }
}
