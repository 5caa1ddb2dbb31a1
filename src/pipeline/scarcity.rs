//! A device that runs out of memory when a test says so, and what then becomes of the jobs that are drawn.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use super::room::Coding;
use crate::{Error, Result, models::Tiling};

/// What a device is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A step's pass of the denoiser. Of a guidance pair the images count once.
    Denoise { images: usize },
    /// A pass of the autoencoder.
    Code(Coding, Tiling),
}

/// Says of each piece of work whether there is no memory for it.
type Lacks = dyn FnMut(Work) -> bool + Send;

/// What a device has no memory for: nothing, unless a test says so.
#[derive(Default)]
pub(crate) struct Scarcity(Mutex<Option<Box<Lacks>>>);

impl fmt::Debug for Scarcity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scarcity")
    }
}

impl Scarcity {
    /// From now on there is no memory for that of which `lacks` says so.
    pub(crate) fn set(&self, lacks: impl FnMut(Work) -> bool + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(lacks));
    }

    /// What a device says to this work.
    pub(super) fn meet(&self, work: Work) -> Result<()> {
        let mut lacks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lacks.as_mut().is_some_and(|lacks| lacks(work)) {
            let message = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
            return Err(Error::Tensor(candle_core::Error::Msg(message.to_owned())));
        }
        Ok(())
    }
}

/// A small checkpoint whose passes draw up to `batch` images.
pub(crate) fn tiny(batch: &str) -> super::InferencePipeline {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/sd15/model");
    let options = super::LoadOptions {
        source: crate::models::ModelSource::Directory(folder.into()),
        device: crate::models::DeviceChoice::Cpu,
        dtype: crate::models::DtypeChoice::F32,
        batch: batch.parse().expect("a number of images"),
        ..super::LoadOptions::default()
    };
    super::InferencePipeline::load(&options, &mut |_| {}).expect("the checkpoint is whole")
}

mod tests {
    use image::DynamicImage;

    use super::*;
    use crate::{
        pipeline::{Generate, Generated, GroupJob, InferencePipeline, Monitor, TilingChoice, Unwatched},
        sampling::{SamplerKind, SamplingConfig},
    };

    const STEPS: usize = 3;

    /// Notes what it is told.
    #[derive(Default)]
    struct Notes {
        together: Vec<usize>,
        steps: Vec<usize>,
        previews: Vec<usize>,
    }

    impl Monitor for Notes {
        fn should_stop(&self) -> bool {
            false
        }

        fn drawn_together(&mut self, images: usize) {
            self.together.push(images);
        }

        fn progress(&mut self, step: usize, _total: usize) {
            self.steps.push(step);
        }

        fn preview(&mut self, step: usize, _image: DynamicImage) {
            self.previews.push(step);
        }
    }

    fn config(prompt: &str, n: usize) -> SamplingConfig {
        // One network pass a step.
        let sampler = Some(SamplerKind::Ddim);
        let (prompt, side) = (prompt.to_owned(), Some(64));
        let sized = SamplingConfig { width: side, height: side, ..SamplingConfig::default() };
        SamplingConfig { prompt, n, sampler, steps: STEPS, seed: 7, ..sized }
    }

    /// What became of each job, and what its monitor was told.
    fn draw(pipeline: &InferencePipeline, configs: &[SamplingConfig]) -> Vec<(Result<Generated>, Notes)> {
        let mut notes: Vec<Notes> = configs.iter().map(|_| Notes::default()).collect();
        let mut results: Vec<Option<Result<Generated>>> = configs.iter().map(|_| None).collect();
        let mut jobs: Vec<GroupJob<'_>> =
            configs.iter().zip(&mut notes).map(|(config, monitor)| GroupJob { config, monitor }).collect();
        pipeline.generate_group(&mut jobs, &mut |job, result| results[job] = Some(result)).unwrap();
        drop(jobs);
        results.into_iter().map(Option::unwrap).zip(notes).collect()
    }

    fn assert_as_alone(pipeline: &InferencePipeline, config: &SamplingConfig, drawn: &Result<Generated>) {
        let alone = pipeline.generate(config, &mut Unwatched).unwrap().images;
        let drawn = &drawn.as_ref().unwrap().images;
        assert_eq!(drawn.len(), config.n);
        for (drawn, alone) in drawn.iter().zip(&alone) {
            assert!(drawn.as_bytes() == alone.as_bytes(), "{} differs from what is drawn alone", config.prompt);
        }
    }

