//! What a network's output means.

use candle_core::Tensor;
use serde::Deserialize;

use super::level::{noise_share, signal_share};
use crate::Result;

/// What a network was trained to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise, ε (Ho et al. 2020).
    #[default]
    Epsilon,
    /// The velocity, v = α ε − s x₀ (Salimans and Ho 2022).
    VPrediction,
    /// The denoised latents, x₀.
    Sample,
    /// −v, as EDM's networks give it (Karras et al. 2022, equation 7) where latents are in units of the data's deviation.
    #[serde(skip)]
    NegativeV,
}

impl PredictionType {
    /// The denoised latents x₀ from latents `x` of total variance 1 at noise level `sigma` and the network's `output`,
    /// all of one shape.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) for shapes that differ.
    pub fn denoised(self, x: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let (signal, noise) = (signal_share(sigma), noise_share(sigma));
        Ok(match self {
            Self::Epsilon => ((x - (output * noise)?)? / signal)?,
            Self::VPrediction => ((x * signal)? - (output * noise)?)?,
            Self::Sample => output.clone(),
            Self::NegativeV => ((x * signal)? + (output * noise)?)?,
        })
    }

    /// The network's output from the latents `x` and x₀: the inverse of [`denoised`](Self::denoised).
    pub(super) fn output(self, x: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
        let (signal, noise) = (signal_share(sigma), noise_share(sigma));
        Ok(match self {
            Self::Epsilon => ((x - (denoised * signal)?)? / noise)?,
            Self::VPrediction => (((x * signal)? - denoised)? / noise)?,
            Self::Sample => denoised.clone(),
            Self::NegativeV => ((denoised - (x * signal)?)? / noise)?,
        })
    }
}
