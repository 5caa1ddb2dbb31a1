//! Prompts to what the denoiser is told of them.
//!
//! A request's texts are parsed (`parse`), tokenized into chunks (`chunks`), encoded and weighted (`encode`), and put together
//! with what is told besides (`conditioning`).

mod chunks;
mod conditioning;
mod encode;
mod parse;

pub(super) use chunks::Reading;
pub(super) use conditioning::{check, chunk_count, condition, is_guided, most_passes};
pub use encode::EncodedText;
pub(super) use encode::{Prompt, encode, encode_tokens, tokenize};
pub use parse::literal_prompt;

use super::PromptSupport;
use crate::{
    Result,
    models::{ClipTextModel, Family, ModelSpec, Pooling, PromptTokenizer},
    nn::Weights,
};

/// The most chunks of a prompt that are read.
pub(super) const MAX_CHUNKS: usize = 10;

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

    /// How many tokens it reads at a time.
    pub(super) fn window(&self) -> usize {
        self.tokenizer.window()
    }

    /// How many of them are a prompt's.
    pub(super) fn room(&self) -> usize {
        self.tokenizer.room()
    }
}

/// What a model with these encoders takes of prompts.
pub(super) fn support(spec: &ModelSpec, encoders: &[TextEncoder]) -> PromptSupport {
    // Windows are all alike; room is what each leaves to the prompt.
    let chunk_tokens = encoders.iter().map(TextEncoder::room).min().unwrap_or(0);
    PromptSupport { chunk_tokens, max_chunks: MAX_CHUNKS, second: takes_second_prompt(spec) }
}

/// Whether a model takes a second prompt and the sizes of a picture: Stable Diffusion XL with both its text encoders.
pub(super) fn takes_second_prompt(spec: &ModelSpec) -> bool {
    spec.family == Family::StableDiffusionXl && spec.text_encoders.len() > 1
}
