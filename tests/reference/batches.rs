//! Images that are drawn together: each is the picture that it is alone.

use std::{cell::Cell, sync::Arc};

use darkroom::{
    Error, Result,
    models::{DeviceChoice, DtypeChoice, ModelSource},
    pipeline::{BatchChoice, Generate, Generated, GroupJob, InferencePipeline, LoadOptions, Monitor, Unwatched},
    sampling::{PromptSyntax, SamplerKind, SamplingConfig, SpacingKind},
};
use image::{DynamicImage, GrayImage, RgbImage};

use crate::support::{CHECKPOINTS, copy_folder, data, make_for_inpainting, psnr, tensors};

/// The least likeness of a picture to the one that it is alone, in dB.
const LEAST_PSNR: f64 = 50.0;

fn load_from(source: ModelSource, dtype: DtypeChoice, batch: &str) -> InferencePipeline {
    let batch: BatchChoice = batch.parse().unwrap();
    let options = LoadOptions { source, device: DeviceChoice::Cpu, dtype, batch, ..LoadOptions::default() };
    InferencePipeline::load(&options, &mut |_| {}).unwrap()
}

fn load(name: &str, dtype: DtypeChoice, batch: &str) -> InferencePipeline {
    load_from(ModelSource::Directory(data(&format!("{name}/model"))), dtype, batch)
}

/// What a job was told, and when it is to stop: after so many steps, or when it has been asked so often.
#[derive(Default)]
struct Told {
    steps: Vec<(usize, usize)>,
    previews: Vec<(usize, DynamicImage)>,
    stop_after: Option<usize>,
    asked: Cell<usize>,
    stop_when_asked: Option<usize>,
}

impl Monitor for Told {
    fn should_stop(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.stop_after.is_some_and(|steps| self.steps.len() >= steps)
            || self.stop_when_asked.is_some_and(|times| self.asked.get() >= times)
    }

    fn progress(&mut self, step: usize, total: usize) {
        self.steps.push((step, total));
    }

    fn preview(&mut self, step: usize, image: DynamicImage) {
        self.previews.push((step, image));
    }
}

/// Draws jobs together; how each ended.
fn draw_group(pipeline: &InferencePipeline, configs: &[SamplingConfig], told: &mut [Told]) -> Vec<Result<Generated>> {
    let job = |(config, told)| GroupJob { config, monitor: told as &mut dyn Monitor };
    let mut jobs: Vec<GroupJob<'_>> = configs.iter().zip(told).map(job).collect();
    let mut ends: Vec<Option<Result<Generated>>> = configs.iter().map(|_| None).collect();
    let ended = &mut |job: usize, result| assert!(ends[job].replace(result).is_none(), "{job} ended twice");
    pipeline.generate_group(&mut jobs, ended).unwrap();
    ends.into_iter().map(|end| end.expect("every job ends")).collect()
}

fn alone(pipeline: &InferencePipeline, config: &SamplingConfig) -> Vec<DynamicImage> {
    pipeline.generate(config, &mut Unwatched).unwrap().images
}

/// The least likeness of pictures to others.
fn likeness(found: &[DynamicImage], wanted: &[DynamicImage]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let each = found.iter().zip(wanted).map(|(found, wanted)| psnr(found.as_bytes(), wanted.as_bytes()));
    each.fold(f64::INFINITY, f64::min)
}

fn config(sampler: SamplerKind, steps: usize) -> SamplingConfig {
    SamplingConfig { prompt: "a fox".into(), steps, seed: 7, sampler: Some(sampler), ..SamplingConfig::default() }
}

#[test]
fn every_sampler_draws_the_images_of_a_request_together_as_one_by_one() {
    for name in CHECKPOINTS {
        let (pipeline, single) = (load(name, DtypeChoice::F32, "4"), load(name, DtypeChoice::F32, "auto"));
        for sampler in pipeline.model().samplers.clone() {
            let config = SamplingConfig { n: 4, ..config(sampler, 5) };
            let mut told = Told::default();
            let together = pipeline.generate(&config, &mut told).unwrap().images;
            assert_eq!(told.steps, [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)], "one pass a step");
            let found = likeness(&together, &alone(&single, &config));
            assert!(found >= LEAST_PSNR, "{name}, {sampler}: {found:.1} dB");
        }
    }
}

