//! The residual block that the UNet and the VAE share.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::{Activation, After, Conv2d, GroupNorm, Linear, NormalConv, Strips, Weights, feature_map, strips::Halo};
use crate::Result;

/// Two normalised convolutions around a shortcut, told the timestep where there is one.
#[derive(Debug)]
pub struct ResnetBlock {
    first: NormalConv,
    time: Option<Linear>,
    second: Second,
    shortcut: Option<Conv2d>,
    /// What the block's result is divided by.
    divisor: f64,
}

/// The second convolution, and where the timestep comes in before it.
#[derive(Debug)]
enum Second {
    /// It was added to what the first convolution made.
    Added(NormalConv),
    /// It scales and shifts what the norm made.
    Modulated(GroupNorm, Conv2d),
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
    /// Whether the timestep scales and shifts the second norm's result instead of being added before it.
    pub modulates: bool,
    /// What the block's result is divided by.
    pub divisor: f64,
}

impl ResnetSizes {
    /// A block that is told no timestep.
    #[must_use]
    pub const fn untold(inputs: usize, outputs: usize, groups: usize, epsilon: f64) -> Self {
        Self { inputs, outputs, time: None, groups, epsilon, modulates: false, divisor: 1.0 }
    }
}

impl ResnetBlock {
    /// Reads the block's tensors, under diffusers' names.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, sizes: ResnetSizes) -> Result<Self> {
        let ResnetSizes { inputs, outputs, time, groups, epsilon, modulates, divisor } = sizes;
        let shortcut = (inputs != outputs).then(|| Conv2d::new(&weights.at("conv_shortcut"), inputs, outputs, 1));
        let told = if modulates { 2 * outputs } else { outputs };
        let time = time.map(|width| Linear::new(&weights.at("time_emb_proj"), width, told));
        let norm1 = GroupNorm::new(&weights.at("norm1"), inputs, groups, epsilon)?;
        let norm2 = GroupNorm::new(&weights.at("norm2"), outputs, groups, epsilon)?;
        Ok(Self {
            first: NormalConv::new(norm1, &weights.at("conv1"), inputs, outputs)?,
            time: time.transpose()?,
            second: if modulates {
                Second::Modulated(norm2, Conv2d::new(&weights.at("conv2"), outputs, outputs, 3)?)
            } else {
                Second::Added(NormalConv::new(norm2, &weights.at("conv2"), outputs, outputs)?)
            },
            shortcut: shortcut.transpose()?,
            divisor,
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
        let added = time.as_ref().filter(|_| matches!(self.second, Second::Added(_)));
        let y = self.first.forward_then(x, After { per_image: added, ..alone })?;
        let shortcut = self.shortcut.as_ref().map(|shortcut| shortcut.forward_then(x, alone)).transpose()?;
        let after = After::added_to(shortcut.as_ref().unwrap_or(x));
        let y = match &self.second {
            Second::Added(conv) => conv.forward_then(&y, after)?,
            Second::Modulated(norm, conv) => {
                let y = norm.forward(&y)?;
                let y = match &time {
                    Some(time) => feature_map::modulate(&y, time)?,
                    None => y,
                };
                conv.forward_then(&Activation::Silu.forward(&y)?, after)?
            }
        };
        Ok(if self.divisor == 1.0 { y } else { (y / self.divisor)? })
    }

    /// As [`forward`](Self::forward), of a map in strips, in a block that is not told a timestep. Strips are let go of as soon
    /// as nothing needs them any more.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_strips(&self, x: Strips) -> Result<Strips> {
        let Second::Added(second) = &self.second else {
            return Err(candle_core::Error::Msg("a block that is told a timestep takes whole maps".to_owned()).into());
        };
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
        let spread = y.spread(second)?;
        y.each(Halo::Both, |strip| {
            let residual = strip.extend(&residuals.pop_front().expect("there is one for each strip"))?;
            strip.crop(&second.forward_by(strip.whole(), &spread, After::added_to(&residual))?, 1)
        })
    }
}
