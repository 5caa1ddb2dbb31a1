//! DPM-Solver++(2M).

use candle_core::Tensor;

use super::ddim::transfer;
use crate::Result;

/// Lu et al. 2022 (DPM-Solver++), algorithm 2; of first order without a `previous` x₀ and its σ.
pub(super) fn dpmpp_2m(
    x: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
    previous: Option<(Tensor, f64)>,
) -> Result<Tensor> {
    let Some((previous, previous_sigma)) = previous else { return transfer(x, denoised, from, to) };
    // λ = −ln σ, so h = ln(from / to).
    let (h, h_before) = ((from / to).ln(), (previous_sigma / from).ln());
    let slope = ((denoised - previous)? * (h / h_before))?;
    let extrapolated = (denoised + (slope * 0.5)?)?;
    transfer(x, &extrapolated, from, to)
}
