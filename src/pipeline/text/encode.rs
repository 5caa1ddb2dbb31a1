//! Chunks of tokens to states: every text encoder on all chunks at once, weights, and chunks joined.
//!
//! Weights are AUTOMATIC1111's: in each chunk, and for each encoder by itself, the state of every token is multiplied by the
//! token's weight, and then all of them by one number, so that their mean is what it was. The pooled state is that of the
//! first chunk, without weights.

use candle_core::{DType, Tensor};

use super::{
    TextEncoder,
    chunks::{Chunk, Chunks, Reading},
};
use crate::{Result, models::Family};

/// A prompt as the denoiser is told it.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// The tokens' states: `(1, n, c)` f32.
    pub states: Tensor,
    /// The pooled state, `(1, projection_dim)` f32, where the family has one.
    pub pooled: Option<Tensor>,
}

impl EncodedText {
    /// As this one, of nothing but zeros.
    pub(super) fn zeros(&self) -> Result<Self> {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { states: self.states.zeros_like()?, pooled })
    }
}

/// What to draw, or what to steer away from: a text for each encoder, with the field of the request that it is in.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct Prompt<'a> {
    first: (&'static str, &'a str),
    /// What encoders after the first read.
    second: (&'static str, &'a str),
}

impl<'a> Prompt<'a> {
    /// What to draw. The second text is for encoders after the first; without it they read the first.
    pub(in crate::pipeline) fn positive(first: &'a str, second: Option<&'a str>) -> Self {
        let first = ("prompt", first);
        Self { first, second: second.map_or(first, |second| ("prompt_2", second)) }
    }

    /// What to steer away from.
    pub(in crate::pipeline) fn negative(first: &'a str, second: Option<&'a str>) -> Self {
        let first = ("negative_prompt", first);
        Self { first, second: second.map_or(first, |second| ("negative_prompt_2", second)) }
    }

    /// The field and the text that encoder `number` reads.
    pub(super) fn text(&self, number: usize) -> (&'static str, &'a str) {
        if number == 0 { self.first } else { self.second }
    }
}

/// Encodes one prompt as diffusers does, leaving out `clip_skip` of the last layers.
pub(in crate::pipeline) fn encode(
    encoders: &[TextEncoder],
    family: Family,
    text: &str,
    clip_skip: usize,
) -> Result<EncodedText> {
    let tokens = tokenize(encoders, &[Prompt::positive(text, None)], Reading::PLAIN)?;
    Ok(encode_each(encoders, family, &tokens, &[clip_skip])?.remove(0))
}

/// Encodes prompts together, given each encoder's tokens, leaving out its own `clip_skip` for each.
pub(super) fn encode_each(
    encoders: &[TextEncoder],
    family: Family,
    tokens: &[Vec<Chunks>],
    clip_skip: &[usize],
) -> Result<Vec<EncodedText>> {
    let (states, pooled) = encode_tokens(encoders, family, tokens, clip_skip)?;
    let of_prompt = |row: usize| {
        Ok(EncodedText {
            states: states.narrow(0, row, 1)?,
            pooled: pooled.as_ref().map(|pooled| pooled.narrow(0, row, 1)).transpose()?,
        })
    };
    (0..clip_skip.len()).map(of_prompt).collect()
}

/// Each encoder's tokens of each prompt, in as many chunks as the longest of them has.
pub(in crate::pipeline) fn tokenize(
    encoders: &[TextEncoder],
    prompts: &[Prompt],
    reading: Reading,
) -> Result<Vec<Vec<Chunks>>> {
    let of_encoder = |(number, encoder): (usize, &TextEncoder)| {
        let read = |prompt: &Prompt| {
            let (field, text) = prompt.text(number);
            Chunks::read(&encoder.tokenizer, field, text, reading)
        };
        prompts.iter().map(read).collect::<Result<Vec<_>>>()
    };
    let mut tokens = encoders.iter().enumerate().map(of_encoder).collect::<Result<Vec<_>>>()?;
    let most = tokens.iter().flatten().map(|prompt| prompt.chunks.len()).max().unwrap_or(1);
    for (encoder, prompts) in encoders.iter().zip(&mut tokens) {
        for prompt in prompts {
            prompt.pad(most, &encoder.tokenizer);
        }
    }
    Ok(tokens)
}

