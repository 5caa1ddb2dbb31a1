//! A request's texts and sizes to what the denoiser is told, and what of them cannot be.

use candle_core::Tensor;

use super::{
    MAX_CHUNKS, TextEncoder,
    chunks::{Chunks, Reading},
    encode::{EncodedText, Prompt, encode_each, tokenize},
    parse::MAX_WEIGHT,
    takes_second_prompt,
};
use crate::{
    Error, Result,
    models::{Added, Conditioning, Family, ModelSpec},
    sampling::{CropOffset, LongPrompt, PictureSize, SamplingConfig, guided_steps},
};

/// Whether a request is guided with two network passes a step. A network that is told the guidance scale needs one, as in
/// diffusers' pipelines of every class.
pub(in crate::pipeline) fn is_guided(spec: &ModelSpec, config: &SamplingConfig) -> bool {
    config.guidance_scale > 1.0 && !spec.unet.is_told_guidance()
}

/// How many network passes a guided step makes.
pub(in crate::pipeline) const fn most_passes(spec: &ModelSpec) -> usize {
    if spec.edits { 3 } else { 2 }
}

/// Checks that every encoder can read a request's prompts, and that the model takes what is said besides.
pub(in crate::pipeline) fn check(encoders: &[TextEncoder], spec: &ModelSpec, config: &SamplingConfig) -> Result<()> {
    let fields = [
        ("prompt_2", config.prompt_2.is_some()),
        ("negative_prompt_2", config.negative_prompt_2.is_some()),
        ("original_size", config.original_size.is_some()),
        ("crop", config.crop.is_some()),
        ("target_size", config.target_size.is_some()),
    ];
    if let Some((field, _)) = fields.iter().find(|(_, given)| *given && !takes_second_prompt(spec)) {
        let family = spec.family.name();
        return Err(Error::unsupported(field, format!("is for Stable Diffusion XL; this model is {family}")));
    }
    chunk_count(encoders, spec, config).map(|_| ())
}

/// In how many chunks the denoiser is told of a request's text, on both sides of the guidance.
///
/// # Errors
///
/// A text that cannot be read.
pub(in crate::pipeline) fn chunk_count(
    encoders: &[TextEncoder],
    spec: &ModelSpec,
    config: &SamplingConfig,
) -> Result<usize> {
    let tokens = tokenize(encoders, &prompts(spec, config), Reading::of(config))?;
    // All were filled up to the longest.
    Ok(tokens[0][0].chunks.len())
}

/// What is encoded for a request: what to steer away from, where it is guided and that is not zeros, and what to draw.
fn prompts<'a>(spec: &ModelSpec, config: &'a SamplingConfig) -> Vec<Prompt<'a>> {
    let positive = Prompt::positive(&config.prompt, config.prompt_2.as_deref());
    if !is_guided(spec, config) || negative_is_zeros(spec, config) {
        return vec![positive];
    }
    let negative = config.negative_prompt.as_deref().unwrap_or_default();
    vec![Prompt::negative(negative, config.negative_prompt_2.as_deref()), positive]
}

/// An absent negative prompt may be zeros, an empty one never is: as diffusers' pipeline for SDXL has it, whatever the key in
/// its index is called.
fn negative_is_zeros(spec: &ModelSpec, config: &SamplingConfig) -> bool {
    config.negative_prompt.is_none() && spec.family == Family::StableDiffusionXl && spec.force_zeros_for_empty_prompt
}

/// Encodes a request's prompts: without the prompt and with it where there is guidance, else with it alone. Adds what
/// the caller should know to `warnings`.
pub(in crate::pipeline) fn condition(
    encoders: &[TextEncoder],
    spec: &ModelSpec,
    config: &SamplingConfig,
    (height, width): (usize, usize),
    warnings: &mut Vec<String>,
) -> Result<Conditioning> {
    let prompts = prompts(spec, config);
    let tokens = tokenize(encoders, &prompts, Reading::of(config))?;
    // As in diffusers, layers are left out for the prompt alone, which is the last.
    let clip_skip = if prompts.len() > 1 { vec![0, config.clip_skip] } else { vec![config.clip_skip] };
    let mut texts = encode_each(encoders, spec.family, &tokens, &clip_skip)?;
    if is_guided(spec, config) && prompts.len() == 1 {
        texts.insert(0, texts[0].zeros()?);
    }
    if is_guided(spec, config) && spec.edits {
        // With neither, with the picture, with the picture and the prompt.
        texts.insert(0, texts[0].clone());
    }
    warn((encoders, spec), config, &prompts, &tokens, warnings);
    let added = added(&texts, told_sizes(config, (height, width)))?;
    let states: Vec<&Tensor> = texts.iter().map(|text| &text.states).collect();
    Ok(Conditioning { text: Tensor::cat(&states, 0)?, added })
}

