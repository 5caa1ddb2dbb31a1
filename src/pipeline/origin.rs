//! What a drawing starts from: noise alone, a picture with noise on top, or a picture of which a part is kept.
//!
//! Owns the way from a client's picture and mask to latents and back. Random numbers are drawn in diffusers' order, so
//! that the same seed gives the same picture: the autoencoder's sample of the picture, the noise, and for a mask one more
//! sample, of the picture without what is repainted, which only checkpoints made for inpainting look at. The file is a
//! little long because all ways to begin draw from one generator, in an order that has to be seen in one place.

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, GrayImage, Luma, RgbImage};

use crate::{
    Error, Result,
    image_utils::process_mask,
    imaging::{Margins, Plane, Region, cover, resize},
    models::{LatentDistribution, VaeDecoder},
    sampling::{NoiseGenerator, Schedule, noisy, select},
};

/// A mask's value from which on a pixel is drawn anew.
const WHITE: u8 = 128;

/// What a drawing starts from besides noise.
#[derive(Debug)]
pub(super) struct Origin {
    /// The picture that a request brings along.
    picture: Option<Picture>,
    /// What a denoiser that was made for inpainting is shown; then it keeps by itself what is to be kept.
    shown: Option<Shown>,
    /// The latents of the picture that is edited, `(1, c, h, w)` f32, as the encoder gives them: not scaled.
    edited: Option<Tensor>,
}

#[derive(Debug)]
struct Picture {
    /// What the drawing is put back into, where there is a mask.
    canvas: RgbImage,
    /// The part of the canvas that is drawn.
    region: Region,
    mask: Option<Mask>,
    /// What the encoder makes of the picture, as the decoder takes it.
    encoded: LatentDistribution,
}

#[derive(Debug)]
struct Mask {
    /// 255 where a pixel of the canvas is drawn anew, and less at edges that fade.
    pixels: GrayImage,
    /// One where latents are drawn anew, zero where they are kept: `(1, 1, h, w)` f32.
    latents: Tensor,
}

/// The mask, and the picture without what is drawn anew.
#[derive(Debug)]
struct Shown {
    /// One where latents are drawn anew: `(1, 1, h, w)` f32.
    mask: Tensor,
    /// What the encoder makes of the picture, grey where it is drawn anew.
    encoded: LatentDistribution,
}

/// The start of a batch of images, each with its own noise.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// The latents of the first step: `(b, c, h, w)` f32.
    pub(super) latents: Tensor,
    kept: Option<Kept>,
    /// The mask's latents and those of the picture without what is drawn anew: `(b, 1 + c, h, w)` f32.
    shown: Option<Tensor>,
    /// Whether `shown` is a picture to edit, of `(b, c, h, w)`, without which the network is asked as well.
    edits: bool,
}

/// What is put back after each look at the network.
#[derive(Debug, Clone)]
struct Kept {
    /// `(b, 1, h, w)` f32.
    mask: Tensor,
    /// `(b, c, h, w)` f32.
    picture: Tensor,
    /// `(b, c, h, w)` f32.
    noise: Tensor,
}

impl Kept {
    fn stack(images: &[&Self]) -> Result<Self> {
        Ok(Self {
            mask: cat(images.iter().map(|kept| &kept.mask))?,
            picture: cat(images.iter().map(|kept| &kept.picture))?,
            noise: cat(images.iter().map(|kept| &kept.noise))?,
        })
    }
}

/// One batch of the images of several.
fn cat<'a>(parts: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    Ok(Tensor::cat(&parts.into_iter().collect::<Vec<_>>(), 0)?)
}

/// A request's picture and mask, and how large the drawing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) picture: Option<&'a RgbImage>,
    pub(super) mask: Option<&'a GrayImage>,
    pub(super) mask_blur: f32,
    /// Draws the region of the mask with this margin alone, at the full size of the drawing.
    pub(super) padding: Option<u32>,
    /// Height and width in pixels.
    pub(super) size: (usize, usize),
    /// Pixels per latent, along a side.
    pub(super) factor: usize,
    /// Whether the denoiser is shown the mask and what is kept. Where a request gives neither, it draws all of a picture
    /// anew.
    pub(super) shows_mask: bool,
}

