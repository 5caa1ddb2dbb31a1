//! What both ways into the worker share about a request: the seed that nobody chose, and what is written into a file.
//!
//! Owns no state. It must not know HTTP: the server and the command line both call it.

use rand::Rng;
use serde::{Serialize, Serializer};

use crate::{
    imaging::PictureTexts,
    infotext::infotext,
    output::{OutputFormat, OutputOptions},
    pipeline::ModelInfo,
    sampling::{CropOffset, LongPrompt, PictureSize, PromptSyntax, SamplerKind, SamplingConfig, SpacingKind},
};

/// The largest seed that a client can send and be sent: JSON readers keep integers exactly up to here.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// A seed that nobody chose, such that the last of `n` images has one that can be asked for again.
#[must_use]
pub fn random_seed(n: usize) -> u64 {
    rand::rng().random_range(0..=MAX_SEED.saturating_sub(n as u64))
}

/// Everything that decides a picture, by the names of the HTTP contract.
#[derive(Debug, Serialize)]
pub struct DrawingParameters<'a> {
    pub(crate) prompt: &'a str,
    pub(crate) negative_prompt: Option<&'a str>,
    pub(crate) width: Option<usize>,
    pub(crate) height: Option<usize>,
    pub(crate) steps: usize,
    pub(crate) guidance_scale: f64,
    pub(crate) seed: u64,
    n: usize,
    #[serde(serialize_with = "sampler_name")]
    pub(crate) sampler: Option<SamplerKind>,
    #[serde(serialize_with = "scheduler_name")]
    pub(crate) scheduler: Option<SpacingKind>,
    /// The noise levels, where the request lists them.
    #[serde(skip_serializing_if = "Option::is_none")]
    sigmas: Option<&'a [f64]>,
    pub(crate) clip_skip: usize,
    #[serde(serialize_with = "shown")]
    pub(crate) prompt_syntax: PromptSyntax,
    #[serde(serialize_with = "shown")]
    long_prompt: LongPrompt,
    /// This and what follows stand there only where they mean something; the pictures themselves are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mask_blur: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inpaint_padding: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_2: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_prompt_2: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_size: Option<PictureSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crop: Option<CropOffset>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_size: Option<PictureSize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guidance_rescale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_start: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_end: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_guidance_scale: Option<f64>,
}

impl<'a> DrawingParameters<'a> {
    /// The request as a whole.
    #[must_use]
    pub fn of_request(config: &'a SamplingConfig) -> Self {
        Self {
            prompt: &config.prompt,
            negative_prompt: config.negative_prompt.as_deref(),
            width: config.width,
            height: config.height,
            steps: config.steps,
            guidance_scale: config.guidance_scale,
            seed: config.seed,
            n: config.n,
            sampler: config.sampler,
            scheduler: config.scheduler,
            sigmas: config.sigmas.as_deref(),
            clip_skip: config.clip_skip,
            prompt_syntax: config.prompt_syntax,
            long_prompt: config.long_prompt,
            eta: config.eta,
            // A picture that is edited is drawn from noise alone.
            strength: config.image.as_ref().filter(|_| config.image_guidance_scale.is_none()).map(|_| config.strength),
            mask_blur: config.mask.is_some().then_some(config.mask_blur),
            inpaint_padding: config.inpaint_padding,
            prompt_2: config.prompt_2.as_deref(),
            negative_prompt_2: config.negative_prompt_2.as_deref(),
            original_size: config.original_size,
            crop: config.crop,
            target_size: config.target_size,
            guidance_rescale: Some(config.guidance_rescale).filter(|rescale| *rescale != 0.0),
            guidance_start: Some(config.guidance_start).filter(|start| *start != 0.0),
            guidance_end: Some(config.guidance_end).filter(|end| *end != 1.0),
            image_guidance_scale: config.image_guidance_scale,
        }
    }

    /// The request that draws image `index` of `config` on its own: its pixels do not depend on its neighbours.
    #[must_use]
    pub fn of_image(config: &'a SamplingConfig, index: usize) -> Self {
        Self { seed: config.seed + index as u64, n: 1, ..Self::of_request(config) }
    }

    /// What a file of this image, drawn by `model`, says of it: the text that galleries read, and the request. It waits for
    /// the digest of the model's weights.
    #[must_use]
    pub fn texts(&self, model: &ModelInfo, output: &OutputOptions) -> PictureTexts {
        if !output.metadata {
            return PictureTexts::default();
        }
        let request = FileRequest { drawing: self, output: output_of_file(output) };
        let request = serde_json::to_string(&request).expect("strings and numbers are always JSON");
        PictureTexts { parameters: Some(infotext(self, &model.name, model.digest.wait())), request: Some(request) }
    }
}

/// The request of one image, as its file has it: `POST /generate` takes it again.
#[derive(Serialize)]
struct FileRequest<'a> {
    #[serde(flatten)]
    drawing: &'a DrawingParameters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<FileOutput>,
}

/// How a file is encoded, where that is not as a request has it by default.
#[derive(Serialize)]
struct FileOutput {
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    quality: Option<u8>,
}

fn output_of_file(output: &OutputOptions) -> Option<FileOutput> {
    let quality = (output.format == OutputFormat::Jpeg).then_some(output.quality);
    (output.format != OutputFormat::default()).then(|| FileOutput { format: output.format.name(), quality })
}

/// By its name.
fn shown<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn sampler_name<S: Serializer>(sampler: &Option<SamplerKind>, serializer: S) -> Result<S::Ok, S::Error> {
    sampler.map(SamplerKind::name).serialize(serializer)
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn scheduler_name<S: Serializer>(scheduler: &Option<SpacingKind>, serializer: S) -> Result<S::Ok, S::Error> {
    scheduler.map(SpacingKind::name).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_lists_sigmas_says_so_and_no_other_does() {
        let listed = SamplingConfig { sigmas: Some(vec![9.0, 0.5, 0.0]), steps: 2, ..SamplingConfig::default() };
        let json = serde_json::to_value(DrawingParameters::of_image(&listed, 0)).unwrap();
        assert_eq!(
            (&json["sigmas"], &json["scheduler"]),
            (&serde_json::json!([9.0, 0.5, 0.0]), &serde_json::Value::Null)
        );
        let plain = serde_json::to_value(DrawingParameters::of_request(&SamplingConfig::default())).unwrap();
        assert!(plain.get("sigmas").is_none());
    }
}
