//! What CUDA needs besides the tensor library: its libraries opened late, its devices opened with care, convolutions and
//! attention's scores summed in f32.
//!
//! Owns how a CUDA device is opened, and says in a sentence why one cannot be. It must not know networks.

#[cfg(feature = "cudnn")]
mod conv;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod libraries;
mod scores;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stand_ins;

use candle_core::{
    Device,
    cuda_backend::{
        cudarc::driver::{DriverError, result, sys},
        kernels,
    },
};

use super::cuda_machine::{BUILT_FOR, Machine, Target, Version};
#[cfg(feature = "cudnn")]
pub use conv::convolve;
pub use scores::scores;

/// Opens a CUDA device, with one stream for all threads.
///
/// # Errors
///
/// What is missing, or why this program does not run on the device, and what to do: one sentence.
pub fn open_cuda(number: usize) -> Result<Device, String> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    libraries::load()?;
    result::init().map_err(|error| refused(&error))?;
    let machine = look(number).map_err(|error| refused(&error))?;
    if let Some(message) = machine.refusal(number, BUILT_FOR, Target::of_ptx(kernels::AFFINE.ptx())) {
        return Err(message);
    }
    // The default stream is another one on each thread: what one thread uploads, another might use too early.
    let device = Device::new_cuda_with_stream(number).map_err(|error| error.to_string())?;
    if let Device::Cuda(device) = &device {
        // SAFETY: events order what several streams do with a tensor. All tensors of this device are on its one stream.
        unsafe { device.disable_event_tracking() };
    }
    // Products in f32 are in f32, and those of narrower numbers are added up in f32. The library's own defaults; said here
    // because pictures depend on them.
    candle_core::cuda::set_gemm_reduced_precision_f32(false);
    candle_core::cuda::set_gemm_reduced_precision_f16(false);
    candle_core::cuda::set_gemm_reduced_precision_bf16(false);
    Ok(device)
}

/// What the driver says of the machine and of one of its devices.
fn look(number: usize) -> Result<Machine, DriverError> {
    let mut driver = 0;
    // SAFETY: the driver is initialised and writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut driver).result() }?;
    let devices = usize::try_from(result::device::get_count()?).unwrap_or(0);
    let ordinal = i32::try_from(number).ok().filter(|_| number < devices);
    let capability = match ordinal {
        None => None,
        Some(ordinal) => {
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            };
            let device = result::device::get(ordinal)?;
            // SAFETY: the device is one that the driver has just given.
            let number = |attribute| unsafe { result::device::get_attribute(device, attribute) };
            let part = |value: i32| u32::try_from(value).unwrap_or(0);
            Some(Version { major: part(number(MAJOR)?), minor: part(number(MINOR)?) })
        }
    };
    Ok(Machine { driver: Version::of_cuda(u32::try_from(driver).unwrap_or(0)), devices, capability })
}

/// Why the driver does not work.
fn refused(error: &DriverError) -> String {
    use sys::cudaError_enum::{
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, CUDA_ERROR_NO_DEVICE, CUDA_ERROR_STUB_LIBRARY,
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
    };
    match error.0 {
        CUDA_ERROR_NO_DEVICE => {
            "the driver finds no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or draw on \"cpu\"".to_owned()
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "libcuda.so.1 is the toolkit's stub: put the driver's folder before it in LD_LIBRARY_PATH".to_owned()
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            format!(
                "the driver's library does not fit its kernel module or the GPU ({error}): install one driver whole"
            )
        }
        _ => format!("the driver does not start: {error}"),
    }
}
