//! The stages of a drawing one at a time, on inputs made up once, for whoever measures them.

use candle_core::Tensor;

use super::{
    InferencePipeline,
    text::{self, Prompt, Reading},
};
use crate::{
    Result,
    sampling::{NoiseGenerator, SamplingConfig},
};

/// A part of a drawing that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The text encoders, on a prompt and a negative prompt together.
    TextPair,
    /// The denoiser, for a prompt and a negative prompt: one step of a guided drawing.
    UnetPair,
    /// The decoder, on one picture's latents.
    VaeDecode,
    /// The encoder, on one picture: the first step of image to image.
    VaeEncode,
}

/// A stage with its inputs in place. It returns once its device is done.
pub type PreparedStage<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// The text of the made-up inputs. A prompt's length does not matter: encoders read their whole window.
const PROMPT: &str = "a red fox in the snow";
/// A timestep in the middle of the training's thousand.
const TIMESTEP: f64 = 500.0;
const PIXEL_CHANNELS: usize = 3;

impl InferencePipeline {
    /// Prepares one stage of a guided drawing of `side_px` by `side_px` pixels.
    ///
    /// # Errors
    ///
    /// A size that the model does not draw; else what failed.
    pub fn prepare(&self, stage: Stage, side_px: usize) -> Result<PreparedStage<'_>> {
        let config = self.with_inputs(SamplingConfig {
            prompt: PROMPT.to_owned(),
            width: Some(side_px),
            height: Some(side_px),
            guidance_scale: SamplingConfig::default().guidance_scale,
            ..SamplingConfig::default()
        });
        config.validate(&self.info.limits)?;
        super::Generate::check(self, &config)?;
        let device = &self.networks.device;
        let side = side_px / self.spec.vae.factor();
        let noise = |batch: usize, channels: usize, side: usize| -> Result<Tensor> {
            let values = NoiseGenerator::new(0).normals(batch * channels * side * side);
            Ok(Tensor::from_vec(values, (batch, channels, side, side), device)?)
        };
        let latent_channels = self.spec.vae.latent_channels;
        Ok(match stage {
            Stage::TextPair => {
                let pair = [Prompt::negative("", None), Prompt::positive(PROMPT, None)];
                let tokens = text::tokenize(&self.networks.text, &pair, Reading::PLAIN)?;
                Box::new(move || {
                    text::encode_tokens(&self.networks.text, self.spec.family, &tokens, &[0, 0])?;
                    Ok(device.synchronize()?)
                })
            }
            Stage::UnetPair => {
                let conditioning =
                    text::condition(&self.networks.text, &self.spec, &config, (side_px, side_px), &mut Vec::new())?;
                let prepared = self.networks.unet.prepare(&conditioning)?;
                let latents = noise(1, self.spec.unet.in_channels, side)?;
                Box::new(move || {
                    self.networks.unet.forward(&latents, TIMESTEP, &prepared)?;
                    Ok(device.synchronize()?)
                })
            }
            Stage::VaeDecode => {
                let latents = noise(1, latent_channels, side)?;
                Box::new(move || {
                    self.decode_pixels(&self.networks.vae, &latents)?;
                    Ok(device.synchronize()?)
                })
            }
            Stage::VaeEncode => {
                let (encoder, pixels) = (self.load_encoder()?, noise(1, PIXEL_CHANNELS, side_px)?);
                Box::new(move || {
                    self.encode_pixels(&encoder, &pixels)?;
                    Ok(device.synchronize()?)
                })
            }
        })
    }
}
