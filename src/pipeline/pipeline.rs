//! The pipeline itself: what a request asks for, its plan, and its images one after another.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use candle_core::{DType, Device};
use image::DynamicImage;

use super::{
    Generate, Generated, ModelInfo, Monitor, StageTimings, Unwatched,
    denoise::Watch,
    origin::{Given, Origin},
    text::{self, EncodedText, TextEncoder},
};
use crate::{
    Error, Result,
    models::{Checkpoint, Conditioning, ModelSpec, Prepared, Unet, VaeDecoder, VaeEncoder},
    sampling::{SamplingConfig, Schedule, SchedulerOptions},
};

/// The side of the picture that warms a pipeline up.
const WARM_UP_PX: usize = 64;

/// Draws with one checkpoint on one device.
#[derive(Debug)]
pub struct InferencePipeline {
    pub(super) spec: ModelSpec,
    pub(super) info: ModelInfo,
    pub(super) networks: Networks,
    pub(super) checkpoint: Checkpoint,
    /// The autoencoder's encoder, once a request has brought a picture along.
    pub(super) encoder: Mutex<Option<Arc<VaeEncoder>>>,
}

/// The networks on their device.
#[derive(Debug)]
pub(super) struct Networks {
    pub(super) text: Vec<TextEncoder>,
    pub(super) unet: Unet,
    pub(super) vae: VaeDecoder,
    pub(super) vae_dtype: DType,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

impl InferencePipeline {
    /// Draws a small picture and throws it away, so that the first request does not pay for what is set up once.
    ///
    /// # Errors
    ///
    /// As [`generate`](Generate::generate).
    pub fn warm_up(&self) -> Result<()> {
        let side = Some(WARM_UP_PX.next_multiple_of(self.spec.vae.factor()));
        let config =
            SamplingConfig { prompt: "a".to_owned(), steps: 1, width: side, height: side, ..SamplingConfig::default() };
        self.generate(&config, &mut Unwatched).map(|_| ())
    }

    /// The networks' number type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.networks.dtype
    }

    /// A prompt as diffusers encodes it, without weights and cut to one window, with the last `clip_skip` layers of the text
    /// encoders left out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a prompt that cannot be tokenized.
    pub fn encode_text(&self, prompt: &str, clip_skip: usize) -> Result<EncodedText> {
        text::encode(&self.networks.text, self.spec.family, prompt, clip_skip)
    }

    /// What the denoiser is told of a request's texts and sizes.
    ///
    /// # Errors
    ///
    /// As [`check`](Generate::check).
    pub fn conditioning(&self, config: &SamplingConfig) -> Result<Conditioning> {
        config.validate(&self.info.limits)?;
        self.check(config)?;
        let (width, height) = self.info.size_for(config)?;
        text::condition(&self.networks.text, &self.spec, config, (height, width), &mut Vec::new())
    }
}

impl Generate for InferencePipeline {
    fn generate(&self, config: &SamplingConfig, monitor: &mut dyn Monitor) -> Result<Generated> {
        config.validate(&self.info.limits)?;
        self.check(config)?;
        let mut watch = Watch { monitor, steps_done: 0, steps: config.steps_drawn() * config.n };
        let mut generated = Generated::default();
        let mut timings = Timings::default();

        watch.go_on()?;
        let began = Instant::now();
        let drawing = self.plan(config, &watch, &mut generated.warnings)?;
        timings.encode += began.elapsed();
        watch.steps = drawing.schedule.steps.len() * config.n;
        for number in 0..config.n {
            let began = Instant::now();
            let latents = self.denoise(&drawing, config.seed + number as u64, &mut watch)?;
            timings.denoise += began.elapsed();
            watch.go_on()?;
            let began = Instant::now();
            let drawn = self.decode(&latents)?;
            let picture = match &drawing.origin {
                Some(origin) => origin.put_back(drawn),
                None => drawn,
            };
            generated.images.push(DynamicImage::ImageRgb8(picture));
            timings.decode += began.elapsed();
        }
        generated.timings = timings.in_ms();
        Ok(generated)
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn check(&self, config: &SamplingConfig) -> Result<()> {
        let factor = self.spec.vae.factor();
        let (width, height) = self.info.size_for(config)?;
        for (field, side) in [("width", width), ("height", height)] {
            if side % factor != 0 {
                return Err(Error::invalid(field, format!("is {side}; this model draws multiples of {factor}")));
            }
        }
        if width * height > self.info.limits.max_pixels {
            let most = self.info.limits.max_pixels;
            let message = format!("{width} times height {height} is more pixels than this worker allows, {most}");
            return Err(Error::invalid("width", message));
        }
        let most = self.spec.most_clip_skip();
        if config.clip_skip > most {
            let message = format!("is {}; this model's text encoder allows 0 to {most}", config.clip_skip);
            return Err(Error::invalid("clip_skip", message));
        }
        text::check(&self.networks.text, &self.spec, config)?;
        self.schedule(config).map(|_| ())
    }
}

impl InferencePipeline {
    fn schedule(&self, config: &SamplingConfig) -> Result<(SchedulerOptions, Schedule)> {
        let sampler = config.sampler.unwrap_or(self.info.default_sampler);
        let spacing = config.scheduler.unwrap_or(self.info.default_scheduler);
        let options = self.spec.scheduler.options(sampler, spacing)?;
        let strength = if config.image.is_some() { config.strength } else { 1.0 };
        let schedule = Schedule::last_part(&options, config.steps, strength)?;
        Ok((options, schedule))
    }

    /// Everything that the images of a request share.
    fn plan<'a>(
        &self,
        config: &'a SamplingConfig,
        watch: &Watch<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Drawing<'a>> {
        let (width, height) = self.info.size_for(config)?;
        let factor = self.spec.vae.factor();
        let (options, schedule) = self.schedule(config)?;
        let conditioning = text::condition(&self.networks.text, &self.spec, config, (height, width), warnings)?;
        let prepared = self.networks.unet.prepare(&conditioning)?;
        let origin = if config.image.is_some() || self.spec.shows_mask() {
            watch.go_on()?;
            Some(self.origin(config, (height, width))?)
        } else {
            None
        };
        Ok(Drawing { config, options, schedule, prepared, origin, latent_size: (height / factor, width / factor) })
    }

    fn origin(&self, config: &SamplingConfig, size: (usize, usize)) -> Result<Origin> {
        let given = Given {
            picture: config.image.as_deref(),
            mask: config.mask.as_deref(),
            mask_blur: config.mask_blur,
            padding: config.inpaint_padding,
            size,
            factor: self.spec.vae.factor(),
            shows_mask: self.spec.shows_mask(),
        };
        Origin::new(given, &self.networks.device, |pixels| self.encode(pixels))
    }
}

/// What the images of a request share.
pub(super) struct Drawing<'a> {
    pub(super) config: &'a SamplingConfig,
    pub(super) options: SchedulerOptions,
    pub(super) schedule: Schedule,
    pub(super) prepared: Prepared,
    /// `None` where a drawing starts from noise alone.
    pub(super) origin: Option<Origin>,
    /// Height and width.
    pub(super) latent_size: (usize, usize),
}

#[derive(Default)]
struct Timings {
    encode: std::time::Duration,
    denoise: std::time::Duration,
    decode: std::time::Duration,
}

impl Timings {
    fn in_ms(&self) -> StageTimings {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        StageTimings { encode_ms: ms(self.encode), denoise_ms: ms(self.denoise), decode_ms: ms(self.decode) }
    }
}
