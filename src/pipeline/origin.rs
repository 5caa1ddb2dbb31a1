//! What a drawing starts from: noise alone, a picture with noise on top, or a picture of which a part is kept.
//!
//! Owns the way from a client's picture and mask to latents and back. Random numbers are drawn in diffusers' order, so
//! that the same seed gives the same picture: the autoencoder's sample of the picture, the noise, and for a mask one more
//! sample, of the picture without what is repainted, which only checkpoints made for inpainting look at.

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, GrayImage, RgbImage};

use crate::{
    Result,
    image_utils::process_mask,
    imaging::resize,
    models::{LatentDistribution, VaeDecoder},
    sampling::{NoiseGenerator, Schedule, noisy},
};

/// A mask's value from which on a pixel is drawn anew.
const WHITE: u8 = 128;

/// The picture that a request brings along, at the size of the drawing.
#[derive(Debug)]
pub(super) struct Origin {
    picture: RgbImage,
    mask: Option<Mask>,
    /// What the encoder makes of the picture, as the decoder takes it.
    encoded: LatentDistribution,
}

#[derive(Debug)]
struct Mask {
    /// 255 where a pixel is drawn anew, and less at edges that fade.
    pixels: GrayImage,
    /// One where latents are drawn anew, zero where they are kept: `(1, 1, h, w)` f32.
    latents: Tensor,
}

/// The start of one image, with its own noise.
#[derive(Debug)]
pub(super) struct Start {
    /// The latents of the first step: `(1, c, h, w)` f32.
    pub(super) latents: Tensor,
    kept: Option<Kept>,
}

/// What is put back after each look at the network.
#[derive(Debug)]
struct Kept {
    mask: Tensor,
    picture: Tensor,
    noise: Tensor,
}

/// A request's picture and mask, and how large the drawing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) picture: &'a RgbImage,
    pub(super) mask: Option<&'a GrayImage>,
    pub(super) mask_blur: f32,
    /// Height and width in pixels.
    pub(super) size: (usize, usize),
    /// Pixels per latent, along a side.
    pub(super) factor: usize,
}

impl Origin {
    /// Prepares what a request gives; `encode` is the autoencoder's encoder.
    ///
    /// # Errors
    ///
    /// What `encode` fails with, or the tensor library.
    pub(super) fn new(
        given: Given<'_>,
        device: &Device,
        encode: impl FnOnce(&Tensor) -> Result<LatentDistribution>,
    ) -> Result<Self> {
        let (height, width) = (side(given.size.0), side(given.size.1));
        let picture = resize(given.picture, width, height);
        let mask = given.mask.map(|mask| Mask::new(mask, given, device)).transpose()?;
        let encoded = encode(&to_pixels(&picture, device)?)?;
        Ok(Self { picture, mask, encoded })
    }

    /// The start of one image. `noise` is the image's own.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn start(
        &self,
        vae: &VaeDecoder,
        schedule: &Schedule,
        whole: bool,
        noise: &mut NoiseGenerator,
    ) -> Result<Start> {
        let mean = &self.encoded.mean;
        let mut fresh =
            || Ok::<_, crate::Error>(Tensor::from_vec(noise.normals(mean.elem_count()), mean.shape(), mean.device())?);
        let deviation = (&self.encoded.log_variance * 0.5)?.exp()?;
        let sample = (mean + (deviation * fresh()?)?)?;
        let picture = vae.normalise(&sample)?;
        let added = fresh()?;
        if self.mask.is_some() {
            fresh()?;
        }
        // With a mask, a strength of one leaves nothing of the picture where it is drawn anew.
        let latents = if whole && self.mask.is_some() {
            (&added * schedule.initial_scale)?
        } else {
            noisy(&picture, &added, schedule.steps[0].level.sigma)?
        };
        let kept = self.mask.as_ref().map(|mask| Kept { mask: mask.latents.clone(), picture, noise: added });
        Ok(Start { latents, kept })
    }

    /// The drawing with the pixels put back that were to be kept, byte for byte.
    pub(super) fn put_back(&self, mut drawn: RgbImage) -> RgbImage {
        let Some(mask) = &self.mask else { return drawn };
        for ((new, old), alpha) in drawn.pixels_mut().zip(self.picture.pixels()).zip(mask.pixels.pixels()) {
            let alpha = u32::from(alpha.0[0]);
            for (new, old) in new.0.iter_mut().zip(old.0) {
                let mixed = (u32::from(*new) * alpha + u32::from(old) * (255 - alpha) + 127) / 255;
                *new = u8::try_from(mixed).unwrap_or(u8::MAX);
            }
        }
        drawn
    }
}

impl Mask {
    fn new(mask: &GrayImage, given: Given<'_>, device: &Device) -> Result<Self> {
        let (height, width) = given.size;
        let mut pixels = process_mask(&DynamicImage::ImageLuma8(mask.clone()), side(width), side(height));
        for pixel in pixels.pixels_mut() {
            pixel.0[0] = if pixel.0[0] >= WHITE { u8::MAX } else { 0 };
        }
        // The nearest pixel above and to the left, as torch's `interpolate` takes it.
        let (rows, columns) = (height / given.factor, width / given.factor);
        let at = |index: usize| {
            let (row, column) = (index / columns * given.factor, index % columns * given.factor);
            f32::from(u8::from(pixels.get_pixel(side(column), side(row)).0[0] == u8::MAX))
        };
        let values: Vec<f32> = (0..rows * columns).map(at).collect();
        let latents = Tensor::from_vec(values, (1, 1, rows, columns), device)?;
        if given.mask_blur > 0.0 {
            pixels = image::imageops::blur(&pixels, given.mask_blur);
        }
        Ok(Self { pixels, latents })
    }
}

impl Start {
    /// The start of an image that is drawn from noise alone.
    pub(super) fn of_noise(latents: Tensor) -> Self {
        Self { latents, kept: None }
    }

    /// Puts back what is kept, with noise up to `sigma`; without any at the drawing's end.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn keep(&self, latents: Tensor, sigma: Option<f64>) -> Result<Tensor> {
        let Some(Kept { mask, picture, noise }) = &self.kept else { return Ok(latents) };
        let old = match sigma {
            Some(sigma) => noisy(picture, noise, sigma)?,
            None => picture.clone(),
        };
        let new = latents.broadcast_mul(mask)?;
        let mask = (1.0 - mask)?;
        Ok((old.broadcast_mul(&mask)? + new)?)
    }
}

fn side(side: usize) -> u32 {
    u32::try_from(side).expect("a drawing's sides are at most a few thousand pixels")
}

/// `(1, 3, h, w)` f32 of -1 to 1.
fn to_pixels(picture: &RgbImage, device: &Device) -> Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let bytes = Tensor::from_slice(picture.as_raw(), (1, height, width, 3), device)?;
    let planes = bytes.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
    Ok(((planes * (2.0 / 255.0))? - 1.0)?)
}
