//! The body of `POST /generate`, parsed once: what comes out of here is valid.
//!
//! The shape of the JSON (names, types) is 400 `malformed_json`; its values are 422.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::problem::Problem;
use crate::{
    drawing::{MAX_SEED, random_seed},
    image_utils::base64_to_image,
    output::{OutputFormat, OutputOptions},
    pipeline::ModelInfo,
    sampling::{Limits, SamplingConfig},
};

const MAX_TAG_BYTES: usize = 256;
/// One day.
const MAX_DEADLINE_MS: i128 = 86_400_000;

/// The body as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with the fields of a request")]
pub(super) struct GenerateBody {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    width: Option<Whole>,
    height: Option<Whole>,
    steps: Option<Whole>,
    guidance_scale: Option<f64>,
    seed: Option<Whole>,
    n: Option<Whole>,
    sampler: Option<String>,
    scheduler: Option<String>,
    clip_skip: Option<Whole>,
    image: Option<String>,
    mask: Option<String>,
    strength: Option<f64>,
    preview_every: Option<Whole>,
    output: Option<OutputBody>,
    deadline_ms: Option<Whole>,
    on_disconnect: Option<String>,
    tag: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with the fields of `output`")]
struct OutputBody {
    format: Option<String>,
    quality: Option<Whole>,
    metadata: Option<bool>,
}

/// Everything that a client can ask for, valid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    pub(super) config: SamplingConfig,
    pub(super) output: OutputOptions,
    pub(super) deadline: Option<Duration>,
    /// `None` when the client leaves it to the form of the answer.
    pub(super) on_disconnect: Option<OnDisconnect>,
    pub(super) tag: Option<String>,
}

/// What becomes of a job whose client leaves before it is answered. One that was answered with 202 has left nothing open,
/// so for it this means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDisconnect {
    /// It is cancelled.
    Cancel,
    /// It goes on.
    Continue,
}

/// The images that a body brings along, still to be decoded.
#[derive(Debug)]
pub(super) struct InputImages {
    image: Option<String>,
    mask: Option<String>,
    strength: Option<f64>,
}

impl GenerateBody {
    /// Reads a body.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let json = &mut serde_json::Deserializer::from_slice(bytes);
        let body = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            Problem::malformed_json(message.clone(), field_at_fault(&path, &message))
        })?;
        json.end().map_err(|error| Problem::malformed_json(error.to_string(), None))?;
        Ok(body)
    }

    /// The picture format that is asked for, if one is.
    pub(super) fn format(&self) -> Result<Option<OutputFormat>, Problem> {
        let name = self.output.as_ref().and_then(|output| output.format.as_deref());
        name.map(str::parse).transpose().map_err(|error| Problem::from(&error))
    }

    /// Takes out the images, which are checked apart, since to decode them takes a while.
    pub(super) fn take_images(&mut self) -> InputImages {
        InputImages { image: self.image.take(), mask: self.mask.take(), strength: self.strength.take() }
    }

    /// Fills in what the model decides, and checks every value.
    pub(super) fn into_wish(self, format: OutputFormat, model: &ModelInfo, limits: &Limits) -> Result<Wish, Problem> {
        let invalid = |error: crate::Error| Problem::from(&error);
        let prompt = self.prompt.ok_or_else(|| Problem::invalid("prompt", "is missing; it says what to draw"))?;
        let n = whole("n", self.n, 1)?;
        let seed = match self.seed {
            Some(Whole(seed)) => {
                let message = || format!("is {seed}; 0 to {MAX_SEED} is allowed");
                u64::try_from(seed).map_err(|_| Problem::invalid("seed", message()))?
            }
            None => random_seed(n),
        };
        let config = SamplingConfig {
            prompt,
            negative_prompt: self.negative_prompt,
            width: Some(whole("width", self.width, model.width)?),
            height: Some(whole("height", self.height, model.height)?),
            steps: whole("steps", self.steps, model.default_steps)?,
            guidance_scale: self.guidance_scale.unwrap_or(model.default_guidance_scale),
            seed,
            n,
            sampler: match self.sampler {
                Some(name) => Some(name.parse().map_err(invalid)?),
                None => Some(model.default_sampler),
            },
            scheduler: match self.scheduler {
                Some(name) => Some(name.parse().map_err(invalid)?),
                None => Some(model.default_scheduler),
            },
            clip_skip: whole("clip_skip", self.clip_skip, 0)?,
            preview_every: whole("preview_every", self.preview_every, 0)?,
        };
        config.validate(limits).map_err(invalid)?;
        let output = self.output.unwrap_or_default();
        Ok(Wish {
            config,
            output: OutputOptions {
                format,
                quality: OutputOptions::parse_quality(format, output.quality.map(|Whole(quality)| quality))
                    .map_err(invalid)?,
                metadata: output.metadata.unwrap_or(true),
            },
            deadline: self.deadline_ms.map(deadline).transpose()?,
            on_disconnect: self.on_disconnect.as_deref().map(OnDisconnect::parse).transpose()?,
            tag: self.tag.map(tag).transpose()?,
        })
    }
}

