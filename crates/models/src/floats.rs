//! The numbers of tensors as slices, to read and to write in place.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// Calls with the numbers of a contiguous f32 tensor on the CPU, without a copy.
pub fn with_floats<T>(tensor: &Tensor, call: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("the tensor is not on the CPU") };
    call(floats(storage, layout)?)
}

/// Calls with the numbers of a contiguous f32 tensor on the CPU, to change them.
pub fn with_floats_mut<T>(
    tensor: &Tensor,
    call: impl FnOnce(&mut [f32]) -> Result<T>,
) -> Result<T> {
    let write = Write { call: Cell::new(Some(call)), result: Cell::new(None) };
    tensor.inplace_op1(&write)?;
    let Some(result) = write.result.into_inner() else { bail!("nothing was written") };
    Ok(result)
}

/// candle lends a storage to be changed only to an operation.
struct Write<F, T> {
    call: Cell<Option<F>>,
    result: Cell<Option<T>>,
}

impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Write<F, T> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let floats = floats_mut(storage, layout)?;
        if let Some(call) = self.call.take() {
            self.result.set(Some(call(floats)?));
        }
        Ok(())
    }
}

/// The part of a storage that a contiguous layout covers.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = range(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The same, to be changed.
pub(crate) fn floats_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [f32]> {
    let (start, end) = range(layout)?;
    let CpuStorage::F32(numbers) = storage else { bail!("activations are f32") };
    Ok(&mut numbers[start..end])
}

fn range(layout: &Layout) -> Result<(usize, usize)> {
    let Some(range) = layout.contiguous_offsets() else { bail!("numbers are not contiguous") };
    Ok(range)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_view_writes_into_what_it_is_a_view_of() {
        let whole = Tensor::zeros(6, DType::F32, &Device::Cpu).unwrap();
        let view = whole.narrow(0, 2, 3).unwrap();
        let length = with_floats_mut(&view, |floats| {
            floats.copy_from_slice(&[1.0, 2.0, 3.0]);
            Ok(floats.len())
        });
        assert_eq!(length.unwrap(), 3);
        assert_eq!(whole.to_vec1::<f32>().unwrap(), [0.0, 0.0, 1.0, 2.0, 3.0, 0.0]);
        assert_eq!(with_floats(&view, |floats| Ok(floats[2])).unwrap(), 3.0);
    }

    #[test]
    fn what_has_gaps_or_other_numbers_is_refused() {
        let whole = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        let column = whole.narrow(1, 0, 1).unwrap();
        assert!(with_floats_mut(&column, |_| Ok(())).is_err());
        assert!(with_floats(&column, |_| Ok(())).is_err());
        let ids = Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap();
        assert!(with_floats_mut(&ids, |_| Ok(())).is_err());
        assert!(with_floats(&ids, |_| Ok(())).is_err());
    }
}
