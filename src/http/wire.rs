//! The body of `POST /generate`, parsed once: what comes out of here is valid.
//!
//! The shape of the JSON (names, types) is 400 `malformed_json`; its values are 422. A field that is `null` is absent.

use std::{str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    body,
    malformed::malformed,
    problem::Problem,
    told::{CropBody, SizeBody},
    values::{Flag, Number, Object, Text, Whole, excerpt},
};
use crate::{
    drawing::{MAX_SEED, random_seed},
    imaging::Margins,
    output::{OutputFormat, OutputOptions},
    pictures::{Encoded, GivenPictures},
    pipeline::ModelInfo,
    redraw::{Beside, Source, check_beside, unreadable},
    sampling::{SamplingConfig, steps_of_sigmas},
};

const MAX_TAG_BYTES: usize = 256;
const MOST_PIXELS_A_SIDE: u32 = 2048;
/// One day.
const MAX_DEADLINE_MS: u64 = 86_400_000;

/// The body as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateBody {
    prompt: Option<Text>,
    negative_prompt: Option<Text>,
    width: Option<Whole>,
    height: Option<Whole>,
    steps: Option<Whole>,
    guidance_scale: Option<Number>,
    seed: Option<Whole>,
    n: Option<Whole>,
    sampler: Option<Text>,
    scheduler: Option<Text>,
    sigmas: Option<Vec<Number>>,
    eta: Option<Number>,
    clip_skip: Option<Whole>,
    image: Option<Text>,
    mask: Option<Text>,
    strength: Option<Number>,
    mask_blur: Option<Number>,
    mask_invert: Option<Flag>,
    inpaint_padding: Option<Whole>,
    extend: Option<Object<ExtendBody>>,
    preview_every: Option<Whole>,
    prompt_syntax: Option<Text>,
    long_prompt: Option<Text>,
    prompt_2: Option<Text>,
    negative_prompt_2: Option<Text>,
    original_size: Option<Object<SizeBody>>,
    crop: Option<Object<CropBody>>,
    target_size: Option<Object<SizeBody>>,
    guidance_rescale: Option<Number>,
    guidance_start: Option<Number>,
    guidance_end: Option<Number>,
    image_guidance_scale: Option<Number>,
    output: Option<Object<OutputBody>>,
    deadline_ms: Option<Whole>,
    on_disconnect: Option<Text>,
    tag: Option<Text>,
    from: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputBody {
    format: Option<Text>,
    quality: Option<Whole>,
    metadata: Option<Flag>,
    inline: Option<Flag>,
}

/// How far a picture grows, in pixels.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtendBody {
    left: Option<Whole>,
    top: Option<Whole>,
    right: Option<Whole>,
    bottom: Option<Whole>,
}

/// Everything that a client can ask for, valid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    pub(super) config: SamplingConfig,
    pub(super) output: OutputOptions,
    /// Whether a finished job comes with its pictures, and not only with where they are.
    pub(super) inline: bool,
    pub(super) deadline: Option<Duration>,
    /// `None` when the client leaves it to the form of the answer.
    pub(super) on_disconnect: Option<OnDisconnect>,
    pub(super) tag: Option<String>,
    /// What the client should know already.
    pub(super) warnings: Vec<String>,
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

