//! DDIM, which is also Euler's method.

use candle_core::Tensor;

use super::super::{
    BatchNoise, Bound,
    level::{noise_share, signal_share},
};
use crate::Result;

/// Along the straight line in σ from `x` with x₀ fixed: DDIM's step (Song et al. 2020, equation 12, η = 0), which is
/// Euler's on the probability-flow ODE (Karras et al. 2022, algorithm 1 without the correction).
pub(super) fn transfer(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    let of_x = noise_share(to) / noise_share(from);
    let of_denoised = signal_share(to) - signal_share(from) * of_x;
    Ok(((x * of_x)? + (denoised * of_denoised)?)?)
}

/// DDIM's step with x₀ kept within `bound` while the direction to it stays, and `eta` times the noise of equation 16: at 1 it
/// is DDPM's. Above 0 each step draws one normal for each latent.
pub(super) fn ddim(
    x: &Tensor,
    denoised: &Tensor,
    (from, to): (f64, f64),
    bound: Bound,
    eta: f64,
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    let mut moved = transfer(x, denoised, from, to)?;
    if bound != Bound::None {
        moved = (moved + ((bound.of(denoised.clone())? - denoised)? * signal_share(to))?)?;
    }
    if eta == 0.0 {
        return Ok(moved);
    }
    let share = signal_share(from) / signal_share(to);
    let deviation = eta * noise_share(to) / noise_share(from) * (1.0 - share * share).max(0.0).sqrt();
    // What is left of the direction's weight, times the direction, which is ε.
    let left = (noise_share(to).powi(2) - deviation * deviation).max(0.0).sqrt() - noise_share(to);
    let direction = ((x - (denoised * signal_share(from))?)? * (left / noise_share(from)))?;
    Ok(((moved + direction)? + (noise.like(x)? * deviation)?)?)
}
