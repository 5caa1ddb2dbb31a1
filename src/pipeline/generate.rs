//! What a pipeline is to its caller: one trait, so that a test can put a fake one in its place.

use image::DynamicImage;

use crate::{
    Error, Result,
    image_utils::ensure_multiple_of_8,
    models::WeightsDigest,
    sampling::{DEFAULT_IMAGE_GUIDANCE_SCALE, Limits, SIDE_PX, SamplerKind, SamplingConfig, SpacingKind},
};

/// Draws pictures. Its one real implementation is `InferencePipeline`; it is a trait so that
/// tests of the queue and the server can draw with a fake.
pub trait Generate: Send + Sync + 'static {
    /// Draws what `config` asks for, on the calling thread, reporting to `monitor`.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`](crate::Error::Interrupted) once the monitor asks to stop, at most one network call later;
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) for a value out of range; else what failed.
    fn generate(&self, config: &SamplingConfig, monitor: &mut dyn Monitor) -> Result<Generated>;

    /// Draws jobs together, on the calling thread: what [`can_join`](Self::can_join) allows in the same network passes. Each
    /// is drawn as [`generate`](Self::generate) draws it alone. `ended` hears of each job's end when it comes, by its place
    /// in `jobs`, and once.
    ///
    /// # Errors
    ///
    /// What failed in a network pass that several jobs shared. The jobs that `ended` has not heard of can be drawn alone.
    fn generate_group(&self, jobs: &mut [GroupJob<'_>], ended: &mut dyn FnMut(usize, Result<Generated>)) -> Result<()> {
        for (number, job) in jobs.iter_mut().enumerate() {
            ended(number, self.generate(job.config, job.monitor));
        }
        Ok(())
    }

    /// How many images like those of `config` one network pass draws.
    fn images_together(&self, _config: &SamplingConfig) -> usize {
        1
    }

    /// Whether the images of `other` can be drawn in the network passes of those of `first`.
    fn can_join(&self, _first: &SamplingConfig, _other: &SamplingConfig) -> bool {
        false
    }

    /// What is loaded, for whoever asks.
    fn model(&self) -> &ModelInfo;

    /// Checks what depends on the loaded model (its native size, its layers), besides
    /// [`SamplingConfig::validate`], without drawing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) or
    /// [`Error::UnsupportedParameter`](crate::Error::UnsupportedParameter), naming the parameter.
    fn check(&self, config: &SamplingConfig) -> Result<()>;
}

/// A job of those that are drawn together.
#[expect(missing_debug_implementations, reason = "a monitor has nothing to show")]
pub struct GroupJob<'a> {
    /// What it asks for.
    pub config: &'a SamplingConfig,
    /// Whoever watches it, and stops it alone.
    pub monitor: &'a mut dyn Monitor,
}

/// How the caller of a drawing watches it and stops it. Every method must return quickly: the drawing waits for it.
pub trait Monitor {
    /// Asked before each network call; `true` ends the drawing with [`Error::Interrupted`](crate::Error::Interrupted).
    fn should_stop(&self) -> bool;

    /// From now on a network pass draws so many images, this job's and those of the jobs that share it.
    fn drawn_together(&mut self, _images: usize) {}

    /// A denoising step is done: `step` of `total`, counted over all the request's images. A step of several images counts
    /// once for each.
    fn progress(&mut self, step: usize, total: usize);

    /// What the picture looks like after `step`; asked for by
    /// [`preview_every`](SamplingConfig::preview_every).
    fn preview(&mut self, step: usize, image: DynamicImage);
}

