//! Noise levels: how much signal and how much noise latents have at σ.
//!
//! Latents are kept at total variance 1, as the networks take them: `x = signal x₀ + noise ε` with
//! `signal² + noise² = 1` and `σ = noise / signal`. So σ may be infinite, as it is for checkpoints with zero terminal
//! signal-to-noise ratio (Lin et al. 2023), and the network's input needs no scaling.

use candle_core::Tensor;

use crate::Result;

/// Denoised latents with noise up to level `sigma`, at total variance 1: `(b, c, h, w)` f32 both.
///
/// # Errors
///
/// [`Error::Tensor`](crate::Error::Tensor) for shapes that differ.
pub fn noisy(denoised: &Tensor, noise: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(((denoised * signal_share(sigma))? + (noise * noise_share(sigma))?)?)
}

/// The factor of x₀ at `sigma`, 1 at σ = 0 and 0 at σ = ∞: `1/√(1 + σ²)`.
pub(super) fn signal_share(sigma: f64) -> f64 {
    1.0 / (1.0 + sigma * sigma).sqrt()
}

/// The factor of ε at `sigma`, 0 at σ = 0 and 1 at σ = ∞: `σ/√(1 + σ²)`.
pub(super) fn noise_share(sigma: f64) -> f64 {
    1.0 / (1.0 + 1.0 / (sigma * sigma)).sqrt()
}

/// σ of a cumulative product of alphas (Ho et al. 2020, section 2).
pub(super) fn sigma_of(alpha_product: f64) -> f64 {
    ((1.0 - alpha_product) / alpha_product).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_pure_signal_and_pure_noise() {
        assert_eq!((signal_share(0.0), noise_share(0.0)), (1.0, 0.0));
        assert_eq!((signal_share(f64::INFINITY), noise_share(f64::INFINITY)), (0.0, 1.0));
        assert_eq!(sigma_of(0.0), f64::INFINITY);
        let sigma = sigma_of(0.3);
        assert!((signal_share(sigma).powi(2) - 0.3).abs() < 1e-12 && (noise_share(sigma).powi(2) - 0.7).abs() < 1e-12);
    }
}
