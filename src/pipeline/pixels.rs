//! Between pixels and latents: the autoencoder, in f32 where a narrower type is not enough.

use std::sync::{Arc, PoisonError};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use super::{InferencePipeline, room::Coding};
use crate::{
    Error, Result,
    models::{LatentDistribution, VaeDecoder, VaeEncoder},
    nn::{LoadProgress, Weights},
};

impl InferencePipeline {
    /// The picture of latents.
    pub(super) fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        if !is_finite(latents)? {
            return Err(Error::NotFinite { stage: "the denoiser" });
        }
        to_image(&self.pixels(latents)?)
    }

    /// The pixels of latents, `(1, 3, h, w)` f32, decoded again in f32 where a narrower type was not enough.
    pub(super) fn pixels(&self, latents: &Tensor) -> Result<Tensor> {
        let mut pixels = self.decode_pixels(&self.networks.vae, latents)?;
        if !is_finite(&pixels)? && self.networks.vae_dtype != DType::F32 {
            tracing::warn!(dtype = ?self.networks.vae_dtype, "the autoencoder overflowed; decoding again in f32");
            pixels = self.decode_pixels(&self.wide_vae()?, latents)?;
        }
        if is_finite(&pixels)? { Ok(pixels) } else { Err(Error::NotFinite { stage: "the autoencoder" }) }
    }

    /// What a decoder makes of latents, in strips where that is needed.
    pub(super) fn decode_pixels(&self, vae: &VaeDecoder, latents: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        let factor = self.spec.vae.factor();
        self.code(Coding::Decode, (factor * height, factor * width), |tiling| vae.decode(latents, tiling))
    }

    /// What an encoder makes of pixels, in strips where that is needed.
    pub(super) fn encode_pixels(&self, encoder: &VaeEncoder, pixels: &Tensor) -> Result<LatentDistribution> {
        let (_, _, height, width) = pixels.dims4()?;
        self.code(Coding::Encode, (height, width), |tiling| encoder.encode(pixels, tiling))
    }

    /// The decoder in f32, read again from the checkpoint.
    fn wide_vae(&self) -> Result<VaeDecoder> {
        self.with_vae_weights(DType::F32, |weights| VaeDecoder::new(&self.spec.vae, weights))
    }

    /// The autoencoder's encoder, read from the checkpoint: text to image needs none, so that loading leaves it out.
    ///
    /// # Errors
    ///
    /// What is wrong with the checkpoint's file.
    pub fn load_encoder(&self) -> Result<VaeEncoder> {
        self.with_vae_weights(self.networks.vae_dtype, |weights| VaeEncoder::new(&self.spec.vae, weights))
    }

    /// What the encoder makes of pixels `(1, 3, h, w)` of -1 to 1, once more in f32 where a narrower type was not enough.
    pub(super) fn encode(&self, pixels: &Tensor) -> Result<LatentDistribution> {
        let encoder = {
            let mut kept = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            match &*kept {
                Some(encoder) => Arc::clone(encoder),
                None => Arc::clone(kept.insert(Arc::new(self.load_encoder()?))),
            }
        };
        let encoded = self.encode_pixels(&encoder, pixels)?;
        if encoded.is_finite()? {
            return Ok(encoded);
        }
        if self.networks.vae_dtype != DType::F32 {
            tracing::warn!(dtype = ?self.networks.vae_dtype, "the autoencoder overflowed; encoding again in f32");
            let wide = self.with_vae_weights(DType::F32, |weights| VaeEncoder::new(&self.spec.vae, weights))?;
            let encoded = self.encode_pixels(&wide, pixels)?;
            if encoded.is_finite()? {
                return Ok(encoded);
            }
        }
        Err(Error::NotFinite { stage: "the autoencoder's encoder" })
    }

    fn with_vae_weights<T>(&self, dtype: DType, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        self.with_vae_weights_on(&self.networks.device, dtype, build)
    }

    /// Hands the autoencoder's weights to `build`, read again from the checkpoint.
    pub(super) fn with_vae_weights_on<T>(
        &self,
        device: &Device,
        dtype: DType,
        build: impl FnOnce(&Weights) -> Result<T>,
    ) -> Result<T> {
        let mut quiet = |_| {};
        let progress = LoadProgress::new(&mut quiet);
        build(&Weights::open(self.checkpoint.weights("vae")?, device, dtype, &progress)?)
    }
}

fn is_finite(x: &Tensor) -> Result<bool> {
    // One value that is not finite makes the sum so; finite ones of a picture's size do not add up to infinity.
    Ok(x.sum_all()?.to_scalar::<f32>()?.is_finite())
}

/// `(1, 3, h, w)` of -1 to 1 as an RGB image.
fn to_image(pixels: &Tensor) -> Result<RgbImage> {
    let (_, _, height, width) = pixels.dims4()?;
    let bytes = ((pixels.clamp(-1.0, 1.0)? + 1.0)? * 127.5)?.round()?.to_dtype(DType::U8)?;
    let bytes = bytes.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
    let side = |side: usize| u32::try_from(side).map_err(|error| Error::Image(error.to_string()));
    let image = RgbImage::from_raw(side(width)?, side(height)?, bytes);
    Ok(image.expect("a picture has three bytes a pixel"))
}
