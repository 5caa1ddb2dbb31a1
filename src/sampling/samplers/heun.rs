//! Heun's method.

use candle_core::Tensor;

use super::{
    super::{Bound, level::signal_share, schedule::Step},
    Asked, Stepped,
    ddim::transfer,
};
use crate::Result;

/// Karras et al. 2022, algorithm 1: the mean of the slopes at both ends, to x₀ within `bound`.
pub(super) fn heun(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>, bound: Bound) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    let denoised = bound.of(denoised)?;
    let predicted = transfer(x, &denoised, from, to)?;
    let Some(second) = step.second else { return Ok(Stepped { latents: predicted, denoised }) };
    let predicted = (asked.between)(predicted, second.level)?;
    let again = bound.of((asked.denoise)(&predicted, second.level)?)?;
    let half = (to - from) / 2.0;
    let signal = signal_share(to);
    let first_slope = ((x * (signal / signal_share(from)))? - (&denoised * signal)?)?;
    let second_slope = (predicted - (&again * signal)?)?;
    let start = (x * (signal / signal_share(from)))?;
    let latents = ((start + (first_slope * (half / from))?)? + (second_slope * (half / to))?)?;
    Ok(Stepped { latents, denoised: again })
}
