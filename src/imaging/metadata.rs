//! What a picture's file says of how it was drawn.
//!
//! Owns where the two texts stand in each format. In PNG they are text chunks, `parameters` and `darkroom`; in JPEG and WebP
//! they are in EXIF: the parameters as the user comment, as AUTOMATIC1111's web UI writes them, and the request as the image
//! description. Next: `output` writes them, and whoever draws a picture again reads them.

use std::io::Cursor;

use exif::{Field, In, Tag, Value, experimental::Writer};
use image::{ImageDecoder, ImageFormat, ImageReader};

use crate::{Error, Result, output::OutputFormat};

/// The keyword under which galleries look for a picture's parameters in a PNG.
const PARAMETERS_KEYWORD: &str = "parameters";
/// The keyword of the request that draws the picture again.
const REQUEST_KEYWORD: &str = "darkroom";
/// The user comment's character code for UTF-16 (EXIF 2.32, section 4.6.5).
const UNICODE: &[u8; 8] = b"UNICODE\0";
const ASCII: &[u8; 8] = b"ASCII\0\0\0";
/// The most that a JPEG's EXIF segment holds: its length is 16 bits and counts itself and the `Exif` in front.
const MOST_JPEG_EXIF_BYTES: usize = 65_535 - 2 - 6;
/// The longest text that is read out of a file.
const MOST_TEXT_BYTES: usize = 1 << 20;

/// What a file says of its picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PictureTexts {
    /// The parameters in the form that galleries read.
    pub parameters: Option<String>,
    /// The request that draws the picture again, as JSON.
    pub request: Option<String>,
}

/// A file, read without its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its format.
    pub format: OutputFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What it says.
    pub texts: PictureTexts,
}

impl PictureTexts {
    /// The texts as a PNG's chunks: keyword and text, without what may not be in one.
    pub fn png_chunks(&self) -> impl Iterator<Item = (&'static str, String)> {
        let chunks = [(PARAMETERS_KEYWORD, &self.parameters), (REQUEST_KEYWORD, &self.request)];
        // The end of a string in PNG, which no text may hold (PNG 3, 11.3.3).
        chunks.into_iter().filter_map(|(keyword, text)| Some((keyword, text.as_ref()?.replace('\0', "\u{fffd}"))))
    }

    /// The texts as an EXIF block; `None` when there is nothing to say.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] when the block cannot be written.
    pub fn exif(&self) -> Result<Option<Vec<u8>>> {
        let comment = self.parameters.as_ref().map(|text| {
            // Big-endian, as the whole block is: some readers take the block's order, others always this one.
            let units = text.encode_utf16().flat_map(u16::to_be_bytes);
            field(Tag::UserComment, Value::Undefined(UNICODE.iter().copied().chain(units).collect(), 0))
        });
        let description = self.request.as_ref().map(|json| {
            // EXIF's text is ASCII, and JSON can be written in it.
            field(Tag::ImageDescription, Value::Ascii(vec![ascii_json(json).into_bytes()]))
        });
        if comment.is_none() && description.is_none() {
            return Ok(None);
        }
        let mut writer = Writer::new();
        for field in comment.iter().chain(&description) {
            writer.push_field(field);
        }
        let mut block = Cursor::new(Vec::new());
        writer.write(&mut block, false).map_err(|error| Error::Image(format!("EXIF cannot be written: {error}")))?;
        Ok(Some(block.into_inner()))
    }

    /// The EXIF block of a JPEG, which holds 64 KB: past that first the parameters are left out, then the request.
    ///
    /// # Errors
    ///
    /// As [`exif`](Self::exif).
    pub fn jpeg_exif(&self) -> Result<Option<Vec<u8>>> {
        let fits = |block: &Vec<u8>| block.len() <= MOST_JPEG_EXIF_BYTES;
        if let Some(block) = self.exif()?.filter(fits) {
            return Ok(Some(block));
        }
        let request_alone = Self { parameters: None, request: self.request.clone() };
        Ok(request_alone.exif()?.filter(fits))
    }
}

