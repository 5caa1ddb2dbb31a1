//! The one denoise loop: from noise, or from a picture with noise, to the latents of a picture.
//!
//! Owns the loop and the question "go on?" before each network call. What the images of a request share comes in as a
//! [`Drawing`]; the latents go to the decoder.

use candle_core::Tensor;

use super::{InferencePipeline, Monitor, origin::Start, pipeline::Drawing, text};
use crate::{
    Error, Result,
    sampling::{Asked, Level, NoiseGenerator, Sampler, guide},
};

impl InferencePipeline {
    /// The latents of one image, with the image's own seed: `(1, c, h, w)` f32.
    pub(super) fn denoise(&self, drawing: &Drawing, seed: u64, watch: &mut Watch<'_>) -> Result<Tensor> {
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
}

/// The monitor, and how far a request is.
pub(super) struct Watch<'a> {
    pub(super) monitor: &'a mut dyn Monitor,
    pub(super) steps_done: usize,
    pub(super) steps: usize,
}

impl Watch<'_> {
    /// Asked before each network call.
    pub(super) fn go_on(&self) -> Result<()> {
        if self.monitor.should_stop() { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn step_done(&mut self) {
        self.steps_done += 1;
        self.monitor.progress(self.steps_done, self.steps);
    }
}
