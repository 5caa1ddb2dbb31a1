//! What is done when latents are not finite any more.
//!
//! Owns the second try: an image that overflows a narrow number type goes on in f32 from its last good step. The loop
//! itself is [`denoise`](super::denoise)'s.

use candle_core::DType;

use super::{
    InferencePipeline,
    company::Company,
    denoise::{Batch, Image, State, told},
    origin::Start,
    pipeline::{Drawing, prepare},
    pixels::is_finite,
};
use crate::{
    Error, Result,
    models::{Prepared, Unet},
};

/// The network that a batch goes through.
#[derive(Clone, Copy)]
pub(super) enum Denoiser<'u> {
    Loaded(&'u Unet),
    /// Read again in f32, because the loaded one overflowed.
    Wide(&'u Unet),
}

/// An image as it was before the step that overflowed.
pub(super) struct Overflowed<'a> {
    image: Image<'a>,
    start: Start,
    state: State,
    steps_done: usize,
}

impl<'a> Overflowed<'a> {
    /// The image at `row` of a batch, with the state that the batch had `before` the step.
    pub(super) fn new(batch: &Batch<'a>, before: &State, row: usize) -> Result<Self> {
        let (mut start, mut state) = (batch.start.clone(), before.clone());
        start.select(&[row])?;
        state.select(&[row])?;
        Ok(Self { image: batch.images[row], start, state, steps_done: batch.steps_done })
    }
}

impl Denoiser<'_> {
    pub(super) fn unet(&self) -> &Unet {
        match self {
            Self::Loaded(unet) | Self::Wide(unet) => unet,
        }
    }

    /// What it makes of a drawing's conditioning; the loaded one's lies ready.
    pub(super) fn prepared(&self, drawing: &Drawing<'_>) -> Result<Prepared> {
        match self {
            Self::Loaded(_) => Ok(drawing.prepared.clone()),
            Self::Wide(unet) => prepare(unet, &drawing.conditioning),
        }
    }
}

impl InferencePipeline {
    /// Draws on in f32 what overflowed, one image after the other: the latents of those whose job goes on to the end.
    ///
    /// The network is read again and dropped afterwards, so that it takes memory only as long as it is needed.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub(super) fn run_in_f32<'a>(
        &self,
        overflowed: Vec<Overflowed<'a>>,
        company: &mut Company<'_, '_>,
    ) -> Result<Vec<(Image<'a>, candle_core::Tensor)>> {
        let (dtype, images) = (&self.info.dtype, overflowed.len());
        tracing::warn!(dtype, images, "the denoiser overflowed; drawing on in f32");
        let unet = match self.wide_unet(overflowed[0].image.drawing.agreement.size) {
            Ok(unet) => unet,
            Err(error) => {
                tracing::warn!(%error, "the denoiser cannot be read again in f32");
                for Overflowed { image, steps_done, .. } in overflowed {
                    end_not_finite(image, steps_done, company);
                }
                return Ok(Vec::new());
            }
        };
        let denoiser = Denoiser::Wide(&unet);
        let mut drawn = Vec::new();
        for Overflowed { image, start, state, steps_done } in overflowed {
            let (step, steps) = step_after(image, steps_done);
            let said = format!("the denoiser overflowed {dtype} at step {step} of {steps}; the drawing went on in f32");
            company.warn(image.job, said);
            let images = vec![image];
            let told = told(&images, denoiser, &self.networks.device)?;
            match self.run(Batch { images, start, told, state, steps_done }, denoiser, company, None) {
                // This image's job has ended; others may go on.
                Err(Error::Interrupted) => {}
                image => drawn.extend(image?),
            }
        }
        Ok(drawn)
    }

    /// The denoiser in f32, read again from the checkpoint, where it fits in what is free.
    fn wide_unet(&self, size: (usize, usize)) -> Result<Unet> {
        self.with_weights_on("unet", &self.networks.device, DType::F32, |weights| {
            self.check_bytes(weights.bytes(), size)?;
            Unet::new(&self.spec.unet, weights)
        })
    }
}

/// The rows whose sum is finite, and the others. One value that is not finite makes the sum so; finite latents, of total
/// variance 1, do not add up to infinity.
pub(super) fn rows_by_finiteness(sums: &[f32]) -> (Vec<usize>, Vec<usize>) {
    (0..sums.len()).partition(|row| sums[*row].is_finite())
}

/// Ends the job of an image whose latents are not finite after the step that follows `steps_done`.
pub(super) fn end_not_finite(image: Image<'_>, steps_done: usize, company: &mut Company<'_, '_>) {
    // The denoiser makes no numbers of a text that is none.
    let text_is_finite = is_finite(&image.drawing.conditioning.text).unwrap_or(true);
    let stage = if text_is_finite { "the denoiser" } else { "the text encoder" };
    company.end(image.job, Err(Error::NotFinite { stage, step: Some(step_after(image, steps_done)) }));
}

/// The step that follows so many, from 1, and how many there are.
fn step_after(image: Image<'_>, steps_done: usize) -> (usize, usize) {
    (steps_done + 1, image.drawing.schedule.steps.len())
}