impl Origin {
    /// Prepares what a request gives; `encode` is the autoencoder's encoder.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a mask without white that is to be cropped to; what `encode` fails with, or the
    /// tensor library.
    pub(super) fn new(
        given: Given<'_>,
        device: &Device,
        encode: impl Fn(&Tensor) -> Result<LatentDistribution>,
    ) -> Result<Self> {
        let drawing = Region { x: 0, y: 0, width: side(given.size.1), height: side(given.size.0) };
        let (prepared, drawn) = match given.picture {
            Some(picture) => {
                let (prepared, drawn) = Picture::new(picture, given, drawing, device, &encode)?;
                (Some(prepared), Some(drawn))
            }
            None => (None, None),
        };
        let shown = given.shows_mask.then(|| Shown::new(drawn, drawing, given.factor, device, &encode)).transpose()?;
        Ok(Self { picture: prepared, shown, edited: None })
    }

    /// Prepares a picture to edit in a drawing of `size`, height and width in pixels.
    ///
    /// # Errors
    ///
    /// What `encode` fails with, or the tensor library.
    pub(super) fn edited(
        picture: &RgbImage,
        size: (usize, usize),
        device: &Device,
        encode: impl Fn(&Tensor) -> Result<LatentDistribution>,
    ) -> Result<Self> {
        let encoded = encode(&to_pixels(&resize(picture, side(size.1), side(size.0)), device)?)?;
        // The distribution's mode, as diffusers takes it.
        Ok(Self { picture: None, shown: None, edited: Some(encoded.mean) })
    }

    /// The start of one image of latents of `shape`, `(1, c, h, w)`. `noise` is the image's own.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn start(
        &self,
        vae: &VaeDecoder,
        schedule: &Schedule,
        strength: f64,
        noise: &mut NoiseGenerator,
        shape: (usize, usize, usize, usize),
    ) -> Result<Start> {
        let device = self.device();
        let count = shape.1 * shape.2 * shape.3;
        let mut fresh = || Ok::<_, Error>(Tensor::from_vec(noise.normals(count), shape, &device)?);
        let has_mask = self.shown.is_some() || self.picture.as_ref().is_some_and(|picture| picture.mask.is_some());
        // With a mask, a strength of one leaves nothing of the picture where it is drawn anew; a denoiser that is shown the
        // mask then needs the picture for nothing else.
        let from_noise = has_mask && strength >= 1.0;
        let picture = match &self.picture {
            Some(picture) if self.shown.is_none() || !from_noise => {
                Some((vae.normalise(&sample(&picture.encoded, fresh()?)?)? / schedule.unit)?)
            }
            _ => None,
        };
        let added = fresh()?;
        let latents = match &picture {
            Some(picture) if !from_noise => noisy(picture, &added, schedule.steps[0].level.sigma)?,
            _ => (&added * schedule.initial_scale)?,
        };
        // diffusers samples the picture without what is drawn anew for every mask, and then uses it or not.
        let without = if has_mask { Some(fresh()?) } else { None };
        let shown = match (&self.shown, without) {
            (Some(shown), Some(fresh)) => {
                let kept = vae.normalise(&sample(&shown.encoded, fresh)?)?;
                Some(Tensor::cat(&[&shown.mask, &kept], 1)?)
            }
            _ => None,
        };
        let mask = self.picture.as_ref().and_then(|picture| picture.mask.as_ref());
        let kept = match (mask, picture) {
            (Some(mask), Some(picture)) if shown.is_none() => {
                Some(Kept { mask: mask.latents.clone(), picture, noise: added })
            }
            _ => None,
        };
        let edits = self.edited.is_some();
        Ok(Start { latents, kept, shown: shown.or_else(|| self.edited.clone()), edits })
    }

    fn device(&self) -> Device {
        let encoded = self.picture.as_ref().map(|picture| &picture.encoded);
        let encoded = encoded.or_else(|| self.shown.as_ref().map(|shown| &shown.encoded));
        let latents = encoded.map(|encoded| &encoded.mean).or(self.edited.as_ref());
        latents.map_or(Device::Cpu, |latents| latents.device().clone())
    }

    /// The picture with what was drawn in it.
    pub(super) fn put_back(&self, drawn: RgbImage) -> RgbImage {
        match &self.picture {
            Some(picture) => picture.put_back(drawn),
            None => drawn,
        }
    }
}

