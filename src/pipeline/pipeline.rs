//! The pipeline itself: text to noise to latents to pixels, with the one denoise loop.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, RgbImage};

use super::{
    Generate, Generated, ModelInfo, Monitor, StageTimings, Unwatched,
    origin::{Given, Origin, Start},
    text::{self, EncodedText, TextEncoder},
};
use crate::{
    Error, Result,
    models::{Checkpoint, LatentDistribution, ModelSpec, Prepared, Unet, VaeDecoder, VaeEncoder},
    nn::{LoadProgress, Weights},
    sampling::{Asked, Level, NoiseGenerator, Sampler, SamplingConfig, Schedule, SchedulerOptions, guide},
};

/// A preview's longer side in latents: what is larger is averaged down before it is decoded.
const PREVIEW_LATENTS: usize = 32;
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

    /// A prompt as the denoiser is told it, with the last `clip_skip` layers of the text encoders left out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for a prompt that cannot be tokenized.
    pub fn encode_text(&self, prompt: &str, clip_skip: usize) -> Result<EncodedText> {
        text::encode(&self.networks.text, self.spec.family, prompt, clip_skip)
    }

    /// The latents of one image, with the image's own seed: `(1, c, h, w)` f32.
    fn denoise(&self, drawing: &Drawing, seed: u64, watch: &mut Watch<'_>) -> Result<Tensor> {
        let mut noise = NoiseGenerator::new(seed);
        let start = self.start(drawing, &mut noise)?;
        let mut latents = start.latents.clone();
        let preview_every = drawing.config.preview_every;
        let mut sampler = Sampler::new(&drawing.options, &drawing.schedule);
        let steps = &drawing.schedule.steps;
        for (number, step) in steps.iter().enumerate() {
            let asked = Asked {
                denoise: &mut |x, level| self.predict(drawing, &start, x, level, watch),
                between: &mut |x, level| start.keep(x, Some(level.sigma)),
                noise: &mut noise,
            };
            let stepped = sampler.step(&latents, step, asked)?;
            latents = match steps.get(number + 1) {
                Some(next) => start.keep(stepped.latents, Some(next.level.sigma))?,
                None => stepped.latents,
            };
            watch.step_done();
            let done = number + 1;
            if preview_every > 0 && done % preview_every == 0 && done < steps.len() {
                watch.go_on()?;
                let preview = self.preview(&stepped.denoised)?;
                watch.monitor.preview(watch.steps_done, preview);
            }
        }
        // Nearly always 1; multiplying copies.
        let scale = drawing.schedule.final_scale;
        start.keep(if scale == 1.0 { latents } else { (latents * scale)? }, None)
    }

    /// What one image is denoised from.
    fn start(&self, drawing: &Drawing, noise: &mut NoiseGenerator) -> Result<Start> {
        let shape = (1, self.spec.vae.latent_channels, drawing.latent_size.0, drawing.latent_size.1);
        if let Some(origin) = &drawing.origin {
            // Without a picture there is nothing to keep a part of.
            let strength = if drawing.config.image.is_some() { drawing.config.strength } else { 1.0 };
            return origin.start(&self.networks.vae, &drawing.schedule, strength, noise, shape);
        }
        let values = noise.normals(shape.1 * shape.2 * shape.3);
        let latents = Tensor::from_vec(values, shape, &self.networks.device)?;
        Ok(Start::of_noise((latents * drawing.schedule.initial_scale)?))
    }

    /// What the network takes the picture to be: `(x, level) → x₀`, guided where that was asked for.
    fn predict(
        &self,
        drawing: &Drawing,
        start: &Start,
        x: &Tensor,
        level: Level,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        watch.go_on()?;
        let output = self.networks.unet.forward(&start.seen(x)?, level.timestep, &drawing.prepared)?;
        let output =
            if text::is_guided(drawing.config) { guide(&output, drawing.config.guidance_scale)? } else { output };
        drawing.options.prediction_type.denoised(x, &output, level.sigma)
    }

    /// The picture of latents, decoded again in f32 where a narrower type was not enough.
    fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        if !is_finite(latents)? {
            return Err(Error::NotFinite { stage: "the denoiser" });
        }
        let mut pixels = self.networks.vae.decode(latents)?;
        if !is_finite(&pixels)? && self.networks.vae_dtype != DType::F32 {
            tracing::warn!(dtype = ?self.networks.vae_dtype, "the autoencoder overflowed; decoding again in f32");
            pixels = self.wide_vae()?.decode(latents)?;
        }
        if !is_finite(&pixels)? {
            return Err(Error::NotFinite { stage: "the autoencoder" });
        }
        to_image(&pixels)
    }

    /// The decoder in f32, read again from the checkpoint.
    fn wide_vae(&self) -> Result<VaeDecoder> {
        self.with_vae_weights(DType::F32, |weights| VaeDecoder::new(&self.spec.vae, weights))
    }

    /// The autoencoder's encoder, read from the checkpoint: text to image needs none, so that loading leaves it out.
    ///
    /// # Errors
    ///
    /// What is wrong with the checkpoint's file.
    pub fn load_encoder(&self) -> Result<VaeEncoder> {
        self.with_vae_weights(self.networks.vae_dtype, |weights| VaeEncoder::new(&self.spec.vae, weights))
    }

    /// What the encoder makes of pixels `(1, 3, h, w)` of -1 to 1, once more in f32 where a narrower type was not enough.
    fn encode(&self, pixels: &Tensor) -> Result<LatentDistribution> {
        let encoder = {
            let mut kept = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            match &*kept {
                Some(encoder) => Arc::clone(encoder),
                None => Arc::clone(kept.insert(Arc::new(self.load_encoder()?))),
            }
        };
        let encoded = encoder.encode(pixels)?;
        if encoded.is_finite()? {
            return Ok(encoded);
        }
        if self.networks.vae_dtype != DType::F32 {
            tracing::warn!(dtype = ?self.networks.vae_dtype, "the autoencoder overflowed; encoding again in f32");
            let wide = self.with_vae_weights(DType::F32, |weights| VaeEncoder::new(&self.spec.vae, weights))?;
            let encoded = wide.encode(pixels)?;
            if encoded.is_finite()? {
                return Ok(encoded);
            }
        }
        Err(Error::NotFinite { stage: "the autoencoder's encoder" })
    }

    fn with_vae_weights<T>(&self, dtype: DType, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        let mut quiet = |_| {};
        let progress = LoadProgress::new(&mut quiet);
        build(&Weights::open(self.checkpoint.weights("vae")?, &self.networks.device, dtype, &progress)?)
    }

    /// A picture of unfinished latents, at most [`PREVIEW_LATENTS`] latents long.
    fn preview(&self, denoised: &Tensor) -> Result<DynamicImage> {
        let (_, _, height, width) = denoised.dims4()?;
        let shrink = height.max(width).div_ceil(PREVIEW_LATENTS);
        let small = if shrink > 1 { denoised.avg_pool2d(shrink)? } else { denoised.clone() };
        // What is not finite yet may still become so; a preview shows it as it is.
        to_image(&self.networks.vae.decode(&small)?).map(DynamicImage::ImageRgb8)
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
        text::check(&self.networks.text, config)?;
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
struct Drawing<'a> {
    config: &'a SamplingConfig,
    options: SchedulerOptions,
    schedule: Schedule,
    prepared: Prepared,
    /// `None` where a drawing starts from noise alone.
    origin: Option<Origin>,
    /// Height and width.
    latent_size: (usize, usize),
}

