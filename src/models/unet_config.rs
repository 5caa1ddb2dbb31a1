//! The sizes of a UNet: its `config.json`, and what of it can be built.

use serde::Deserialize;

use crate::nn::{Activation, Sinusoids};

/// One value for every block, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for all.
    One(usize),
    /// One for each.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The value of block `index`.
    #[must_use]
    pub fn of(&self, index: usize) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values[index],
        }
    }

    /// Whether there is a value for each of `blocks`, none of them zero.
    fn fits(&self, blocks: usize) -> bool {
        match self {
            Self::One(value) => *value > 0,
            Self::Each(values) => values.len() == blocks && values.iter().all(|value| *value > 0),
        }
    }
}

/// A side in latents: one for both, or height and width.
pub type SampleSize = PerBlock;

/// The configuration of diffusers' `UNet2DConditionModel`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// The class in diffusers.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// The native picture's side in latents.
    pub sample_size: Option<SampleSize>,
    /// Channels of the latents that go in.
    pub in_channels: usize,
    /// Channels of what comes out.
    pub out_channels: usize,
    /// Whether the timestep's cosines come before its sines.
    pub flip_sin_to_cos: bool,
    /// See [`Sinusoids::frequency_shift`].
    pub freq_shift: f64,
    /// The blocks on the way down.
    pub down_block_types: Vec<String>,
    /// The block in the middle; `None` for none.
    pub mid_block_type: Option<String>,
    /// The blocks on the way up.
    pub up_block_types: Vec<String>,
    /// Channels of each block on the way down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each block.
    pub layers_per_block: PerBlock,
    /// Groups of the norms.
    pub norm_num_groups: usize,
    /// Added to the norms' variance.
    pub norm_eps: f64,
    /// The non-linearity.
    pub act_fn: Activation,
    /// Channels of the text's tokens.
    pub cross_attention_dim: PerBlock,
    /// Transformer layers of each attention.
    pub transformer_layers_per_block: PerBlock,
    /// Heads of each block's attentions, by a misnomer that diffusers keeps.
    pub attention_head_dim: PerBlock,
    /// Heads of each block's attentions, where it is set.
    pub num_attention_heads: Option<PerBlock>,
    /// Whether what is added to the timestep is text and sizes, as in SDXL.
    pub addition_embed_type: Option<String>,
    /// Width of each added size's sinusoids.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of everything added, before its network.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whether attention's scores are computed in f32.
    pub upcast_attention: bool,
    /// What must be as it is in Stable Diffusion.
    #[serde(flatten)]
    pub fixed: serde_json::Map<String, serde_json::Value>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        let names = |first: &str, name: &str, last: &str| [first, name, name, last].map(str::to_owned).to_vec();
        Self {
            class_name: String::new(),
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names(ATTENDING_DOWN, ATTENDING_DOWN, PLAIN_DOWN),
            mid_block_type: Some(MIDDLE.to_owned()),
            up_block_types: names(PLAIN_UP, ATTENDING_UP, ATTENDING_UP),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            act_fn: Activation::Silu,
            cross_attention_dim: PerBlock::One(1280),
            transformer_layers_per_block: PerBlock::One(1),
            attention_head_dim: PerBlock::One(8),
            num_attention_heads: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            upcast_attention: false,
            fixed: serde_json::Map::new(),
        }
    }
}

const PLAIN_DOWN: &str = "DownBlock2D";
const ATTENDING_DOWN: &str = "CrossAttnDownBlock2D";
const PLAIN_UP: &str = "UpBlock2D";
const ATTENDING_UP: &str = "CrossAttnUpBlock2D";
const MIDDLE: &str = "UNetMidBlock2DCrossAttn";

