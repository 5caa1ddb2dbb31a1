//! The diffusion exponential integrator sampler.

use candle_core::Tensor;

use super::{
    super::level::{noise_share, signal_share},
    dpm_solver::weighed,
};
use crate::Result;

/// Zhang and Chen 2023, equation 15 in its log-ρ form: the polynomial in log σ through the last `slopes` dx/dσ = ε, the
/// newest first, of up to three, is integrated from σ to the next. `to` is above zero, as diffusers' class ends at the least
/// σ of training.
pub(super) fn deis(x: &Tensor, slopes: &[(Tensor, f64)], from: f64, to: f64) -> Result<Tensor> {
    let weights = weights(slopes.iter().map(|(_, sigma)| (sigma / from).ln()).collect(), from, to);
    let weights = weights.into_iter().map(|weight| weight * signal_share(to));
    weighed(x, signal_share(to) / signal_share(from), slopes.iter().map(|(slope, _)| slope).zip(weights))
}

/// The integral of each slope's polynomial over the step, by where the slopes are in log(σ / from).
fn weights(places: Vec<f64>, from: f64, to: f64) -> Vec<f64> {
    // ∫ uⁿ dσ for n of 0, 1 and 2, where u = ln(σ / from).
    let end = (to / from).ln();
    let even = to - from;
    let linear = to * end - even;
    let square = to * end * end - 2.0 * linear;
    match places[..] {
        [_] => vec![even],
        [_, before] => vec![even - linear / before, linear / before],
        _ => {
            let weight = |number: usize| {
                let (other, another) = (places[(number + 1) % 3], places[(number + 2) % 3]);
                let area = square - (other + another) * linear + other * another * even;
                area / ((places[number] - other) * (places[number] - another))
            };
            (0..3).map(weight).collect()
        }
    }
}

/// The slope dx/dσ, which is ε.
pub(super) fn slope(x: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(((x - (denoised * signal_share(sigma))?)? / noise_share(sigma))?)
}
