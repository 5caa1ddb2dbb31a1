//! Whether an accelerator computes what the CPU computes.
//!
//! A driver, a library or a compiled kernel that does not fit a device may give wrong numbers without failing. So before a
//! device is first used the autoencoder's first layers (convolutions, group norms, linear layers and attention, with the
//! checkpoint's weights) run on it and on the CPU, on the same latents.

use candle_core::{DType, Device, Tensor};

use super::InferencePipeline;
use crate::{
    Error, Result,
    models::{decoder_beginning, device_name},
    sampling::NoiseGenerator,
};

/// The side of the latents.
const SIDE: usize = 8;
/// The most that two results differ by, as a share of the CPU's: many times what rounding to bf16 makes of a few layers.
const MOST_DIFFERENCE: f64 = 0.1;

impl InferencePipeline {
    /// Compares the device with the CPU, where it is another.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where they differ grossly.
    pub(super) fn check_device(&self) -> Result<()> {
        let (device, dtype) = (&self.networks.device, self.networks.vae_dtype);
        if device.is_cpu() {
            return Ok(());
        }
        let wanted = self.decoder_beginning(&Device::Cpu, DType::F32)?;
        let mut found = self.decoder_beginning(device, dtype)?;
        if dtype != DType::F32 && !difference(&found, &wanted)?.is_finite() {
            // The checkpoint's numbers may be too large for f16; drawing goes on in f32 then, too.
            found = self.decoder_beginning(device, DType::F32)?;
        }
        check(&found, &wanted).map_err(|message| Error::Device { device: device_name(device), message })
    }

    fn decoder_beginning(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let channels = self.spec.vae.latent_channels;
        let noise = NoiseGenerator::new(0).normals(channels * SIDE * SIDE);
        let latents = Tensor::from_vec(noise, (1, channels, SIDE, SIDE), device)?;
        self.with_vae_weights_on(device, dtype, |weights| decoder_beginning(&self.spec.vae, weights, &latents))
    }
}

fn check(found: &Tensor, wanted: &Tensor) -> Result<(), String> {
    let difference = difference(found, wanted).map_err(|error| error.to_string())?;
    if difference <= MOST_DIFFERENCE {
        return Ok(());
    }
    Err(format!(
        "computes something else than the CPU: the autoencoder's first layers differ by {:.0}%, and rounding by less than \
         {:.0}%; check the driver and the libraries, or draw on \"cpu\"",
        difference * 100.0,
        MOST_DIFFERENCE * 100.0
    ))
}

/// The root of the squared differences' sum, as a share of the same of what is wanted.
fn difference(found: &Tensor, wanted: &Tensor) -> Result<f64> {
    let values = |x: &Tensor| -> Result<Vec<f32>> { Ok(x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?) };
    let (found, wanted) = (values(found)?, values(wanted)?);
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let between = length(&mut found.iter().zip(&wanted).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    Ok(between / length(&mut wanted.iter().map(|value| f64::from(*value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        models::{DeviceChoice, DtypeChoice, ModelSource},
        nn::without_kernels,
        pipeline::LoadOptions,
    };

    #[test]
    fn a_device_that_computes_something_else_is_refused() {
        let options = LoadOptions {
            source: ModelSource::Bundled,
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::F32,
            ..LoadOptions::default()
        };
        let pipeline = InferencePipeline::load(&options, &mut |_| {}).unwrap();
        let wanted = pipeline.decoder_beginning(&Device::Cpu, DType::F32).unwrap();
        // The way of accelerators.
        let found = without_kernels(|| pipeline.decoder_beginning(&Device::Cpu, DType::F32)).unwrap();
        let rounding = difference(&found, &wanted).unwrap();
        assert!(rounding > 0.0 && rounding < 1e-5, "{rounding}");
        let narrow = pipeline.decoder_beginning(&Device::Cpu, DType::F16).unwrap();
        let rounding = difference(&narrow, &wanted).unwrap();
        assert!(rounding > 1e-5 && rounding < 0.01, "{rounding}");
        for right in [&found, &narrow] {
            assert_eq!(check(right, &wanted), Ok(()));
        }

        let moved = found.roll(1, 3).unwrap();
        let zeros = found.zeros_like().unwrap();
        let infinite = (&found / 0.0).unwrap();
        for wrong in [moved, zeros, infinite] {
            let message = check(&wrong, &wanted).unwrap_err();
            assert!(message.starts_with("computes something else than the CPU: "), "{message}");
        }
    }
}
