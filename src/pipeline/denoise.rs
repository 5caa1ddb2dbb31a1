//! The one denoise loop: from noise, or from pictures with noise, to the latents of pictures.
//!
//! Owns the loop, and the batch of images that goes through it. Before each network call it asks the images' jobs "go
//! on?"; an image whose job has ended leaves the batch. The latents go to the decoder.

use std::ops::Range;

use candle_core::Tensor;

#[cfg(test)]
use super::scarcity::Work;
use super::{InferencePipeline, company::Company, origin::Start, pipeline::Drawing};
use crate::{
    Result,
    models::Prepared,
    sampling::{Asked, BatchNoise, Guidance, Level, NoiseGenerator, Push, Sampler, select},
};

/// One image of a job.
#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    /// The job's place in its company.
    pub(super) job: usize,
    pub(super) drawing: &'a Drawing<'a>,
    /// The image's own.
    pub(super) seed: u64,
}

/// Images that are drawn together.
struct Batch<'a> {
    images: Vec<Image<'a>>,
    start: Start,
    noise: BatchNoise,
    told: Told,
}

/// What the network is told of a batch of images, and how far they are pushed along that.
struct Told {
    prepared: Prepared,
    /// `None` where no image is guided.
    guidance: Option<Guidance>,
    /// The steps that are guided.
    guided: Range<usize>,
    /// What is told in the others; `None` where there are none, or where that is `prepared`.
    alone: Option<Prepared>,
}

impl Told {
    /// Guidance in a step, where there is any.
    fn guidance_at(&self, step: usize) -> Option<&Guidance> {
        self.guidance.as_ref().filter(|_| self.guided.contains(&step))
    }
}

impl<'a> Image<'a> {
    /// Every image of a job.
    pub(super) fn all_of(job: usize, drawing: &'a Drawing<'a>) -> impl Iterator<Item = Self> {
        (0..drawing.config.n as u64).map(move |number| Self { job, drawing, seed: drawing.config.seed + number })
    }
}

/// Latents as the decoder takes them, from those in units of what a schedule counts them in.
fn in_units_of(latents: Tensor, unit: f64) -> Result<Tensor> {
    if unit == 1.0 { Ok(latents) } else { Ok((latents * unit)?) }
}

