//! Guidance beyond its scale, and pictures that are edited by instruction, against diffusers on the tiny checkpoints.

use std::{path::Path, sync::Arc};

use darkroom::{
    Error,
    models::{DeviceChoice, DtypeChoice, ModelSource, ModelSpec},
    pipeline::{BatchChoice, Generate, Generated, GroupJob, InferencePipeline, LoadOptions, PictureUse, Unwatched},
    sampling::{LongPrompt, PromptSyntax, SamplerKind, SamplingConfig},
};
use image::{GrayImage, RgbImage};
use serde::Deserialize;

use crate::support::{CHECKPOINTS, copy_folder, data, json, load, load_as, make_for_editing, pipeline, psnr, tensors};

/// The least likeness to diffusers' picture, in dB.
const LEAST_PSNR: f64 = 50.0;

#[derive(Deserialize)]
struct Case {
    name: String,
    sampler: String,
    steps: usize,
    guidance_scale: f64,
    #[serde(default)]
    guidance_rescale: f64,
    #[serde(default)]
    guidance_start: f64,
    #[serde(default = "one")]
    guidance_end: f64,
    image_guidance_scale: Option<f64>,
    seed: u64,
    prompt: String,
    negative_prompt: Option<String>,
    height: usize,
    width: usize,
}

fn one() -> f64 {
    1.0
}

impl Case {
    fn config(&self) -> SamplingConfig {
        SamplingConfig {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: Some(self.width),
            height: Some(self.height),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            sampler: Some(self.sampler.parse().unwrap()),
            prompt_syntax: PromptSyntax::Plain,
            long_prompt: LongPrompt::Truncate,
            guidance_rescale: self.guidance_rescale,
            guidance_start: self.guidance_start,
            guidance_end: self.guidance_end,
            image_guidance_scale: self.image_guidance_scale,
            ..SamplingConfig::default()
        }
    }
}

fn draw(pipeline: &InferencePipeline, config: &SamplingConfig) -> Vec<u8> {
    pipeline.generate(config, &mut Unwatched).unwrap().images.remove(0).into_rgb8().into_raw()
}

/// The cases of a reference file that are not diffusers' picture.
fn unlike(
    pipeline: &InferencePipeline,
    file: &str,
    with_inputs: impl Fn(SamplingConfig) -> SamplingConfig,
) -> Vec<String> {
    let wanted = tensors(&format!("{file}.safetensors"));
    let cases: Vec<Case> = json(&format!("{file}.json"));
    let unlike = |case: Case| {
        let wanted: Vec<u8> = wanted[&case.name].flatten_all().unwrap().to_vec1().unwrap();
        let found = psnr(&draw(pipeline, &with_inputs(case.config())), &wanted);
        (found < LEAST_PSNR).then(|| format!("{file}, {}: {found:.1} dB", case.name))
    };
    assert!(cases.len() >= 2, "{file}");
    cases.into_iter().filter_map(unlike).collect()
}

