//! The pipeline itself: what a request asks for, and its plan.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device};
use image::{Rgb, RgbImage};

use super::{
    Generate, Generated, GroupJob, ModelInfo, Monitor, Unwatched,
    group::Agreement,
    origin::{Given, Origin},
    previews::Projection,
    room::Room,
    text::{self, EncodedText, TextEncoder},
};
use crate::{
    Error, Result,
    models::{Checkpoint, Conditioning, ModelSpec, Prepared, Unet, VaeDecoder, VaeEncoder},
    sampling::{
        DEFAULT_IMAGE_GUIDANCE_SCALE, Push, SamplingConfig, Schedule, SchedulerOptions, SpacingKind, guided_steps,
    },
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
    /// What drawings may take of memory.
    pub(super) room: Room,
    /// The autoencoder's encoder, once a request has brought a picture along.
    pub(super) encoder: Mutex<Option<Arc<VaeEncoder>>>,
    /// What takes latents to the colours of previews, once it is fitted.
    pub(super) projection: Mutex<Option<Arc<Projection>>>,
    /// The most images that a network pass draws.
    pub(super) batch: usize,
    /// When the device runs out of memory, in tests.
    #[cfg(test)]
    pub(crate) scarcity: super::scarcity::Scarcity,
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
    /// Draws a small picture and throws it away, so that the first request does not pay for what is set up once, and fits the
    /// projection of previews. Another
    /// device than the CPU is compared with it first.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a device that computes something else than the CPU; as [`generate`](Generate::generate).
    pub fn warm_up(&self) -> Result<()> {
        self.check_device()?;
        let side = Some(WARM_UP_PX.next_multiple_of(self.spec.vae.factor()));
        let config =
            SamplingConfig { prompt: "a".to_owned(), steps: 1, width: side, height: side, ..SamplingConfig::default() };
        self.generate(&self.with_inputs(config), &mut Unwatched).map(|_| ())
    }

    /// A request that nobody made, with a picture where the model needs one: a grey one.
    #[must_use]
    pub fn with_inputs(&self, config: SamplingConfig) -> SamplingConfig {
        if !self.spec.edits {
            return config;
        }
        let side = u32::try_from(WARM_UP_PX).expect("the side is small");
        let grey = RgbImage::from_pixel(side, side, Rgb([128; 3]));
        SamplingConfig { image: Some(Arc::new(grey)), strength: 1.0, ..config }
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
        let mut drawn = Err(Error::Interrupted);
        self.draw(&mut [GroupJob { config, monitor }], &mut |_, result| drawn = result)?;
        drawn
    }

    fn generate_group(&self, jobs: &mut [GroupJob<'_>], ended: &mut dyn FnMut(usize, Result<Generated>)) -> Result<()> {
        self.draw(jobs, ended)
    }

    fn images_together(&self, config: &SamplingConfig) -> usize {
        self.agreement(config).map_or(1, |agreement| self.images_that_fit(agreement.size, usize::MAX))
    }

    fn can_join(&self, first: &SamplingConfig, other: &SamplingConfig) -> bool {
        // What cannot be drawn at all fails alone.
        self.agreement(first).is_ok_and(|first| self.agreement(other).is_ok_and(|other| first == other))
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
        self.check_edit(config)?;
        text::check(&self.networks.text, &self.spec, config)?;
        self.schedule(config)?;
        self.check_limit(config)
    }
}

impl InferencePipeline {
    /// Checks what is for models that edit pictures, and for others.
    fn check_edit(&self, config: &SamplingConfig) -> Result<()> {
        if !self.spec.edits {
            return match config.image_guidance_scale {
                Some(scale) => {
                    let message = format!("is {scale}; it is for models that edit pictures, which this one does not");
                    Err(Error::unsupported("image_guidance_scale", message))
                }
                None => Ok(()),
            };
        }
        if config.image.is_none() {
            return Err(Error::invalid("image", "is missing; this model edits a picture"));
        }
        if config.mask.is_some() {
            return Err(Error::unsupported("mask", "is not for this model, which edits whole pictures"));
        }
        if config.strength < 1.0 {
            let message = format!("is {}; this model edits pictures, and draws all steps", config.strength);
            return Err(Error::unsupported("strength", message));
        }
        Ok(())
    }

    fn schedule(&self, config: &SamplingConfig) -> Result<(SchedulerOptions, Schedule)> {
        let sampler = config.sampler.unwrap_or(self.info.default_sampler);
        let spacing = config.scheduler.unwrap_or(self.info.default_scheduler);
        let options = match &config.sigmas {
            Some(sigmas) => self.spec.scheduler.options(sampler, SpacingKind::Given)?.with_sigmas(sigmas),
            None => self.spec.scheduler.options(sampler, spacing)?,
        };
        let options = options.with_eta(config.eta)?;
        let strength = if config.image.is_some() { config.strength } else { 1.0 };
        let schedule = Schedule::last_part(&options, config.steps, strength)?;
        Ok((options, schedule))
    }

    /// Everything that the images of a request share.
    pub(super) fn plan<'a>(
        &self,
        config: &'a SamplingConfig,
        go_on: &mut dyn FnMut() -> Result<()>,
        warnings: &mut Vec<String>,
    ) -> Result<Drawing<'a>> {
        let (width, height) = self.info.size_for(config)?;
        let factor = self.spec.vae.factor();
        let (options, schedule) = self.schedule(config)?;
        let conditioning = text::condition(&self.networks.text, &self.spec, config, (height, width), warnings)?;
        let prepared = prepare(&self.networks.unet, &conditioning, config.guidance_scale)?;
        let origin = if config.image.is_some() || self.spec.shows_mask() {
            go_on()?;
            Some(self.origin(config, (height, width))?)
        } else {
            None
        };
        Ok(Drawing {
            config,
            agreement: self.agreement(config)?,
            options,
            guided: guided_steps(config.guidance_start, config.guidance_end, schedule.steps.len()),
            schedule,
            conditioning,
            prepared,
            push: text::is_guided(&self.spec, config).then(|| self.push(config)),
            origin,
            latent_size: (height / factor, width / factor),
        })
    }

    /// How far an image of a guided drawing is pushed.
    fn push(&self, config: &SamplingConfig) -> Push {
        let image_scale = config.image_guidance_scale.unwrap_or(DEFAULT_IMAGE_GUIDANCE_SCALE);
        Push {
            scale: config.guidance_scale,
            image_scale: self.spec.edits.then_some(image_scale),
            rescale: config.guidance_rescale,
        }
    }

    fn origin(&self, config: &SamplingConfig, size: (usize, usize)) -> Result<Origin> {
        if let Some(picture) = config.image.as_deref().filter(|_| self.spec.edits) {
            return Origin::edited(picture, size, &self.networks.device, |pixels| self.encode(pixels));
        }
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

/// What a denoiser makes of what it is told of a request.
pub(super) fn prepare(unet: &Unet, conditioning: &Conditioning, guidance_scale: f64) -> Result<Prepared> {
    unet.tell_guidance(unet.prepare(conditioning)?, guidance_scale)
}

/// What the images of a request share.
pub(super) struct Drawing<'a> {
    pub(super) config: &'a SamplingConfig,
    /// With whom they can share network passes.
    pub(super) agreement: Agreement,
    pub(super) options: SchedulerOptions,
    pub(super) schedule: Schedule,
    pub(super) conditioning: Conditioning,
    /// What the denoiser makes of the conditioning.
    pub(super) prepared: Prepared,
    /// `None` where there is one network pass a step.
    pub(super) push: Option<Push>,
    /// The steps in which there is guidance, where there is any.
    pub(super) guided: Range<usize>,
    /// `None` where a drawing starts from noise alone.
    pub(super) origin: Option<Origin>,
    /// Height and width.
    pub(super) latent_size: (usize, usize),
}
