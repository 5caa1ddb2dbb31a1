//! Convolutions by cuDNN, summed in f32.
//!
//! The tensor library's own call of cuDNN sums f16 in f16, lets f32 be rounded to TF32, and asks for an algorithm each time.
//! Here sums are in f32, f32 stays f32, narrower numbers may use tensor cores, and the algorithm of a shape is chosen once on
//! each thread. The workspace comes from the device's pool and is bounded.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType,
    backend::BackendStorage,
    cuda_backend::{
        CudaDType, DeviceId,
        cudarc::{
            cudnn::{ConvForward, Cudnn, CudnnDataType, CudnnError, sys},
            driver::{CudaView, DeviceRepr, ValidAsZeroBits},
        },
    },
};
use half::{bf16, f16};
use sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm,
    cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
    cudnnMathType_t::{CUDNN_FMA_MATH, CUDNN_TENSOR_OP_MATH},
    cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
};

/// The most bytes that an algorithm may work in: what wants more gives way to one that needs next to nothing.
const MOST_WORKSPACE: usize = 1 << 30;
/// Shapes whose algorithm is kept. A worker that draws many sizes begins again at this many.
const MOST_SHAPES: usize = 1 << 12;

/// The convolution of maps `(b, inputs, h, w)` by `weight` `(outputs, inputs, k, k)`: `(b, outputs, h', w')`, in their type.
///
/// # Errors
///
/// Types or shapes that do not fit, or what cuDNN fails with.
pub fn convolve(maps: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    maps.contiguous()?.apply_op2_no_bwd(weight, &Convolution { padding, stride })
}

#[derive(Debug, Clone, Copy)]
struct Convolution {
    padding: usize,
    stride: usize,
}

/// What an algorithm is chosen for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Case {
    device: DeviceId,
    dtype: DType,
    /// Of the maps, of the weight and of the result.
    shapes: [[i32; 4]; 3],
    padding: i32,
    stride: i32,
}

thread_local! {
    // A handle is for one thread.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
    static CHOSEN: RefCell<HashMap<Case, (Algorithm, usize)>> = RefCell::default();
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("cuDNN was given a tensor on the CPU")
    }

    fn cuda_fwd(
        &self,
        maps: &CudaStorage,
        maps_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let operands = ((maps, maps_layout), (weight, weight_layout));
        match maps.dtype() {
            DType::F16 => self.run::<f16>(operands),
            DType::BF16 => self.run::<bf16>(operands),
            DType::F32 => self.run::<f32>(operands),
            other => candle_core::bail!("a convolution of {other:?} is not supported"),
        }
    }
}

type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// The numbers of an operand, from its first on.
fn view<'a, T: CudaDType>((storage, layout): Operand<'a>) -> Result<CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

impl Convolution {
    fn run<T>(&self, (maps, weight): (Operand<'_>, Operand<'_>)) -> Result<(CudaStorage, Shape)>
    where
        T: CudaDType + WithDType + DeviceRepr + ValidAsZeroBits + CudnnDataType,
    {
        let device = maps.0.device().clone();
        let case = self.case(device.id(), maps, weight)?;
        let [maps_shape, weight_shape, result_shape] = case.shapes;
        let cudnn = handle(&device)?;
        let error = candle_core::Error::wrap;

        let mut convolution = cudnn
            .create_conv2d::<f32>([case.padding; 2], [case.stride; 2], [1; 2], CUDNN_CROSS_CORRELATION)
            .map_err(error)?;
        let math = if case.dtype == DType::F32 { CUDNN_FMA_MATH } else { CUDNN_TENSOR_OP_MATH };
        convolution.set_math_type(math).map_err(error)?;
        let x = cudnn.create_4d_tensor::<T>(CUDNN_TENSOR_NCHW, maps_shape).map_err(error)?;
        let w = cudnn.create_4d_filter::<T>(CUDNN_TENSOR_NCHW, weight_shape).map_err(error)?;
        let y = cudnn.create_4d_tensor::<T>(CUDNN_TENSOR_NCHW, result_shape).map_err(error)?;
        let forward = ConvForward { conv: &convolution, x: &x, w: &w, y: &y };
        let (algorithm, workspace_bytes) = choose(&case, &forward)?;

        let shape = result_shape.map(|side| usize::try_from(side).unwrap_or(0));
        // SAFETY: cuDNN writes all of the result, and reads of the workspace only what it wrote.
        let (mut result, mut workspace) =
            unsafe { (device.alloc::<T>(shape.iter().product())?, device.alloc::<u8>(workspace_bytes.max(1))?) };
        let (maps, weight) = (view::<T>(maps)?, view::<T>(weight)?);
        // SAFETY: both operands are contiguous and of the described type and shapes, as `case` has checked.
        unsafe { forward.launch(algorithm, Some(&mut workspace), (T::one(), T::zero()), &maps, &weight, &mut result) }
            .map_err(error)?;
        Ok((CudaStorage::wrap_cuda_slice(result, device), Shape::from_dims(&shape)))
    }