impl ModelInfo {
    /// Width and height in pixels of a drawing: what is asked for, else the side of the picture that it starts from,
    /// rounded down to a multiple of 8, else the model's own. A region of a picture is drawn at the model's own size.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a picture whose own size cannot be drawn.
    pub fn size_for(&self, config: &SamplingConfig) -> Result<(usize, usize)> {
        let (width, height) = match &config.image {
            Some(picture) if config.inpaint_padding.is_none() => {
                let (width, height) = ensure_multiple_of_8(picture.width(), picture.height());
                (width as usize, height as usize)
            }
            _ => (self.width, self.height),
        };
        let asked = [config.width, config.height];
        let refused = [width, height].iter().zip(asked).any(|(side, asked)| asked.is_none() && !SIDE_PX.contains(side));
        if let Some(picture) = config.image.as_ref().filter(|_| refused) {
            let (own_width, own_height) = picture.dimensions();
            let (least, most) = (SIDE_PX.start(), SIDE_PX.end());
            let message = format!(
                "has {own_width}x{own_height} pixels; {least} to {most} a side can be drawn: name a width and a height"
            );
            return Err(Error::invalid("image", message));
        }
        Ok((config.width.unwrap_or(width), config.height.unwrap_or(height)))
    }
}

/// Nobody watches, and nobody stops it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Monitor for Unwatched {
    fn should_stop(&self) -> bool {
        false
    }

    fn progress(&mut self, _step: usize, _total: usize) {}

    fn preview(&mut self, _step: usize, _image: DynamicImage) {}
}

/// A finished drawing.
#[derive(Debug, Clone, Default)]
pub struct Generated {
    /// RGB images; image `i` was drawn with `seed + i`.
    pub images: Vec<DynamicImage>,
    /// How long each stage took.
    pub timings: StageTimings,
    /// What the caller should know, such as a prompt that was cut.
    pub warnings: Vec<String>,
}

/// Wall-clock time of each stage over all the images of a request, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimings {
    /// Tokens and text encoders.
    pub encode_ms: u64,
    /// The denoise loop.
    pub denoise_ms: u64,
    /// Latents to pixels.
    pub decode_ms: u64,
}

/// What is loaded and what it can do.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The model's name: the bundled model's, a directory's last part, or a hub id.
    pub name: String,
    /// The family, such as `stable-diffusion-1`, `stable-diffusion-2` or `stable-diffusion-xl`.
    pub family: String,
    /// The device that draws, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The networks' number type, such as `f32`.
    pub dtype: String,
    /// Native width in pixels.
    pub width: usize,
    /// Native height in pixels.
    pub height: usize,
    /// Steps when a request names none.
    pub default_steps: usize,
    /// Guidance scale when a request names none.
    pub default_guidance_scale: f64,
    /// The checkpoint's own sampler.
    pub default_sampler: SamplerKind,
    /// The samplers that draw with the checkpoint's network.
    pub samplers: Vec<SamplerKind>,
    /// The checkpoint's own spacing.
    pub default_scheduler: SpacingKind,
    /// The spacings that requests can name.
    pub schedulers: Vec<SpacingKind>,
    /// What a request may cost.
    pub limits: Limits,
    /// How its texts are read.
    pub prompts: PromptSupport,
    /// Which weights these are.
    pub digest: WeightsDigest,
    /// What there is of memory.
    pub memory: MemoryInfo,
    /// What it does with a picture that a request brings along.
    pub pictures: PictureUse,
}

/// What a model does with a request's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PictureUse {
    /// A drawing may start from it, and keep a part of it.
    #[default]
    Start,
    /// It edits the picture as the text instructs, and needs one.
    Edit,
}

impl PictureUse {
    /// What a request may bring along, by its field's name.
    #[must_use]
    pub const fn inputs(self) -> &'static [&'static str] {
        match self {
            Self::Start => &["image", "mask"],
            Self::Edit => &["image"],
        }
    }

    /// How far the picture is followed when a request does not say, where that means something.
    #[must_use]
    pub const fn image_guidance_scale(self) -> Option<f64> {
        match self {
            Self::Start => None,
            Self::Edit => Some(DEFAULT_IMAGE_GUIDANCE_SCALE),
        }
    }
}

/// What a model takes of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSupport {
    /// How many of a prompt's tokens are in a chunk at most.
    pub chunk_tokens: usize,
    /// How many chunks are read at most.
    pub max_chunks: usize,
    /// Whether it takes a second prompt and the sizes of a picture, as Stable Diffusion XL does.
    pub second: bool,
}

/// What a model takes of its device's memory, and what drawings may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// The weights in the type that the networks compute in.
    pub weights_bytes: usize,
    /// The most that a drawing may take besides; `None` where nothing is known.
    pub limit_bytes: Option<usize>,
}
