//! Sinusoidal embeddings of timesteps and sizes, and the small network behind them.

use candle_core::{Device, Tensor};

use super::{Activation, Linear, Weights};
use crate::Result;

/// How numbers become sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5).
#[derive(Debug, Clone, Copy)]
pub struct Sinusoids {
    /// Values for each number, half of them cosines.
    pub width: usize,
    /// Whether the cosines come first.
    pub cosines_first: bool,
    /// Taken from the count of frequencies when their step is computed.
    pub frequency_shift: f64,
}

impl Sinusoids {
    /// `(numbers.len(), width)` in f32.
    ///
    /// # Errors
    ///
    /// The device has no room.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what networks take")]
    pub fn of(&self, numbers: &[f64], device: &Device) -> Result<Tensor> {
        let half = self.width / 2;
        let step = -(10_000_f64.ln()) / (half as f64 - self.frequency_shift);
        let mut values = Vec::with_capacity(numbers.len() * self.width);
        for number in numbers {
            let angles = (0..half).map(|index| number * (step * index as f64).exp());
            let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
            let (first, second) = if self.cosines_first { (cosines, sines) } else { (sines, cosines) };
            values.extend(first.into_iter().chain(second));
            // An odd width ends in a zero.
            values.resize(values.len() + self.width % 2, 0.0);
        }
        Ok(Tensor::from_vec(values, (numbers.len(), self.width), device)?)
    }
}

/// Two linear layers with SiLU between them.
#[derive(Debug)]
pub struct EmbeddingMlp {
    first: Linear,
    second: Linear,
}

impl EmbeddingMlp {
    /// Reads `linear_1` and `linear_2`.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            first: Linear::new(&weights.at("linear_1"), inputs, outputs)?,
            second: Linear::new(&weights.at("linear_2"), outputs, outputs)?,
        })
    }

    /// `(b, inputs)` to `(b, outputs)`.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&Activation::Silu.forward(&self.first.forward(x)?)?)
    }
}
