//! What a checkpoint is, from its own JSON: the family, the networks' sizes, the scheduler, the defaults.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    Checkpoint, ClipConfig, UnetConfig, VaeConfig, clip,
    unet_config::{FILE as UNET, PerBlock, null_is_off},
    vae_config,
};
use crate::{
    Error, Result,
    json::keys::{Class, Key, KeyTable, Unheeded},
    nn::Activation,
    sampling::{AlignedLevels, SamplerKind, SchedulerConfig, Setting},
};

/// Steps and guidance of a request that names none, where the checkpoint does not say. The guidance scales are
/// diffusers' pipelines' own.
const DEFAULT_STEPS: usize = 20;
const DEFAULT_GUIDANCE_SCALE: f64 = 7.5;
const DEFAULT_GUIDANCE_SCALE_XL: f64 = 5.0;
/// Steps and guidance of a latent consistency model, diffusers' pipeline's own.
const DEFAULTS_CONSISTENT: (usize, f64) = (4, 8.5);

/// A pipeline of the Stable Diffusion family. The families differ in this data alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// One text encoder of OpenAI's kind.
    StableDiffusion1,
    /// One text encoder of OpenCLIP's kind.
    StableDiffusion2,
    /// Two text encoders, pooled text and sizes.
    StableDiffusionXl,
}

impl Family {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion1 => "stable-diffusion-1",
            Self::StableDiffusion2 => "stable-diffusion-2",
            Self::StableDiffusionXl => "stable-diffusion-xl",
        }
    }
}

/// Everything about a checkpoint but its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family.
    pub family: Family,
    /// The text encoders, each in its folder with its tokenizer's.
    pub text_encoders: Vec<TextEncoderSpec>,
    /// The denoiser.
    pub unet: UnetConfig,
    /// Whether the denoiser edits pictures: it is shown latents, and those of the picture to edit.
    pub edits: bool,
    /// The autoencoder.
    pub vae: VaeConfig,
    /// The scheduler.
    pub scheduler: SchedulerConfig,
    /// Whether an absent negative prompt is zeros instead of an empty text.
    pub force_zeros_for_empty_prompt: bool,
    /// Steps of a request that names none.
    pub default_steps: usize,
    /// Guidance scale of a request that names none.
    pub default_guidance_scale: f64,
}

/// A text encoder and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderSpec {
    /// The encoder's folder.
    pub folder: &'static str,
    /// The tokenizer's folder.
    pub tokenizer: &'static str,
    /// The encoder's sizes.
    pub config: ClipConfig,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
    #[serde(default = "yes", deserialize_with = "null_is_off")]
    force_zeros_for_empty_prompt: bool,
    /// The library and the class of the scheduler.
    #[serde(default)]
    scheduler: Option<Value>,
    /// The components, which are checked where they are read.
    #[serde(flatten)]
    _rest: BTreeMap<String, Value>,
}

fn yes() -> bool {
    true
}

/// darkroom's own file beside the index.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    default_steps: usize,
    default_guidance_scale: f64,
}

const INDEX: &str = "model_index.json";
const DEFAULTS: &str = "darkroom.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const VAE: &str = "vae/config.json";
/// The pipelines' classes in diffusers. Whether a checkpoint draws from text, from a picture or behind a mask is the
/// request's to say; the UNet tells whether it is shown the mask.
const PIPELINES: [&str; 4] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", INPAINT, EDIT];
const PIPELINES_XL: [&str; 3] =
    ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"];
/// Pipelines of latent consistency models (Luo et al. 2023), which are Stable Diffusion's but for their defaults.
const PIPELINES_CONSISTENT: [&str; 2] = ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"];
/// Brooks et al. 2023.
const EDIT: &str = "StableDiffusionInstructPix2PixPipeline";
const INPAINT: &str = "StableDiffusionInpaintPipeline";
/// The side in latents that early files of Stable Diffusion mean where they have a smaller one.
const EARLY_SAMPLE_SIZE: usize = 64;

const CLASS: &str = "the class decides the network";
const NO_CHECKER: &str = "pictures are not checked for what they show";
const PICTURE_PROMPTS: &str = "it is for pictures as prompts, which are not supported";

