//! Pseudo numerical methods: the linear multi-step rule.

use candle_core::Tensor;

use super::{
    super::{PredictionType, schedule::Step},
    Asked, Stepped,
    ddim::transfer,
};
use crate::Result;

/// Liu et al. 2022, equation 12: a linear multi-step rule on the network's outputs, of up to fourth order, then DDIM's
/// step. As in diffusers, the outputs are combined as the network gives them, and turned into x₀ at the latents' level.
pub(super) fn pndm(
    x: &Tensor,
    denoised: &Tensor,
    step: &Step,
    asked: Asked<'_>,
    outputs: &mut Vec<Tensor>,
    prediction: PredictionType,
) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    outputs.insert(0, prediction.output(x, denoised, from)?);
    outputs.truncate(4);
    if let Some(second) = step.second {
        let predicted = (asked.between)(transfer(x, denoised, from, to)?, second.level)?;
        let again = (asked.denoise)(&predicted, second.level)?;
        let output = prediction.output(&predicted, &again, second.level.sigma)?;
        let mean = ((output + &outputs[0])? * 0.5)?;
        let denoised = prediction.denoised(x, &mean, second.from_sigma)?;
        return Ok(Stepped { latents: transfer(x, &denoised, second.from_sigma, second.next_sigma)?, denoised });
    }
    let weights: &[f64] = match outputs.len() {
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    };
    let mut combined = (&outputs[0] * weights[0])?;
    for (output, weight) in outputs.iter().zip(weights).skip(1) {
        combined = (combined + (output * *weight)?)?;
    }
    let denoised = prediction.denoised(x, &combined, from)?;
    Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised })
}
