//! DDIM, which is also Euler's method.

use candle_core::Tensor;

use super::super::level::{noise_share, signal_share};
use crate::Result;

/// Along the straight line in σ from `x` with x₀ fixed: DDIM's step (Song et al. 2020, equation 12, η = 0), which is
/// Euler's on the probability-flow ODE (Karras et al. 2022, algorithm 1 without the correction).
pub(super) fn transfer(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    let of_x = noise_share(to) / noise_share(from);
    let of_denoised = signal_share(to) - signal_share(from) * of_x;
    Ok(((x * of_x)? + (denoised * of_denoised)?)?)
}

/// As [`transfer`], with x₀ kept within ± `clip` while the direction to it stays.
pub(super) fn ddim(x: &Tensor, denoised: &Tensor, from: f64, to: f64, clip: Option<f64>) -> Result<Tensor> {
    let moved = transfer(x, denoised, from, to)?;
    match clip {
        None => Ok(moved),
        Some(range) => Ok((moved + ((denoised.clamp(-range, range)? - denoised)? * signal_share(to))?)?),
    }
}
