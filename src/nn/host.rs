//! Between tensors and the CPU kernels, which take slices.

use std::cell::Cell;

use candle_core::{DType, Device, Storage, Tensor, WithDType};

use super::cpu::{self, Element, Isa, PeakOf};
use crate::Result;

/// A number type that both tensors and kernels have.
pub trait Number: Element + WithDType {}

impl<N: Element + WithDType> Number for N {}

thread_local! {
    static KERNELS_LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `run` with the CPU kernels left out on this thread: networks that are loaded and run in it go through the tensor
/// library, as they do on an accelerator. It is how tests compare that way with references where no accelerator is.
#[doc(hidden)]
pub fn without_kernels<T>(run: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            KERNELS_LEFT_OUT.set(self.0);
        }
    }
    let _restore = Restore(KERNELS_LEFT_OUT.replace(true));
    run()
}

/// Whether the kernels compute in this type on this device: f32 and bf16 on the CPU.
#[must_use]
pub fn has_kernels(device: &Device, dtype: DType) -> bool {
    device.is_cpu() && matches!(dtype, DType::F32 | DType::BF16) && !KERNELS_LEFT_OUT.get()
}

/// Whether the kernels compute this.
pub fn is_kernels(x: &Tensor) -> bool {
    has_kernels(x.device(), x.dtype())
}

/// Whether this processor multiplies bf16 faster than f32.
#[must_use]
pub fn has_fast_bf16() -> bool {
    Isa::detected() == Isa::Avx512Bf16
}

/// Runs a pass of a network on a thread of the pool that draws, where the CPU does: a layer then begins without waiting
/// for another thread to wake. On CUDA it runs on one thread of its own, which keeps what the libraries set up for a thread.
pub fn on_drawing_threads<T: Send>(device: &Device, pass: impl FnOnce() -> T + Send) -> T {
    // Without kernels, the tensor library finds its own threads.
    if device.is_cpu() && !KERNELS_LEFT_OUT.get() {
        return rayon::scope(|_| pass());
    }
    #[cfg(feature = "cuda")]
    if device.is_cuda()
        && let Some(thread) = cuda_thread()
    {
        return thread.install(pass);
    }
    pass()
}

/// The thread that tells a CUDA device what to do; `None` where the system gives none.
#[cfg(feature = "cuda")]
fn cuda_thread() -> Option<&'static rayon::ThreadPool> {
    static THREAD: std::sync::LazyLock<Option<rayon::ThreadPool>> = std::sync::LazyLock::new(|| {
        rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "cuda".to_owned()).build().ok()
    });
    THREAD.as_ref()
}

/// Runs `$run`, in which `$number` is the type of numbers that `$dtype` names: one that [the kernels have](has_kernels).
macro_rules! by_number {
    ($dtype:expr, $number:ident => $run:expr) => {
        match $dtype {
            candle_core::DType::BF16 => {
                type $number = half::bf16;
                $run
            }
            _ => {
                type $number = f32;
                $run
            }
        }
    };
}

pub(super) use by_number;

/// Hands the numbers of a tensor on the CPU to `run`, in order.
pub fn with_values<N: Number, T>(x: &Tensor, run: impl FnOnce(&[N]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(values) => {
            let start = layout.start_offset();
            run(&N::cpu_storage_as_slice(values)?[start..start + x.elem_count()])
        }
        _ => Err(candle_core::Error::Msg(format!("the CPU kernels were given a tensor on {:?}", x.device())).into()),
    }
}

/// A tensor on the CPU.
pub fn tensor_of<N: Number>(values: Vec<N>, shape: Vec<usize>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The most operations a second (multiplications and additions) that all threads of this processor together can do in
/// the products of networks of `dtype`, measured in a fraction of a second.
#[must_use]
pub fn multiply_peak(dtype: DType) -> f64 {
    cpu::multiply_peak(if dtype == DType::BF16 { PeakOf::Bf16 } else { PeakOf::F32 })
}
