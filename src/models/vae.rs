//! The autoencoder of latent diffusion (Rombach et al. 2022): its decoder, from latents to pixels, and the blocks that its
//! encoder shares.

use candle_core::{DType, Tensor};

use super::VaeConfig;
use crate::{
    Result,
    nn::{
        After, Conv2d, Doubling, GroupNorm, Linear, NormalConv, ResnetBlock, ResnetSizes, Strips, Weights, attention,
        feature_map, on_drawing_threads,
    },
};

/// Of a network's blocks, those nearest to the pixels whose maps can be taken in strips: all others' maps together are
/// smaller than one of theirs.
pub(super) const BLOCKS_IN_STRIPS: usize = 2;

/// How the autoencoder's large maps lie in memory. Pictures are the same, but for the order in which numbers are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiling {
    /// Whole.
    Off,
    /// In strips, of so many rows of the picture: a layer's input makes room for its result.
    Strips(usize),
}

impl Tiling {
    /// Strips that are small beside a large picture's maps, and of which the two rows around each are few.
    pub const ON: Self = Self::Strips(64);

    /// How many of `blocks` are taken in strips.
    pub(super) fn blocks_in_strips(self, blocks: usize) -> usize {
        if self == Self::Off { 0 } else { BLOCKS_IN_STRIPS.min(blocks) }
    }

    /// Rows of a strip of a map that is still to be doubled so often.
    fn rows_before(self, doublings: usize) -> usize {
        match self {
            Self::Off => usize::MAX,
            Self::Strips(rows) => (rows >> doublings).max(1),
        }
    }
}

/// Added to the norms' variance, in diffusers' code.
pub(super) const NORM_EPSILON: f64 = 1e-6;

/// The decoder.
#[derive(Debug)]
pub struct VaeDecoder {
    normalisation: Normalisation,
    before: Option<Conv2d>,
    conv_in: Conv2d,
    middle: Middle,
    blocks: Vec<Block>,
    out: NormalConv,
    /// What the layers before the middle compute in.
    edge_dtype: DType,
    dtype: DType,
}

/// What was done to latents before the denoiser saw them.
#[derive(Debug)]
struct Normalisation {
    scale: f64,
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
        let edge = weights.exact();
        let before = || Conv2d::new(&edge.at("post_quant_conv"), latents, latents, 1);
        let mut inputs = last;
        let mut blocks = Vec::new();
        for (index, &outputs) in channels.iter().rev().enumerate() {
            blocks.push(Block::new(config, &decoder.entry("up_blocks", index), inputs, outputs, index)?);
            inputs = outputs;
        }
        let norm_out = GroupNorm::new(&decoder.at("conv_norm_out"), first, config.norm_num_groups, NORM_EPSILON)?;
        Ok(Self {
            normalisation: Normalisation::new(config, weights)?,
            before: config.use_post_quant_conv.then(before).transpose()?,
            conv_in: Conv2d::new(&edge.at("decoder").at("conv_in"), latents, last, 3)?,
            middle: Middle::new(config, &decoder.at("mid_block"), last)?,
            blocks,
            out: NormalConv::new(norm_out, &decoder.at("conv_out"), first, config.out_channels)?,
            edge_dtype: edge.dtype(),
            dtype: weights.dtype(),
        })
    }

    /// The pixels of a drawing's latents: `(b, c, h, w)` f32 to `(b, 3, factor h, factor w)` f32, about -1 to 1.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn decode(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor> {
        self.decode_raw(&self.normalisation.undo(latents)?, tiling)
    }

    /// Latents as the encoder gives them, as the denoiser is to see them: the inverse of what [`decode`](Self::decode)
    /// begins with.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn normalise(&self, latents: &Tensor) -> Result<Tensor> {
        self.normalisation.apply(latents)
    }

    /// As [`decode`](Self::decode), of latents as the encoder gives them, not scaled.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn decode_raw(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor> {
        on_drawing_threads(latents.device(), || self.pass(latents, tiling))
    }

    fn pass(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor> {
        let mut x = feature_map::from_planes(&latents.to_dtype(self.edge_dtype)?)?;
        if let Some(conv) = &self.before {
            x = conv.forward(&x)?;
        }
        let x = feature_map::cast(&self.conv_in.forward(&x)?, self.dtype)?;
        let mut x = self.middle.forward(&x)?;
        let in_strips = tiling.blocks_in_strips(self.blocks.len());
        let whole = self.blocks.len() - in_strips;
        for (number, block) in self.blocks.iter().enumerate().take(whole) {
            if let Some(doubling) = self.doubling_before(number) {
                let (height, width) = feature_map::size(&x)?;
                x = doubling.forward(&x, (2 * height, 2 * width))?;
            }
            x = block.refine(x)?;
        }
        let x = if in_strips == 0 { self.out.forward(&x)? } else { self.pass_strips(x, whole, tiling)? };
        Ok(feature_map::to_planes(&x)?.to_dtype(DType::F32)?)
    }

    /// The blocks from number `first` on, and what follows them, in strips.
    fn pass_strips(&self, x: Tensor, first: usize, tiling: Tiling) -> Result<Tensor> {
        let doublings = (first.max(1)..self.blocks.len()).count();
        let mut strips = Strips::split(&x, tiling.rows_before(doublings))?;
        drop(x);
        for (number, block) in self.blocks.iter().enumerate().skip(first) {
            if let Some(doubling) = self.doubling_before(number) {
                strips = doubling.forward_strips(strips)?;
            }
            for resnet in &block.resnets {
                strips = resnet.forward_strips(strips)?;
            }
        }
        strips.convolve_normal(&self.out)?.join()
    }

    /// The doubling that leads to block `number`.
    fn doubling_before(&self, number: usize) -> Option<&Doubling> {
        self.blocks[number.checked_sub(1)?].doubling.as_ref()
    }
}

