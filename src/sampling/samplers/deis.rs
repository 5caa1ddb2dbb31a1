//! The diffusion exponential integrator sampler.

use candle_core::Tensor;

use super::super::level::{noise_share, signal_share};
use crate::Result;

/// Zhang and Chen 2023, equation 15 in its log-ρ form, of second order: the straight line in log σ through the last two
/// slopes dx/dσ = ε is integrated from σ to the next. Of first order without the `previous` slope and its σ. `to` is above
/// zero, as diffusers' class ends at the least σ of training.
pub(super) fn deis(x: &Tensor, slope: &Tensor, from: f64, to: f64, previous: Option<&(Tensor, f64)>) -> Result<Tensor> {
    let start = (x * (signal_share(to) / signal_share(from)))?;
    let Some((previous, previous_sigma)) = previous else {
        return Ok((start + (slope * (signal_share(to) * (to - from)))?)?);
    };
    // ∫ ln(τ / from) dτ, over the length of the line.
    let area = to * (to / from).ln() - (to - from);
    let of_previous = area / (previous_sigma / from).ln();
    let of_slope = (to - from) - of_previous;
    let latents = (start + (slope * (signal_share(to) * of_slope))?)?;
    Ok((latents + (previous * (signal_share(to) * of_previous))?)?)
}

/// The slope dx/dσ, which is ε.
pub(super) fn slope(x: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(((x - (denoised * signal_share(sigma))?)? / noise_share(sigma))?)
}
