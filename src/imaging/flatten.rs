//! A client's picture as RGB: turned as its camera was held, on white where it is transparent.

use image::{DynamicImage, ImageDecoder, Rgb, RgbImage, metadata::Orientation};

/// The picture that a decoder gives, turned as its EXIF orientation says.
///
/// # Errors
///
/// What the decoder fails with.
pub fn oriented(mut decoder: impl ImageDecoder) -> image::ImageResult<DynamicImage> {
    // A broken EXIF block is no reason to refuse a picture that can be seen.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// The picture as 8-bit RGB, what is transparent composited on white.
#[must_use]
pub fn flatten(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let pixels = picture.to_rgba8();
    RgbImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let [red, green, blue, alpha] = pixels.get_pixel(x, y).0;
        let over_white = |value: u8| {
            let (value, alpha) = (u32::from(value), u32::from(alpha));
            // Rounded to the nearest level.
            u8::try_from((value * alpha + 255 * (255 - alpha) + 127) / 255).unwrap_or(u8::MAX)
        };
        Rgb([red, green, blue].map(over_white))
    })
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, Rgba, RgbaImage};

    use super::*;

    #[test]
    fn what_is_transparent_is_on_white() {
        let picture = RgbaImage::from_fn(3, 1, |x, _| Rgba([200, 0, 100, [0, 128, 255][x as usize]]));
        let flat = flatten(&DynamicImage::ImageRgba8(picture));
        assert_eq!(flat.get_pixel(0, 0).0, [255, 255, 255]);
        assert_eq!(flat.get_pixel(1, 0).0, [227, 127, 177]);
        assert_eq!(flat.get_pixel(2, 0).0, [200, 0, 100]);
    }

    #[test]
    fn sixteen_bits_and_grey_become_eight_and_colour() {
        let grey: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_pixel(2, 2, Luma([0x8080]));
        assert!(flatten(&DynamicImage::ImageLuma16(grey)).pixels().all(|pixel| pixel.0 == [128; 3]));
    }
}