fn field(tag: Tag, value: Value) -> Field {
    Field { tag, ifd_num: In::PRIMARY, value }
}

/// JSON with every character past ASCII escaped: outside of strings there is none.
fn ascii_json(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii += &format!("\\u{unit:04x}");
            }
        }
    }
    ascii
}

/// Reads what a PNG, JPEG or WebP says of its picture. Its pixels are not decoded.
///
/// # Errors
///
/// [`Error::Image`] when it is none of these, or its header is broken.
pub fn inspect(bytes: &[u8]) -> Result<Inspected> {
    let guessed = image::guess_format(bytes).ok();
    let broken = |error: &dyn std::fmt::Display| Error::Image(format!("is broken: {error}"));
    let dimensions =
        |format| ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().map_err(|error| broken(&error));
    let exif = |format| {
        let decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder();
        let exif = decoder.and_then(|mut decoder| decoder.exif_metadata()).map_err(|error| broken(&error))?;
        Ok::<_, Error>(exif.map(exif_texts).unwrap_or_default())
    };
    let Some(guessed) = guessed else { return Err(Error::Image("is none of png, jpeg and webp".to_owned())) };
    let (format, texts) = match guessed {
        ImageFormat::Png => (OutputFormat::Png, png_texts(bytes).map_err(|error| broken(&error))?),
        ImageFormat::Jpeg => (OutputFormat::Jpeg, exif(guessed)?),
        ImageFormat::WebP => (OutputFormat::WebP, exif(guessed)?),
        _ => return Err(Error::Image("is none of png, jpeg and webp".to_owned())),
    };
    let (width, height) = dimensions(guessed)?;
    Ok(Inspected { format, width, height, texts })
}

fn png_texts(bytes: &[u8]) -> std::result::Result<PictureTexts, png::DecodingError> {
    let limits = png::Limits { bytes: 8 * MOST_TEXT_BYTES };
    let reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits).read_info()?;
    let info = reader.info();
    let plain = |keyword: &str| {
        let chunk = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword)?;
        Some(chunk.text.clone())
    };
    let compressed = |keyword: &str| {
        let mut chunk = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword)?.clone();
        chunk.decompress_text_with_limit(MOST_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let international = |keyword: &str| {
        let mut chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword)?.clone();
        chunk.decompress_text_with_limit(MOST_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let text = |keyword| international(keyword).or_else(|| plain(keyword)).or_else(|| compressed(keyword));
    Ok(PictureTexts { parameters: text(PARAMETERS_KEYWORD), request: text(REQUEST_KEYWORD) })
}

/// The texts of an EXIF block. One that is broken says nothing.
fn exif_texts(block: Vec<u8>) -> PictureTexts {
    // Some writers put in front what JPEG has there.
    let block = block.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec).unwrap_or(block);
    let Ok(exif) = exif::Reader::new().read_raw(block) else { return PictureTexts::default() };
    let parameters = match exif.get_field(Tag::UserComment, In::PRIMARY).map(|field| &field.value) {
        Some(Value::Undefined(bytes, _)) => user_comment(bytes, exif.little_endian()),
        _ => None,
    };
    let request = match exif.get_field(Tag::ImageDescription, In::PRIMARY).map(|field| &field.value) {
        // Cameras describe their pictures here, too.
        Some(Value::Ascii(lines)) => lines.first().and_then(|line| String::from_utf8(line.clone()).ok()),
        _ => None,
    };
    PictureTexts { parameters, request: request.filter(|text| text.starts_with('{')) }
}

