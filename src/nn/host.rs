//! Between tensors and the CPU kernels, which take slices.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use super::cpu::{self, PeakOf};
use crate::Result;

/// Whether the kernels compute this: f32 on the CPU.
pub fn is_kernels(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Hands the numbers of an f32 tensor on the CPU to `run`, in order.
pub fn with_values<T>(x: &Tensor, run: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            let start = layout.start_offset();
            run(&values[start..start + x.elem_count()])
        }
        _ => {
            Err(candle_core::Error::Msg(format!("the CPU kernels were given {:?} on {:?}", x.dtype(), x.device()))
                .into())
        }
    }
}

/// A tensor on the CPU.
pub fn tensor_of(values: Vec<f32>, shape: Vec<usize>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The most operations a second (multiplications and additions) that all threads of this processor together can do in
/// the products of networks of `dtype`, measured in a fraction of a second.
#[must_use]
pub fn multiply_peak(dtype: DType) -> f64 {
    cpu::multiply_peak(if dtype == DType::BF16 { PeakOf::Bf16 } else { PeakOf::F32 })
}
