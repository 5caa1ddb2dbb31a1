//! Images at the edge of the worker: base64 in and out, sizes, masks.
//!
//! Owns the conversions between an image and its transport form. It must not know HTTP or tensors: `http` calls it to
//! read what a client sent, `pipeline` turns its images into latents.

use std::io::Cursor;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{DynamicImage, GrayImage, ImageFormat, ImageReader, Limits, imageops::FilterType};

use crate::{
    Error, Result,
    imaging::{self, oriented},
};

/// The formats that are read; what else `image` could guess is refused.
const READ: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
/// A decoder may take this many bytes a pixel: 16-bit RGBA, twice over for its own buffers.
const DECODER_BYTES_PER_PIXEL: u64 = 16;

/// The image as a PNG in standard base64, without a `data:` prefix.
///
/// # Errors
///
/// [`Error::Image`] when the encoder refuses the image (a side of zero pixels).
pub fn image_to_base64(image: &DynamicImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|error| Error::Image(error.to_string()))?;
    Ok(STANDARD.encode(bytes.into_inner()))
}

/// Reads a PNG, JPEG or WebP from base64, with or without a `data:image/...;base64,` prefix, as [`bytes_to_image`] does.
///
/// # Errors
///
/// [`Error::Image`] saying what is wrong: not base64, not one of the formats, more than `max_pixels`, or broken.
pub fn base64_to_image(text: &str, max_pixels: usize) -> Result<DynamicImage> {
    let bytes = STANDARD
        .decode(payload(text)?.trim())
        .map_err(|error| Error::Image(format!("is not standard base64: {error}")))?;
    bytes_to_image(&bytes, max_pixels)
}