impl InputImages {
    /// Whether there is anything to check.
    pub(super) fn is_empty(&self) -> bool {
        self.image.is_none() && self.mask.is_none() && self.strength.is_none()
    }

    /// Decodes and checks them. It blocks, for as long as the pictures are large.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), Problem> {
        let Some(image) = &self.image else {
            if self.mask.is_some() {
                return Err(Problem::invalid("mask", "is given without an image to repaint"));
            }
            return match self.strength {
                Some(given) => Err(Problem::invalid("strength", format!("is {given}, without an image to start from"))),
                None => Ok(()),
            };
        };
        if let Some(strength) = self.strength.filter(|strength| !(*strength > 0.0 && *strength <= 1.0)) {
            return Err(Problem::invalid("strength", format!("is {strength}; above 0 and up to 1 is allowed")));
        }
        for (field, text) in [("image", Some(image)), ("mask", self.mask.as_ref())] {
            let Some(text) = text else { continue };
            base64_to_image(text, limits.max_pixels).map_err(|error| match error {
                crate::Error::Image(message) => Problem::invalid(field, message),
                error => Problem::from(&error),
            })?;
        }
        Err(Problem::unsupported("image", "is valid, but this worker draws from text only so far"))
    }
}

impl OnDisconnect {
    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "cancel" => Ok(Self::Cancel),
            "continue" => Ok(Self::Continue),
            other => {
                Err(Problem::invalid("on_disconnect", format!("is {other:?}; one of cancel, continue is allowed")))
            }
        }
    }
}

/// An integer of any size, so that one out of range is refused as that, by name, and not as another type.
#[derive(Debug, Clone, Copy)]
struct Whole(i128);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E>(self, value: i64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }
        }
        deserializer.deserialize_i64(Visitor)
    }
}

fn whole(field: &'static str, given: Option<Whole>, default: usize) -> Result<usize, Problem> {
    let Some(Whole(given)) = given else { return Ok(default) };
    usize::try_from(given).map_err(|_| {
        let allowed = match field {
            "width" | "height" => "a multiple of 8 from 64 to 2048 is allowed",
            "n" | "steps" => "1 and more is allowed",
            _ => "0 and more is allowed",
        };
        Problem::invalid(field, format!("is {given}; {allowed}"))
    })
}

fn deadline(Whole(given): Whole) -> Result<Duration, Problem> {
    let range = 1..=MAX_DEADLINE_MS;
    let ms = u64::try_from(given).ok().filter(|_| range.contains(&given));
    ms.map(Duration::from_millis)
        .ok_or_else(|| Problem::invalid("deadline_ms", format!("is {given}; 1 to {MAX_DEADLINE_MS} is allowed")))
}

fn tag(given: String) -> Result<String, Problem> {
    if given.len() > MAX_TAG_BYTES {
        let message = format!("has {} bytes; at most {MAX_TAG_BYTES} are allowed", given.len());
        return Err(Problem::invalid("tag", message));
    }
    Ok(given)
}

/// The field that serde stumbled over, with the path to it. One that is unknown or
/// given twice is in the message only.
fn field_at_fault(path: &str, message: &str) -> Option<String> {
    let parent = Some(path).filter(|path| !["", ".", "?"].contains(path));
    let named = message.strip_prefix("unknown field `").or_else(|| message.strip_prefix("duplicate field `"));
    let unknown = named.and_then(|rest| rest.split_once('`')).map(|(name, _)| name);
    match (parent, unknown) {
        (Some(parent), Some(name)) if parent != name && !parent.ends_with(&format!(".{name}")) => {
            Some(format!("{parent}.{name}"))
        }
        (Some(parent), _) => Some(parent.to_owned()),
        (None, name) => name.map(str::to_owned),
    }
}
