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
            Self::Wide(unet) => prepare(unet, &drawing.conditioning, drawing.config.guidance_scale),
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::{
        models::{DeviceChoice, DtypeChoice, ModelSource},
        pipeline::{Generate, Generated, GroupJob, LoadOptions, Unwatched},
        sampling::{SamplerKind, SamplingConfig},
    };

    const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

    fn copy_folder(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_folder(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    /// A tiny checkpoint, one of whose denoiser's tensors is multiplied.
    fn checkpoint(tensor: &str, factor: f64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/data/sd15/model");
        copy_folder(&tiny, folder.path());
        let path = folder.path().join(WEIGHTS);
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let tensor = tensors.get_mut(tensor).unwrap();
        // In the file's f16 it would be infinite.
        *tensor = (tensor.to_dtype(DType::F32).unwrap() * factor).unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        folder
    }

    fn load(folder: &Path) -> InferencePipeline {
        let options = LoadOptions {
            source: ModelSource::Directory(folder.to_owned()),
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::F32,
            batch: "2".parse().unwrap(),
            ..LoadOptions::default()
        };
        InferencePipeline::load(&options, &mut |_| {}).unwrap()
    }

    /// All networks in f32 but the denoiser.
    fn narrow(folder: &Path) -> InferencePipeline {
        let mut pipeline = load(folder);
        pipeline.networks.unet = pipeline
            .with_weights_on("unet", &Device::Cpu, DType::F16, |weights| Unet::new(&pipeline.spec.unet, weights))
            .unwrap();
        pipeline.networks.dtype = DType::F16;
        pipeline.info.dtype = "f16".to_owned();
        pipeline
    }

    fn config(sampler: SamplerKind, n: usize) -> SamplingConfig {
        SamplingConfig {
            prompt: "a fox".into(),
            steps: 5,
            seed: 7,
            n,
            sampler: Some(sampler),
            ..SamplingConfig::default()
        }
    }

    #[test]
    fn what_overflows_f16_is_drawn_as_in_f32() {
        // The norm behind this layer brings its numbers back to where they were.
        let folder = checkpoint("down_blocks.0.resnets.0.conv1.weight", 1e7);
        let config = config(SamplerKind::EulerAncestral, 3);
        let wanted = load(folder.path()).generate(&config, &mut Unwatched).unwrap();
        let found = narrow(folder.path()).generate(&config, &mut Unwatched).unwrap();
        assert_eq!(found.images, wanted.images);
        let said = "the denoiser overflowed f16 at step 1 of 5; the drawing went on in f32";
        assert_eq!((found.warnings, wanted.warnings), (vec![said.to_owned()], Vec::new()));
    }

    #[test]
    fn a_drawing_goes_on_from_its_last_good_step() {
        let folder = checkpoint("conv_in.bias", 1.0);
        let pipeline = load(folder.path());
        for sampler in pipeline.spec.scheduler.samplers() {
            let config = config(sampler, 2);
            let drawing = pipeline.plan(&config, &mut || Ok(()), &mut Vec::new()).unwrap();
            let mut monitor = Unwatched;
            let mut jobs = [GroupJob { config: &config, monitor: &mut monitor }];
            let ended = &mut |_, _: Result<Generated>| {};
            let mut company = Company::new(&mut jobs, ended);
            let images: Vec<_> = Image::all_of(0, &drawing).collect();
            let wanted = pipeline.denoise(images.clone(), &mut company).unwrap();

            let denoiser = Denoiser::Loaded(&pipeline.networks.unet);
            let mut batch = pipeline.batch(images, denoiser).unwrap();
            let steps = &drawing.schedule.steps;
            let bad = steps.len().min(4) - 1;
            let mut before = batch.state.clone();
            for step in &steps[..=bad] {
                before = batch.state.clone();
                pipeline.step(&mut batch, step, denoiser, &mut company).unwrap();
                batch.steps_done += 1;
            }
            batch.steps_done = bad;
            let overflowed = [1, 0].map(|row| Overflowed::new(&batch, &before, row).unwrap());
            let found = pipeline.run_in_f32(overflowed.into(), &mut company).unwrap();
            let values = |latents: &Tensor| latents.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for ((_, found), (_, wanted)) in found.iter().rev().zip(&wanted) {
                assert_eq!(values(found), values(wanted), "{sampler}");
            }
        }
    }

    #[test]
    fn what_is_no_number_in_f32_either_ends_its_job_by_stage_and_step() {
        let folder = checkpoint("conv_out.bias", f64::NAN);
        for pipeline in [load(folder.path()), narrow(folder.path())] {
            let error = pipeline.generate(&config(SamplerKind::Euler, 2), &mut Unwatched).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::NotFinite { stage: "the denoiser", step: Some((1, 5)) }), "{error}");
            let said = "the denoiser gave values that are not finite at step 1 of 5: ";
            assert!(error.to_string().starts_with(said), "{error}");
        }
    }

    #[test]
    fn rows_are_told_apart() {
        assert_eq!(rows_by_finiteness(&[1.0, f32::NAN, f32::INFINITY, -2.0]), (vec![0, 3], vec![1, 2]));
    }
}
