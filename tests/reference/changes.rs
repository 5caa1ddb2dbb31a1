//! Image to image and inpainting: diffusers' pipelines on the tiny checkpoints, and the filter that resizes pictures.

use std::sync::Arc;

use crate::support::{CHECKPOINTS, copy_folder, data, json, load, make_for_inpainting, pipeline, psnr, tensors};
use darkroom::{
    imaging::resize,
    models::ModelSource,
    pipeline::{Generate, InferencePipeline, Unwatched},
    sampling::{LongPrompt, SamplerKind, SamplingConfig, SpacingKind},
};
use image::{GrayImage, RgbImage};
use serde::Deserialize;

/// The least likeness to diffusers' picture, in dB.
const LEAST_PSNR: f64 = 50.0;

#[derive(Deserialize)]
struct Case {
    name: String,
    sampler: String,
    schedule: String,
    steps: usize,
    strength: f64,
    guidance_scale: f64,
    seed: u64,
    prompt: String,
    negative_prompt: Option<String>,
    height: usize,
    width: usize,
    mask: bool,
    padding: Option<u32>,
    #[serde(default)]
    text_alone: bool,
}

impl Case {
    fn config(&self, picture: &Arc<RgbImage>, mask: &Arc<GrayImage>) -> SamplingConfig {
        let sampler: SamplerKind = self.sampler.parse().unwrap();
        SamplingConfig {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: Some(self.width),
            height: Some(self.height),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            sampler: Some(sampler),
            scheduler: (self.schedule == "karras").then_some(SpacingKind::Karras),
            strength: self.strength,
            inpaint_padding: self.padding,
            long_prompt: LongPrompt::Truncate,
            image: (!self.text_alone).then(|| Arc::clone(picture)),
            mask: (self.mask && !self.text_alone).then(|| Arc::clone(mask)),
            ..SamplingConfig::default()
        }
    }
}

fn inputs() -> (Arc<RgbImage>, Arc<GrayImage>) {
    let open = |name: &str| image::open(data(&format!("inputs/{name}.png"))).unwrap();
    (Arc::new(open("picture").into_rgb8()), Arc::new(open("mask").into_luma8()))
}

/// Likeness where the mask is white; elsewhere the drawing has to be the input, byte for byte.
fn likeness(drawn: &RgbImage, wanted: &[u8], case: &Case, picture: &RgbImage, mask: &GrayImage) -> f64 {
    let wanted = RgbImage::from_raw(drawn.width(), drawn.height(), wanted.to_vec()).unwrap();
    if !case.mask || case.text_alone {
        return psnr(drawn.as_raw(), wanted.as_raw());
    }
    let (picture, mask) = (resize(picture, drawn.width(), drawn.height()), resize(mask, drawn.width(), drawn.height()));
    let (mut found, mut meant) = (Vec::new(), Vec::new());
    for (x, y, white) in mask.enumerate_pixels() {
        if white.0[0] >= 128 {
            found.extend(drawn.get_pixel(x, y).0);
            meant.extend(wanted.get_pixel(x, y).0);
        } else {
            assert_eq!(drawn.get_pixel(x, y), picture.get_pixel(x, y), "{}: {x}, {y}", case.name);
        }
    }
    assert!(found.len() > 1000 && found.len() < drawn.as_raw().len() / 2, "the mask is neither empty nor all");
    psnr(&found, &meant)
}

#[test]
fn pictures_are_resized_as_pillow_does_it() {
    let (picture, _) = inputs();
    for (size, wanted) in tensors("inputs/resized.safetensors") {
        let (width, height) = size.split_once('x').unwrap();
        let resized = resize(&*picture, width.parse().unwrap(), height.parse().unwrap());
        let wanted: Vec<u8> = wanted.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(resized.as_raw(), &wanted, "{size}");
    }
}

/// Draws the cases of a reference file; those that are not diffusers' picture.
fn unlike(pipeline: &InferencePipeline, file: &str) -> Vec<String> {
    let (picture, mask) = inputs();
    let wanted = tensors(&format!("{file}.safetensors"));
    let cases: Vec<Case> = json(&format!("{file}.json"));
    assert!(cases.len() >= 6, "{file}");
    let unlike = |case: Case| {
        let drawn = pipeline.generate(&case.config(&picture, &mask), &mut Unwatched).unwrap();
        let wanted: Vec<u8> = wanted[&case.name].flatten_all().unwrap().to_vec1().unwrap();
        let found = likeness(&drawn.images[0].to_rgb8(), &wanted, &case, &picture, &mask);
        (found < LEAST_PSNR).then(|| format!("{file}, {}: {found:.1} dB", case.name))
    };
    cases.into_iter().filter_map(unlike).collect()
}

#[test]
pub fn every_change_is_diffusers_own() {
    let of_checkpoint = |name: &str| unlike(&pipeline(name), &format!("{name}/changes"));
    let failures: Vec<String> = CHECKPOINTS.into_iter().flat_map(of_checkpoint).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The tiny checkpoint `name`, with a denoiser that is shown a mask and what is kept. The encoder is read when it is
/// needed, so the folder has to stay.
fn made_for_inpainting(name: &str) -> (InferencePipeline, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy_folder(&data(&format!("{name}/model")), root);
    let first = tensors(&format!("{name}/inpainting.safetensors")).remove("conv_in.weight").unwrap();
    make_for_inpainting(root, |_| first);
    (load(ModelSource::Directory(root.to_owned())), folder)
}

#[test]
pub fn a_checkpoint_made_for_inpainting_draws_what_diffusers_draws_with_it() {
    let of_checkpoint = |name: &str| {
        let (pipeline, _folder) = made_for_inpainting(name);
        unlike(&pipeline, &format!("{name}/inpainting"))
    };
    let failures: Vec<String> = ["sd15", "sdxl"].into_iter().flat_map(of_checkpoint).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}
