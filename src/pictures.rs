//! The pictures that a request brings along: read, turned, flattened, masked, grown.
//!
//! Owns what of a request belongs to a picture to start from. It must not know HTTP: the server and the command line both
//! call it, off the asynchronous threads. Next: the rest of the request is put around what comes out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use image::{DynamicImage, GrayImage, RgbImage};

use crate::{
    Error, Result,
    image_utils::{base64_to_image, bytes_to_image, process_mask},
    imaging::{Margins, flatten},
    pipeline::PictureUse,
    sampling::{DEFAULT_STRENGTH, Limits, SamplingConfig},
};

/// The largest picture file that is read.
const MOST_FILE_BYTES: u64 = 256 << 20;

/// A picture, still to be decoded.
#[derive(Debug, Clone)]
pub enum Encoded {
    /// Base64, maybe as a `data:` URL.
    Base64(String),
    /// A file's path.
    File(PathBuf),
}

/// What a request says of pictures.
#[derive(Debug, Clone, Default)]
pub struct GivenPictures {
    /// The picture to start from.
    pub image: Option<Encoded>,
    /// What of it is drawn anew.
    pub mask: Option<Encoded>,
    /// See [`SamplingConfig::strength`]; by default 0.75, and 1 for a picture that grows.
    pub strength: Option<f64>,
    /// See [`SamplingConfig::mask_blur`].
    pub mask_blur: Option<f64>,
    /// Whether black is drawn anew, and not white.
    pub mask_invert: bool,
    /// See [`SamplingConfig::inpaint_padding`].
    pub inpaint_padding: Option<u32>,
    /// How far the picture grows; what is new is drawn.
    pub extend: Option<Margins>,
}

impl GivenPictures {
    /// Decodes the pictures: a configuration in which they are set, and nothing else. It blocks, for as long as they are
    /// large.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] naming the field at fault.
    pub fn decode(self, limits: &Limits, pictures: PictureUse) -> Result<SamplingConfig> {
        if self.image.is_none() {
            return match self.first_without_image() {
                Some((field, message)) => Err(Error::invalid(field, message)),
                None => Ok(SamplingConfig::default()),
            };
        }
        if pictures == PictureUse::Edit
            && let Some((field, message)) = self.first_that_edits_nothing()
        {
            return Err(Error::unsupported(field, message));
        }
        self.decode_all(limits, pictures)
    }

    /// What is given although the model edits all of a picture.
    fn first_that_edits_nothing(&self) -> Option<(&'static str, String)> {
        if let Some(strength) = self.strength {
            return Some(("strength", format!("is {strength}; this model edits pictures, and is told no strength")));
        }
        let given = [
            ("mask", self.mask.is_some()),
            ("extend", self.extend.is_some()),
            ("mask_blur", self.mask_blur.is_some()),
            ("mask_invert", self.mask_invert),
            ("inpaint_padding", self.inpaint_padding.is_some()),
        ];
        let (field, _) = given.into_iter().find(|(_, given)| *given)?;
        Some((field, "is not for this model, which edits whole pictures".to_owned()))
    }

