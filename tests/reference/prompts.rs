//! Weighted prompts, prompts of several chunks, SDXL's second prompt and sizes: states and pictures.

use candle_core::Tensor;
use darkroom::{
    pipeline::{Generate, Unwatched},
    sampling::{CropOffset, LongPrompt, PictureSize, PromptSyntax, SamplingConfig},
};
use serde::Deserialize;

use crate::support::{CHECKPOINTS, json, pipeline, psnr, relative_error, tensors};

/// What f32 arithmetic in another order may differ by.
const TOLERANCE: f32 = 1e-4;
/// The least likeness to diffusers' picture, in dB.
const LEAST_PSNR: f64 = 50.0;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// Drawn by diffusers' own arguments: nothing is weighed, and what does not fit is cut.
    plain: bool,
    prompt: String,
    negative_prompt: Option<String>,
    prompt_2: Option<String>,
    negative_prompt_2: Option<String>,
    /// Width and height.
    original_size: Option<[u32; 2]>,
    /// Left and top.
    crop: Option<[u32; 2]>,
    target_size: Option<[u32; 2]>,
    clip_skip: Option<usize>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    height: usize,
    width: usize,
}

impl Case {
    fn config(&self) -> SamplingConfig {
        let size = |size: Option<[u32; 2]>| size.map(|[width, height]| PictureSize { width, height });
        SamplingConfig {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            original_size: size(self.original_size),
            crop: self.crop.map(|[left, top]| CropOffset { left, top }),
            target_size: size(self.target_size),
            prompt_syntax: if self.plain { PromptSyntax::Plain } else { PromptSyntax::Weights },
            long_prompt: if self.plain { LongPrompt::Truncate } else { LongPrompt::Chunks },
            clip_skip: self.clip_skip.unwrap_or(0),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            seed: self.seed,
            height: Some(self.height),
            width: Some(self.width),
            ..SamplingConfig::default()
        }
    }
}

#[test]
fn weighted_and_long_prompts_are_told_and_drawn_as_they_should_be() {
    let mut failures = Vec::new();
    for name in CHECKPOINTS {
        let pipeline = pipeline(name);
        let wanted = tensors(&format!("{name}/prompts.safetensors"));
        let cases: Vec<Case> = json(&format!("{name}/prompts.json"));
        assert!(cases.len() >= 3, "{name}");
        for case in cases {
            let config = case.config();
            let told = pipeline.conditioning(&config).unwrap();
            let pooled = told.added.map(|added| added.pooled);
            for (part, found) in [("text", Some(&told.text)), ("pooled", pooled.as_ref())] {
                let wanted: Option<&Tensor> = wanted.get(&format!("{}.{part}", case.name));
                if let (Some(found), Some(wanted)) = (found, wanted) {
                    let error = relative_error(found, wanted);
                    if error > TOLERANCE {
                        failures.push(format!("{name}, {}, {part}: {error}", case.name));
                    }
                }
                assert!(case.plain || found.is_some() == wanted.is_some(), "{name}, {}, {part}", case.name);
            }
            let drawn = pipeline.generate(&config, &mut Unwatched).unwrap().images.remove(0).into_rgb8().into_raw();
            let wanted: Vec<u8> = wanted[&case.name].flatten_all().unwrap().to_vec1().unwrap();
            let found = psnr(&drawn, &wanted);
            if found < LEAST_PSNR {
                failures.push(format!("{name}, {}: {found:.1} dB", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// What is asked for differently is told differently.
#[test]
fn each_part_of_what_is_told_counts() {
    let pipeline = pipeline("sdxl");
    let plain =
        || SamplingConfig { prompt: "a red fox".into(), negative_prompt: Some(String::new()), ..Default::default() };
    let told = |config: SamplingConfig| {
        let told = pipeline.conditioning(&config).unwrap();
        let added = told.added.unwrap();
        let numbers = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (numbers(told.text), numbers(added.pooled), added.sizes)
    };
    let usual = told(plain());
    let size = Some(PictureSize { width: 128, height: 256 });
    let sizes = |config| {
        let (text, pooled, sizes) = told(config);
        assert!(text == usual.0 && pooled == usual.1);
        sizes
    };
    assert_eq!(usual.2, [[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]; 2]);
    let found = sizes(SamplingConfig { original_size: size, ..plain() });
    assert_eq!(found, [[256.0, 128.0, 0.0, 0.0, 64.0, 64.0]; 2]);
    let found = sizes(SamplingConfig { target_size: size, ..plain() });
    assert_eq!(found, [[64.0, 64.0, 0.0, 0.0, 256.0, 128.0]; 2]);
    let found = sizes(SamplingConfig { crop: Some(CropOffset { left: 3, top: 5 }), ..plain() });
    assert_eq!(found, [[64.0, 64.0, 5.0, 3.0, 64.0, 64.0]; 2]);
    // The pooled state is the first chunk's, and weights do not reach it.
    let (text, pooled, _) = told(SamplingConfig { prompt: "a (red:2) fox".into(), ..plain() });
    assert!(text != usual.0 && pooled == usual.1);
    let (text, pooled, _) = told(SamplingConfig { prompt: "a red fox BREAK in the snow".into(), ..plain() });
    assert!(text.len() == 2 * usual.0.len() && pooled == usual.1);
    // The first encoder does not read the second prompt, whose pooled state counts.
    let (_, pooled, _) = told(SamplingConfig { prompt_2: Some("a castle".into()), ..plain() });
    assert_ne!(pooled, usual.1);
}
