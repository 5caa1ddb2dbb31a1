//! DPM-Solver-2: the midpoint method in the logarithm of σ.

use candle_core::Tensor;

use super::{
    super::{
        level::{noise_share, signal_share},
        schedule::Step,
    },
    Asked, Stepped,
    ddim::transfer,
    euler_ancestral::split,
};
use crate::Result;

/// Lu et al. 2022 (DPM-Solver), algorithm 1 with r₁ = 1/2, as a step of Karras et al. 2022, algorithm 2, without churn: the
/// slope that the network gives half way in log σ takes the latents the whole way.
pub(super) fn dpm_2(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
    whole_step(x, denoised, step, asked, step.next_sigma)
}

/// The same to less noise than asked for, and fresh noise up to it, in steps with a second look. The step that ends at σ = 0
/// adds none.
pub(super) fn dpm_2_ancestral(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
    let to = step.next_sigma;
    let (up, down) = split(step.level.sigma, to);
    let Asked { denoise, between, noise } = asked;
    let looks = Asked { denoise, between, noise: &mut *noise };
    let Stepped { latents, denoised } = whole_step(x, denoised, step, looks, down)?;
    // From total variance 1 at the lower σ to the same at the one asked for.
    let latents = (latents * (signal_share(to) / signal_share(down)))?;
    if to == 0.0 {
        return Ok(Stepped { latents, denoised });
    }
    let latents = (latents + (noise.like(x)? * (signal_share(to) * up))?)?;
    Ok(Stepped { latents, denoised })
}

fn whole_step(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>, to: f64) -> Result<Stepped> {
    let from = step.level.sigma;
    let Some(second) = step.second else {
        return Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised });
    };
    let middle = second.level.sigma;
    let halfway = (asked.between)(transfer(x, &denoised, from, middle)?, second.level)?;
    let denoised = (asked.denoise)(&halfway, second.level)?;
    // dx/dσ is ε, which is (x − signal x₀) / noise.
    let slope = ((halfway - (&denoised * signal_share(middle))?)? / noise_share(middle))?;
    let start = (x * (signal_share(to) / signal_share(from)))?;
    Ok(Stepped { latents: (start + (slope * (signal_share(to) * (to - from)))?)?, denoised })
}
