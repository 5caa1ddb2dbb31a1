//! The configuration of the autoencoder: `vae/config.json`.

use serde::Deserialize;

use super::unet_config::null_is_off;
use crate::json::keys::{Class, Key, KeyTable};

/// The configuration of diffusers' `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
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
    /// Latents are divided by this before they are decoded.
    pub scaling_factor: f64,
    /// Taken from latents by other pipelines; diffusers' Stable Diffusion pipelines do not look at it.
    pub shift_factor: Option<f64>,
    /// Each channel's mean, where latents were normalised by channel.
    pub latents_mean: Option<Vec<f64>>,
    /// Each channel's deviation, where latents were normalised by channel.
    pub latents_std: Option<Vec<f64>>,
    /// Whether f16 is too narrow for this network.
    #[serde(deserialize_with = "null_is_off")]
    pub force_upcast: bool,
    /// Whether there is a convolution behind the encoder.
    #[serde(deserialize_with = "null_is_off")]
    pub use_quant_conv: bool,
    /// Whether there is a convolution before the decoder.
    #[serde(deserialize_with = "null_is_off")]
    pub use_post_quant_conv: bool,
    /// Whether the middle attends.
    #[serde(deserialize_with = "null_is_off")]
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            down_block_types: vec![DOWN_BLOCK.to_owned()],
            up_block_types: vec![UP_BLOCK.to_owned()],
            layers_per_block: 1,
            norm_num_groups: 32,
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

const NULL_IS_FALSE: &str = "its default is true; None is false to diffusers' code";

/// The keys of `AutoencoderKL`. For each key that is not named as an exception, diffusers fails with `null` or does what
/// it does without the key.
pub(super) const KEYS: KeyTable = KeyTable {
    class: Class::Named("AutoencoderKL"),
    keys: &[
        Key::honoured("in_channels"),
        Key::honoured("out_channels"),
        Key::honoured("down_block_types"),
        Key::honoured("up_block_types"),
        Key::honoured("block_out_channels"),
        Key::honoured("layers_per_block"),
        Key::only("act_fn", &["\"silu\"", "\"swish\""], "two names of the one non-linearity of Stable Diffusion"),
        Key::honoured("latent_channels"),
        Key::honoured("norm_num_groups"),
        Key::idle("sample_size", "it is the side of diffusers' tiles, which are off unless asked for"),
        Key::honoured("scaling_factor"),
        Key::idle("shift_factor", "diffusers' pipelines of Stable Diffusion do not look at it; a value gets a warning"),
        // By Stable Diffusion XL, which looks at both or neither. The others get a warning.
        Key::honoured("latents_mean"),
        Key::honoured("latents_std"),
        Key::null_counts("force_upcast", NULL_IS_FALSE),
        Key::null_counts("use_quant_conv", NULL_IS_FALSE),
        Key::null_counts("use_post_quant_conv", NULL_IS_FALSE),
        Key::null_counts("mid_block_add_attention", NULL_IS_FALSE),
    ],
};

impl VaeConfig {
    /// Checks that this is a network that can be built.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
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

    /// Leaves out what the pipeline in diffusers does not look at: for Stable Diffusion XL `normalises_channels`, for the
    /// others nothing but the scale counts. Gives the keys whose value would have changed the picture.
    pub(super) fn leave_out_unread(&mut self, normalises_channels: bool) -> Vec<&'static str> {
        let mut changed = Vec::new();
        if self.shift_factor.take().is_some_and(|shift| shift != 0.0) {
            changed.push("shift_factor");
        }
        if normalises_channels && self.latents_mean.is_some() && self.latents_std.is_some() {
            return changed;
        }
        let differs =
            |values: Option<Vec<f64>>, neutral: f64| values.is_some_and(|all| all.iter().any(|v| *v != neutral));
        if differs(self.latents_mean.take(), 0.0) {
            changed.push("latents_mean");
        }
        if differs(self.latents_std.take(), 1.0) {
            changed.push("latents_std");
        }
        changed
    }

    /// Pixels per latent, along a side.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Document, keys::tests::assert_complete};

    #[test]
    fn every_key_of_diffusers_is_in_the_table() {
        assert_complete(&KEYS, "AutoencoderKL");
    }

    #[test]
    fn null_is_the_default_but_of_switches_that_are_on_by_themselves() {
        let nulls: Vec<String> = KEYS.keys.iter().map(|key| format!("\"{}\": null", key.name)).collect();
        let json = format!("{{{}}}", nulls.join(", "));
        let document = Document::parse(json.as_bytes()).unwrap();
        KEYS.check(&document.root).unwrap();
        let config: VaeConfig = document.read(&KEYS.null_counts()).unwrap();
        let off = VaeConfig {
            force_upcast: false,
            use_quant_conv: false,
            use_post_quant_conv: false,
            mid_block_add_attention: false,
            ..VaeConfig::default()
        };
        assert_eq!(config, off);
    }

    #[test]
    fn what_a_pipeline_does_not_look_at_is_left_out_and_named_where_it_matters() {
        let config = |shift: f64, mean: Option<f64>, deviation: Option<f64>| {
            let row = |value: Option<f64>| value.map(|value| vec![value; 4]);
            let (latents_mean, latents_std) = (row(mean), row(deviation));
            VaeConfig { shift_factor: Some(shift), latents_mean, latents_std, ..VaeConfig::default() }
        };
        let cases: [(VaeConfig, bool, &[&str], VaeConfig); 5] = [
            (config(0.0, Some(0.0), Some(1.0)), false, &[], VaeConfig::default()),
            (
                config(0.1, Some(0.5), Some(2.0)),
                false,
                &["shift_factor", "latents_mean", "latents_std"],
                VaeConfig::default(),
            ),
            (
                config(0.1, Some(0.5), Some(2.0)),
                true,
                &["shift_factor"],
                VaeConfig { shift_factor: None, ..config(0.0, Some(0.5), Some(2.0)) },
            ),
            (config(0.0, Some(0.5), None), true, &["latents_mean"], VaeConfig::default()),
            (config(0.0, None, Some(2.0)), true, &["latents_std"], VaeConfig::default()),
        ];
        for (mut config, normalises_channels, named, left) in cases {
            assert_eq!(config.leave_out_unread(normalises_channels), named);
            assert_eq!(config, left);
        }
    }
}