/// A picture and its mask at the size of a drawing: 128 and more is drawn anew.
type Drawn = (RgbImage, Option<GrayImage>);

impl Picture {
    /// What a request's picture becomes, and the picture and the mask as the drawing sees them.
    fn new(
        picture: &RgbImage,
        given: Given<'_>,
        drawing: Region,
        device: &Device,
        encode: &impl Fn(&Tensor) -> Result<LatentDistribution>,
    ) -> Result<(Self, Drawn)> {
        // A region is cut out of the picture as it is; without one, the picture takes the drawing's size first.
        let (width, height) = match given.padding {
            Some(_) => picture.dimensions(),
            None => (drawing.width, drawing.height),
        };
        let canvas = resize(picture, width, height);
        let mask = given.mask.map(|mask| process_mask(&DynamicImage::ImageLuma8(mask.clone()), width, height));
        let (region, inner) = match (given.padding, &mask) {
            (Some(padding), Some(mask)) => {
                let black = || Error::invalid("mask", "is black everywhere, so that there is nothing to draw anew");
                let region = Region::around(mask, padding, (drawing.width, drawing.height)).ok_or_else(black)?;
                (region, region.fitted(drawing.width, drawing.height))
            }
            _ => (drawing, drawing),
        };
        let drawn = fit(&region.of(&canvas), inner, drawing);
        let encoded = encode(&to_pixels(&drawn, device)?)?;
        let drawn_mask = mask.as_ref().map(|mask| fit(&region.of(mask), inner, drawing));
        let mask = match (mask, &drawn_mask) {
            (Some(mask), Some(drawn)) => {
                let latents = latents_mask(drawn, given.factor, device)?;
                Some(Mask { pixels: faded(mask, given.mask_blur), latents })
            }
            _ => None,
        };
        Ok((Self { canvas, region, mask, encoded }, (drawn, drawn_mask)))
    }

    /// The picture with what was drawn in it: outside of the mask and of where it fades it is the canvas, byte for byte.
    fn put_back(&self, drawn: RgbImage) -> RgbImage {
        let Some(mask) = &self.mask else { return drawn };
        let drawn = cover(&drawn, self.region.width, self.region.height);
        let mut picture = self.canvas.clone();
        for (x, y, new) in drawn.enumerate_pixels() {
            let (x, y) = (x + self.region.x, y + self.region.y);
            let alpha = u32::from(mask.pixels.get_pixel(x, y).0[0]);
            for (old, new) in picture.get_pixel_mut(x, y).0.iter_mut().zip(new.0) {
                let mixed = (u32::from(new) * alpha + u32::from(*old) * (255 - alpha) + 127) / 255;
                *old = u8::try_from(mixed).unwrap_or(u8::MAX);
            }
        }
        picture
    }
}

impl Shown {
    fn new(
        drawn: Option<Drawn>,
        drawing: Region,
        factor: usize,
        device: &Device,
        encode: &impl Fn(&Tensor) -> Result<LatentDistribution>,
    ) -> Result<Self> {
        let (width, height) = (drawing.width, drawing.height);
        let (picture, mask) = drawn.unwrap_or_else(|| (RgbImage::new(width, height), None));
        let mask = mask.unwrap_or_else(|| GrayImage::from_pixel(width, height, Luma([u8::MAX])));
        let kept: Vec<f32> = mask.iter().map(|value| f32::from(u8::from(*value < WHITE))).collect();
        let kept = Tensor::from_vec(kept, (1, 1, height as usize, width as usize), device)?;
        // Grey is zero.
        let encoded = encode(&to_pixels(&picture, device)?.broadcast_mul(&kept)?)?;
        Ok(Self { mask: latents_mask(&mask, factor, device)?, encoded })
    }
}

