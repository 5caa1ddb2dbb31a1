//! Drawing a picture again from what its file says of it.
//!
//! Owns the reading of that file and what has to be given beside it. It must not know HTTP: the server and the command line
//! both call it. Next: each puts what was recorded under what its caller asks for.

use serde::{Deserialize, Deserializer, de};

use crate::{
    Error, Result,
    imaging::{Inspected, inspect},
    models::short_digest,
    output::OutputFormat,
    sampling::{CropOffset, LongPrompt, PictureSize, PromptSyntax, SamplerKind, SpacingKind},
};

/// How the parameters name the weights.
const DIGEST_LABEL: &str = "Model SHA-256: ";

/// A picture's file that says how it was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The request, as JSON.
    pub request: String,
    /// The file's format.
    pub format: OutputFormat,
    /// The weights that drew it, where the file says so.
    digest: Option<String>,
}

/// What is given beside a picture that is drawn again.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// Whether there is a picture to start from.
    pub image: bool,
    /// Whether there is a mask, or a picture that grows.
    pub mask: bool,
}

/// A request as a file records it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// See the fields of [`SamplingConfig`](crate::sampling::SamplingConfig).
    pub prompt: Option<String>,
    pub(crate) negative_prompt: Option<String>,
    pub(crate) width: Option<usize>,
    pub(crate) height: Option<usize>,
    pub(crate) steps: Option<usize>,
    pub(crate) guidance_scale: Option<f64>,
    pub(crate) seed: Option<u64>,
    pub(crate) n: Option<usize>,
    #[serde(default, deserialize_with = "named")]
    pub(crate) sampler: Option<SamplerKind>,
    #[serde(default, deserialize_with = "named")]
    pub(crate) scheduler: Option<SpacingKind>,
    pub(crate) sigmas: Option<Vec<f64>>,
    pub(crate) clip_skip: Option<usize>,
    pub(crate) eta: Option<f64>,
    #[serde(default, deserialize_with = "named")]
    pub(crate) prompt_syntax: Option<PromptSyntax>,
    #[serde(default, deserialize_with = "named")]
    pub(crate) long_prompt: Option<LongPrompt>,
    pub(crate) strength: Option<f64>,
    pub(crate) mask_blur: Option<f64>,
    pub(crate) inpaint_padding: Option<u32>,
    pub(crate) prompt_2: Option<String>,
    pub(crate) negative_prompt_2: Option<String>,
    pub(crate) original_size: Option<PictureSize>,
    pub(crate) crop: Option<CropOffset>,
    pub(crate) target_size: Option<PictureSize>,
    pub(crate) guidance_rescale: Option<f64>,
    pub(crate) guidance_start: Option<f64>,
    pub(crate) guidance_end: Option<f64>,
    pub(crate) image_guidance_scale: Option<f64>,
    pub(crate) output: Option<RecordedOutput>,
}

/// How the file was encoded, where PNG does not say it all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedOutput {
    /// The format's name.
    pub format: Option<String>,
    /// A JPEG's quality.
    pub quality: Option<u8>,
}

impl Source {
    /// Reads a picture's file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] naming `from`: no picture, or one that does not say how darkroom drew it.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let Inspected { format, texts, .. } = inspect(bytes).map_err(|error| match error {
            Error::Image(message) => Error::invalid("from", message),
            error => error,
        })?;
        let Some(request) = texts.request else {
            let carried = match texts.parameters {
                Some(_) => "holds parameters as text, but no request of darkroom",
                None => "holds no request; a picture that darkroom wrote with metadata is wanted",
            };
            return Err(Error::invalid("from", carried));
        };
        let digest = texts.parameters.as_deref().and_then(digest_in).map(str::to_owned);
        Ok(Self { request, format, digest })
    }

    /// What to tell a caller whose worker has other weights than those that drew the picture.
    #[must_use]
    pub fn warning(&self, digest: Option<&str>) -> Option<String> {
        let (drawn, here) = (self.digest.as_deref()?, digest?);
        (drawn != here).then(|| {
            let (drawn, here) = (short_digest(drawn), short_digest(here));
            format!(
                "from: the picture was drawn with the weights {drawn}; this worker has {here} and draws another one"
            )
        })
    }
}