impl GenerateBody {
    /// Reads a body.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let text = body::text(bytes)?;
        if text.trim_ascii().is_empty() {
            return Err(Problem::malformed_json(
                "the body is empty; an object with the fields of a request is wanted",
                None,
            ));
        }
        let json = &mut serde_json::Deserializer::from_str(text);
        let Object(body) = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
            let path = error.path().to_string();
            malformed(text, &path, &error.into_inner())
        })?;
        json.end().map_err(|error| malformed(text, "", &error))?;
        Ok(body)
    }

    /// The picture format that is asked for, if one is.
    pub(super) fn format(&self) -> Result<Option<OutputFormat>, Problem> {
        let name = self.output.as_ref().and_then(|Object(output)| output.format.as_ref());
        name.map(|Text(name)| name.parse()).transpose().map_err(|error| Problem::from(&error))
    }

    /// Takes out the picture that is to be drawn again.
    pub(super) fn take_from(&mut self) -> Option<String> {
        self.from.take().map(|Text(picture)| picture)
    }

    /// Fills in what the request leaves out from that of a picture that is drawn again.
    pub(super) fn draw_again(&mut self, source: &Source) -> Result<(), Problem> {
        let recorded = Self::parse(source.request.as_bytes());
        let mut recorded = recorded.map_err(|problem| Problem::from(&unreadable(&problem.detail())))?;
        // A spacing replaces levels that are listed, and levels replace a spacing and its number of steps.
        if self.sigmas.is_some() {
            (recorded.scheduler, recorded.steps) = (None, None);
        } else if self.scheduler.is_some() {
            recorded.sigmas = None;
        }
        let (image, mask) = (self.image.is_some(), self.mask.is_some() || self.extend.is_some());
        // A picture that was edited has no strength.
        let had_image = recorded.strength.is_some() || recorded.image_guidance_scale.is_some();
        let had_mask = recorded.mask_blur.is_some();
        check_beside(had_image, had_mask, Beside { image, mask }).map_err(|error| Problem::from(&error))?;
        // Every field by its name, so that none is forgotten.
        macro_rules! fill_in {
            ($($field:ident),* $(,)?) => {
                let Self { $($field),* } = recorded;
                $(self.$field = self.$field.take().or($field);)*
            };
        }
        fill_in!(
            prompt,
            negative_prompt,
            width,
            height,
            steps,
            guidance_scale,
            seed,
            n,
            sampler,
            scheduler,
            sigmas,
            clip_skip,
            eta,
            target_size,
            crop,
            original_size,
            negative_prompt_2,
            prompt_2,
            long_prompt,
            prompt_syntax,
            image,
            mask,
            strength,
            mask_blur,
            mask_invert,
            inpaint_padding,
            extend,
            preview_every,
            output,
            deadline_ms,
            on_disconnect,
            tag,
            from,
            guidance_rescale,
            guidance_start,
            guidance_end,
            image_guidance_scale,
        );
        Ok(())
    }

    /// Takes out the pictures and what belongs to them, which are read apart, since to decode them takes a while.
    pub(super) fn take_pictures(&mut self) -> Result<GivenPictures, Problem> {
        Ok(GivenPictures {
            image: self.image.take().map(|Text(image)| Encoded::Base64(image)),
            mask: self.mask.take().map(|Text(mask)| Encoded::Base64(mask)),
            strength: self.strength.take().map(|Number(strength)| strength),
            mask_blur: self.mask_blur.take().map(|Number(blur)| blur),
            mask_invert: self.mask_invert.take().is_some_and(|Flag(invert)| invert),
            inpaint_padding: self
                .inpaint_padding
                .take()
                .map(|padding| small("inpaint_padding", padding))
                .transpose()?,
            extend: self.extend.take().map(|Object(extend)| extend.margins()).transpose()?,
        })
    }

    /// Fills in what the model decides, and checks every value.
    pub(super) fn into_wish(
        self,
        format: OutputFormat,
        model: &ModelInfo,
        pictures: SamplingConfig,
    ) -> Result<Wish, Problem> {
        let invalid = |error: crate::Error| Problem::from(&error);
        let Text(prompt) = self.prompt.ok_or_else(|| Problem::invalid("prompt", "is missing; it says what to draw"))?;
        let n = whole("n", self.n, 1)?;
        let seed = self.seed.map_or_else(|| Ok(random_seed(n)), seed)?;
        let side = |field, given: Option<Whole>| given.map(|given| whole(field, Some(given), 0)).transpose();
        let pictures =
            SamplingConfig { width: side("width", self.width)?, height: side("height", self.height)?, ..pictures };
        let (width, height) = model.size_for(&pictures).map_err(invalid)?;
        let sigmas: Option<Vec<f64>> =
            self.sigmas.map(|sigmas| sigmas.into_iter().map(|Number(sigma)| sigma).collect());
        let steps = sigmas.as_deref().map_or(model.default_steps, steps_of_sigmas);
        let config = SamplingConfig {
            prompt,
            negative_prompt: self.negative_prompt.map(|Text(prompt)| prompt),
            width: Some(width),
            height: Some(height),
            steps: whole("steps", self.steps, steps)?,
            guidance_scale: self.guidance_scale.map_or(model.default_guidance_scale, |Number(scale)| scale),
            seed,
            n,
            sampler: match self.sampler {
                Some(Text(name)) => Some(name.parse().map_err(invalid)?),
                None => Some(model.default_sampler),
            },
            scheduler: match self.scheduler {
                Some(Text(name)) => Some(name.parse().map_err(invalid)?),
                None => sigmas.is_none().then_some(model.default_scheduler),
            },
            sigmas,
            eta: self.eta.map(|Number(eta)| eta),
            clip_skip: whole("clip_skip", self.clip_skip, 0)?,
            preview_every: whole("preview_every", self.preview_every, 0)?,
            prompt_syntax: named(self.prompt_syntax)?,
            long_prompt: named(self.long_prompt)?,
            prompt_2: self.prompt_2.map(|Text(prompt)| prompt),
            negative_prompt_2: self.negative_prompt_2.map(|Text(prompt)| prompt),
            original_size: self.original_size.map(|Object(size)| size.size("original_size")).transpose()?,
            crop: self.crop.map(|Object(crop)| crop.offset("crop")).transpose()?,
            target_size: self.target_size.map(|Object(size)| size.size("target_size")).transpose()?,
            guidance_rescale: number(self.guidance_rescale, 0.0),
            guidance_start: number(self.guidance_start, 0.0),
            guidance_end: number(self.guidance_end, 1.0),
            image_guidance_scale: self
                .image_guidance_scale
                .map(|Number(scale)| scale)
                .or(model.pictures.image_guidance_scale()),
            ..pictures
        };
        config.validate(&model.limits).map_err(invalid)?;
        let Object(output) = self.output.unwrap_or_default();
        Ok(Wish {
            config,
            output: OutputOptions {
                format,
                quality: quality(format, output.quality)?,
                metadata: output.metadata.is_none_or(|Flag(metadata)| metadata),
            },
            inline: output.inline.is_none_or(|Flag(inline)| inline),
            deadline: self.deadline_ms.map(deadline).transpose()?,
            on_disconnect: self.on_disconnect.map(|Text(text)| OnDisconnect::parse(&text)).transpose()?,
            tag: self.tag.map(|Text(text)| tag(text)).transpose()?,
            warnings: Vec::new(),
        })
    }
}