/// A user comment's text. UTF-16 is big-endian by habit; where that makes no sense it is in the block's order.
fn user_comment(bytes: &[u8], little_endian: bool) -> Option<String> {
    if let Some(text) = bytes.strip_prefix(ASCII) {
        return String::from_utf8(text.to_vec()).ok();
    }
    let bytes = bytes.strip_prefix(UNICODE)?;
    let text = |unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok()
    };
    // The first character of parameters is far below U+0100 or a letter; swapped, most of Latin is in private areas.
    let swapped = little_endian && bytes.len() >= 2 && bytes[0] != 0 && bytes[1] == 0;
    if swapped { text(u16::from_le_bytes) } else { text(u16::from_be_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{OutputFormat, OutputOptions, encode};

    fn picture() -> image::DynamicImage {
        image::DynamicImage::ImageRgb8(image::RgbImage::from_pixel(16, 8, image::Rgb([200, 100, 50])))
    }

    fn texts(parameters: &str, request: &str) -> PictureTexts {
        PictureTexts { parameters: Some(parameters.to_owned()), request: Some(request.to_owned()) }
    }

    #[test]
    fn every_format_gives_back_what_was_written() {
        let texts = texts("ein Fuchs, 狐 🦊\nSteps: 20, Seed: 1", r#"{"prompt":"ein Füchs, 狐 🦊","seed":1}"#);
        for format in OutputFormat::ALL {
            let file = encode(&picture(), &OutputOptions { format, ..OutputOptions::default() }, &texts).unwrap();
            let inspected = inspect(&file).unwrap();
            assert_eq!(inspected.format, format);
            assert_eq!((inspected.width, inspected.height), (16, 8));
            assert_eq!(inspected.texts.parameters, texts.parameters, "{format}");
            let json = |text: &Option<String>| -> serde_json::Value {
                serde_json::from_str(text.as_deref().unwrap()).unwrap()
            };
            assert_eq!(json(&inspected.texts.request), json(&texts.request), "{format}");

            let options = OutputOptions { format, metadata: false, ..OutputOptions::default() };
            let silent = inspect(&encode(&picture(), &options, &texts).unwrap()).unwrap();
            assert_eq!(silent.texts, PictureTexts::default(), "{format}");
            assert!(file.len() > 40 + encode(&picture(), &options, &texts).unwrap().len(), "{format}");
        }
    }

    #[test]
    fn a_jpeg_that_has_no_room_for_both_texts_keeps_the_request() {
        let long = "狐".repeat(40_000);
        let texts = texts(&long, r#"{"prompt":"a fox"}"#);
        let options = OutputOptions { format: OutputFormat::Jpeg, ..OutputOptions::default() };
        let inspected = inspect(&encode(&picture(), &options, &texts).unwrap()).unwrap();
        let kept = PictureTexts { parameters: None, ..texts.clone() };
        assert_eq!(inspected.texts, kept);
        let none = PictureTexts { request: Some(format!("{{\"prompt\":\"{long}\"}}")), ..texts };
        let inspected = inspect(&encode(&picture(), &options, &none).unwrap()).unwrap();
        assert_eq!(inspected.texts, PictureTexts::default());
    }

    #[test]
    fn comments_of_other_writers_are_read() {
        assert_eq!(user_comment(b"ASCII\0\0\0Steps: 20", false).unwrap(), "Steps: 20");
        let little: Vec<u8> = "a fox".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(user_comment(&[UNICODE.as_slice(), &little].concat(), true).unwrap(), "a fox");
        let big: Vec<u8> = "a fox".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(user_comment(&[UNICODE.as_slice(), &big].concat(), true).unwrap(), "a fox");
        assert_eq!(user_comment(b"JIS\0\0\0\0\0abc", true), None);
        assert_eq!(user_comment(b"", true), None);
    }

    #[test]
    fn what_is_no_picture_is_refused_and_a_broken_block_says_nothing() {
        assert!(inspect(b"hello").unwrap_err().to_string().contains("none of png, jpeg and webp"));
        assert!(inspect(b"\x89PNG\r\n\x1a\nrubbish").is_err());
        assert_eq!(exif_texts(b"MM\0*\0\0\0\xff".to_vec()), PictureTexts::default());
        assert_eq!(exif_texts(Vec::new()), PictureTexts::default());
        // A text that would unpack to far more than is read is passed over.
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.add_ztxt_chunk(PARAMETERS_KEYWORD.to_owned(), "a".repeat(MOST_TEXT_BYTES + 1)).unwrap();
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        assert_eq!(inspect(&bytes).unwrap().texts.parameters, None);
    }
}