impl Recorded {
    /// Reads a request out of a file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] naming `from`: a request that this version does not know.
    pub fn parse(request: &str) -> Result<Self> {
        serde_json::from_str(request).map_err(|error| unreadable(&error))
    }
}

/// What is said of a file whose request cannot be read.
#[must_use]
pub fn unreadable(error: &dyn std::fmt::Display) -> Error {
    Error::invalid("from", format!("holds a request that this version does not read: {error}"))
}

/// Checks that what a file does not hold is given: the picture that the drawing started from, and its mask.
///
/// # Errors
///
/// [`Error::InvalidParameter`] naming `from`.
pub fn check_beside(had_image: bool, had_mask: bool, given: Beside) -> Result<()> {
    let message = |missing: &str, field: &str| {
        Error::invalid("from", format!("was drawn from {missing}, which its file does not hold; give {field} as well"))
    };
    match (had_image && !given.image, had_mask && !given.mask) {
        (true, true) => Err(message("a picture and a mask", "image and mask, or image and extend,")),
        (true, false) => Err(message("a picture", "image")),
        (false, true) => Err(message("a picture with a mask", "mask or extend")),
        (false, false) => Ok(()),
    }
}

/// Something that is recorded by its name.
fn named<'de, T, D>(deserializer: D) -> std::result::Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err = Error>,
    D: Deserializer<'de>,
{
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| name.parse().map_err(de::Error::custom)).transpose()
}

fn digest_in(parameters: &str) -> Option<&str> {
    let start = parameters.rfind(DIGEST_LABEL)? + DIGEST_LABEL.len();
    let digest = parameters.get(start..start + 64)?;
    digest.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        imaging::PictureTexts,
        output::{OutputOptions, encode},
    };

    fn file(parameters: Option<String>, request: Option<&str>) -> Vec<u8> {
        let picture = image::DynamicImage::new_rgb8(8, 8);
        let texts = PictureTexts { parameters, request: request.map(str::to_owned) };
        encode(&picture, &OutputOptions::default(), &texts).unwrap()
    }

    #[test]
    fn a_file_says_what_drew_it_or_why_it_cannot_be_drawn_again() {
        let digest = "ab".repeat(32);
        let parameters = format!("a fox\nSteps: 20, Model SHA-256: {digest}, Version: darkroom 0.1.0");
        let source = Source::read(&file(Some(parameters.clone()), Some("{}"))).unwrap();
        assert_eq!((source.request.as_str(), source.format), ("{}", OutputFormat::Png));
        assert_eq!(source.warning(Some(&digest)), None);
        assert_eq!(source.warning(None), None);
        let warning = source.warning(Some(&"cd".repeat(32))).unwrap();
        assert!(warning.contains("abababab") && warning.contains("cdcdcdcd"), "{warning}");

        let refused = |bytes: &[u8]| Source::read(bytes).unwrap_err().to_string();
        assert!(refused(&file(Some(parameters), None)).contains("from: holds parameters as text"));
        assert!(refused(&file(None, None)).contains("from: holds no request"));
        assert!(refused(b"no picture").contains("from: is none of png, jpeg and webp"));
    }

    #[test]
    fn a_request_of_a_later_version_is_refused_and_not_drawn_in_part() {
        assert_eq!(Recorded::parse(r#"{"seed": 3}"#).unwrap(), Recorded { seed: Some(3), ..Recorded::default() });
        let refused = Recorded::parse(r#"{"colour": "red"}"#).unwrap_err().to_string();
        assert!(refused.contains("from: ") && refused.contains("colour"), "{refused}");
    }

    #[test]
    fn what_a_file_does_not_hold_has_to_be_given() {
        let given = |image, mask| Beside { image, mask };
        assert!(check_beside(false, false, given(false, false)).is_ok());
        assert!(check_beside(true, true, given(true, true)).is_ok());
        let message = |given| check_beside(true, true, given).unwrap_err().to_string();
        assert!(message(given(false, false)).contains("give image and mask"));
        assert!(message(given(true, false)).contains("give mask or extend"));
        assert!(check_beside(true, false, given(false, false)).unwrap_err().to_string().contains("give image"));
    }
}