impl ExtendBody {
    fn margins(self) -> Result<Margins, Problem> {
        let side = |field, given: Option<Whole>| given.map_or(Ok(0), |given| small(field, given));
        Ok(Margins {
            left: side("extend.left", self.left)?,
            top: side("extend.top", self.top)?,
            right: side("extend.right", self.right)?,
            bottom: side("extend.bottom", self.bottom)?,
        })
    }
}

impl OnDisconnect {
    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "cancel" => Ok(Self::Cancel),
            "continue" => Ok(Self::Continue),
            other => Err(Problem::invalid(
                "on_disconnect",
                format!("is {}; one of cancel, continue is allowed", excerpt(other)),
            )),
        }
    }
}

/// A value with a name, or the default one.
fn named<T: Default + FromStr<Err = crate::Error>>(given: Option<Text>) -> Result<T, Problem> {
    given.map_or_else(|| Ok(T::default()), |Text(name)| name.parse().map_err(|error| Problem::from(&error)))
}

fn number(given: Option<Number>, default: f64) -> f64 {
    given.map_or(default, |Number(number)| number)
}

fn whole(field: &'static str, given: Option<Whole>, default: usize) -> Result<usize, Problem> {
    let Some(given) = given else { return Ok(default) };
    given.get().ok_or_else(|| {
        let allowed = match field {
            "width" | "height" => "a multiple of 8 from 64 to 2048 is allowed",
            "n" | "steps" => "1 and more is allowed",
            _ => "0 and more is allowed",
        };
        Problem::invalid(field, format!("is {given}; {allowed}"))
    })
}

/// A number of pixels that a picture's side can have.
fn small(field: &'static str, given: Whole) -> Result<u32, Problem> {
    let pixels = given.get().filter(|pixels| *pixels <= MOST_PIXELS_A_SIDE);
    pixels.ok_or_else(|| Problem::invalid(field, format!("is {given}; 0 to {MOST_PIXELS_A_SIDE} is allowed")))
}

fn seed(given: Whole) -> Result<u64, Problem> {
    given.get().ok_or_else(|| {
        // Elsewhere -1 asks for a random seed.
        let hint = if given.is_negative() { "; leave seed out for a random one, which the answer tells" } else { "" };
        Problem::invalid("seed", format!("is {given}; 0 to {MAX_SEED} is allowed{hint}"))
    })
}

fn quality(format: OutputFormat, given: Option<Whole>) -> Result<u8, Problem> {
    let allowed = |given: Whole| Problem::invalid("output.quality", format!("is {given}; 1 to 100 is allowed"));
    let quality = given.map(|given| given.get::<i128>().ok_or_else(|| allowed(given))).transpose()?;
    OutputOptions::parse_quality(format, quality).map_err(|error| Problem::from(&error))
}

fn deadline(given: Whole) -> Result<Duration, Problem> {
    let ms = given.get().filter(|ms| (1..=MAX_DEADLINE_MS).contains(ms));
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
