//! Finished pictures as files: formats, quality, and the request written into a PNG.
//!
//! Owns the encoders. It must not know HTTP or the engine: the server and the command line call it, off the
//! asynchronous threads, since a large picture takes a while.

use std::{fmt, io::Cursor, str::FromStr};

use image::{
    DynamicImage, ImageEncoder,
    codecs::{jpeg::JpegEncoder, webp::WebPEncoder},
};

use crate::{Error, Result};

/// JPEG quality when a request names none.
pub const DEFAULT_QUALITY: u8 = 90;

/// A file format for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// Lossless, and the only one that carries the request.
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
    /// Whether a PNG carries the request that drew it. The other formats never do.
    pub metadata: bool,
}

/// What a picture's file says of it, for a format that can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureText {
    /// By which it is found: 1 to 79 characters of Latin-1.
    pub keyword: &'static str,
    /// What is said.
    pub text: String,
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

/// Encodes a picture. `texts` say what drew it, for a format that can carry them.
///
/// # Errors
///
/// [`Error::Image`] when the encoder refuses the picture.
pub fn encode(image: &DynamicImage, options: &OutputOptions, texts: &[PictureText]) -> Result<Vec<u8>> {
    let rgb = image.to_rgb8();
    let (width, height) = rgb.dimensions();
    let failed = |error: image::ImageError| Error::Image(error.to_string());
    let mut bytes = Cursor::new(Vec::new());
    match options.format {
        OutputFormat::Png => {
            let texts = if options.metadata { texts } else { &[] };
            write_png(&mut bytes, &rgb, texts).map_err(|error| Error::Image(error.to_string()))?;
        }
        OutputFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, options.quality)
            .write_image(&rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(failed)?,
        OutputFormat::WebP => WebPEncoder::new_lossless(&mut bytes)
            .write_image(&rgb, width, height, image::ExtendedColorType::Rgb8)
            .map_err(failed)?,
    }
    Ok(bytes.into_inner())
}

fn write_png(
    bytes: &mut Cursor<Vec<u8>>,
    rgb: &image::RgbImage,
    texts: &[PictureText],
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, rgb.width(), rgb.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for PictureText { keyword, text } in texts {
        // The end of a string in PNG, which no text may hold (PNG 3, 11.3.3).
        let text = text.replace('\0', "\u{fffd}");
        // Plain text where its Latin-1 has every character, as readers of the first kind know no other.
        if text.chars().all(|c| u8::try_from(c).is_ok()) {
            encoder.add_text_chunk((*keyword).to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), text)?;
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
        let text = |keyword, text: &str| PictureText { keyword, text: text.to_owned() };
        let texts = [text("plain", "Füchse\nSteps: 20"), text("international", "狐"), text("ended", "a\0b")];
        let with = encode(&picture(), &OutputOptions::default(), &texts).unwrap();
        let reader = png::Decoder::new(Cursor::new(&with)).read_info().unwrap();
        let plain: Vec<_> =
            reader.info().uncompressed_latin1_text.iter().map(|chunk| (&*chunk.keyword, &*chunk.text)).collect();
        assert_eq!(plain, [("plain", "Füchse\nSteps: 20")]);
        let international: Vec<_> =
            reader.info().utf8_text.iter().map(|chunk| (&*chunk.keyword, chunk.get_text().unwrap())).collect();
        assert_eq!(international, [("international", "狐".to_owned()), ("ended", "a\u{fffd}b".to_owned())]);
        // The very bytes of a plain one: length, type, keyword, end, Latin-1.
        assert!(with.windows(24).any(|bytes| bytes == b"\0\0\0\x16tEXtplain\0F\xfcchse\nSte"));
        assert_eq!(image::load_from_memory(&with).unwrap(), picture());
        let options = OutputOptions { metadata: false, ..OutputOptions::default() };
        let without = encode(&picture(), &options, &texts).unwrap();
        let reader = png::Decoder::new(Cursor::new(&without)).read_info().unwrap();
        assert!(reader.info().utf8_text.is_empty() && reader.info().uncompressed_latin1_text.is_empty());
    }

    #[test]
    fn each_format_is_what_it_says() {
        for format in OutputFormat::ALL {
            let bytes = encode(&picture(), &OutputOptions { format, ..OutputOptions::default() }, &[]).unwrap();
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
