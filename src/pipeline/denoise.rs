//! The one denoise loop: from noise, or from pictures with noise, to the latents of pictures.
//!
//! Owns the loop, and the batch of images that goes through it. Before each network call it asks the images' jobs "go
//! on?"; an image whose job has ended leaves the batch. The latents go to the decoder.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

#[cfg(test)]
use super::scarcity::Work;
use super::{
    InferencePipeline,
    company::Company,
    origin::Start,
    pipeline::Drawing,
    recovery::{Denoiser, Overflowed, end_not_finite, rows_by_finiteness},
};
use crate::{
    Error, Result,
    models::Prepared,
    sampling::{Asked, BatchNoise, Guidance, Level, NoiseGenerator, Push, Sampler, Step, select},
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

/// Images that are drawn together, and how far they are.
pub(super) struct Batch<'a> {
    pub(super) images: Vec<Image<'a>>,
    pub(super) start: Start,
    pub(super) told: Told,
    pub(super) state: State,
    pub(super) steps_done: usize,
}

/// What a step goes on from. Clones share the numbers.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// `(b, c, h, w)` f32.
    latents: Tensor,
    sampler: Sampler,
    noise: BatchNoise,
}

/// What the network is told of a batch of images, and how far they are pushed along that.
pub(super) struct Told {
    prepared: Prepared,
    /// `None` where no image is guided.
    guidance: Option<Guidance>,
    /// The steps that are guided.
    guided: Range<usize>,
    /// What is told in the others; `None` where there are none, or where that is `prepared`.
    alone: Option<Prepared>,
}

impl Told {
    /// What the network is told in a step, and the guidance there, if there is any.
    fn at(&self, step: usize) -> (&Prepared, Option<&Guidance>) {
        match &self.guidance {
            Some(guidance) if self.guided.contains(&step) => (&self.prepared, Some(guidance)),
            _ => (self.alone.as_ref().unwrap_or(&self.prepared), None),
        }
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
    /// An image whose latents overflow a narrow number type goes on in f32, alone, from its last good step. A job with an
    /// image whose latents are not finite in f32 either has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] once every job has ended; else what failed.
    pub(super) fn denoise<'a>(
        &self,
        images: Vec<Image<'a>>,
        company: &mut Company<'_, '_>,
    ) -> Result<Vec<(Image<'a>, Tensor)>> {
        let denoiser = Denoiser::Loaded(&self.networks.unet);
        let batch = self.batch(images, denoiser)?;
        let mut overflowed = Vec::new();
        let can_widen = self.networks.dtype != DType::F32;
        let drawn = self.run(batch, denoiser, company, can_widen.then_some(&mut overflowed));
        if overflowed.is_empty() {
            return drawn;
        }
        let mut drawn = match drawn {
            // Those that overflowed may be of other jobs.
            Err(Error::Interrupted) => Vec::new(),
            drawn => drawn?,
        };
        drawn.extend(self.run_in_f32(overflowed, company)?);
        drawn.sort_by_key(|(image, _)| (image.job, image.seed));
        Ok(drawn)
    }

