//! Prompts to what the denoiser is told of them.

use candle_core::{DType, Tensor};

use crate::{
    Result,
    models::{Added, ClipTextModel, Conditioning, Family, ModelSpec, Pooling, PromptTokenizer, Tokens},
    nn::Weights,
    sampling::SamplingConfig,
};

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub(super) struct TextEncoder {
    tokenizer: PromptTokenizer,
    model: ClipTextModel,
}

impl TextEncoder {
    pub(super) fn new(spec: &ModelSpec, number: usize, tokenizer: PromptTokenizer, weights: &Weights) -> Result<Self> {
        // The last encoder of SDXL is the one whose pooled state counts.
        let projected = spec.family == Family::StableDiffusionXl && number + 1 == spec.text_encoders.len();
        let pooling = if projected { Pooling::Projected } else { Pooling::Absent };
        let model = ClipTextModel::new(&spec.text_encoders[number].config, pooling, weights)?;
        Ok(Self { tokenizer, model })
    }

    /// How many tokens it reads.
    pub(super) fn window(&self) -> usize {
        self.tokenizer.window()
    }
}

/// A prompt as the denoiser is told it.
#[derive(Debug)]
pub struct EncodedText {
    /// The tokens' states: `(1, n, c)` f32.
    pub states: Tensor,
    /// The pooled state, `(1, projection_dim)` f32, where the family has one.
    pub pooled: Option<Tensor>,
    /// How many of the prompt's tokens did not fit, and how many do.
    pub cut: Option<(usize, usize)>,
}

impl EncodedText {
    /// As this one, of nothing but zeros.
    fn zeros(&self) -> Result<Self> {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { states: self.states.zeros_like()?, pooled, cut: None })
    }
}

/// A text with the field of the request that it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompt<'a> {
    field: &'static str,
    text: &'a str,
}

impl<'a> Prompt<'a> {
    /// What to draw.
    pub(super) fn positive(text: &'a str) -> Self {
        Self { field: "prompt", text }
    }

    /// What to steer away from.
    pub(super) fn negative(text: &'a str) -> Self {
        Self { field: "negative_prompt", text }
    }
}

/// Encodes one prompt with every encoder, leaving out `clip_skip` of their last layers.
pub(super) fn encode(encoders: &[TextEncoder], family: Family, text: &str, clip_skip: usize) -> Result<EncodedText> {
    Ok(encode_all(encoders, family, &[Prompt::positive(text)], &[clip_skip])?.remove(0))
}

/// Encodes prompts together, leaving out its own `clip_skip` for each.
fn encode_all(
    encoders: &[TextEncoder],
    family: Family,
    prompts: &[Prompt],
    clip_skip: &[usize],
) -> Result<Vec<EncodedText>> {
    let tokens = tokenize(encoders, prompts)?;
    let (states, pooled) = encode_tokens(encoders, family, &tokens, clip_skip)?;
    let of_prompt = |row: usize| {
        let rooms = encoders.iter().map(|encoder| encoder.tokenizer.room());
        let left_out = tokens.iter().map(|prompts| prompts[row].left_out);
        Ok(EncodedText {
            states: states.narrow(0, row, 1)?,
            pooled: pooled.as_ref().map(|pooled| pooled.narrow(0, row, 1)).transpose()?,
            cut: left_out.zip(rooms).filter(|(left_out, _)| *left_out > 0).last(),
        })
    };
    (0..prompts.len()).map(of_prompt).collect()
}

/// Each encoder's tokens of each prompt.
pub(super) fn tokenize(encoders: &[TextEncoder], prompts: &[Prompt]) -> Result<Vec<Vec<Tokens>>> {
    let of_encoder = |encoder: &TextEncoder| {
        prompts.iter().map(|prompt| encoder.tokenizer.encode(prompt.field, prompt.text)).collect()
    };
    encoders.iter().map(of_encoder).collect()
}

/// Checks that every encoder can read a request's prompts.
pub(super) fn check(encoders: &[TextEncoder], spec: &ModelSpec, config: &SamplingConfig) -> Result<()> {
    let negative = config.negative_prompt.as_deref().filter(|_| is_guided(spec, config)).map(Prompt::negative);
    let prompts: Vec<_> = [Prompt::positive(&config.prompt)].into_iter().chain(negative).collect();
    tokenize(encoders, &prompts).map(|_| ())
}