/// Reads a PNG, JPEG or WebP, turned as its EXIF orientation says.
///
/// The picture's size is read from its header and checked before any pixel is decoded, since a small file can hold a
/// huge picture.
///
/// # Errors
///
/// [`Error::Image`] saying what is wrong: not one of the formats, more than `max_pixels`, or broken.
pub fn bytes_to_image(bytes: &[u8], max_pixels: usize) -> Result<DynamicImage> {
    let format = image::guess_format(bytes).ok().filter(|format| READ.contains(format));
    let format = format.ok_or_else(|| Error::Image("is none of png, jpeg and webp".to_owned()))?;
    let broken =
        |error: image::ImageError| Error::Image(format!("is a broken {}: {error}", format.extensions_str()[0]));

    let (width, height) = ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().map_err(broken)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels as u64 {
        return Err(Error::Image(format!("has {width}x{height} = {pixels} pixels; at most {max_pixels} are allowed")));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    // A fixed part on top, so that the smallest images pass, too.
    limits.max_alloc = Some((1 << 20) + pixels * DECODER_BYTES_PER_PIXEL);
    reader.limits(limits);
    oriented(reader.into_decoder().map_err(broken)?).map_err(broken)
}

/// The part of `text` that is base64: all of it, or what follows `data:image/png;base64,`.
///
/// # Errors
///
/// [`Error::Image`] for a `data:` URL of another form.
pub fn payload(text: &str) -> Result<&str> {
    let Some(url) = text.trim_start().strip_prefix("data:") else { return Ok(text) };
    match url.split_once(',') {
        Some((kind, payload)) if kind.ends_with(";base64") => Ok(payload),
        _ => Err(Error::Image("is a data URL that is not of the form data:image/png;base64,...".to_owned())),
    }
}

/// The image at exactly `width` by `height` pixels (Lanczos, 3 lobes, as [`imaging::resize`] does it for bytes); its proportions are not kept.
#[must_use]
pub fn resize_image(image: &DynamicImage, width: u32, height: u32) -> DynamicImage {
    if (image.width(), image.height()) == (width, height) {
        return image.clone();
    }
    image.resize_exact(width, height, FilterType::Lanczos3)
}

/// The nearest size that the networks can draw: each side rounded down to a multiple of 8, and at least 8.
#[must_use]
pub fn ensure_multiple_of_8(width: u32, height: u32) -> (u32, u32) {
    let side = |side: u32| (side / 8 * 8).max(8);
    (side(width), side(height))
}

/// A mask at `width` by `height` pixels, one luma byte a pixel: white (255) is repainted, black (0) is kept.
///
/// Transparent parts count as black, so that a mask drawn on a transparent canvas means what it looks like.
#[must_use]
pub fn process_mask(mask: &DynamicImage, width: u32, height: u32) -> GrayImage {
    let flat = if mask.color().has_alpha() {
        let mut luma = mask.to_luma_alpha8();
        for pixel in luma.pixels_mut() {
            let [value, alpha] = pixel.0;
            // Rounded product of two fractions of 255.
            pixel.0 = [u8::try_from((u16::from(value) * u16::from(alpha) + 127) / 255).unwrap_or(u8::MAX), u8::MAX];
        }
        DynamicImage::ImageLumaA8(luma).into_luma8()
    } else {
        mask.to_luma8()
    };
    if flat.dimensions() == (width, height) {
        return flat;
    }
    imaging::resize(&flat, width, height)
}

#[cfg(test)]
mod tests {
    use image::{Luma, LumaA, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn gradient() -> DynamicImage {
        let pixel = |x: u32, y: u32| Rgb([u8::try_from(x * 8).unwrap(), u8::try_from(y * 8).unwrap(), 77]);
        DynamicImage::ImageRgb8(RgbImage::from_fn(24, 16, pixel))
    }

    fn base64_of(image: &DynamicImage, format: ImageFormat) -> String {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        STANDARD.encode(bytes.into_inner())
    }

    fn refused(text: &str, max_pixels: usize) -> String {
        base64_to_image(text, max_pixels).unwrap_err().to_string()
    }

    #[test]
    fn png_survives_the_round_trip_exactly() {
        let image = gradient();
        let text = image_to_base64(&image).unwrap();
        assert_eq!(base64_to_image(&text, 24 * 16).unwrap(), image);
        assert_eq!(base64_to_image(&format!("data:image/png;base64,{text}\n"), 24 * 16).unwrap(), image);
    }

    #[test]
    fn jpeg_and_webp_are_read() {
        let image = gradient();
        let webp = base64_to_image(&base64_of(&image, ImageFormat::WebP), 384).unwrap();
        assert_eq!(webp.to_rgb8(), image.to_rgb8());
        let jpeg = base64_to_image(&base64_of(&image, ImageFormat::Jpeg), 384).unwrap();
        let (drawn, meant) = (jpeg.to_rgb8(), image.to_rgb8());
        let furthest = drawn.iter().zip(meant.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(furthest < 16, "{furthest}");
    }

    #[test]
    fn pixels_are_counted_before_they_are_decoded() {
        let text = image_to_base64(&gradient()).unwrap();
        assert_eq!(refused(&text, 383), "image: has 24x16 = 384 pixels; at most 383 are allowed");
        // Only the header is there: a decoder would fail with another message.
        let mut header = STANDARD.decode(&text).unwrap();
        header.truncate(48);
        assert!(refused(&STANDARD.encode(header), 100).contains("at most 100"));
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_is_wrong_with_it() {
        assert!(refused("not base64!", 100).contains("is not standard base64"));
        assert!(refused("aGVsbG8=", 100).contains("none of png, jpeg and webp"));
        assert!(refused("data:image/png,abc", 100).contains("data URL"));
        assert!(refused(&base64_of(&gradient(), ImageFormat::Png)[..120], 1000).contains("broken png"));
    }

    #[test]
    fn sizes_become_what_the_networks_can_draw() {
        assert_eq!(ensure_multiple_of_8(513, 511), (512, 504));
        assert_eq!(ensure_multiple_of_8(7, 8), (8, 8));
        let resized = resize_image(&gradient(), 8, 40);
        assert_eq!((resized.width(), resized.height()), (8, 40));
    }

    #[test]
    fn white_is_repainted_and_transparent_is_kept() {
        let mask = RgbaImage::from_fn(2, 1, |x, _| Rgba([255, 255, 255, if x == 0 { 255 } else { 0 }]));
        let luma = process_mask(&DynamicImage::ImageRgba8(mask), 2, 1);
        assert_eq!((luma.get_pixel(0, 0), luma.get_pixel(1, 0)), (&Luma([255]), &Luma([0])));
        let grey = image::GrayAlphaImage::from_pixel(4, 4, LumaA([128, 255]));
        let luma = process_mask(&DynamicImage::ImageLumaA8(grey), 8, 16);
        assert_eq!(luma.dimensions(), (8, 16));
        assert!(luma.pixels().all(|pixel| pixel.0 == [128]));
    }
}