    /// Takes a batch from where it is to the last step. Images whose latents are not finite any more leave it: for
    /// `overflowed`, each as it was before the step, or else with the end of their job.
    pub(super) fn run<'a>(
        &self,
        mut batch: Batch<'a>,
        denoiser: Denoiser<'_>,
        company: &mut Company<'_, '_>,
        mut overflowed: Option<&mut Vec<Overflowed<'a>>>,
    ) -> Result<Vec<(Image<'a>, Tensor)>> {
        let schedule = &batch.images[0].drawing.schedule;
        company.drawn_together(&batch.images);
        while let Some(step) = schedule.steps.get(batch.steps_done) {
            company.go_on(&batch.images)?;
            let kept = company.still_there(&batch.images);
            if kept.len() < batch.images.len() {
                self.select(&mut batch, &kept, denoiser)?;
                company.drawn_together(&batch.images);
            }
            let before = overflowed.is_some().then(|| batch.state.clone());
            let mut denoised = self.step(&mut batch, step, denoiser, company)?;
            let sums = batch.state.latents.flatten_from(1)?.sum(1)?;
            // A device is told its work ahead of time. Progress, and a job's end, are about what it has done.
            self.networks.device.synchronize()?;
            let (finite, others) = rows_by_finiteness(&sums.to_vec1()?);
            if !others.is_empty() {
                for row in others {
                    match (&mut overflowed, &before) {
                        (Some(overflowed), Some(before)) => overflowed.push(Overflowed::new(&batch, before, row)?),
                        _ => end_not_finite(batch.images[row], batch.steps_done, company),
                    }
                }
                if finite.is_empty() {
                    return Ok(Vec::new());
                }
                self.select(&mut batch, &finite, denoiser)?;
                denoised = select(&denoised, &finite)?;
                company.drawn_together(&batch.images);
            }
            batch.steps_done += 1;
            company.step_done(&batch.images);
            if batch.steps_done < schedule.steps.len() {
                let denoised = in_units_of(denoised, schedule.unit)?;
                self.show_previews(&batch.images, batch.steps_done, &denoised, company)?;
            }
        }
        // Nearly always 1; multiplying copies.
        let (scale, latents) = (schedule.final_scale, batch.state.latents);
        let latents = batch.start.keep(if scale == 1.0 { latents } else { (latents * scale)? }, None)?;
        let latents = in_units_of(latents, schedule.unit)?;
        let of_image = |(row, image)| Ok((image, latents.narrow(0, row, 1)?));
        batch.images.into_iter().enumerate().map(of_image).collect()
    }

    /// Takes one step; returns what the network last took the pictures to be: `(b, c, h, w)` f32.
    pub(super) fn step(
        &self,
        batch: &mut Batch<'_>,
        step: &Step,
        denoiser: Denoiser<'_>,
        company: &mut Company<'_, '_>,
    ) -> Result<Tensor> {
        let Batch { images, start, told, state, steps_done } = batch;
        let Drawing { schedule, options, .. } = images[0].drawing;
        let asked = Asked {
            denoise: &mut |x, level| {
                company.go_on(images)?;
                let output = self.outputs(denoiser, start, x, level, told.at(*steps_done))?;
                options.prediction_type.denoised(x, &output, level.sigma)
            },
            between: &mut |x, level| start.keep(x, Some(level.sigma)),
            noise: &mut state.noise,
        };
        let stepped = state.sampler.step(&state.latents, step, asked)?;
        state.latents = match schedule.steps.get(*steps_done + 1) {
            Some(next) => start.keep(stepped.latents, Some(next.level.sigma))?,
            None => stepped.latents,
        };
        Ok(stepped.denoised)
    }

    /// What the network says of a batch, guided where there is guidance: `(b, c, h, w)` f32.
    fn outputs(
        &self,
        denoiser: Denoiser<'_>,
        start: &Start,
        x: &Tensor,
        level: Level,
        (prepared, guidance): (&Prepared, Option<&Guidance>),
    ) -> Result<Tensor> {
        #[cfg(test)]
        self.scarcity.meet(Work::Denoise { images: x.dim(0)? })?;
        let forward = |seen: &Tensor| denoiser.unet().forward(seen, level.timestep, prepared);
        match guidance {
            Some(guidance) => guidance.guide(&forward(&start.seen_for_guidance(x)?)?),
            None => forward(&start.seen(x)?),
        }
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

    pub(super) fn batch<'a>(&self, images: Vec<Image<'a>>, denoiser: Denoiser<'_>) -> Result<Batch<'a>> {
        let mut generators: Vec<_> = images.iter().map(|image| NoiseGenerator::new(image.seed)).collect();
        let of_image = |(image, noise): (&Image<'_>, _)| self.start(image.drawing, noise);
        let start = Start::stack(images.iter().zip(&mut generators).map(of_image).collect::<Result<_>>()?)?;
        let Drawing { schedule, options, .. } = images[0].drawing;
        let state = State {
            latents: start.latents.clone(),
            sampler: Sampler::new(options, schedule),
            noise: BatchNoise::new(generators),
        };
        let told = told(&images, denoiser, &self.networks.device)?;
        Ok(Batch { images, start, told, state, steps_done: 0 })
    }

    /// Keeps the images at `kept` of a batch.
    fn select(&self, batch: &mut Batch<'_>, kept: &[usize], denoiser: Denoiser<'_>) -> Result<()> {
        batch.images = kept.iter().map(|row| batch.images[*row]).collect();
        batch.start.select(kept)?;
        batch.state.select(kept)?;
        batch.told = told(&batch.images, denoiser, &self.networks.device)?;
        Ok(())
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

impl State {
    pub(super) fn select(&mut self, kept: &[usize]) -> Result<()> {
        self.latents = select(&self.latents, kept)?;
        self.sampler.select(kept)?;
        self.noise.select(kept);
        Ok(())
    }
}

/// What the denoiser is told of images.
pub(super) fn told(images: &[Image<'_>], denoiser: Denoiser<'_>, device: &Device) -> Result<Told> {
    let prepared = images.iter().map(|image| denoiser.prepared(image.drawing)).collect::<Result<Vec<_>>>()?;
    let prepared = Prepared::join(&prepared.iter().collect::<Vec<_>>())?;
    let pushes: Option<Vec<Push>> = images.iter().map(|image| image.drawing.push).collect();
    let guidance = pushes.map(|pushes| Guidance::new(&pushes, device)).transpose()?;
    // Those that are drawn together agree about it.
    let Drawing { guided, schedule, .. } = images[0].drawing;
    let always = *guided == (0..schedule.steps.len());
    let alone = if guidance.is_some() && !always { Some(prepared.last(images.len())?) } else { None };
    Ok(Told { prepared, guidance, guided: guided.clone(), alone })
}