#[test]
fn narrower_numbers_draw_together_what_they_draw_alone() {
    // On the CPU kernels compute bf16, and the tensor library f16.
    for dtype in [DtypeChoice::Bf16, DtypeChoice::F16] {
        for name in ["sd15", "sdxl"] {
            let (pipeline, single) = (load(name, dtype, "4"), load(name, dtype, "auto"));
            let config = SamplingConfig { n: 3, ..config(SamplerKind::Dpmpp2m, 4) };
            let found = likeness(&alone(&pipeline, &config), &alone(&single, &config));
            assert!(found >= LEAST_PSNR, "{name}, {dtype}: {found:.1} dB");
        }
    }
}

/// Three jobs, four images, nothing alike but what has to be.
fn different(sampler: SamplerKind, steps: usize) -> [SamplingConfig; 3] {
    let plain = config(sampler, steps);
    [
        SamplingConfig { guidance_scale: 2.0, clip_skip: 1, ..plain.clone() },
        SamplingConfig { prompt: "an owl, at night".into(), seed: 90, n: 2, preview_every: 2, ..plain.clone() },
        SamplingConfig { prompt: "a red house".into(), negative_prompt: Some("green".into()), seed: 5, ..plain },
    ]
}

#[test]
fn jobs_of_other_prompts_scales_and_seeds_draw_together_what_they_draw_alone() {
    for name in CHECKPOINTS {
        let (pipeline, single) = (load(name, DtypeChoice::F32, "4"), load(name, DtypeChoice::F32, "1"));
        for sampler in [SamplerKind::Dpmpp2m, SamplerKind::EulerAncestral] {
            let configs = different(sampler, 5);
            assert!(configs.iter().all(|other| pipeline.can_join(&configs[0], other)));
            let mut told = <[Told; 3]>::default();
            let ends = draw_group(&pipeline, &configs, &mut told);
            for (config, end) in configs.iter().zip(ends) {
                let found = likeness(&end.unwrap().images, &alone(&single, config));
                assert!(found >= LEAST_PSNR, "{name}, {sampler}, {}: {found:.1} dB", config.prompt);
            }
            assert_eq!(told[0].steps, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
            assert_eq!(told[1].steps, [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]);
            // Of the job's images that are drawn together, the first is shown.
            let mut shown = Told::default();
            single.generate(&SamplingConfig { n: 1, ..configs[1].clone() }, &mut shown).unwrap();
            let previews = |told: &Told| told.previews.iter().map(|(_, image)| image.clone()).collect::<Vec<_>>();
            assert_eq!(told[1].previews.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4, 8]);
            assert!(likeness(&previews(&told[1]), &previews(&shown)) >= LEAST_PSNR);
        }
    }
}

#[test]
fn texts_of_one_number_of_chunks_draw_together_and_others_apart() {
    for name in ["sd15", "sdxl"] {
        let (pipeline, single) = (load(name, DtypeChoice::F32, "4"), load(name, DtypeChoice::F32, "1"));
        let [short, long, other] = different(SamplerKind::Euler, 3);
        let long = SamplingConfig { prompt: "a (red:1.3) fox BREAK in the snow".into(), ..long };
        let other = SamplingConfig { negative_prompt: Some("green BREAK [blue]".into()), ..other };
        assert!(pipeline.can_join(&long, &other), "{name}: the longer side counts");
        assert!(!pipeline.can_join(&short, &long), "{name}");
        let broken = SamplingConfig { prompt: "a BREAK b".into(), ..long.clone() };
        let plain = SamplingConfig { prompt_syntax: PromptSyntax::Plain, ..broken.clone() };
        assert!(!pipeline.can_join(&broken, &plain), "{name}: a plain text has no breaks");
        let configs = [short, long, other];
        let mut told = <[Told; 3]>::default();
        for (config, end) in configs.iter().zip(draw_group(&pipeline, &configs, &mut told)) {
            let found = likeness(&end.unwrap().images, &alone(&single, config));
            assert!(found >= LEAST_PSNR, "{name}, {}: {found:.1} dB", config.prompt);
        }
    }
}

