//! The linear multi-step method.

use candle_core::Tensor;

use super::super::level::{noise_share, signal_share};
use crate::Result;

/// How many slopes are used at most.
const ORDER: usize = 4;

/// The Adams-Bashforth method for steps of unequal length (Hairer, Nørsett and Wanner 1993, section III.5) on
/// dx/dσ = ε: the polynomial through the last slopes, newest first, is integrated from σ to the next.
pub(super) fn lms(
    x: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
    slopes: &mut Vec<(Tensor, f64)>,
) -> Result<Tensor> {
    let slope = ((x - (denoised * signal_share(from))?)? / noise_share(from))?;
    slopes.insert(0, (slope, from));
    slopes.truncate(ORDER);
    let sigmas: Vec<f64> = slopes.iter().map(|(_, sigma)| *sigma).collect();
    let mut latents = (x * (signal_share(to) / signal_share(from)))?;
    for (number, (slope, _)) in slopes.iter().enumerate() {
        latents = (latents + (slope * (signal_share(to) * weight(&sigmas, number, from, to)))?)?;
    }
    Ok(latents)
}

/// The integral of the polynomial that is 1 at the `number`th of `sigmas` and 0 at the others. Gauss and Legendre's rule of
/// two points is exact for it, as it has a degree of three at most.
fn weight(sigmas: &[f64], number: usize, from: f64, to: f64) -> f64 {
    let (middle, half) = (f64::midpoint(from, to), (to - from) / 2.0);
    let polynomial = |sigma: f64| {
        let others = sigmas.iter().enumerate().filter(|(other, _)| *other != number);
        others.map(|(_, zero)| (sigma - zero) / (sigmas[number] - zero)).product::<f64>()
    };
    let point = half / 3.0_f64.sqrt();
    half * (polynomial(middle - point) + polynomial(middle + point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_steps_have_the_textbook_s_weights() {
        let sigmas = [4.0, 5.0, 6.0, 7.0];
        for (number, wanted) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            assert!((weight(&sigmas, number, 4.0, 3.0) + wanted / 24.0).abs() < 1e-12);
        }
    }
}