/// Encodes a batch of prompts, given each encoder's tokens: the tokens' states `(b, n, c)` f32 and, where the family has
/// one, the pooled state `(b, projection_dim)` f32. `clip_skip` of the last layers are left out for each prompt.
pub(super) fn encode_tokens(
    encoders: &[TextEncoder],
    family: Family,
    tokens: &[Vec<Tokens>],
    clip_skip: &[usize],
) -> Result<(Tensor, Option<Tensor>)> {
    let mut states = Vec::new();
    let mut pooled = None;
    for (encoder, prompts) in encoders.iter().zip(tokens) {
        let ids: Vec<&[u32]> = prompts.iter().map(|tokens| tokens.ids.as_slice()).collect();
        if family == Family::StableDiffusionXl {
            // SDXL takes the last state but one, without the last norm (Podell et al. 2023, section 2.1).
            let skip: Vec<usize> = clip_skip.iter().map(|skip| skip + 1).collect();
            let found = encoder.model.forward(&ids, &skip)?;
            pooled = Some(encoder.model.pooled(&ids, &found.last)?.to_dtype(DType::F32)?);
            states.push(found.skipped.to_dtype(DType::F32)?);
        } else {
            let found = encoder.model.forward(&ids, clip_skip)?;
            states.push(encoder.model.norm(&found.skipped)?.to_dtype(DType::F32)?);
        }
    }
    Ok((Tensor::cat(&states, 2)?, pooled))
}

/// Encodes a request's prompts: without the prompt and with it where there is guidance, else with it alone. Adds what
/// the caller should know to `warnings`.
pub(super) fn condition(
    encoders: &[TextEncoder],
    spec: &ModelSpec,
    config: &SamplingConfig,
    (height, width): (usize, usize),
    warnings: &mut Vec<String>,
) -> Result<Conditioning> {
    let prompt = config.prompt.as_str();
    // An absent negative prompt may be zeros, an empty one never is: as diffusers' pipeline for SDXL has it, whatever the
    // key in its index is called.
    let without_text = config.negative_prompt.is_none()
        && spec.family == Family::StableDiffusionXl
        && spec.force_zeros_for_empty_prompt;
    let negative = config.negative_prompt.as_deref().unwrap_or_default();
    let texts = if is_guided(spec, config) && !without_text {
        // As in diffusers, layers are left out for the prompt alone.
        encode_all(
            encoders,
            spec.family,
            &[Prompt::negative(negative), Prompt::positive(prompt)],
            &[0, config.clip_skip],
        )?
    } else {
        let prompt = encode(encoders, spec.family, prompt, config.clip_skip)?;
        if is_guided(spec, config) { vec![prompt.zeros()?, prompt] } else { vec![prompt] }
    };
    for (text, field) in texts.iter().rev().zip(["prompt", "negative_prompt"]) {
        if let Some((left_out, room)) = text.cut {
            warnings
                .push(format!("{field} was cut: this model reads {room} tokens, the last {left_out} were left out"));
        }
    }
    if !is_guided(spec, config) && !negative.is_empty() {
        warnings.push(if spec.unet.is_told_guidance() {
            "negative_prompt has no effect with this model, which is told the guidance_scale instead".to_owned()
        } else {
            format!("negative_prompt has no effect at guidance_scale {}; above 1 it has", config.guidance_scale)
        });
    }
    let states: Vec<&Tensor> = texts.iter().map(|text| &text.states).collect();
    let pooled: Vec<&Tensor> = texts.iter().filter_map(|text| text.pooled.as_ref()).collect();
    #[expect(clippy::cast_precision_loss, reason = "sizes are at most a few thousand")]
    let (height, width) = (height as f64, width as f64);
    let added = if pooled.is_empty() {
        None
    } else {
        // The picture is meant to be whole: its original size is its own, and nothing is cropped.
        let sizes = vec![[height, width, 0.0, 0.0, height, width]; pooled.len()];
        Some(Added { pooled: Tensor::cat(&pooled, 0)?, sizes })
    };
    Ok(Conditioning { text: Tensor::cat(&states, 0)?, added })
}

/// Whether a request is guided with two network passes a step. A network that is told the guidance scale needs one, as in
/// diffusers' pipelines of every class.
pub(super) fn is_guided(spec: &ModelSpec, config: &SamplingConfig) -> bool {
    config.guidance_scale > 1.0 && !spec.unet.is_told_guidance()
}
