//! The autoencoder of latent diffusion (Rombach et al. 2022): its decoder, from latents to pixels.

use candle_core::{DType, Tensor};
use serde::Deserialize;

use crate::{
    Result,
    nn::{Activation, Conv2d, GroupNorm, Linear, ResnetBlock, ResnetSizes, Weights, attention, feature_map},
};

/// Added to the norms' variance, in diffusers' code.
const NORM_EPSILON: f64 = 1e-6;

/// The configuration of diffusers' `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// The class in diffusers.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Channels of the picture.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each block; all but one halve the size on the way in.
    pub block_out_channels: Vec<usize>,
    /// The decoder's blocks.
    pub up_block_types: Vec<String>,
    /// Residual blocks in each block.
    pub layers_per_block: usize,
    /// Groups of the norms.
    pub norm_num_groups: usize,
    /// The non-linearity.
    pub act_fn: Activation,
    /// Latents are divided by this before they are decoded.
    pub scaling_factor: f64,
    /// Added to latents after that.
    pub shift_factor: Option<f64>,
    /// Each channel's mean, where latents were normalised by channel.
    pub latents_mean: Option<Vec<f64>>,
    /// Each channel's deviation, where latents were normalised by channel.
    pub latents_std: Option<Vec<f64>>,
    /// Whether f16 is too narrow for this network.
    pub force_upcast: bool,
    /// Whether there is a convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle attends.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            up_block_types: vec![UP_BLOCK.to_owned()],
            layers_per_block: 1,
            norm_num_groups: 32,
            act_fn: Activation::Silu,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

const UP_BLOCK: &str = "UpDecoderBlock2D";

impl VaeConfig {
    /// Checks that this is a network that can be built.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
        if self.class_name != "AutoencoderKL" {
            return Err(format!("_class_name is {:?}; only \"AutoencoderKL\" is supported", self.class_name));
        }
        let (blocks, types) = (self.block_out_channels.len(), self.up_block_types.len());
        if blocks == 0 || blocks != types || blocks > 8 {
            return Err(format!(
                "block_out_channels has {blocks} blocks and up_block_types {types}; 1 to 8 are needed"
            ));
        }
        if let Some(unknown) = self.up_block_types.iter().find(|name| *name != UP_BLOCK) {
            return Err(format!("up_block_types has {unknown:?}; only {UP_BLOCK} is supported"));
        }
        if self.out_channels != 3 {
            return Err(format!("out_channels is {}; only 3 is supported", self.out_channels));
        }
        let groups = self.norm_num_groups;
        if groups == 0 || self.block_out_channels.iter().any(|channels| *channels == 0 || channels % groups != 0) {
            return Err(format!("norm_num_groups is {groups}, which does not divide block_out_channels"));
        }
        if self.scaling_factor == 0.0 || !self.scaling_factor.is_finite() {
            return Err(format!("scaling_factor is {}; a number other than 0 is needed", self.scaling_factor));
        }
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.as_ref().is_some_and(|values| values.len() != self.latent_channels) {
                return Err(format!("{key} has not one number for each of {} latent_channels", self.latent_channels));
            }
        }
        Ok(())
    }

    /// Pixels per latent, along a side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The decoder.
#[derive(Debug)]
pub struct VaeDecoder {
    normalisation: Normalisation,
    before: Option<Conv2d>,
    conv_in: Conv2d,
    middle: Middle,
    blocks: Vec<Block>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    activation: Activation,
    dtype: DType,
}

/// What was done to latents before the denoiser saw them.
#[derive(Debug)]
struct Normalisation {
    scale: f64,
    shift: f64,
    /// Each channel's deviation and mean, `(1, c, 1, 1)`.
    channels: Option<(Tensor, Tensor)>,
}

impl VaeDecoder {
    /// Reads the decoder's tensors, under diffusers' names.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let latents = config.latent_channels;
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let decoder = weights.at("decoder");
        let before = || Conv2d::new(&weights.at("post_quant_conv"), latents, latents, 1);
        let mut inputs = last;
        let mut blocks = Vec::new();
        for (index, &outputs) in channels.iter().rev().enumerate() {
            blocks.push(Block::new(config, &decoder.entry("up_blocks", index), inputs, outputs, index)?);
            inputs = outputs;
        }
        Ok(Self {
            normalisation: Normalisation::new(config, weights)?,
            before: config.use_post_quant_conv.then(before).transpose()?,
            conv_in: Conv2d::new(&decoder.at("conv_in"), latents, last, 3)?,
            middle: Middle::new(config, &decoder.at("mid_block"), last)?,
            blocks,
            norm_out: GroupNorm::new(&decoder.at("conv_norm_out"), first, config.norm_num_groups, NORM_EPSILON)?,
            conv_out: Conv2d::new(&decoder.at("conv_out"), first, config.out_channels, 3)?,
            activation: config.act_fn,
            dtype: weights.dtype(),
        })
    }

    /// The pixels of a drawing's latents: `(b, c, h, w)` f32 to `(b, 3, factor h, factor w)` f32, about -1 to 1.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_raw(&self.normalisation.undo(latents)?)
    }

    /// As [`decode`](Self::decode), of latents as the encoder gives them, not scaled.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn decode_raw(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = latents.to_dtype(self.dtype)?;
        if let Some(conv) = &self.before {
            x = conv.forward(&x)?;
        }
        x = self.middle.forward(&self.conv_in.forward(&x)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.conv_out.forward(&self.activation.forward(&self.norm_out.forward(&x)?)?)?;
        Ok(x.to_dtype(DType::F32)?)
    }
}