/// A sample of what latents may be (Kingma and Welling 2014, section 2.4), from unit noise.
fn sample(encoded: &LatentDistribution, noise: Tensor) -> Result<Tensor> {
    let deviation = (&encoded.log_variance * 0.5)?.exp()?;
    Ok((&encoded.mean + (deviation * noise)?)?)
}

/// A part of a picture on the canvas of a drawing, at `inner`, its edges continued to the canvas's.
fn fit<P: Plane + Clone>(part: &P, inner: Region, drawing: Region) -> P {
    let part = resize(part, inner.width, inner.height);
    let right = drawing.width - inner.width - inner.x;
    let bottom = drawing.height - inner.height - inner.y;
    Margins { left: inner.x, top: inner.y, right, bottom }.around(&part)
}

/// One where latents are drawn anew: `(1, 1, h, w)` f32. A latent is what its first pixel is, as torch's `interpolate` by
/// nearest takes it.
fn latents_mask(mask: &GrayImage, factor: usize, device: &Device) -> Result<Tensor> {
    let (rows, columns) = (mask.height() as usize / factor, mask.width() as usize / factor);
    let at = |index: usize| {
        let (row, column) = (index / columns * factor, index % columns * factor);
        f32::from(u8::from(mask.get_pixel(side(column), side(row)).0[0] >= WHITE))
    };
    let values: Vec<f32> = (0..rows * columns).map(at).collect();
    Ok(Tensor::from_vec(values, (1, 1, rows, columns), device)?)
}

/// A mask of black and white alone, its edges blurred by a standard deviation of `blur` pixels.
fn faded(mut mask: GrayImage, blur: f32) -> GrayImage {
    for pixel in mask.pixels_mut() {
        pixel.0[0] = if pixel.0[0] >= WHITE { u8::MAX } else { 0 };
    }
    if blur > 0.0 { image::imageops::blur(&mask, blur) } else { mask }
}

impl Start {
    /// The start of images that are drawn from noise alone.
    pub(super) fn of_noise(latents: Tensor) -> Self {
        Self { latents, kept: None, shown: None, edits: false }
    }

    /// The start of a batch of images, from theirs. All keep a part of a picture or none does, and all are shown one or none
    /// is.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn stack(mut starts: Vec<Self>) -> Result<Self> {
        if starts.len() == 1 {
            return Ok(starts.remove(0));
        }
        let kept: Vec<&Kept> = starts.iter().filter_map(|start| start.kept.as_ref()).collect();
        Ok(Self {
            latents: cat(starts.iter().map(|start| &start.latents))?,
            kept: if kept.is_empty() { None } else { Some(Kept::stack(&kept)?) },
            shown: match starts.iter().filter_map(|start| start.shown.as_ref()).collect::<Vec<_>>() {
                shown if shown.is_empty() => None,
                shown => Some(cat(shown)?),
            },
            edits: starts.iter().any(|start| start.edits),
        })
    }

    /// Keeps the start of the images at `kept` of the batch, in that order.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn select(&mut self, kept: &[usize]) -> Result<()> {
        let put_back = self.kept.as_mut().map(|old| [&mut old.mask, &mut old.picture, &mut old.noise]);
        let tensors = [Some(&mut self.latents), self.shown.as_mut()].into_iter().flatten();
        for tensor in tensors.chain(put_back.into_iter().flatten()) {
            *tensor = select(tensor, kept)?;
        }
        Ok(())
    }

    /// What the denoiser sees: latents, and the mask and what is kept behind them if it was made for that.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn seen(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(match &self.shown {
            Some(shown) => Tensor::cat(&[latents, shown], 1)?,
            None => latents.clone(),
        })
    }

    /// What the denoiser sees for guidance. Where a picture is edited, it is asked about each image three times: without
    /// the picture, and twice with it; else what is seen is the same for all.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn seen_for_guidance(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.shown {
            Some(shown) if self.edits => {
                let shown = Tensor::cat(&[&shown.zeros_like()?, shown, shown], 0)?;
                Ok(Tensor::cat(&[&Tensor::cat(&[latents; 3], 0)?, &shown], 1)?)
            }
            _ => self.seen(latents),
        }
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
