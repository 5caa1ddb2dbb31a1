//! The residual block that the UNet and the VAE share.

use candle_core::Tensor;

use super::{Activation, Conv2d, GroupNorm, Linear, Weights, feature_map};
use crate::Result;

/// Two normalised convolutions around a shortcut, told the timestep where there is one.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

/// The sizes of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub struct ResnetSizes {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// The width of the timestep's embedding; `None` for a block that is not told.
    pub time: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Added to the norms' variance.
    pub epsilon: f64,
}

impl ResnetBlock {
    /// Reads the block's tensors, under diffusers' names.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, sizes: ResnetSizes) -> Result<Self> {
        let ResnetSizes { inputs, outputs, time, groups, epsilon } = sizes;
        let shortcut = (inputs != outputs).then(|| Conv2d::new(&weights.at("conv_shortcut"), inputs, outputs, 1));
        let time = time.map(|width| Linear::new(&weights.at("time_emb_proj"), width, outputs));
        Ok(Self {
            norm1: GroupNorm::new(&weights.at("norm1"), inputs, groups, epsilon)?,
            conv1: Conv2d::new(&weights.at("conv1"), inputs, outputs, 3)?,
            time: time.transpose()?,
            norm2: GroupNorm::new(&weights.at("norm2"), outputs, groups, epsilon)?,
            conv2: Conv2d::new(&weights.at("conv2"), outputs, outputs, 3)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// Feature map to feature map; `time` is `(b, width)`, already activated.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut y = self.conv1.forward(&Activation::Silu.forward(&self.norm1.forward(x)?)?)?;
        if let (Some(layer), Some(time)) = (&self.time, time) {
            y = feature_map::add_to_channels(&y, &layer.forward(time)?)?;
        }
        let y = self.conv2.forward(&Activation::Silu.forward(&self.norm2.forward(&y)?)?)?;
        Ok(match &self.shortcut {
            Some(shortcut) => (shortcut.forward(x)? + y)?,
            None => (x + y)?,
        })
    }
}
