//! Euler's method with ancestral noise.

use candle_core::Tensor;

use super::super::{
    BatchNoise,
    level::{noise_share, signal_share},
};
use crate::Result;

/// Euler's step to less noise than asked for, and fresh noise up to it. With x₀ fixed it is the posterior of Ho et al. 2020,
/// equation 7, so that it is DDPM's step too.
pub(super) fn euler_ancestral(
    x: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    let (up, down) = split(from, to);
    let of_x = signal_share(to) * down / noise_share(from);
    let of_denoised = signal_share(to) * (1.0 - down / from);
    let fresh = noise.like(x)?;
    Ok((((x * of_x)? + (denoised * of_denoised)?)? + (fresh * (signal_share(to) * up))?)?)
}

/// The σ of fresh noise and the σ to go to before it is added, for a step between these. `from` may be infinite.
pub(super) fn split(from: f64, to: f64) -> (f64, f64) {
    let share = to / from;
    (to * (1.0 - share * share).max(0.0).sqrt(), to * share)
}
