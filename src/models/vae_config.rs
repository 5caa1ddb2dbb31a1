//! The configuration of the autoencoder: `vae/config.json`.

use serde::Deserialize;

use crate::nn::Activation;

/// The configuration of diffusers' `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// The class in diffusers.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Channels of the picture that is encoded.
    pub in_channels: usize,
    /// Channels of the picture that is decoded.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each block; all but one halve the size on the way in.
    pub block_out_channels: Vec<usize>,
    /// The encoder's blocks.
    pub down_block_types: Vec<String>,
    /// The decoder's blocks.
    pub up_block_types: Vec<String>,
    /// Residual blocks in each of the encoder's blocks; the decoder's have one more.
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
    /// Whether there is a convolution behind the encoder.
    pub use_quant_conv: bool,
    /// Whether there is a convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle attends.
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            down_block_types: vec![DOWN_BLOCK.to_owned()],
            up_block_types: vec![UP_BLOCK.to_owned()],
            layers_per_block: 1,
            norm_num_groups: 32,
            act_fn: Activation::Silu,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

const DOWN_BLOCK: &str = "DownEncoderBlock2D";
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
        let blocks = self.block_out_channels.len();
        for (key, types, supported) in [
            ("down_block_types", &self.down_block_types, DOWN_BLOCK),
            ("up_block_types", &self.up_block_types, UP_BLOCK),
        ] {
            if blocks == 0 || blocks != types.len() || blocks > 8 {
                let types = types.len();
                return Err(format!("block_out_channels has {blocks} blocks and {key} {types}; 1 to 8 are needed"));
            }
            if let Some(unknown) = types.iter().find(|name| *name != supported) {
                return Err(format!("{key} has {unknown:?}; only {supported} is supported"));
            }
        }
        if self.act_fn != Activation::Silu {
            return Err(format!("act_fn is {:?}; only \"silu\" is supported", self.act_fn));
        }
        for (key, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels != 3 {
                return Err(format!("{key} is {channels}; only 3 is supported"));
            }
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
