//! Euler's method with ancestral noise, which is also DDPM.

use candle_core::Tensor;

use super::super::{
    BatchNoise, Variance,
    level::{noise_share, signal_share},
    schedule::Step,
};
use crate::Result;

/// Euler's step to less noise than asked for, and fresh noise up to it. With x₀ fixed it is the posterior of Ho et al. 2020,
/// equation 7, so that it is DDPM's step too. Each step draws one normal for each latent, whatever its weight.
pub(super) fn euler_ancestral(
    x: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    let (up, _) = split(from, to);
    Ok((lowered(x, denoised, from, to)? + (noise.like(x)? * (signal_share(to) * up))?)?)
}

/// DDPM's step, with the posterior's variance or that of the whole step (Ho et al. 2020, section 3.2). At timestep 0 there is
/// no noise.
pub(super) fn ddpm(
    x: &Tensor,
    denoised: &Tensor,
    step: &Step,
    variance: Variance,
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    if variance == Variance::Small {
        return euler_ancestral(x, denoised, from, to, noise);
    }
    let lowered = lowered(x, denoised, from, to)?;
    if step.level.timestep <= 0.0 {
        return Ok(lowered);
    }
    let share = signal_share(from) / signal_share(to);
    Ok((lowered + (noise.like(x)? * (1.0 - share * share).max(0.0).sqrt())?)?)
}

/// The posterior's mean.
fn lowered(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    let (_, down) = split(from, to);
    let of_x = signal_share(to) * down / noise_share(from);
    let of_denoised = signal_share(to) * (1.0 - down / from);
    Ok(((x * of_x)? + (denoised * of_denoised)?)?)
}

/// The σ of fresh noise and the σ to go to before it is added, for a step between these. `from` may be infinite.
pub(super) fn split(from: f64, to: f64) -> (f64, f64) {
    let share = to / from;
    (to * (1.0 - share * share).max(0.0).sqrt(), to * share)
}