/// What SDXL's denoiser is told besides the text, the same for all of `texts`.
fn added(texts: &[EncodedText], sizes: [f64; 6]) -> Result<Option<Added>> {
    let pooled: Vec<&Tensor> = texts.iter().filter_map(|text| text.pooled.as_ref()).collect();
    if pooled.is_empty() {
        return Ok(None);
    }
    Ok(Some(Added { pooled: Tensor::cat(&pooled, 0)?, sizes: vec![sizes; pooled.len()] }))
}

/// Original height and width, crop's top and left, target height and width (Podell et al. 2023, section 2.2). Without a word
/// about them the picture is whole: its sizes are its own, and nothing is cropped.
fn told_sizes(config: &SamplingConfig, (height, width): (usize, usize)) -> [f64; 6] {
    #[expect(clippy::cast_precision_loss, reason = "sizes are at most a few thousand")]
    let own = [height as f64, width as f64];
    let told = |size: Option<PictureSize>| size.map_or(own, |size| [size.height.into(), size.width.into()]);
    let [original, target] = [told(config.original_size), told(config.target_size)];
    let CropOffset { left, top } = config.crop.unwrap_or(CropOffset { left: 0, top: 0 });
    [original[0], original[1], top.into(), left.into(), target[0], target[1]]
}

/// Tells what of the texts was not read as it stands.
fn warn(
    (encoders, spec): (&[TextEncoder], &ModelSpec),
    config: &SamplingConfig,
    prompts: &[Prompt],
    tokens: &[Vec<Chunks>],
    warnings: &mut Vec<String>,
) {
    // What to draw comes first.
    for (row, prompt) in prompts.iter().enumerate().rev() {
        let mut told = Vec::new();
        for (number, encoder) in encoders.iter().enumerate().rev() {
            let (field, _) = prompt.text(number);
            // Where encoders read one text, the last speaks for all.
            if !told.contains(&field) {
                warnings.extend(warnings_of(field, &tokens[number][row], encoder.room(), config.long_prompt));
                told.push(field);
            }
        }
    }
    let negatives = [("negative_prompt", &config.negative_prompt), ("negative_prompt_2", &config.negative_prompt_2)];
    for (field, _) in negatives.iter().filter(|(_, text)| text.as_ref().is_some_and(|text| !text.is_empty())) {
        if !is_guided(spec, config) {
            warnings.push(without_effect(field, spec, config));
        }
    }
    warn_of_guidance(spec, config, warnings);
}

/// Tells what of guidance means nothing.
fn warn_of_guidance(spec: &ModelSpec, config: &SamplingConfig, warnings: &mut Vec<String>) {
    let SamplingConfig { guidance_start: start, guidance_end: end, .. } = *config;
    let steps = config.steps_drawn();
    if is_guided(spec, config) {
        if guided_steps(start, end, steps).is_empty() {
            warnings.push(format!("none of {steps} steps is guided from guidance_start {start} to guidance_end {end}"));
        }
        return;
    }
    let given = [
        ("guidance_rescale", config.guidance_rescale > 0.0),
        ("guidance_start", start > 0.0),
        ("guidance_end", end < 1.0),
    ];
    for (field, _) in given.into_iter().filter(|(_, given)| *given) {
        warnings.push(without_effect(field, spec, config));
    }
}

/// What is said of a field that acts in guided passes alone.
fn without_effect(field: &str, spec: &ModelSpec, config: &SamplingConfig) -> String {
    if spec.unet.is_told_guidance() {
        format!("{field} has no effect with this model, which is told the guidance_scale instead")
    } else {
        format!("{field} has no effect at guidance_scale {}; above 1 it has", config.guidance_scale)
    }
}

fn warnings_of(field: &str, chunks: &Chunks, room: usize, long: LongPrompt) -> Vec<String> {
    let mut warnings = Vec::new();
    let left_out = chunks.left_out;
    if left_out > 0 {
        let read = match long {
            LongPrompt::Truncate => format!("this model reads {room} tokens"),
            LongPrompt::Chunks => format!("this model reads {MAX_CHUNKS} chunks of up to {room} tokens"),
        };
        warnings.push(format!("{field} was cut: {read}, the last {left_out} were left out"));
    }
    if chunks.limited {
        warnings.push(format!("{field} has weights beyond -{MAX_WEIGHT} to {MAX_WEIGHT}, which were limited to that"));
    }
    warnings
}
