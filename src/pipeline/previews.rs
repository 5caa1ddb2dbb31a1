//! What a picture looks like before it is finished.

use candle_core::Tensor;
use image::DynamicImage;

use super::{InferencePipeline, pixels::to_image};
use crate::{Result, models::Tiling};

/// A preview's longer side in latents: what is larger is averaged down before it is decoded.
const PREVIEW_LATENTS: usize = 32;

impl InferencePipeline {
    /// A picture of unfinished latents, at most [`PREVIEW_LATENTS`] latents long.
    pub(super) fn preview(&self, denoised: &Tensor) -> Result<DynamicImage> {
        let (_, _, height, width) = denoised.dims4()?;
        let shrink = height.max(width).div_ceil(PREVIEW_LATENTS);
        let small = if shrink > 1 { denoised.avg_pool2d(shrink)? } else { denoised.clone() };
        // What is not finite yet may still become so; a preview shows it as it is.
        to_image(&self.networks.vae.decode(&small, Tiling::Off)?).map(DynamicImage::ImageRgb8)
    }
}
