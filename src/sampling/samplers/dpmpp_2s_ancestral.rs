//! DPM-Solver++(2S) with ancestral noise.

use candle_core::Tensor;

use super::{
    super::{level::signal_share, schedule::Step},
    Asked, Stepped,
    ddim::transfer,
    euler_ancestral::split,
};
use crate::Result;

/// k-diffusion's `dpmpp_2s_ancestral`: to less noise than asked for by Lu et al. 2022 (DPM-Solver++), algorithm 1 with
/// r = 1/2, whose x₀ is that half way in log σ, and fresh noise up to what was asked for. The last step, to σ = 0, is
/// Euler's. Each other step draws one normal for each latent.
pub(super) fn dpmpp_2s_ancestral(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    let (up, down) = split(from, to);
    let denoised = match step.second {
        Some(second) => {
            let halfway = transfer(x, &denoised, from, second.level.sigma)?;
            let halfway = (asked.between)(halfway, second.level)?;
            (asked.denoise)(&halfway, second.level)?
        }
        None => denoised,
    };
    let latents = transfer(x, &denoised, from, down)?;
    if to == 0.0 {
        return Ok(Stepped { latents, denoised });
    }
    // From total variance 1 at the lower σ to the same at the one asked for.
    let latents = (latents * (signal_share(to) / signal_share(down)))?;
    let latents = (latents + (asked.noise.like(x)? * (signal_share(to) * up))?)?;
    Ok(Stepped { latents, denoised })
}
