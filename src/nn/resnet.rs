//! The residual block that the UNet and the VAE share.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::{After, Conv2d, GroupNorm, Linear, NormalConv, Strips, Weights, strips::Halo};
use crate::Result;

/// Two normalised convolutions around a shortcut, told the timestep where there is one.
#[derive(Debug)]
pub struct ResnetBlock {
    first: NormalConv,
    time: Option<Linear>,
    second: NormalConv,
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
        let norm1 = GroupNorm::new(&weights.at("norm1"), inputs, groups, epsilon)?;
        let norm2 = GroupNorm::new(&weights.at("norm2"), outputs, groups, epsilon)?;
        Ok(Self {
            first: NormalConv::new(norm1, &weights.at("conv1"), inputs, outputs)?,
            time: time.transpose()?,
            second: NormalConv::new(norm2, &weights.at("conv2"), outputs, outputs)?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// Feature map to feature map, in the same type; `time` is `(b, width)`, already activated.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let alone = After::as_type_of(x);
        let time = match (&self.time, time) {
            (Some(layer), Some(time)) => Some(layer.forward_then(time, alone)?),
            _ => None,
        };
        let y = self.first.forward_then(x, After { per_image: time.as_ref(), ..alone })?;
        let shortcut = self.shortcut.as_ref().map(|shortcut| shortcut.forward_then(x, alone)).transpose()?;
        self.second.forward_then(&y, After::added_to(shortcut.as_ref().unwrap_or(x)))
    }

    /// As [`forward`](Self::forward), of a map in strips, in a block that is not told a timestep. Strips are let go of as soon
    /// as nothing needs them any more.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_strips(&self, x: Strips) -> Result<Strips> {
        let spread = x.spread(&self.first)?;
        let mut residuals = VecDeque::with_capacity(x.len());
        let y = x.each(Halo::Both, |strip| {
            let alone = After::as_type_of(strip.own());
            residuals.push_back(match &self.shortcut {
                Some(shortcut) => shortcut.forward_then(strip.own(), alone)?,
                None => strip.own().clone(),
            });
            strip.crop(&self.first.forward_by(strip.whole(), &spread, alone)?, 1)
        })?;
        let spread = y.spread(&self.second)?;
        y.each(Halo::Both, |strip| {
            let residual = strip.extend(&residuals.pop_front().expect("there is one for each strip"))?;
            strip.crop(&self.second.forward_by(strip.whole(), &spread, After::added_to(&residual))?, 1)
        })
    }
}
