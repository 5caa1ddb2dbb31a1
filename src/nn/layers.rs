//! The layers that networks are made of: products, norms and activations.
//!
//! Tokens are `(b, n, c)`; a feature map's layout is private to this folder: see [`feature_map`](super::feature_map).

use candle_core::{D, DType, Tensor};

use super::Weights;
use crate::Result;

/// A product with a matrix, and a bias.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)`. A 1×1 convolution's weight is taken, too.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let bias = Some(weights.tensor("bias", &[outputs])?);
        Ok(Self { bias, ..Self::without_bias(weights, inputs, outputs)? })
    }

    /// As [`new`](Self::new), for a layer that has no bias.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let shapes: [&[usize]; 2] = [&[outputs, inputs], &[outputs, inputs, 1, 1]];
        let weight = weights.tensor_of("weight", &shapes)?.t()?;
        Ok(Self { weight, bias: None })
    }

    /// `(.., inputs)` to `(.., outputs)`.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match *x.dims() {
            [b, n, c] => x.reshape((b * n, c))?.matmul(&self.weight)?.reshape((b, n, ()))?,
            _ => x.matmul(&self.weight)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// A 2-d convolution with a bias.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// Reads `weight` `(outputs, inputs, kernel, kernel)` and `bias`; the map keeps its size.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let weight = weights.tensor("weight", &[outputs, inputs, kernel, kernel])?;
        let bias = weights.tensor("bias", &[outputs])?.reshape((1, outputs, 1, 1))?;
        Ok(Self { weight, bias, stride: 1, padding: kernel / 2 })
    }

    /// A 3×3 convolution that halves the map, rounding up.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn halving(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Self { stride: 2, ..Self::new(weights, channels, channels, 3)? })
    }

    /// Feature map to feature map.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.conv2d(&self.weight, self.padding, self.stride, 1, 1)?.broadcast_add(&self.bias)?)
    }
}

/// Group normalisation of a feature map (Wu and He 2018), in f32.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, groups: usize, epsilon: f64) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> {
            let values = weights.tensor(name, &[channels])?.to_dtype(DType::F32)?;
            Ok(values.reshape((1, channels, 1, 1))?)
        };
        Ok(Self { weight: parameter("weight")?, bias: parameter("bias")?, groups, epsilon })
    }

    /// Feature map to feature map.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let grouped = x.to_dtype(DType::F32)?.reshape((b, self.groups, c / self.groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?;
        let normal = centred.broadcast_div(&deviation)?.reshape((b, c, h, w))?;
        let scaled = normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?;
        Ok(scaled.to_dtype(x.dtype())?)
    }
}

/// Layer normalisation of tokens (Ba et al. 2016), in f32.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, epsilon: f32) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> { Ok(weights.tensor(name, &[channels])?.to_dtype(DType::F32)?) };
        Ok(Self { weight: parameter("weight")?, bias: parameter("bias")?, epsilon })
    }

    /// `(.., channels)` to the same.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let normal = candle_nn::ops::layer_norm(&wide, &self.weight, &self.bias, self.epsilon)?;
        Ok(normal.to_dtype(x.dtype())?)
    }
}

/// A non-linearity, by its name in a configuration.
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