/// The keys of both pipelines. `null` for a component is a component that is missing, which is found when it is read.
const INDEX_KEYS: KeyTable = KeyTable {
    class: Class::OneOf(&[
        PIPELINES[0],
        PIPELINES[1],
        PIPELINES[2],
        PIPELINES[3],
        PIPELINES_XL[0],
        PIPELINES_XL[1],
        PIPELINES_XL[2],
        PIPELINES_CONSISTENT[0],
        PIPELINES_CONSISTENT[1],
    ]),
    keys: &[
        Key::only("vae", &[r#"["diffusers", "AutoencoderKL"]"#], CLASS),
        Key::only("text_encoder", &[r#"["transformers", "CLIPTextModel"]"#], CLASS),
        Key::only("text_encoder_2", &[r#"["transformers", "CLIPTextModelWithProjection"]"#], CLASS),
        Key::only("tokenizer", TOKENIZERS, CLASS),
        Key::only("tokenizer_2", TOKENIZERS, CLASS),
        Key::only("unet", &[r#"["diffusers", "UNet2DConditionModel"]"#], CLASS),
        Key::honoured("scheduler"),
        Key::idle("safety_checker", NO_CHECKER),
        Key::idle("requires_safety_checker", NO_CHECKER),
        Key::idle("feature_extractor", PICTURE_PROMPTS),
        Key::idle("image_encoder", PICTURE_PROMPTS),
        Key::null_counts("force_zeros_for_empty_prompt", "its default is true; None is false to diffusers' code"),
        Key::only("requires_aesthetics_score", &["false"], "the refiner's score is not embedded"),
        Key::idle("add_watermarker", "pictures get no invisible mark"),
    ],
};
const TOKENIZERS: &[&str] = &[r#"["transformers", "CLIPTokenizer"]"#, r#"["transformers", "CLIPTokenizerFast"]"#];

/// Folders of the text encoders and of their tokenizers.
const TEXT: [(&str, &str, &str); 2] = [
    ("text_encoder", "tokenizer", "text_encoder/config.json"),
    ("text_encoder_2", "tokenizer_2", "text_encoder_2/config.json"),
];

impl ModelSpec {
    /// Reads and checks a checkpoint's configuration.
    ///
    /// # Errors
    ///
    /// A file that is missing, broken, or asks for something that is not there, by its path and key.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let index: ModelIndex =
            checkpoint.config(INDEX, "the index of a checkpoint in diffusers layout", &INDEX_KEYS)?;
        let encoders = if PIPELINES_XL.contains(&index.class_name.as_str()) { 2 } else { 1 };
        let text_encoders = TEXT[..encoders]
            .iter()
            .map(|&(folder, tokenizer, file)| {
                let config: ClipConfig = checkpoint.config(file, "a text encoder's configuration", &clip::KEYS)?;
                config.check().map_err(|message| checkpoint.unsupported(file, message))?;
                Ok(TextEncoderSpec { folder, tokenizer, config })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut unet = UnetConfig::read(checkpoint)?;
        let mut vae: VaeConfig = checkpoint.config(VAE, "the autoencoder's configuration", &vae_config::KEYS)?;
        vae.check().map_err(|message| checkpoint.unsupported(VAE, message))?;
        let mut scheduler: SchedulerConfig = checkpoint.json(SCHEDULER, "the scheduler's configuration")?;
        if let Some(entry) = &index.scheduler {
            scheduler.set_class(scheduler_class(entry).map_err(|message| checkpoint.unsupported(INDEX, message))?);
        }
        scheduler.check().map_err(|message| checkpoint.unsupported(SCHEDULER, message))?;

        let family = match (encoders, text_encoders[0].config.hidden_act) {
            (2, _) => Family::StableDiffusionXl,
            (_, Activation::QuickGelu) => Family::StableDiffusion1,
            _ => Family::StableDiffusion2,
        };
        for key in vae.leave_out_unread(family == Family::StableDiffusionXl) {
            checkpoint.warn_of(VAE, Unheeded { key, why: "the pipeline does not look at this key" });
        }
        let consistent = PIPELINES_CONSISTENT.contains(&index.class_name.as_str());
        if consistent && !unet.is_told_guidance() {
            let message = format!("time_cond_proj_dim is missing, which {} needs", index.class_name);
            return Err(checkpoint.unsupported(UNET, message));
        }
        let edits = index.class_name == EDIT;
        // The one that edits pictures and those of latent consistency models override nothing.
        if family != Family::StableDiffusionXl && !edits && !consistent {
            // diffusers' pipelines override these, which early files have wrong.
            if unet.is_before_0_9() && matches!(unet.sample_size, Some(PerBlock::One(side)) if side < EARLY_SAMPLE_SIZE)
            {
                unet.sample_size = Some(PerBlock::One(EARLY_SAMPLE_SIZE));
            }
            scheduler.set("steps_offset", Setting::Number(1.0));
            if index.class_name == INPAINT {
                scheduler.set("skip_prk_steps", Setting::Flag(true));
            } else {
                scheduler.set("clip_sample", Setting::Flag(false));
            }
        }
        match family {
            Family::StableDiffusion1 => scheduler.align(AlignedLevels::StableDiffusion1),
            Family::StableDiffusionXl => scheduler.align(AlignedLevels::StableDiffusionXl),
            Family::StableDiffusion2 => {}
        }
        let (default_steps, default_guidance_scale) = defaults(checkpoint, family, consistent)?;
        let spec = Self {
            family,
            text_encoders,
            unet,
            edits,
            vae,
            scheduler,
            force_zeros_for_empty_prompt: index.force_zeros_for_empty_prompt,
            default_steps,
            default_guidance_scale,
        };
        spec.check(checkpoint)?;
        Ok(spec)
    }

    /// Checks that the components fit each other.
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let latents = self.vae.latent_channels;
        if self.edits && self.unet.in_channels != 2 * latents {
            let message = format!(
                "in_channels is {}; {EDIT} needs twice the autoencoder's latent_channels, {}",
                self.unet.in_channels,
                2 * latents
            );
            return Err(checkpoint.unsupported(UNET, message));
        }
        for (key, channels) in [("in_channels", self.unet.in_channels), ("out_channels", self.unet.out_channels)] {
            if channels != latents && !(key == "in_channels" && (self.edits || self.shows_mask())) {
                let message = format!(
                    "{key} is {channels}, the autoencoder's latent_channels {latents}; they have to be the same"
                );
                return Err(checkpoint.unsupported(UNET, message));
            }
        }
        let width: usize = self.text_encoders.iter().map(|encoder| encoder.config.hidden_size).sum();
        for block in 0..self.unet.block_out_channels.len() {
            let wanted = self.unet.cross_attention_dim.of(block);
            if wanted != width {
                let message = format!(
                    "cross_attention_dim is {wanted}, the text encoders' hidden_size {width}; they have to be the same"
                );
                return Err(checkpoint.unsupported(UNET, message));
            }
        }
        let xl = self.family == Family::StableDiffusionXl;
        if xl != self.unet.addition_embed_type.is_some() {
            let kind = self.unet.addition_embed_type.as_ref().map_or("null".to_owned(), |kind| format!("{kind:?}"));
            let message = format!("addition_embed_type is {kind}, which does not fit the pipeline in {INDEX}");
            return Err(checkpoint.unsupported(UNET, message));
        }
        if let (true, Some(width), Some(inputs)) =
            (xl, self.unet.addition_time_embed_dim, self.unet.projection_class_embeddings_input_dim)
        {
            let pooled = self.text_encoders[1].config.projection_dim;
            if pooled + 6 * width != inputs {
                let message = format!(
                    "projection_class_embeddings_input_dim is {inputs}; the second text encoder's projection_dim {pooled} \
                     and six times addition_time_embed_dim {width} make {}",
                    pooled + 6 * width
                );
                return Err(checkpoint.unsupported(UNET, message));
            }
        }
        let (height, width) = self.native_size();
        if height == 0 || width == 0 {
            return Err(checkpoint.unsupported(UNET, "sample_size is missing; a picture's side in latents is needed"));
        }
        Ok(())
    }

    /// Whether the denoiser was made for inpainting: it is shown latents, the mask, and the latents of what is kept.
    #[must_use]
    pub fn shows_mask(&self) -> bool {
        self.unet.in_channels == 2 * self.vae.latent_channels + 1
    }

    /// The native picture's height and width in pixels.
    #[must_use]
    pub fn native_size(&self) -> (usize, usize) {
        let (height, width) = match &self.unet.sample_size {
            Some(PerBlock::One(side)) => (*side, *side),
            Some(PerBlock::Each(sides)) if sides.len() == 2 => (sides[0], sides[1]),
            _ => (0, 0),
        };
        (height * self.vae.factor(), width * self.vae.factor())
    }

    /// How many layers of the text encoders a request may leave out.
    #[must_use]
    pub fn most_clip_skip(&self) -> usize {
        let layers = self.text_encoders.iter().map(|encoder| encoder.config.num_hidden_layers).min().unwrap_or(1);
        // SDXL leaves one out in any case.
        layers - 1
    }
}

/// The sampler of the index's `scheduler`: `["diffusers", CLASS]`.
fn scheduler_class(entry: &Value) -> Result<SamplerKind, String> {
    match entry.as_array().map(Vec::as_slice) {
        Some([Value::String(library), Value::String(class)]) if library == "diffusers" => {
            SamplerKind::of_class(class).map_err(|supported| format!("scheduler is {class:?}; {supported}"))
        }
        _ => Err(format!("scheduler is {entry}; [\"diffusers\", CLASS] is needed")),
    }
}

fn defaults(checkpoint: &Checkpoint, family: Family, consistent: bool) -> Result<(usize, f64)> {
    if !checkpoint.has(DEFAULTS) {
        if consistent {
            return Ok(DEFAULTS_CONSISTENT);
        }
        let xl = family == Family::StableDiffusionXl;
        return Ok((DEFAULT_STEPS, if xl { DEFAULT_GUIDANCE_SCALE_XL } else { DEFAULT_GUIDANCE_SCALE }));
    }
    let Defaults { default_steps, default_guidance_scale } = checkpoint.json(DEFAULTS, "a request's defaults")?;
    if !(1..=150).contains(&default_steps) || !(0.0..=30.0).contains(&default_guidance_scale) {
        return Err(Error::BrokenFile {
            path: checkpoint.path(DEFAULTS),
            message: "default_steps has to be 1 to 150, default_guidance_scale 0 to 30".to_owned(),
        });
    }
    Ok((default_steps, default_guidance_scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::keys::tests::assert_complete;

    #[test]
    fn every_key_of_the_pipelines_is_in_the_table() {
        // Each pipeline lacks keys of the other, which have reasons in the table.
        for class in PIPELINES.into_iter().chain(PIPELINES_XL).chain(PIPELINES_CONSISTENT) {
            assert_complete(&INDEX_KEYS, class);
        }
    }
}
