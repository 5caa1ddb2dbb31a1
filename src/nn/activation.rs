//! Non-linearities, by their names in configurations.

use candle_core::Tensor;

use crate::Result;

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum Activation {
    /// `x Φ(x)`, exact (Hendrycks and Gimpel 2016).
    #[serde(rename = "gelu")]
    Gelu,
    /// `x σ(1.702 x)`, as CLIP has it.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `x σ(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    /// Element by element.
    ///
    /// # Errors
    ///
    /// A number type that the device cannot compute with.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu => x.gelu_erf()?,
            Self::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
            Self::Silu => x.silu()?,
        })
    }
}