impl InferencePipeline {
    /// The latents, `(1, c, h, w)` f32, of those of `images` whose job goes on to the end. All are of drawings that agree.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`](crate::Error::Interrupted) once every job has ended; else what failed.
    pub(super) fn denoise<'a>(
        &self,
        images: Vec<Image<'a>>,
        company: &mut Company<'_, '_>,
    ) -> Result<Vec<(Image<'a>, Tensor)>> {
        let Drawing { schedule, options, .. } = images[0].drawing;
        let mut batch = self.batch(images)?;
        company.drawn_together(&batch.images);
        let mut latents = batch.start.latents.clone();
        let mut sampler = Sampler::new(options, schedule);
        for (number, step) in schedule.steps.iter().enumerate() {
            company.go_on(&batch.images)?;
            let kept = company.still_there(&batch.images);
            if kept.len() < batch.images.len() {
                self.select(&mut batch, &kept)?;
                latents = select(&latents, &kept)?;
                sampler.select(&kept)?;
                company.drawn_together(&batch.images);
            }
            let Batch { images, start, noise, told } = &mut batch;
            let asked = Asked {
                denoise: &mut |x, level| {
                    company.go_on(images)?;
                    let output = match told.guidance_at(number) {
                        Some(guidance) => self.guided(start, x, level, (told, guidance))?,
                        None => self.unguided(start, x, level, told)?,
                    };
                    options.prediction_type.denoised(x, &output, level.sigma)
                },
                between: &mut |x, level| start.keep(x, Some(level.sigma)),
                noise,
            };
            let stepped = sampler.step(&latents, step, asked)?;
            latents = match schedule.steps.get(number + 1) {
                Some(next) => start.keep(stepped.latents, Some(next.level.sigma))?,
                None => stepped.latents,
            };
            // A device is told its work ahead of time. Progress, and a job's end, are about what it has done.
            self.networks.device.synchronize()?;
            company.step_done(images);
            let done = number + 1;
            if done < schedule.steps.len() {
                self.show_previews(images, done, &in_units_of(stepped.denoised, schedule.unit)?, company)?;
            }
        }
        // Nearly always 1; multiplying copies.
        let scale = schedule.final_scale;
        let latents = batch.start.keep(if scale == 1.0 { latents } else { (latents * scale)? }, None)?;
        let latents = in_units_of(latents, schedule.unit)?;
        let of_image = |(row, image)| Ok((image, latents.narrow(0, row, 1)?));
        batch.images.into_iter().enumerate().map(of_image).collect()
    }

    /// What the network says of a batch, guided: `(b, c, h, w)` f32.
    fn guided(&self, start: &Start, x: &Tensor, level: Level, (told, guidance): (&Told, &Guidance)) -> Result<Tensor> {
        guidance.guide(&self.forward(&start.seen_for_guidance(x)?, level, &told.prepared)?)
    }

    /// What the network says of a batch, told its prompts alone: `(b, c, h, w)` f32.
    fn unguided(&self, start: &Start, x: &Tensor, level: Level, told: &Told) -> Result<Tensor> {
        self.forward(&start.seen(x)?, level, told.alone.as_ref().unwrap_or(&told.prepared))
    }

    fn forward(&self, seen: &Tensor, level: Level, prepared: &Prepared) -> Result<Tensor> {
        #[cfg(test)]
        self.scarcity.meet(Work::Denoise { images: seen.dim(0)? })?;
        self.networks.unet.forward(seen, level.timestep, prepared)
    }

    /// Shows each job that asked for it what its first image of the batch looks like, `done` steps on.
    fn show_previews(
        &self,
        images: &[Image<'_>],
        done: usize,
        denoised: &Tensor,
        company: &mut Company<'_, '_>,
    ) -> Result<()> {
        let is_first = |row: usize| row == 0 || images[row - 1].job != images[row].job;
        for (row, image) in images.iter().enumerate().filter(|(row, _)| is_first(*row)) {
            let every = image.drawing.config.preview_every;
            if every > 0 && done.is_multiple_of(every) && company.is_new(image.job) && company.goes_on(image.job) {
                company.preview(image.job, self.preview(&denoised.narrow(0, row, 1)?)?);
            }
        }
        Ok(())
    }

    fn batch<'a>(&self, images: Vec<Image<'a>>) -> Result<Batch<'a>> {
        let mut generators: Vec<_> = images.iter().map(|image| NoiseGenerator::new(image.seed)).collect();
        let of_image = |(image, noise): (&Image<'_>, _)| self.start(image.drawing, noise);
        let start = Start::stack(images.iter().zip(&mut generators).map(of_image).collect::<Result<_>>()?)?;
        let told = self.told(&images)?;
        Ok(Batch { images, start, noise: BatchNoise::new(generators), told })
    }

    /// Keeps the images at `kept` of a batch.
    fn select(&self, batch: &mut Batch<'_>, kept: &[usize]) -> Result<()> {
        batch.images = kept.iter().map(|row| batch.images[*row]).collect();
        batch.start.select(kept)?;
        batch.noise.select(kept);
        batch.told = self.told(&batch.images)?;
        Ok(())
    }

    fn told(&self, images: &[Image<'_>]) -> Result<Told> {
        let prepared: Vec<_> = images.iter().map(|image| &image.drawing.prepared).collect();
        let prepared = Prepared::join(&prepared)?;
        let pushes: Option<Vec<Push>> = images.iter().map(|image| image.drawing.push).collect();
        let guidance = pushes.map(|pushes| Guidance::new(&pushes, &self.networks.device)).transpose()?;
        // Those that are drawn together agree about it.
        let Drawing { guided, schedule, .. } = images[0].drawing;
        let always = *guided == (0..schedule.steps.len());
        let alone = if guidance.is_some() && !always { Some(prepared.last(images.len())?) } else { None };
        Ok(Told { prepared, guidance, guided: guided.clone(), alone })
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
}