    fn case(&self, device: DeviceId, maps: Operand<'_>, weight: Operand<'_>) -> Result<Case> {
        let (batch, inputs, height, width) = maps.1.shape().dims4()?;
        let (outputs, weight_inputs, kernel, other) = weight.1.shape().dims4()?;
        let fits = inputs == weight_inputs && kernel == other && maps.0.dtype() == weight.0.dtype();
        if !fits || !maps.1.is_contiguous() || !weight.1.is_contiguous() {
            let (maps, weight) = ((maps.0.dtype(), maps.1), (weight.0.dtype(), weight.1));
            candle_core::bail!("a convolution's maps {maps:?} and weight {weight:?} do not fit")
        }
        let side = |side: usize| (side + 2 * self.padding).checked_sub(kernel).map(|room| room / self.stride + 1);
        let (Some(high), Some(wide)) = (side(height), side(width)) else {
            candle_core::bail!("a map of {height}x{width} is smaller than a kernel of {kernel}")
        };
        let number = |value: usize| i32::try_from(value).map_err(candle_core::Error::wrap);
        let shape = |sides: [usize; 4]| -> Result<[i32; 4]> {
            let [a, b, c, d] = sides;
            Ok([number(a)?, number(b)?, number(c)?, number(d)?])
        };
        let maps_shape = shape([batch, inputs, height, width])?;
        let weight_shape = shape([outputs, inputs, kernel, kernel])?;
        let shapes = [maps_shape, weight_shape, shape([batch, outputs, high, wide])?];
        Ok(Case { device, dtype: maps.0.dtype(), shapes, padding: number(self.padding)?, stride: number(self.stride)? })
    }
}

/// This thread's handle to cuDNN on a device.
fn handle(device: &candle_core::CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&device.id()) {
            return Ok(Arc::clone(handle));
        }
        let handle = Cudnn::new(device.cuda_stream()).map_err(candle_core::Error::wrap)?;
        handles.insert(device.id(), Arc::clone(&handle));
        Ok(handle)
    })
}

/// The algorithm of a case, with the bytes that it works in: what cuDNN's heuristic puts first, where that is not too much.
fn choose<T: CudnnDataType>(case: &Case, forward: &ConvForward<'_, T, f32, T>) -> Result<(Algorithm, usize)> {
    if let Some(chosen) = CHOSEN.with_borrow(|chosen| chosen.get(case).copied()) {
        return Ok(chosen);
    }
    let choose = || -> std::result::Result<_, CudnnError> {
        let first = forward.pick_algorithm()?;
        let bytes = forward.get_workspace_size(first)?;
        if bytes <= MOST_WORKSPACE {
            return Ok((first, bytes));
        }
        let small = Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
        Ok((small, forward.get_workspace_size(small)?))
    };
    let chosen = choose().map_err(candle_core::Error::wrap)?;
    CHOSEN.with_borrow_mut(|kept| {
        if kept.len() >= MOST_SHAPES {
            kept.clear();
        }
        kept.insert(case.clone(), chosen);
    });
    Ok(chosen)
}