#[test]
fn jobs_without_guidance_draw_together() {
    for name in ["sd15", "sdxl"] {
        let (pipeline, single) = (load(name, DtypeChoice::F32, "3"), load(name, DtypeChoice::F32, "1"));
        let unguided = |config: &SamplingConfig| SamplingConfig { guidance_scale: 1.0, ..config.clone() };
        let configs = different(SamplerKind::Lms, 4);
        assert!(!pipeline.can_join(&configs[0], &unguided(&configs[1])));
        let configs = configs.each_ref().map(unguided);
        let mut told = <[Told; 3]>::default();
        for (config, end) in configs.iter().zip(draw_group(&pipeline, &configs, &mut told)) {
            let found = likeness(&end.unwrap().images, &alone(&single, config));
            assert!(found >= LEAST_PSNR, "{name}, {}: {found:.1} dB", config.prompt);
        }
    }
}

#[test]
fn a_job_that_stops_costs_its_company_nothing() {
    let (pipeline, single) = (load("sd15", DtypeChoice::F32, "8"), load("sd15", DtypeChoice::F32, "1"));
    for sampler in pipeline.model().samplers.clone() {
        let [first, second, third] = different(sampler, 6);
        let configs = [first.clone(), second, third.clone()];
        let mut told = [Told::default(), Told { stop_after: Some(3), ..Told::default() }, Told::default()];
        let [first_end, stopped, third_end] = draw_group(&pipeline, &configs, &mut told).try_into().unwrap();
        assert!(matches!(stopped, Err(Error::Interrupted)), "{sampler}");
        assert_eq!(told[1].steps, [(2, 12), (4, 12), (6, 12)], "{sampler}");
        for (config, end) in [(first, first_end), (third, third_end)] {
            let found = likeness(&end.unwrap().images, &alone(&single, &config));
            assert!(found >= LEAST_PSNR, "{sampler}, {}: {found:.1} dB", config.prompt);
        }
        assert_eq!(told[0].steps.len(), 6, "{sampler}");
    }
}

#[test]
fn a_job_that_stops_between_two_looks_at_the_network_costs_its_company_nothing() {
    let (pipeline, single) = (load("sd15", DtypeChoice::F32, "8"), load("sd15", DtypeChoice::F32, "1"));
    for sampler in [SamplerKind::Heun, SamplerKind::Dpm2Ancestral] {
        let [first, _, third] = different(sampler, 3);
        let wanted = alone(&single, &third);
        let configs = [first, third];
        let mut steps_done = Vec::new();
        for asked in 1.. {
            let mut told = [Told { stop_when_asked: Some(asked), ..Told::default() }, Told::default()];
            let [stopped, other] = draw_group(&pipeline, &configs, &mut told).try_into().unwrap();
            let found = likeness(&other.unwrap().images, &wanted);
            assert!(found >= LEAST_PSNR, "{sampler}, stopped when asked {asked} times: {found:.1} dB");
            if stopped.is_ok() {
                break;
            }
            steps_done.push(told[0].steps.len());
        }
        // Before the text, before each step, each look (two in all steps but the last), and the decoder.
        assert_eq!(steps_done, [0, 0, 0, 0, 1, 1, 1, 2, 2, 3], "{sampler}");
    }
}

#[test]
fn a_job_that_fails_costs_its_company_nothing() {
    let pipeline = load("sd2", DtypeChoice::F32, "4");
    let [first, second, third] = different(SamplerKind::Euler, 3);
    let configs = [SamplingConfig { prompt: String::new(), ..first }, second, SamplingConfig { steps: 4, ..third }];
    let mut told = <[Told; 3]>::default();
    let [failed, drawn, other] = draw_group(&pipeline, &configs, &mut told).try_into().unwrap();
    assert!(matches!(failed, Err(Error::InvalidParameter { field: "prompt", .. })));
    assert_eq!(drawn.unwrap().images.len(), 2);
    // Whoever brings together what does not agree has it drawn all the same.
    assert!(!pipeline.can_join(&configs[1], &configs[2]));
    assert_eq!((other.unwrap().images.len(), told[2].steps.len()), (1, 4));
}