    /// Whether there is a picture to decode.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.image.is_none()
    }

    /// What is given although there is no image that it could belong to.
    fn first_without_image(&self) -> Option<(&'static str, String)> {
        if self.mask.is_some() {
            return Some(("mask", "is given without an image to repaint".to_owned()));
        }
        if let Some(strength) = self.strength {
            return Some(("strength", format!("is {strength}, without an image to start from")));
        }
        if self.extend.is_some() {
            return Some(("extend", "is given without an image to extend".to_owned()));
        }
        self.first_without_mask()
    }

    /// What is given although there is no mask that it could belong to.
    fn first_without_mask(&self) -> Option<(&'static str, String)> {
        if let Some(blur) = self.mask_blur {
            return Some(("mask_blur", format!("is {blur}, without a mask to blur")));
        }
        if self.mask_invert {
            return Some(("mask_invert", "is true, without a mask to invert".to_owned()));
        }
        let padding = self.inpaint_padding?;
        Some(("inpaint_padding", format!("is {padding}, without a mask to crop to")))
    }

    fn decode_all(self, limits: &Limits, pictures: PictureUse) -> Result<SamplingConfig> {
        let margins = self.extend.unwrap_or_default();
        if self.extend.is_some() && margins.is_empty() {
            return Err(Error::invalid("extend", "is 0 on every side; at least one has to grow"));
        }
        if self.mask.is_none()
            && self.extend.is_none()
            && let Some((field, message)) = self.first_without_mask()
        {
            return Err(Error::invalid(field, message));
        }
        let image = self.image.as_ref().map(|image| image.read("image", limits)).transpose()?;
        let mut image = image.map(|image| flatten(&image)).ok_or_else(|| Error::invalid("image", "is missing"))?;
        let mask = self.mask.as_ref().map(|mask| mask.read("mask", limits)).transpose()?;
        let mut mask = mask.map(|mask| mask_of(&mask, self.mask_invert));
        if !margins.is_empty() {
            (image, mask) = grow(&image, mask.as_ref(), margins, limits)?;
        }
        // What is new around a picture has nothing to start from.
        let starts_from_it = margins.is_empty() && pictures == PictureUse::Start;
        let strength = self.strength.unwrap_or(if starts_from_it { DEFAULT_STRENGTH } else { 1.0 });
        #[expect(clippy::cast_possible_truncation, reason = "a blur is a small number of pixels")]
        let mask_blur = self.mask_blur.unwrap_or(0.0) as f32;
        Ok(SamplingConfig {
            image: Some(Arc::new(image)),
            mask: mask.map(Arc::new),
            strength,
            mask_blur,
            inpaint_padding: self.inpaint_padding,
            ..SamplingConfig::default()
        })
    }
}

impl Encoded {
    fn read(&self, field: &'static str, limits: &Limits) -> Result<DynamicImage> {
        self.decode(limits).map_err(|error| match error {
            Error::Image(message) => Error::invalid(field, message),
            error => error,
        })
    }

    fn decode(&self, limits: &Limits) -> Result<DynamicImage> {
        let path = match self {
            Self::Base64(text) if text.is_empty() => {
                return Err(Error::Image("is empty; base64 is wanted".to_owned()));
            }
            Self::Base64(text) => return base64_to_image(text, limits.max_pixels),
            Self::File(path) => path,
        };
        bytes_to_image(&read_file(path)?, limits.max_pixels)
    }
}

/// A picture's file, of a size that is read.
///
/// # Errors
///
/// [`Error::Image`] naming the file.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| Error::Image(format!("is {}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MOST_FILE_BYTES {
        let path = path.display();
        return Err(Error::Image(format!("is {path} of {size} bytes; at most {MOST_FILE_BYTES} are read")));
    }
    std::fs::read(path).map_err(failed)
}

/// A mask as grey: white is drawn anew.
fn mask_of(mask: &DynamicImage, invert: bool) -> GrayImage {
    let mut grey = process_mask(mask, mask.width(), mask.height());
    if invert {
        image::imageops::invert(&mut grey);
    }
    grey
}

fn grow(
    image: &RgbImage,
    mask: Option<&GrayImage>,
    margins: Margins,
    limits: &Limits,
) -> Result<(RgbImage, Option<GrayImage>)> {
    let (width, height) = image.dimensions();
    let wide = u64::from(width) + u64::from(margins.left) + u64::from(margins.right);
    let high = u64::from(height) + u64::from(margins.top) + u64::from(margins.bottom);
    if wide * high > limits.max_pixels as u64 {
        let most = limits.max_pixels;
        let message = format!("makes a picture of {wide}x{high} = {} pixels; at most {most} are allowed", wide * high);
        return Err(Error::invalid("extend", message));
    }
    Ok((margins.around(image), Some(margins.mask(width, height, mask))))
}
