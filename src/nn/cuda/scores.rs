//! Attention's scores in f32, of queries and keys in f16 or bf16.
//!
//! cuBLAS adds such products up in f32 in any case. The tensor library rounds the sums to the operands' type, which makes
//! several percent of a score's weight in bf16; here they are kept.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    cuda_backend::{
        CudaDType,
        cudarc::{
            cublas::{result::gemm_strided_batched_ex, sys},
            driver::{CudaView, DevicePtr, DevicePtrMut, DeviceRepr},
        },
    },
};
use half::{bf16, f16};
use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};

/// Each query times each key: `(b, h, n, c)` and `(b, h, m, c)` to `(b, h, n, m)` f32.
///
/// # Errors
///
/// Types or shapes that do not fit, or what cuBLAS fails with.
pub fn scores(queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
    queries.contiguous()?.apply_op2_no_bwd(&keys.contiguous()?, &Scores)
}

struct Scores;

impl CustomOp2 for Scores {
    fn name(&self) -> &'static str {
        "scores"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("cuBLAS was given a tensor on the CPU")
    }

    fn cuda_fwd(
        &self,
        queries: &CudaStorage,
        queries_layout: &Layout,
        keys: &CudaStorage,
        keys_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let operands = ((queries, queries_layout), (keys, keys_layout));
        match (queries.dtype(), keys.dtype()) {
            (DType::F16, DType::F16) => run::<f16>(operands, CUDA_R_16F),
            (DType::BF16, DType::BF16) => run::<bf16>(operands, CUDA_R_16BF),
            other => candle_core::bail!("scores of {other:?} are not supported"),
        }
    }
}

type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// The numbers of an operand, from its first on.
fn view<'a, T: CudaDType>((storage, layout): Operand<'a>) -> Result<CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

fn run<T: CudaDType + DeviceRepr>(
    (queries, keys): (Operand<'_>, Operand<'_>),
    kind: sys::cudaDataType_t,
) -> Result<(CudaStorage, Shape)> {
    let (batch, heads, rows, width) = queries.1.shape().dims4()?;
    let columns = keys.1.shape().dims4()?.2;
    let fits = keys.1.shape().dims4()? == (batch, heads, columns, width);
    if !fits || !queries.1.is_contiguous() || !keys.1.is_contiguous() {
        candle_core::bail!("queries {:?} and keys {:?} do not fit", queries.1, keys.1)
    }
    let number = |value: usize| i32::try_from(value).map_err(candle_core::Error::wrap);
    let long = |value: usize| i64::try_from(value).map_err(candle_core::Error::wrap);
    let (m, n, k) = (number(columns)?, number(rows)?, number(width)?);

    let device = queries.0.device().clone();
    let (blas, stream) = (device.cublas_handle(), device.cuda_stream());
    // SAFETY: the product writes all of it.
    let mut result = unsafe { device.alloc::<f32>(batch * heads * rows * columns)? };
    let (query_slice, key_slice) = (view::<T>(queries)?, view::<T>(keys)?);
    {
        let (query_pointer, _queries_in_use) = query_slice.device_ptr(&stream);
        let (key_pointer, _keys_in_use) = key_slice.device_ptr(&stream);
        let (result_pointer, _result_in_use) = result.device_ptr_mut(&stream);
        let (one, zero) = (1.0_f32, 0.0_f32);
        // cuBLAS counts by columns: our rows of scores are its columns, and our rows of keys are transposed for it.
        // SAFETY: all three are contiguous, of these sizes and types, on this device; the factors outlive the call.
        unsafe {
            gemm_strided_batched_ex(
                *blas.handle(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                m,
                n,
                k,
                (&raw const one).cast(),
                key_pointer as *const _,
                kind,
                k,
                long(columns * width)?,
                query_pointer as *const _,
                kind,
                k,
                long(rows * width)?,
                (&raw const zero).cast(),
                result_pointer as *mut _,
                CUDA_R_32F,
                m,
                long(rows * columns)?,
                number(batch * heads)?,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(candle_core::Error::wrap)?;
    }
    Ok((CudaStorage::wrap_cuda_slice(result, device), Shape::from((batch, heads, rows, columns))))
}
