//! The device that draws and the number type it draws in.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};

use crate::{Error, Result, nn::has_fast_bf16};

/// A device, as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first accelerator that is built in and there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
    /// A Metal device, by its number.
    Metal(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when it is not there, or this program was built without it.
    pub fn open(self) -> Result<Device> {
        let failed = |message: String| Error::Device { device: self.to_string(), message };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                Err(failed("this program was built without the feature \"cuda\"; \"cpu\" is always there".to_owned()))
            }
            Self::Metal(_) if !cfg!(feature = "metal") => {
                Err(failed("this program was built without the feature \"metal\"; \"cpu\" is always there".to_owned()))
            }
            Self::Cuda(number) => open_cuda(number).map_err(failed),
            Self::Metal(number) => Device::new_metal(number).map_err(|error| failed(error.to_string())),
            Self::Auto => {
                if cfg!(feature = "cuda") {
                    match open_cuda(0) {
                        Ok(device) => return Ok(device),
                        Err(reason) => tracing::info!(%reason, "CUDA cannot be used"),
                    }
                }
                if cfg!(feature = "metal")
                    && let Ok(device) = Device::new_metal(0)
                {
                    return Ok(device);
                }
                Ok(Device::Cpu)
            }
        }
    }
}

#[cfg(feature = "cuda")]
use crate::nn::open_cuda;

/// There is no device that this program was built without.
#[cfg(not(feature = "cuda"))]
fn open_cuda(number: usize) -> Result<Device, String> {
    Device::new_cuda(number).map_err(|error| error.to_string())
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda`, `cuda:1`, `metal` or `metal:1`.
    fn from_str(text: &str) -> Result<Self> {
        let (kind, number) = text.split_once(':').map_or((text, Some(0)), |(kind, number)| (kind, number.parse().ok()));
        match (kind, number) {
            ("auto", Some(_)) if text == "auto" => Ok(Self::Auto),
            ("cpu", Some(_)) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("metal", Some(number)) => Ok(Self::Metal(number)),
            _ => Err(Error::Device {
                device: format!("{text:?}"),
                message: "is none of auto, cpu, cuda, cuda:1 and metal".to_owned(),
            }),
        }
    }
}

/// The name of an opened device, as [`DeviceChoice`] reads it.
#[must_use]
pub fn device_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// A number type for the networks, as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtypeChoice {
    /// On the CPU bf16 where the processor multiplies it faster, else f32; f16 elsewhere.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats with 5 bits of exponent.
    F16,
    /// 16-bit floats with the exponent of an f32.
    Bf16,
}

impl DtypeChoice {
    /// The type to compute with on `device`.
    #[must_use]
    pub fn resolve(self, device: &Device) -> DType {
        match self {
            Self::Auto if device.is_cpu() && !has_fast_bf16() => DType::F32,
            Self::Auto if device.is_cpu() => DType::BF16,
            Self::Auto | Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for DtypeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::invalid("dtype", format!("is {text:?}; one of auto, f32, f16, bf16 is allowed"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(1), DeviceChoice::Metal(0)] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["gpu", "cuda:x", "cpu:1", "auto:0", ""] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
        for choice in [DtypeChoice::Auto, DtypeChoice::F32, DtypeChoice::F16, DtypeChoice::Bf16] {
            assert_eq!(choice.to_string().parse::<DtypeChoice>().unwrap(), choice);
        }
        assert!("f64".parse::<DtypeChoice>().is_err());
    }

    #[test]
    fn what_is_not_built_in_is_refused_with_what_is() {
        if !cfg!(feature = "cuda") {
            let message = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
            assert!(message.starts_with("device cuda:1: ") && message.contains("\"cpu\""), "{message}");
        }
        assert_eq!(DtypeChoice::Bf16.resolve(&Device::Cpu), DType::BF16);
        let fastest = if has_fast_bf16() { DType::BF16 } else { DType::F32 };
        assert_eq!(DtypeChoice::Auto.resolve(&Device::Cpu), fastest);
    }
}