/// What the decoder's layers up to the end of its middle make of latents, `(b, c, h, w)` f32, as the encoder gives them:
/// `(b, c', h, w)` f32. It reads those layers alone.
///
/// # Errors
///
/// A tensor that is missing or of another shape, or a shape that does not fit.
pub fn decoder_beginning(config: &VaeConfig, weights: &Weights, latents: &Tensor) -> Result<Tensor> {
    let channels = config.block_out_channels[config.block_out_channels.len() - 1];
    let decoder = weights.at("decoder");
    let conv_in = Conv2d::new(&decoder.at("conv_in"), config.latent_channels, channels, 3)?;
    let middle = Middle::new(config, &decoder.at("mid_block"), channels)?;
    let dtype = weights.dtype();
    on_drawing_threads(latents.device(), || {
        let x = feature_map::from_planes(&latents.to_dtype(dtype)?)?;
        let x = middle.forward(&conv_in.forward(&x)?)?;
        Ok(feature_map::to_planes(&x)?.to_dtype(DType::F32)?)
    })
}

impl Normalisation {
    fn new(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let row = |values: &[f64]| -> Result<Tensor> {
            // Metal has no f64.
            #[expect(clippy::cast_possible_truncation, reason = "latents are f32")]
            let narrow: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Ok(Tensor::from_vec(narrow, (1, values.len(), 1, 1), weights.device())?)
        };
        let channels = match (&config.latents_std, &config.latents_mean) {
            (Some(deviation), Some(mean)) => Some((row(deviation)?, row(mean)?)),
            _ => None,
        };
        Ok(Self { scale: config.scaling_factor, channels })
    }

    fn apply(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = match &self.channels {
            Some((deviation, mean)) => latents.broadcast_sub(mean)?.broadcast_div(deviation)?,
            None => latents.clone(),
        };
        Ok((latents * self.scale)?)
    }

    fn undo(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = (latents / self.scale)?;
        Ok(match &self.channels {
            Some((deviation, mean)) => latents.broadcast_mul(deviation)?.broadcast_add(mean)?,
            None => latents,
        })
    }
}

/// A residual block that is told no timestep.
pub(super) fn resnet(config: &VaeConfig, weights: &Weights, inputs: usize, outputs: usize) -> Result<ResnetBlock> {
    let groups = config.norm_num_groups;
    ResnetBlock::new(weights, ResnetSizes::untold(inputs, outputs, groups, NORM_EPSILON))
}

/// Residual blocks at one size, and the convolution behind the doubling.
#[derive(Debug)]
struct Block {
    resnets: Vec<ResnetBlock>,
    doubling: Option<Doubling>,
}

impl Block {
    fn new(config: &VaeConfig, weights: &Weights, inputs: usize, outputs: usize, index: usize) -> Result<Self> {
        let layer = |number: usize| {
            let inputs = if number == 0 { inputs } else { outputs };
            resnet(config, &weights.entry("resnets", number), inputs, outputs)
        };
        let double = || Doubling::new(&weights.at("upsamplers.0.conv"), outputs);
        Ok(Self {
            resnets: (0..=config.layers_per_block).map(layer).collect::<Result<_>>()?,
            doubling: (index + 1 < config.block_out_channels.len()).then(double).transpose()?,
        })
    }

    /// What the residual blocks make of a map, which is let go of as soon as it can be.
    fn refine(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(&x, None)?;
        }
        Ok(x)
    }
}

/// The block in the middle, whose pixels attend to each other.
#[derive(Debug)]
pub(super) struct Middle {
    first: ResnetBlock,
    attention: Option<MiddleAttention>,
    second: ResnetBlock,
}

impl Middle {
    pub(super) fn new(config: &VaeConfig, weights: &Weights, channels: usize) -> Result<Self> {
        let attend = || MiddleAttention::new(config, &weights.at("attentions.0"), channels);
        Ok(Self {
            first: resnet(config, &weights.at("resnets.0"), channels, channels)?,
            attention: config.mid_block_add_attention.then(attend).transpose()?,
            second: resnet(config, &weights.at("resnets.1"), channels, channels)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
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
        let residual = feature_map::to_tokens(x)?;
        let after = After { residual: Some(&residual), ..After::default() };
        let seen = self.out.forward_then(&attention(&q, &k, &v, 1, None)?, after)?;
        feature_map::from_tokens(&seen, feature_map::size(x)?)
    }
}
