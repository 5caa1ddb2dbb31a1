//! DPM-Solver++ on the reverse SDE, by single steps.

use candle_core::Tensor;

use super::{super::schedule::Step, Asked, Stepped, ddim::transfer, euler_ancestral::euler_ancestral};
use crate::Result;

/// k-diffusion's `dpmpp_sde` with r = 1/2: Lu et al. 2022 (DPM-Solver++), algorithm 1, where both parts of the step go to
/// less noise than asked for, and fresh noise makes up for it. The x₀ of the whole step is that half way in log σ. The last
/// step, to σ = 0, is Euler's.
///
/// Each part draws one normal for each latent, the first part first. k-diffusion draws both from one Brownian path, with
/// increments that overlap; these are independent, and each has the same distribution.
pub(super) fn dpmpp_sde(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    if to == 0.0 {
        return Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised });
    }
    let denoised = match step.second {
        Some(second) => {
            let halfway = euler_ancestral(x, &denoised, from, second.level.sigma, asked.noise)?;
            let halfway = (asked.between)(halfway, second.level)?;
            (asked.denoise)(&halfway, second.level)?
        }
        None => denoised,
    };
    Ok(Stepped { latents: euler_ancestral(x, &denoised, from, to, asked.noise)?, denoised })
}