impl Normalisation {
    fn new(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let row = |values: &[f64]| -> Result<Tensor> {
            let row = Tensor::new(values, weights.device())?.to_dtype(DType::F32)?;
            Ok(row.reshape((1, values.len(), 1, 1))?)
        };
        let channels = match (&config.latents_std, &config.latents_mean) {
            (Some(deviation), Some(mean)) => Some((row(deviation)?, row(mean)?)),
            _ => None,
        };
        Ok(Self { scale: config.scaling_factor, shift: config.shift_factor.unwrap_or(0.0), channels })
    }

    fn undo(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = (latents / self.scale)?;
        let latents = match &self.channels {
            Some((deviation, mean)) => latents.broadcast_mul(deviation)?.broadcast_add(mean)?,
            None => latents,
        };
        Ok((latents + self.shift)?)
    }
}

fn resnet(config: &VaeConfig, weights: &Weights, inputs: usize, outputs: usize) -> Result<ResnetBlock> {
    let groups = config.norm_num_groups;
    ResnetBlock::new(weights, ResnetSizes { inputs, outputs, time: None, groups, epsilon: NORM_EPSILON })
}

/// Residual blocks at one size, and the convolution behind the doubling.
#[derive(Debug)]
struct Block {
    resnets: Vec<ResnetBlock>,
    doubling: Option<Conv2d>,
}

impl Block {
    fn new(config: &VaeConfig, weights: &Weights, inputs: usize, outputs: usize, index: usize) -> Result<Self> {
        let layer = |number: usize| {
            let inputs = if number == 0 { inputs } else { outputs };
            resnet(config, &weights.entry("resnets", number), inputs, outputs)
        };
        let double = || Conv2d::new(&weights.at("upsamplers.0.conv"), outputs, outputs, 3);
        Ok(Self {
            resnets: (0..=config.layers_per_block).map(layer).collect::<Result<_>>()?,
            doubling: (index + 1 < config.block_out_channels.len()).then(double).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x, None)?;
        }
        let Some(conv) = &self.doubling else { return Ok(x) };
        let (height, width) = feature_map::size(&x)?;
        conv.forward(&feature_map::upsample_nearest(&x, (2 * height, 2 * width))?)
    }
}

/// The block in the middle, whose pixels attend to each other.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attention: Option<MiddleAttention>,
    second: ResnetBlock,
}

impl Middle {
    fn new(config: &VaeConfig, weights: &Weights, channels: usize) -> Result<Self> {
        let attend = || MiddleAttention::new(config, &weights.at("attentions.0"), channels);
        Ok(Self {
            first: resnet(config, &weights.at("resnets.0"), channels, channels)?,
            attention: config.mid_block_add_attention.then(attend).transpose()?,
            second: resnet(config, &weights.at("resnets.1"), channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}

/// Attention with one head.
#[derive(Debug)]
struct MiddleAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl MiddleAttention {
    fn new(config: &VaeConfig, weights: &Weights, channels: usize) -> Result<Self> {
        // Checkpoints from before 2023 have the second names.
        let linear = |name: &str, old: &str| {
            let name = if weights.contains(&format!("{old}.weight")) { old } else { name };
            Linear::new(&weights.at(name), channels, channels)
        };
        Ok(Self {
            norm: GroupNorm::new(&weights.at("group_norm"), channels, config.norm_num_groups, NORM_EPSILON)?,
            query: linear("to_q", "query")?,
            key: linear("to_k", "key")?,
            value: linear("to_v", "value")?,
            out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = feature_map::to_tokens(&self.norm.forward(x)?)?;
        let (q, k, v) = (self.query.forward(&tokens)?, self.key.forward(&tokens)?, self.value.forward(&tokens)?);
        let seen = self.out.forward(&attention(&q, &k, &v, 1, None)?)?;
        Ok((x + feature_map::from_tokens(&seen, feature_map::size(x)?)?)?)
    }
}