#[test]
pub fn guidance_is_rescaled_and_begins_and_ends_as_in_diffusers() {
    let of_checkpoint = |name: &str| unlike(&pipeline(name), &format!("{name}/guidance"), |config| config);
    let failures: Vec<String> = CHECKPOINTS.into_iter().flat_map(of_checkpoint).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn config() -> SamplingConfig {
    SamplingConfig {
        prompt: "a fox".into(),
        seed: 7,
        steps: 6,
        sampler: Some(SamplerKind::Euler),
        ..SamplingConfig::default()
    }
}

#[test]
fn narrower_numbers_are_rescaled_as_f32_is() {
    let plain = SamplingConfig { guidance_rescale: 0.7, ..config() };
    let wanted = draw(&pipeline("sd15"), &plain);
    for (dtype, least) in [(DtypeChoice::Bf16, 30.0), (DtypeChoice::F16, 40.0)] {
        let narrow = load_as(ModelSource::Directory(data("sd15/model")), dtype);
        let found = psnr(&draw(&narrow, &plain), &wanted);
        assert!(found > least, "{dtype}: {found:.1} dB");
    }
}

fn load_batch(folder: &Path, batch: &str) -> InferencePipeline {
    let options = LoadOptions {
        source: ModelSource::Directory(folder.to_owned()),
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        batch: batch.parse::<BatchChoice>().unwrap(),
        ..LoadOptions::default()
    };
    InferencePipeline::load(&options, &mut |_| {}).unwrap()
}

/// Draws jobs together, and compares each with what it is alone.
fn assert_drawn_together_as_alone(pipeline: &InferencePipeline, configs: &[SamplingConfig]) {
    assert!(configs.iter().all(|other| pipeline.can_join(&configs[0], other)));
    let mut watchers: Vec<Unwatched> = configs.iter().map(|_| Unwatched).collect();
    let mut jobs: Vec<_> =
        configs.iter().zip(&mut watchers).map(|(config, monitor)| GroupJob { config, monitor }).collect();
    let mut drawn: Vec<Option<Generated>> = configs.iter().map(|_| None).collect();
    pipeline.generate_group(&mut jobs, &mut |job, result| drawn[job] = Some(result.unwrap())).unwrap();
    for (config, together) in configs.iter().zip(drawn) {
        let images = together.unwrap().images;
        let alone = pipeline.generate(config, &mut Unwatched).unwrap().images;
        for (together, alone) in images.iter().zip(&alone) {
            let found = psnr(together.as_bytes(), alone.as_bytes());
            assert!(found >= LEAST_PSNR, "{}: {found:.1} dB", config.prompt);
        }
    }
}

#[test]
fn jobs_share_passes_where_the_same_steps_are_guided() {
    for name in ["sd15", "sdxl"] {
        let pipeline = load_batch(&data(&format!("{name}/model")), "4");
        let late = SamplingConfig { guidance_start: 0.5, guidance_end: 0.9, ..config() };
        let other = SamplingConfig {
            prompt: "an owl, at night".into(),
            guidance_scale: 3.0,
            guidance_rescale: 0.6,
            seed: 90,
            ..late.clone()
        };
        assert_drawn_together_as_alone(&pipeline, &[late.clone(), other.clone()]);
        for apart in [
            config(),
            SamplingConfig { guidance_start: 0.0, ..late.clone() },
            SamplingConfig { guidance_end: 1.0, ..late.clone() },
        ] {
            assert!(!pipeline.can_join(&late, &apart), "{name}");
        }
        // Without guidance it does not matter when there would be some.
        let unguided = |config: &SamplingConfig| SamplingConfig { guidance_scale: 1.0, ..config.clone() };
        assert!(pipeline.can_join(&unguided(&late), &unguided(&config())), "{name}");
    }
}

#[test]
fn what_of_guidance_has_no_effect_is_told() {
    let pipeline = pipeline("sd15");
    let warnings = |config: &SamplingConfig| pipeline.generate(config, &mut Unwatched).unwrap().warnings;
    let some = SamplingConfig { steps: 4, guidance_rescale: 0.5, guidance_start: 0.5, guidance_end: 0.75, ..config() };
    assert_eq!(warnings(&some), Vec::<String>::new());
    let unguided = SamplingConfig { guidance_scale: 1.0, ..some.clone() };
    let told = ["guidance_rescale", "guidance_start", "guidance_end"];
    assert_eq!(
        warnings(&unguided),
        told.map(|field| format!("{field} has no effect at guidance_scale 1; above 1 it has"))
    );
    let none = SamplingConfig { guidance_start: 0.6, ..some };
    assert_eq!(warnings(&none), ["none of 4 steps is guided from guidance_start 0.6 to guidance_end 0.75"]);
    assert_eq!(draw(&pipeline, &none), draw(&pipeline, &SamplingConfig { guidance_scale: 1.0, ..none.clone() }));
}

/// The tiny checkpoint that edits pictures. The encoder is read when it is needed, so the folder has to stay.
fn for_editing() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&data("sd15/model"), folder.path());
    make_for_editing(folder.path());
    folder
}

fn picture() -> Arc<RgbImage> {
    Arc::new(image::open(data("inputs/picture.png")).unwrap().into_rgb8())
}

fn edit(config: SamplingConfig) -> SamplingConfig {
    SamplingConfig {
        image: Some(picture()),
        strength: 1.0,
        width: Some(64),
        height: config.height.or(Some(64)),
        ..config
    }
}

#[test]
pub fn pictures_are_edited_as_diffusers_edits_them() {
    let folder = for_editing();
    let pipeline = load(ModelSource::Directory(folder.path().to_owned()));
    assert_eq!(pipeline.model().pictures, PictureUse::Edit);
    pipeline.warm_up().unwrap();
    let failures = unlike(&pipeline, "sd15/editing", edit);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn edits_are_drawn_together_as_alone() {
    let folder = for_editing();
    let pipeline = load_batch(folder.path(), "4");
    let first = edit(SamplingConfig { n: 2, guidance_end: 0.5, ..config() });
    let other = SamplingConfig {
        prompt: "make it an owl".into(),
        image: Some(Arc::new(image::imageops::flip_horizontal(&*picture()))),
        image_guidance_scale: Some(2.5),
        guidance_scale: 4.0,
        seed: 11,
        n: 1,
        ..first.clone()
    };
    assert_drawn_together_as_alone(&pipeline, &[first, other]);
}

#[test]
fn what_editing_does_not_take_is_refused_by_name() {
    let folder = for_editing();
    let pipeline = load(ModelSource::Directory(folder.path().to_owned()));
    let given = edit(config());
    pipeline.check(&given).unwrap();
    let field = |config: &SamplingConfig| match pipeline.check(config).unwrap_err() {
        Error::InvalidParameter { field, .. } | Error::UnsupportedParameter { field, .. } => field,
        error => panic!("{error}"),
    };
    assert_eq!(field(&config()), "image");
    assert_eq!(field(&SamplingConfig { strength: 0.75, ..given.clone() }), "strength");
    assert_eq!(field(&SamplingConfig { mask: Some(Arc::new(GrayImage::new(64, 64))), ..given }), "mask");
}

#[test]
fn a_checkpoint_for_editing_has_a_denoiser_for_it() {
    let folder = for_editing();
    let root = folder.path();
    copy_folder(&data("sd15/model/unet"), &root.join("unet"));
    let error = ModelSpec::read(&darkroom::models::Checkpoint::Directory(root.to_owned())).unwrap_err().to_string();
    assert!(
        error.contains("in_channels is 4") && error.contains("twice the autoencoder's latent_channels, 8"),
        "{error}"
    );
}