/// Encodes a batch of prompts, given each encoder's tokens: the tokens' states `(b, n, c)` f32, chunk after chunk, and, where
/// the family has one, the pooled state `(b, projection_dim)` f32. `clip_skip` of the last layers are left out for each
/// prompt.
pub(in crate::pipeline) fn encode_tokens(
    encoders: &[TextEncoder],
    family: Family,
    tokens: &[Vec<Chunks>],
    clip_skip: &[usize],
) -> Result<(Tensor, Option<Tensor>)> {
    let mut states = Vec::new();
    let mut pooled = None;
    for (encoder, prompts) in encoders.iter().zip(tokens) {
        let chunks: Vec<&Chunk> = prompts.iter().flat_map(|prompt| &prompt.chunks).collect();
        let ids: Vec<&[u32]> = chunks.iter().map(|chunk| chunk.ids.as_slice()).collect();
        let of_each = chunks.len() / prompts.len();
        // SDXL takes the last state but one, without the last norm (Podell et al. 2023, section 2.1).
        let xl = family == Family::StableDiffusionXl;
        let skip: Vec<usize> =
            clip_skip.iter().flat_map(|skip| std::iter::repeat_n(skip + usize::from(xl), of_each)).collect();
        let found = encoder.model.forward(&ids, &skip)?;
        let of_chunks = if xl {
            let first_ids: Vec<&[u32]> = ids.iter().step_by(of_each).copied().collect();
            let first = first_of_each(&found.last, of_each)?;
            pooled = Some(encoder.model.pooled(&first_ids, &first)?.to_dtype(DType::F32)?);
            found.skipped.to_dtype(DType::F32)?
        } else {
            encoder.model.norm(&found.skipped)?.to_dtype(DType::F32)?
        };
        let (_, _, width) = of_chunks.dims3()?;
        states.push(weigh(of_chunks, &chunks)?.reshape((prompts.len(), (), width))?);
    }
    Ok((Tensor::cat(&states, 2)?, pooled))
}

/// Of every `of_each` rows the first.
fn first_of_each(states: &Tensor, of_each: usize) -> Result<Tensor> {
    let (rows, length, width) = states.dims3()?;
    let grouped = states.reshape((rows / of_each, of_each, length, width))?;
    Ok(grouped.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)
}

/// Multiplies tokens' states `(chunks, n, c)` f32 by their weights, keeping each chunk's mean.
fn weigh(states: Tensor, chunks: &[&Chunk]) -> Result<Tensor> {
    if chunks.iter().all(|chunk| chunk.weights.is_none()) {
        return Ok(states);
    }
    let weighed = chunks.iter().enumerate().map(|(row, chunk)| {
        let state = states.narrow(0, row, 1)?;
        let Some(weights) = &chunk.weights else { return Ok(state) };
        let weights = Tensor::from_slice(weights, (1, weights.len(), 1), states.device())?;
        let weighed = state.broadcast_mul(&weights)?;
        let restored = mean(&state)? / mean(&weighed)?;
        // Where weights have left no mean there is none to restore.
        Ok(if restored.is_finite() { (weighed * restored)? } else { weighed })
    });
    Ok(Tensor::cat(&weighed.collect::<Result<Vec<_>>>()?, 0)?)
}

/// The mean of all numbers. It is small beside them, so it is summed in f64, and here, since not every device has that.
fn mean(states: &Tensor) -> Result<f64> {
    let values: Vec<f32> = states.flatten_all()?.to_vec1()?;
    #[expect(clippy::cast_precision_loss, reason = "a window has fewer numbers than f64 counts")]
    Ok(values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn weighted_states_keep_the_mean_of_their_chunk() {
        let values: Vec<f32> = vec![1.0, 2.0, 3.0, 5.0, -1.0, 2.0, 0.5, 4.0];
        let states = Tensor::from_vec(values, (2, 2, 2), &Device::Cpu).unwrap();
        let chunk = |weights: Option<Vec<f32>>| Chunk { ids: vec![1, 2], weights };
        let (plain, weighted) = (chunk(None), chunk(Some(vec![1.0, 2.0])));
        let found: Vec<f32> =
            weigh(states.clone(), &[&weighted, &plain]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        // The mean was 11 / 4, and 19 / 4 after the weights.
        let wanted = [11.0 / 19.0, 22.0 / 19.0, 66.0 / 19.0, 110.0 / 19.0, -1.0, 2.0, 0.5, 4.0];
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        // Weights that leave no mean.
        let nothing = chunk(Some(vec![0.0, 0.0]));
        let found: Vec<f32> = weigh(states, &[&nothing, &plain]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found, [0.0, 0.0, 0.0, 0.0, -1.0, 2.0, 0.5, 4.0]);
    }
}