/// Keys that change the network, and the values that leave it as Stable Diffusion has it.
const FIXED: [(&str, &[&str]); 22] = [
    ("center_input_sample", &["false"]),
    ("only_cross_attention", &["false"]),
    ("dual_cross_attention", &["false"]),
    ("downsample_padding", &["1"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("class_embed_type", &["null"]),
    ("num_class_embeds", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("time_embedding_type", &["\"positional\""]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("timestep_post_act", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("reverse_transformer_layers_per_block", &["null"]),
];

impl UnetConfig {
    /// Checks that this is a network that can be built.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
        for (key, allowed) in FIXED {
            if let Some(value) = self.fixed.get(key).map(ToString::to_string)
                && !allowed.contains(&value.as_str())
            {
                return Err(format!("{key} is {value}; only {} is supported", allowed[0]));
            }
        }
        if self.class_name != "UNet2DConditionModel" {
            return Err(format!("_class_name is {:?}; only \"UNet2DConditionModel\" is supported", self.class_name));
        }
        let blocks = self.block_out_channels.len();
        if blocks == 0 || self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            let (down, up) = (self.down_block_types.len(), self.up_block_types.len());
            return Err(format!(
                "block_out_channels has {blocks} blocks, down_block_types {down}, up_block_types {up}"
            ));
        }
        let known = [
            ("down_block_types", &self.down_block_types, [PLAIN_DOWN, ATTENDING_DOWN]),
            ("up_block_types", &self.up_block_types, [PLAIN_UP, ATTENDING_UP]),
        ];
        for (key, types, supported) in known {
            if let Some(unknown) = types.iter().find(|name| !supported.contains(&name.as_str())) {
                return Err(format!("{key} has {unknown:?}; supported are {}", supported.join(", ")));
            }
        }
        if let Some(unknown) = self.mid_block_type.as_ref().filter(|name| *name != MIDDLE) {
            return Err(format!("mid_block_type is {unknown:?}; supported are {MIDDLE} and null"));
        }
        self.check_sizes(blocks)
    }

    fn check_sizes(&self, blocks: usize) -> Result<(), String> {
        let lists = [
            ("layers_per_block", &self.layers_per_block),
            ("cross_attention_dim", &self.cross_attention_dim),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
            ("attention_head_dim", self.heads()),
        ];
        if let Some((key, value)) = lists.into_iter().find(|(_, value)| !value.fits(blocks)) {
            return Err(format!("{key} is {value:?}; a number above 0, or one for each of {blocks} blocks, is needed"));
        }
        for (index, &channels) in self.block_out_channels.iter().enumerate() {
            let (groups, heads) = (self.norm_num_groups, self.heads().of(index));
            if groups == 0 || channels == 0 || channels % groups != 0 {
                return Err(format!(
                    "norm_num_groups is {groups}, which does not divide a block's {channels} channels"
                ));
            }
            if self.attends(index) && channels % heads != 0 {
                return Err(format!(
                    "attention_head_dim is {heads}, which does not divide a block's {channels} channels"
                ));
            }
        }
        match self.addition_embed_type.as_deref() {
            None => Ok(()),
            Some("text_time") => {
                let wanted =
                    self.addition_time_embed_dim.is_some() && self.projection_class_embeddings_input_dim.is_some();
                let message = "addition_time_embed_dim or projection_class_embeddings_input_dim is missing";
                if wanted { Ok(()) } else { Err(message.to_owned()) }
            }
            Some(other) => Err(format!("addition_embed_type is {other:?}; supported are \"text_time\" and null")),
        }
    }

    /// Heads of each block's attentions.
    pub(super) fn heads(&self) -> &PerBlock {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim)
    }

    /// Whether block `index`, counted on the way down, attends to the text.
    pub(super) fn attends_down(&self, index: usize) -> bool {
        self.down_block_types[index] == ATTENDING_DOWN
    }

    /// Whether block `index`, counted on the way up, attends to the text.
    pub(super) fn attends_up(&self, index: usize) -> bool {
        self.up_block_types[index] == ATTENDING_UP
    }

    fn attends(&self, index: usize) -> bool {
        self.attends_down(index) || self.attends_up(self.block_out_channels.len() - 1 - index)
    }

    /// The width of the timestep's embedding.
    pub(super) fn time_width(&self) -> usize {
        self.block_out_channels[0] * 4
    }

    /// Sinusoids of `width` values, as the configuration has them.
    pub(super) fn sinusoids(&self, width: usize) -> Sinusoids {
        Sinusoids { width, cosines_first: self.flip_sin_to_cos, frequency_shift: self.freq_shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: &str) -> String {
        let json = format!(r#"{{"_class_name": "UNet2DConditionModel", {change}}}"#);
        serde_json::from_str::<UnetConfig>(&json).unwrap().check().unwrap_err()
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        assert_eq!(refused(r#""center_input_sample": true"#), "center_input_sample is true; only false is supported");
        assert!(
            refused(r#""down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]"#)
                .contains("AttnDownBlock2D")
        );
        assert!(refused(r#""attention_head_dim": [5, 10]"#).contains("attention_head_dim"));
        assert!(refused(r#""attention_head_dim": 7"#).contains("does not divide"));
        assert!(refused(r#""norm_num_groups": 7"#).contains("norm_num_groups is 7"));
        assert!(refused(r#""addition_embed_type": "image""#).contains("addition_embed_type is \"image\""));
        assert!(refused(r#""up_block_types": []"#).contains("up_block_types 0"));
    }

    #[test]
    fn stable_diffusion_s_own_defaults_can_be_built() {
        let config: UnetConfig = serde_json::from_str(r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
        config.check().unwrap();
        assert!(config.attends_down(2) && !config.attends_down(3) && !config.attends_up(0) && config.attends_up(1));
    }
}