#[test]
fn more_images_than_a_pass_draws_are_drawn_in_several() {
    let (pipeline, single) = (load("sd15", DtypeChoice::F32, "2"), load("sd15", DtypeChoice::F32, "1"));
    let config = SamplingConfig { n: 3, ..config(SamplerKind::Ddim, 2) };
    assert_eq!((pipeline.images_together(&config), single.images_together(&config)), (2, 1));
    let mut told = Told::default();
    let images = pipeline.generate(&config, &mut told).unwrap().images;
    assert_eq!(told.steps, [(2, 6), (4, 6), (5, 6), (6, 6)]);
    assert!(likeness(&images, &alone(&single, &config)) >= LEAST_PSNR);
}

/// A picture to change, and what of it.
fn inputs() -> (Arc<RgbImage>, Arc<GrayImage>) {
    let open = |name: &str| image::open(data(&format!("inputs/{name}.png"))).unwrap();
    (Arc::new(open("picture").into_rgb8()), Arc::new(open("mask").into_luma8()))
}

/// Draws jobs that change pictures, the last of which stops on the way, and the others alone.
fn change_together(source: impl Fn() -> ModelSource, sampler: SamplerKind, masked: bool) {
    let (pipeline, single) = (load_from(source(), DtypeChoice::F32, "4"), load_from(source(), DtypeChoice::F32, "1"));
    let (picture, mask) = inputs();
    let flipped = Arc::new(image::imageops::flip_horizontal(&*mask));
    let change = |config: SamplingConfig, mask: &Arc<GrayImage>| SamplingConfig {
        image: Some(Arc::clone(&picture)),
        mask: masked.then(|| Arc::clone(mask)),
        strength: 0.7,
        width: Some(64),
        height: Some(64),
        ..config
    };
    let [first, second, third] = different(sampler, 6);
    assert!(!pipeline.can_join(&first, &change(first.clone(), &mask)), "a picture visits other noise levels");
    let configs = [change(first, &mask), change(second, &flipped), change(third, &mask)];
    let mut told = [Told::default(), Told::default(), Told { stop_after: Some(2), ..Told::default() }];
    let [first, second, stopped] = draw_group(&pipeline, &configs, &mut told).try_into().unwrap();
    assert!(matches!(stopped, Err(Error::Interrupted)));
    for (config, end) in configs.iter().zip([first, second]) {
        let found = likeness(&end.unwrap().images, &alone(&single, config));
        assert!(found >= LEAST_PSNR, "{sampler}, {}: {found:.1} dB", config.prompt);
    }
}

#[test]
fn pictures_are_changed_together_as_alone() {
    let source = || ModelSource::Directory(data("sd15/model"));
    for sampler in [SamplerKind::Heun, SamplerKind::UniPc] {
        for masked in [false, true] {
            change_together(source, sampler, masked);
        }
    }
}

#[test]
fn a_checkpoint_made_for_inpainting_draws_together_what_it_draws_alone() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&data("sd15/model"), folder.path());
    let first = tensors("sd15/inpainting.safetensors").remove("conv_in.weight").unwrap();
    make_for_inpainting(folder.path(), |_| first);
    let source = || ModelSource::Directory(folder.path().to_owned());
    change_together(source, SamplerKind::Dpm2Ancestral, true);
    // Text alone is drawn in a mask of its own.
    let (pipeline, single) = (load_from(source(), DtypeChoice::F32, "4"), load_from(source(), DtypeChoice::F32, "1"));
    let config = SamplingConfig { n: 2, scheduler: Some(SpacingKind::Karras), ..config(SamplerKind::Euler, 3) };
    assert!(likeness(&alone(&pipeline, &config), &alone(&single, &config)) >= LEAST_PSNR);
}
