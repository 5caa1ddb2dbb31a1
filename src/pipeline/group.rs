//! Jobs that are drawn together, from their requests to their pictures.
//!
//! Owns which jobs can share network passes, and in which batches their images go through the denoise loop. Text is
//! encoded, and latents are decoded, one job and one image after another.

use std::time::Instant;

use candle_core::Tensor;
use image::DynamicImage;

use super::{
    Generate, GroupJob, InferencePipeline,
    company::{Company, Ended, Timed},
    denoise::Image,
    pipeline::Drawing,
    room::named_by_size,
    text,
};
use crate::{
    Error, Result,
    sampling::{SamplerKind, SamplingConfig, SpacingKind},
};

/// What requests have to have in common to go through the networks together: everything that decides the shapes of their
/// tensors, and the noise levels that they visit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreement {
    /// Height and width in pixels.
    pub(super) size: (usize, usize),
    steps: usize,
    sampler: SamplerKind,
    spacing: SpacingKind,
    sigmas: Option<Vec<f64>>,
    eta: Option<f64>,
    is_guided: bool,
    /// The part of the steps that are guided.
    guided: (f64, f64),
    /// The strength of those that start from a picture.
    strength: Option<f64>,
    has_mask: bool,
    /// Of how many chunks the text is. To fill up a shorter one would change its picture.
    prompt_chunks: usize,
}

impl InferencePipeline {
    /// What `config` has to have in common with others.
    pub(super) fn agreement(&self, config: &SamplingConfig) -> Result<Agreement> {
        let (width, height) = self.info.size_for(config)?;
        // Named one by one, so that whoever adds a field decides whether images drawn together may differ in it.
        let SamplingConfig {
            prompt: _,
            negative_prompt: _,
            width: _,
            height: _,
            steps,
            guidance_scale: _,
            seed: _,
            n: _,
            sampler,
            scheduler,
            sigmas,
            eta,
            image,
            mask,
            mask_blur: _,
            inpaint_padding: _,
            strength,
            clip_skip: _,
            preview_every: _,
            prompt_syntax: _,
            long_prompt: _,
            prompt_2: _,
            negative_prompt_2: _,
            original_size: _,
            crop: _,
            target_size: _,
            guidance_rescale: _,
            guidance_start,
            guidance_end,
            image_guidance_scale: _,
        } = config;
        Ok(Agreement {
            size: (height, width),
            steps: *steps,
            sampler: sampler.unwrap_or(self.info.default_sampler),
            spacing: scheduler.unwrap_or(self.info.default_scheduler),
            sigmas: sigmas.clone(),
            eta: *eta,
            is_guided: text::is_guided(&self.spec, config),
            guided: if text::is_guided(&self.spec, config) { (*guidance_start, *guidance_end) } else { (0.0, 1.0) },
            strength: image.as_ref().map(|_| *strength),
            has_mask: mask.is_some(),
            prompt_chunks: text::chunk_count(&self.networks.text, &self.spec, config)?,
        })
    }

    /// Draws jobs, those that agree in the same network passes as far as a batch goes. `ended` hears of each job's end when
    /// it comes.
    ///
    /// # Errors
    ///
    /// What failed in a pass that several jobs shared. Those that have not ended by then can be drawn alone.
    pub(super) fn draw(&self, jobs: &mut [GroupJob<'_>], ended: &mut Ended<'_>) -> Result<()> {
        let configs: Vec<&SamplingConfig> = jobs.iter().map(|job| job.config).collect();
        let mut company = Company::new(jobs, ended);
        let mut drawings = Vec::new();
        for (job, config) in configs.into_iter().enumerate() {
            match self.begin(job, config, &mut company) {
                Ok(drawing) => drawings.push((job, drawing)),
                Err(error) => company.end(job, Err(error)),
            }
        }
        let images: Vec<Image<'_>> = drawings.iter().flat_map(|(job, drawing)| Image::all_of(*job, drawing)).collect();
        let mut rest = images.as_slice();
        while let Some(first) = rest.first() {
            let agreement = &first.drawing.agreement;
            let agreeing = rest.iter().take_while(|image| image.drawing.agreement == *agreement).count();
            let (batch, others) = rest.split_at(self.images_that_fit(agreement.size, agreeing));
            rest = others;
            self.draw_batch(batch, &mut company)?;
        }
        Ok(())
    }

    /// Encodes a job's text, and the picture that it starts from.
    fn begin<'a>(&self, job: usize, config: &'a SamplingConfig, company: &mut Company<'_, '_>) -> Result<Drawing<'a>> {
        config.validate(&self.info.limits)?;
        self.check(config)?;
        self.check_free(config)?;
        let began = Instant::now();
        let mut warnings = Vec::new();
        let mut go_on = || if company.goes_on(job) { Ok(()) } else { Err(Error::Interrupted) };
        go_on()?;
        let drawing = self.plan(config, &mut go_on, &mut warnings)?;
        company.prepared(job, drawing.schedule.steps.len() * config.n, warnings);
        company.took(job, Timed::Encode, began.elapsed());
        Ok(drawing)
    }

    /// Draws images in the same passes, and ends the jobs whose last image that was.
    fn draw_batch(&self, images: &[Image<'_>], company: &mut Company<'_, '_>) -> Result<()> {
        // A job may have ended with an earlier batch.
        let images: Vec<_> = company.still_there(images).into_iter().map(|row| images[row]).collect();
        let Some(first) = images.first().copied() else { return Ok(()) };
        let mut jobs: Vec<usize> = images.iter().map(|image| image.job).collect();
        jobs.dedup();
        let mut began = Instant::now();
        let size = first.drawing.agreement.size;
        let steps_before = company.steps_done(&jobs);
        let mut denoised = self.denoise(images.clone(), company);
        if let Err(error) = &denoised
            && error.is_out_of_memory()
        {
            tracing::warn!(%error, images = images.len(), "the device is out of memory; trying once more with less");
            self.forget_encoder();
            company.go_back(&jobs, &steps_before);
            for job in &jobs {
                company.took(*job, Timed::Denoise, began.elapsed());
            }
            began = Instant::now();
            if images.len() > 1 {
                // Halves of halves come to one image, which is tried once more.
                let (first, second) = images.split_at(images.len() / 2);
                self.draw_batch(first, company)?;
                return self.draw_batch(second, company);
            }
            denoised = self.denoise(images, company).map_err(|error| named_by_size(error, size));
        }
        let denoised = match denoised {
            Ok(denoised) => denoised,
            Err(Error::Interrupted) => return Ok(()),
            // What fails with one job alone is that job's.
            Err(error) if jobs.len() == 1 => {
                company.end(first.job, Err(error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for job in jobs {
            company.took(job, Timed::Denoise, began.elapsed());
        }
        for (image, latents) in denoised {
            if company.goes_on(image.job) {
                let began = Instant::now();
                match self.finish(image.drawing, &latents) {
                    Ok(picture) => {
                        company.took(image.job, Timed::Decode, began.elapsed());
                        company.image_done(image.job, picture);
                    }
                    Err(error) => company.end(image.job, Err(error)),
                }
            }
        }
        Ok(())
    }

    /// The picture of an image's latents.
    fn finish(&self, drawing: &Drawing<'_>, latents: &Tensor) -> Result<DynamicImage> {
        let drawn = self.decode(latents)?;
        Ok(DynamicImage::ImageRgb8(match &drawing.origin {
            Some(origin) => origin.put_back(drawn),
            None => drawn,
        }))
    }
}
