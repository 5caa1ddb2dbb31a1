//! The autoencoder's other half: its encoder, from pixels to latents.

use candle_core::{DType, Tensor};

use super::{
    Tiling, VaeConfig,
    vae::{Middle, NORM_EPSILON, resnet},
};
use crate::{
    Error, Result,
    nn::{Conv2d, GroupNorm, NormalConv, ResnetBlock, Strips, Weights, feature_map, on_drawing_threads},
};

/// The smallest and largest logarithm of a variance, in diffusers' code.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

/// The encoder.
#[derive(Debug)]
pub struct VaeEncoder {
    conv_in: Conv2d,
    blocks: Vec<Block>,
    middle: Middle,
    out: NormalConv,
    after: Option<Conv2d>,
    factor: usize,
    dtype: DType,
}

/// What a picture's latents may be: normal numbers, each with its own mean and variance.
#[derive(Debug)]
pub struct LatentDistribution {
    /// The means, as the decoder's [`decode_raw`](super::VaeDecoder::decode_raw) takes latents: not scaled.
    /// `(b, c, h / factor, w / factor)` f32.
    pub mean: Tensor,
    /// The variances' natural logarithms, -30 to 20, of the same shape.
    pub log_variance: Tensor,
}

impl LatentDistribution {
    /// Whether all means are numbers.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub fn is_finite(&self) -> Result<bool> {
        // One value that is not finite makes the sum so; finite ones of a picture's size do not add up to infinity.
        Ok(self.mean.sum_all()?.to_scalar::<f32>()?.is_finite())
    }
}

impl VaeEncoder {
    /// Reads the encoder's tensors, under diffusers' names.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        // Means and variances side by side.
        let moments = 2 * config.latent_channels;
        let encoder = weights.at("encoder");
        let after = || Conv2d::new(&weights.at("quant_conv"), moments, moments, 1);
        let mut inputs = first;
        let mut blocks = Vec::new();
        for (index, &outputs) in channels.iter().enumerate() {
            blocks.push(Block::new(config, &encoder.entry("down_blocks", index), inputs, outputs, index)?);
            inputs = outputs;
        }
        let norm_out = GroupNorm::new(&encoder.at("conv_norm_out"), last, config.norm_num_groups, NORM_EPSILON)?;
        Ok(Self {
            conv_in: Conv2d::new(&encoder.at("conv_in"), config.in_channels, first, 3)?,
            blocks,
            middle: Middle::new(config, &encoder.at("mid_block"), last)?,
            out: NormalConv::new(norm_out, &encoder.at("conv_out"), last, moments)?,
            after: config.use_quant_conv.then(after).transpose()?,
            factor: config.factor(),
            dtype: weights.dtype(),
        })
    }

    /// The latents of pixels: `(b, 3, h, w)`, -1 to 1. Sizes that the factor does not divide are rounded down.
    ///
    /// # Errors
    ///
    /// A picture without a whole latent, or a shape that does not fit.
    pub fn encode(&self, pixels: &Tensor, tiling: Tiling) -> Result<LatentDistribution> {
        let (_, _, height, width) = pixels.dims4()?;
        if height.min(width) < self.factor {
            let least = self.factor;
            return Err(Error::Image(format!(
                "{width} by {height} pixels are too few; at least {least} a side are needed"
            )));
        }
        on_drawing_threads(pixels.device(), || self.pass(pixels, tiling))
    }

    fn pass(&self, pixels: &Tensor, tiling: Tiling) -> Result<LatentDistribution> {
        let x = feature_map::from_planes(&pixels.to_dtype(self.dtype)?)?;
        let (in_strips, whole) = self.blocks.split_at(tiling.blocks_in_strips(self.blocks.len()));
        let mut x = match tiling {
            Tiling::Off => self.conv_in.forward(&x)?,
            Tiling::Strips(rows) => {
                // A multiple of four rows, so that after two halvings strips are still whole rows.
                let mut strips = Strips::split(&x, rows.next_multiple_of(4))?.convolve(&self.conv_in)?;
                for block in in_strips {
                    strips = block.forward_strips(strips)?;
                }
                strips.join()?
            }
        };
        for block in whole {
            x = block.forward(x)?;
        }
        let x = self.middle.forward(&x)?;
        let mut x = self.out.forward(&x)?;
        if let Some(conv) = &self.after {
            x = conv.forward(&x)?;
        }
        let moments = feature_map::to_planes(&x)?.to_dtype(DType::F32)?.chunk(2, 1)?;
        let log_variance = moments[1].clamp(LOG_VARIANCE.0, LOG_VARIANCE.1)?;
        Ok(LatentDistribution { mean: moments[0].contiguous()?, log_variance })
    }
}

/// Residual blocks at one size, and the convolution that halves it.
#[derive(Debug)]
struct Block {
    resnets: Vec<ResnetBlock>,
    halving: Option<Conv2d>,
}

impl Block {
    fn new(config: &VaeConfig, weights: &Weights, inputs: usize, outputs: usize, index: usize) -> Result<Self> {
        let layer = |number: usize| {
            let inputs = if number == 0 { inputs } else { outputs };
            resnet(config, &weights.entry("resnets", number), inputs, outputs)
        };
        let halve = || Conv2d::halving_down(&weights.at("downsamplers.0.conv"), outputs);
        Ok(Self {
            resnets: (0..config.layers_per_block).map(layer).collect::<Result<_>>()?,
            halving: (index + 1 < config.block_out_channels.len()).then(halve).transpose()?,
        })
    }

    /// The map is let go of as soon as it can be.
    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x, None)?;
        }
        match &self.halving {
            Some(conv) => conv.forward(&x),
            None => Ok(x),
        }
    }

    fn forward_strips(&self, mut x: Strips) -> Result<Strips> {
        for resnet in &self.resnets {
            x = resnet.forward_strips(x)?;
        }
        match &self.halving {
            Some(conv) => x.halve_down(conv),
            None => Ok(x),
        }
    }
}