/// The monitor, and how far a request is.
struct Watch<'a> {
    monitor: &'a mut dyn Monitor,
    steps_done: usize,
    steps: usize,
}

impl Watch<'_> {
    /// Asked before each network call.
    fn go_on(&self) -> Result<()> {
        if self.monitor.should_stop() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn step_done(&mut self) {
        self.steps_done += 1;
        self.monitor.progress(self.steps_done, self.steps);
    }
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

fn is_finite(x: &Tensor) -> Result<bool> {
    // One value that is not finite makes the sum so; finite ones of a picture's size do not add up to infinity.
    Ok(x.sum_all()?.to_scalar::<f32>()?.is_finite())
}

/// `(1, 3, h, w)` of -1 to 1 as an RGB image.
fn to_image(pixels: &Tensor) -> Result<RgbImage> {
    let (_, _, height, width) = pixels.dims4()?;
    let bytes = ((pixels.clamp(-1.0, 1.0)? + 1.0)? * 127.5)?.round()?.to_dtype(DType::U8)?;
    let bytes = bytes.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
    let side = |side: usize| u32::try_from(side).map_err(|error| Error::Image(error.to_string()));
    let image = RgbImage::from_raw(side(width)?, side(height)?, bytes);
    Ok(image.expect("a picture has three bytes a pixel"))
}
