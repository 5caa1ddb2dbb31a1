//! DPM-Solver++(3M) on the reverse SDE.

use candle_core::Tensor;

use super::{
    super::{Algorithm, BatchNoise, SolverType, level::signal_share},
    dpm_solver::{Weights, multistep, weighed},
};
use crate::Result;

/// k-diffusion's `dpmpp_3m_sde`: DPM-Solver++'s integral of the reverse SDE (Lu et al. 2022, section 5) with the polynomial
/// through the last x₀, the newest first, of up to three. Each step draws one normal for each latent, but the last, which
/// ends at x₀.
pub(super) fn dpmpp_3m_sde(
    x: &Tensor,
    outputs: &[(Tensor, f64)],
    (from, to): (f64, f64),
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    if to == 0.0 {
        return Ok(outputs[0].0.clone());
    }
    let mut weights = Weights::new(Algorithm::SdeDpmSolverPp, from, to);
    // The integral of the second derivative: φ₃ at 2h.
    let doubled = 2.0 * (from / to).ln();
    let left = -(-doubled).exp_m1();
    weights.curve = signal_share(to) * ((left - doubled) / (doubled * doubled) + 0.5);
    let sigmas: Vec<f64> = outputs.iter().map(|(_, sigma)| *sigma).collect();
    let shares = multistep(&weights, SolverType::Heun, &sigmas, to);
    let noise = noise.like(x)?;
    let outputs = outputs.iter().map(|(output, _)| output).zip(shares);
    weighed(x, weights.latents, outputs.chain([(&noise, weights.noise)]))
}