    fn assert_names_size<T: fmt::Debug>(result: &Result<T>) {
        assert!(matches!(result, Err(Error::OutOfMemory { width: 64, height: 64, .. })), "{result:?}");
    }

    #[test]
    fn a_batch_without_memory_in_the_middle_is_drawn_in_halves_and_no_step_is_told_twice() {
        let pipeline = tiny("4");
        let configs =
            [config("a fox", 1), SamplingConfig { preview_every: 1, ..config("an owl", 2) }, config("a hen", 1)];
        let mut large = 0;
        pipeline.scarcity.set(move |work| match work {
            // The second step of the batch of four.
            Work::Denoise { images: 3.. } => {
                large += 1;
                large == 2
            }
            _ => false,
        });
        let drawn = draw(&pipeline, &configs);
        for (config, (result, _)) in configs.iter().zip(&drawn) {
            assert_as_alone(&pipeline, config, result);
        }
        let [(_, fox), (_, owl), (_, hen)] = &drawn[..] else { panic!("three were drawn") };
        assert_eq!((&fox.steps[..], &fox.together[..]), (&[1, 2, 3][..], &[4, 2][..]));
        assert_eq!((&hen.steps[..], &hen.together[..]), (&[1, 2, 3][..], &[4, 2][..]));
        // Its images were drawn one after the other then, after a first step together.
        assert_eq!((&owl.steps[..], &owl.together[..]), (&[2, 3, 4, 5, 6][..], &[4, 2, 2][..]));
        assert_eq!(owl.previews, [2, 4, 5]);
    }

    #[test]
    fn a_job_without_memory_in_the_middle_is_drawn_once_more() {
        let pipeline = tiny("1");
        let config = SamplingConfig { preview_every: 1, ..config("a fox", 1) };
        let mut passes = 0;
        pipeline.scarcity.set(move |_| {
            passes += 1;
            passes == 3
        });
        let drawn = draw(&pipeline, std::slice::from_ref(&config));
        assert_as_alone(&pipeline, &config, &drawn[0].0);
        assert_eq!((&drawn[0].1.steps[..], &drawn[0].1.previews[..]), (&[1, 2, 3][..], &[1, 2][..]));
    }

    #[test]
    fn of_jobs_drawn_together_one_that_finds_no_memory_fails_alone() {
        let pipeline = tiny("2");
        let configs = [config("a fox", 1), config("an owl", 1), config("a hen", 1)];
        let mut passes = 0;
        // The pair's second step; then the first job's two tries.
        pipeline.scarcity.set(move |work| {
            passes += usize::from(matches!(work, Work::Denoise { .. }));
            matches!(work, Work::Denoise { .. }) && (2..=4).contains(&passes)
        });
        let drawn = draw(&pipeline, &configs);
        assert_names_size(&drawn[0].0);
        assert_as_alone(&pipeline, &configs[1], &drawn[1].0);
        assert_as_alone(&pipeline, &configs[2], &drawn[2].0);
        assert_eq!((&drawn[0].1.steps[..], &drawn[1].1.steps[..]), (&[1][..], &[1, 2, 3][..]));
    }

    #[test]
    fn a_decoder_without_memory_goes_on_in_strips_and_fails_alone_without() {
        let mut pipeline = tiny("2");
        let configs = [config("a fox", 1), config("an owl", 1)];
        pipeline.scarcity.set(|work| work == Work::Code(Coding::Decode, Tiling::Off));
        for (config, (result, _)) in configs.iter().zip(draw(&pipeline, &configs)) {
            assert_as_alone(&pipeline, config, &result);
        }
        // Neither of the first picture's tries; the second's has memory.
        pipeline.room.tiling = TilingChoice::Off;
        let mut tries = 0;
        pipeline.scarcity.set(move |work| {
            tries += usize::from(matches!(work, Work::Code(..)));
            matches!(work, Work::Code(..)) && tries <= 2
        });
        let drawn = draw(&pipeline, &configs);
        assert_names_size(&drawn[0].0);
        assert_as_alone(&pipeline, &configs[1], &drawn[1].0);
    }
}
