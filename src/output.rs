//! Finished pictures as files: formats, quality, and the request written into them.
//!
//! Owns the encoders. It must not know HTTP or the engine: the server and the command line call it, off the
//! asynchronous threads, since a large picture takes a while.

use std::{fmt, io::Cursor, str::FromStr};

use image::{
    DynamicImage, ExtendedColorType, ImageEncoder, RgbImage,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};

use crate::{Error, Result, imaging::PictureTexts};

/// JPEG quality when a request names none.
pub const DEFAULT_QUALITY: u8 = 90;

/// A file format for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// Lossless.
    #[default]
    Png,
    /// Lossy, with a quality.
    Jpeg,
    /// Lossless here.
    WebP,
}

impl OutputFormat {
    /// Every format, in the order in which they are preferred.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::WebP];

    /// The name on the wire and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
        }
    }

    /// The media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }

    /// The format that a file name's extension stands for.
    #[must_use]
    pub fn from_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "webp" => Some(Self::WebP),
            _ => None,
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OutputFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let allowed = Self::ALL.map(Self::name).join(", ");
            Error::invalid("output.format", format!("is {name:?}; one of {allowed} is allowed"))
        })
    }
}

/// How to encode a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputOptions {
    /// The format.
    pub format: OutputFormat,
    /// JPEG quality, 1 to 100; the other formats here are lossless and have none.
    pub quality: u8,
    /// Whether the file carries the request that drew it.
    pub metadata: bool,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self { format: OutputFormat::default(), quality: DEFAULT_QUALITY, metadata: true }
    }
}

impl OutputOptions {
    /// Checks a quality as a request gives it: absent, or 1 to 100 and only for the format that has one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] naming `output.quality`.
    pub fn parse_quality(format: OutputFormat, quality: Option<i128>) -> Result<u8> {
        let Some(quality) = quality else { return Ok(DEFAULT_QUALITY) };
        if format == OutputFormat::WebP {
            let message = format!("is {quality}, but webp is written without loss here; only jpeg has a quality");
            return Err(Error::invalid("output.quality", message));
        }
        u8::try_from(quality)
            .ok()
            .filter(|quality| (1..=100).contains(quality))
            .ok_or_else(|| Error::invalid("output.quality", format!("is {quality}; 1 to 100 is allowed")))
    }
}

/// Encodes a picture. `texts` say what drew it, for a file that is to carry them.
///
/// # Errors
///
/// [`Error::Image`] when the encoder refuses the picture.
pub fn encode(image: &DynamicImage, options: &OutputOptions, texts: &PictureTexts) -> Result<Vec<u8>> {
    let none = PictureTexts::default();
    let texts = if options.metadata { texts } else { &none };
    let rgb = image.to_rgb8();
    let failed = |error: image::ImageError| Error::Image(error.to_string());
    let mut bytes = Cursor::new(Vec::new());
    match options.format {
        OutputFormat::Png => {
            write_png(&mut bytes, &rgb, texts).map_err(|error| Error::Image(error.to_string()))?;
        }
        OutputFormat::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, options.quality);
            write(encoder, &rgb, texts.jpeg_exif()?).map_err(failed)?;
        }
        OutputFormat::WebP => write(WebPEncoder::new_lossless(&mut bytes), &rgb, texts.exif()?).map_err(failed)?,
    }
    Ok(bytes.into_inner())
}

fn write(mut encoder: impl ImageEncoder, rgb: &RgbImage, exif: Option<Vec<u8>>) -> image::ImageResult<()> {
    if let Some(exif) = exif {
        // Only a format without EXIF refuses it.
        encoder.set_exif_metadata(exif).map_err(image::ImageError::Unsupported)?;
    }
    encoder.write_image(rgb, rgb.width(), rgb.height(), ExtendedColorType::Rgb8)
}

fn write_png(
    bytes: &mut Cursor<Vec<u8>>,
    rgb: &RgbImage,
    texts: &PictureTexts,
) -> std::result::Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, rgb.width(), rgb.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts.png_chunks() {
        // Plain text where its Latin-1 has every character, as readers of the first kind know no other.
        if text.chars().all(|c| u8::try_from(c).is_ok()) {
            encoder.add_text_chunk(keyword.to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> DynamicImage {
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 15, y as u8 * 30, 9])))
    }

    #[test]
    fn a_png_carries_texts_only_when_it_is_asked_to_and_as_plain_ones_where_latin_1_will_do() {
        let texts = |parameters: &str, request: &str| PictureTexts {
            parameters: Some(parameters.to_owned()),
            request: Some(request.to_owned()),
        };
        let with = encode(&picture(), &OutputOptions::default(), &texts("Füchse\nSteps: 20", "狐\0b")).unwrap();
        let reader = png::Decoder::new(Cursor::new(&with)).read_info().unwrap();
        let plain: Vec<_> =
            reader.info().uncompressed_latin1_text.iter().map(|chunk| (&*chunk.keyword, &*chunk.text)).collect();
        assert_eq!(plain, [("parameters", "Füchse\nSteps: 20")]);
        let international: Vec<_> =
            reader.info().utf8_text.iter().map(|chunk| (&*chunk.keyword, chunk.get_text().unwrap())).collect();
        assert_eq!(international, [("darkroom", "狐\u{fffd}b".to_owned())]);
        // The very bytes of a plain one: length, type, keyword, end, Latin-1.
        assert!(with.windows(29).any(|bytes| bytes == b"\0\0\0\x1btEXtparameters\0F\xfcchse\nSte"));
        assert_eq!(image::load_from_memory(&with).unwrap(), picture());
        let options = OutputOptions { metadata: false, ..OutputOptions::default() };
        let without = encode(&picture(), &options, &texts("a", "b")).unwrap();
        let reader = png::Decoder::new(Cursor::new(&without)).read_info().unwrap();
        assert!(reader.info().utf8_text.is_empty() && reader.info().uncompressed_latin1_text.is_empty());
    }

    #[test]
    fn each_format_is_what_it_says() {
        for format in OutputFormat::ALL {
            let bytes =
                encode(&picture(), &OutputOptions { format, ..OutputOptions::default() }, &PictureTexts::default())
                    .unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap().to_mime_type(), format.media_type());
            assert_eq!(format.name().parse::<OutputFormat>().unwrap(), format);
            assert_eq!(OutputFormat::from_extension(&format.name().to_uppercase()), Some(format));
        }
        assert_eq!(OutputFormat::from_extension("gif"), None);
    }

    #[test]
    fn a_quality_is_refused_where_there_is_none() {
        assert_eq!(OutputOptions::parse_quality(OutputFormat::Jpeg, Some(40)).unwrap(), 40);
        assert_eq!(OutputOptions::parse_quality(OutputFormat::WebP, None).unwrap(), DEFAULT_QUALITY);
        for (format, quality) in [(OutputFormat::Jpeg, 0), (OutputFormat::Jpeg, 101), (OutputFormat::WebP, 90)] {
            assert!(OutputOptions::parse_quality(format, Some(quality)).is_err(), "{format} {quality}");
        }
    }
}
