//! The sizes of a UNet: its `config.json`, and what of it can be built.
//!
//! The file is a little long because the table of the file's keys stands beside what reads them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::Checkpoint;
use crate::{
    Result as Outcome,
    json::keys::{Class, Key, KeyTable},
    nn::Sinusoids,
};

/// One value for every block, or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// As Python writes it.
impl fmt::Display for PerBlock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => write!(out, "{value}"),
            Self::Each(values) => write!(out, "{values:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for PerBlock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrList {
            one: Self::One,
            each: Self::Each,
            wanted: "a whole number, or a list of them,",
        })
    }
}

/// How many transformer layers a block's attentions have: one number for every block, or for each block one for all of
/// its attentions or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransformerLayers {
    /// The same for all.
    One(usize),
    /// One for each block.
    Each(Vec<PerBlock>),
}

impl TransformerLayers {
    /// The layers of attention `layer` in block `block`.
    fn of(&self, block: usize, layer: usize) -> usize {
        match self {
            Self::One(layers) => *layers,
            Self::Each(blocks) => blocks[block].of(layer),
        }
    }

    /// Whether some block's attentions differ from each other.
    fn is_nested(&self) -> bool {
        matches!(self, Self::Each(blocks) if blocks.iter().any(|block| matches!(block, PerBlock::Each(_))))
    }

    /// Whether there is a number above zero for each attention: `attentions` has their count in each block, or none
    /// where a block does not attend, whose number diffusers does not look at.
    fn fits(&self, attentions: &[usize]) -> bool {
        match self {
            Self::One(layers) => *layers > 0,
            Self::Each(blocks) => {
                // As in diffusers, a block's list may be longer than the block.
                let enough = |(block, attentions): (&PerBlock, &usize)| {
                    let long = |values: &Vec<usize>| values.len() >= *attentions;
                    !matches!(block, PerBlock::Each(values) if !long(values))
                        && (0..*attentions).all(|layer| block.of(layer) > 0)
                };
                blocks.len() == attentions.len() && blocks.iter().zip(attentions).all(enough)
            }
        }
    }
}

impl fmt::Display for TransformerLayers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(layers) => write!(out, "{layers}"),
            Self::Each(blocks) => {
                write!(out, "[{}]", blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for TransformerLayers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrList {
            one: Self::One,
            each: Self::Each,
            wanted: "a whole number, or a list of them or of lists,",
        })
    }
}

/// Reads a number as one thing, a list as another.
struct OneOrList<T, Item> {
    one: fn(usize) -> T,
    each: fn(Vec<Item>) -> T,
    wanted: &'static str,
}

impl<'de, T, Item: Deserialize<'de>> Visitor<'de> for OneOrList<T, Item> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        let number = usize::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))?;
        Ok((self.one)(number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<T, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(items)).map(self.each)
    }
}

/// A switch that is off where the file says `null`, as what is `None` is to Python's `if`. The table of keys has to let
/// the `null` be seen.
pub(super) fn null_is_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A side in latents: one for both, or height and width.
pub type SampleSize = PerBlock;

/// The configuration of diffusers' `UNet2DConditionModel`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// The version of diffusers that wrote the file.
    #[serde(rename = "_diffusers_version")]
    pub diffusers_version: Option<String>,
    /// The native picture's side in latents.
    pub sample_size: Option<SampleSize>,
    /// Channels of the latents that go in.
    pub in_channels: usize,
    /// Channels of what comes out.
    pub out_channels: usize,
    /// Whether the timestep's cosines come before its sines.
    #[serde(deserialize_with = "null_is_off")]
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
    /// Channels of the text's tokens.
    pub cross_attention_dim: PerBlock,
    /// Transformer layers of each attention on the way down; the middle has those of the last block's first.
    pub transformer_layers_per_block: TransformerLayers,
    /// Transformer layers of each attention on the way up, in its order, where they are not the same.
    pub reverse_transformer_layers_per_block: Option<TransformerLayers>,
    /// Heads of each block's attentions, by a misnomer that diffusers keeps.
    pub attention_head_dim: PerBlock,
    /// The width of the timestep's embedding, where it is not four times the first block's.
    pub time_embedding_dim: Option<usize>,
    /// Whether what is added to the timestep is text and sizes, as in SDXL.
    pub addition_embed_type: Option<String>,
    /// Width of each added size's sinusoids.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of everything added, before its network.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whether attention's scores are computed in f32.
    pub upcast_attention: bool,
    /// Whether latents are taken to be of 0 to 1, and are made to be of -1 to 1.
    pub center_input_sample: bool,
    /// In which blocks, counted on the way down, pixels look at the text alone and not at each other.
    pub only_cross_attention: Switches,
    /// Zeros around a map that a block halves: 1, or 0 for zeros below it and to its right alone.
    pub downsample_padding: usize,
    /// What the results of the middle's residual blocks are divided by.
    pub mid_block_scale_factor: f64,
    /// How residual blocks are told the timestep.
    pub resnet_time_scale_shift: TimeIn,
    /// Width of the guidance scale's sinusoids, of a network that is told it.
    pub time_cond_proj_dim: Option<usize>,
    /// Pixels a side of the first layer's kernel.
    pub conv_in_kernel: usize,
    /// Pixels a side of the last layer's kernel.
    pub conv_out_kernel: usize,
}

/// How residual blocks are told the timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeIn {
    /// Its embedding is added between the convolutions.
    Default,
    /// It scales and shifts what the second norm makes.
    ScaleShift,
}

/// One switch for every block, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Switches {
    /// The same for all.
    One(bool),
    /// One for each.
    Each(Vec<bool>),
}

impl Default for UnetConfig {
    fn default() -> Self {
        let names = |first: &str, name: &str, last: &str| [first, name, name, last].map(str::to_owned).to_vec();
        Self {
            diffusers_version: None,
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names(ATTENDING_DOWN, ATTENDING_DOWN, PLAIN_DOWN),
            mid_block_type: Some(ATTENDING_MIDDLE.to_owned()),
            up_block_types: names(PLAIN_UP, ATTENDING_UP, ATTENDING_UP),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::One(1280),
            transformer_layers_per_block: TransformerLayers::One(1),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerBlock::One(8),
            time_embedding_dim: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            upcast_attention: false,
            center_input_sample: false,
            only_cross_attention: Switches::One(false),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            resnet_time_scale_shift: TimeIn::Default,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

const PLAIN_DOWN: &str = "DownBlock2D";
const ATTENDING_DOWN: &str = "CrossAttnDownBlock2D";
const PLAIN_UP: &str = "UpBlock2D";
const ATTENDING_UP: &str = "CrossAttnUpBlock2D";
const ATTENDING_MIDDLE: &str = "UNetMidBlock2DCrossAttn";
const PLAIN_MIDDLE: &str = "UNetMidBlock2D";

const LEAST_GUIDANCE_WIDTH: usize = 4;

const KERNELS: &str = "the CPU kernels have no larger one";
const WIDENS: &str = "another layer than Stable Diffusion's";
const CLASSES: &str = "Stable Diffusion's UNet is told no class";
const OTHER_BLOCKS: &str = "blocks of the supported types do not look at it";
const TIME: &str = "another embedding of the timestep than Stable Diffusion's";
const IMAGES: &str = "the denoiser is told text alone";

/// The keys of `UNet2DConditionModel`. For each key that is not named as an exception, diffusers fails with `null` or
/// does what it does without the key.
const KEYS: KeyTable = KeyTable {
    class: Class::Named("UNet2DConditionModel"),
    keys: &[
        Key::honoured("sample_size"),
        Key::honoured("in_channels"),
        Key::honoured("out_channels"),
        Key::honoured("center_input_sample"),
        Key::null_counts("flip_sin_to_cos", "its default is true; None is false to diffusers' code"),
        Key::honoured("freq_shift"),
        Key::honoured("down_block_types"),
        Key::null_counts("mid_block_type", "null is no block in the middle; the default is a block"),
        Key::honoured("up_block_types"),
        Key::only_each("only_cross_attention", &["false", "true"], "one for all blocks, or one for each"),
        Key::honoured("block_out_channels"),
        Key::honoured("layers_per_block"),
        Key::only("downsample_padding", &["0", "1"], "with more, the way up does not meet the sizes of the way down"),
        Key::honoured("mid_block_scale_factor"),
        Key::idle("dropout", "it acts in training alone"),
        Key::only("act_fn", &["\"silu\"", "\"swish\""], "two names of the one non-linearity of Stable Diffusion"),
        Key::honoured("norm_num_groups"),
        Key::honoured("norm_eps"),
        Key::honoured("cross_attention_dim"),
        Key::honoured("transformer_layers_per_block"),
        Key::honoured("reverse_transformer_layers_per_block"),
        Key::only("encoder_hid_dim", &["null"], IMAGES),
        Key::only("encoder_hid_dim_type", &["null"], IMAGES),
        Key::honoured("attention_head_dim"),
        Key::only("num_attention_heads", &["null"], "diffusers refuses it; attention_head_dim is the number of heads"),
        Key::only("dual_cross_attention", &["false"], WIDENS),
        Key::idle(
            "use_linear_projection",
            "a product of tokens and a 1×1 convolution are the same, and weights of both shapes are read",
        ),
        Key::only("class_embed_type", &["null"], CLASSES),
        Key::honoured("addition_embed_type"),
        Key::honoured("addition_time_embed_dim"),
        Key::only("num_class_embeds", &["null"], CLASSES),
        Key::honoured("upcast_attention"),
        Key::only("resnet_time_scale_shift", &["\"default\"", "\"scale_shift\""], WIDENS),
        Key::idle("resnet_skip_time_act", OTHER_BLOCKS),
        Key::idle("resnet_out_scale_factor", OTHER_BLOCKS),
        Key::only("time_embedding_type", &["\"positional\""], TIME),
        Key::honoured("time_embedding_dim"),
        Key::only("time_embedding_act_fn", &["null"], TIME),
        Key::only("timestep_post_act", &["null"], TIME),
        Key::honoured("time_cond_proj_dim"),
        Key::only("conv_in_kernel", &["1", "3"], KERNELS),
        Key::only("conv_out_kernel", &["1", "3"], KERNELS),
        Key::honoured("projection_class_embeddings_input_dim"),
        Key::only("attention_type", &["\"default\""], "boxes (GLIGEN) are not supported"),
        Key::only("class_embeddings_concat", &["false"], CLASSES),
        Key::idle("mid_block_only_cross_attention", OTHER_BLOCKS),
        Key::idle("cross_attention_norm", OTHER_BLOCKS),
        Key::idle("addition_embed_type_num_heads", "the supported kind of added embedding has no heads"),
    ],
};

/// Where a checkpoint has the configuration.
pub(super) const FILE: &str = "unet/config.json";

impl UnetConfig {
    /// Reads and checks a checkpoint's denoiser's configuration.
    ///
    /// # Errors
    ///
    /// The file, the key, its value and what is supported.
    pub fn read(checkpoint: &Checkpoint) -> Outcome<Self> {
        let config: Self = checkpoint.config(FILE, "the denoiser's configuration", &KEYS)?;
        config.check().map_err(|message| checkpoint.unsupported(FILE, message))?;
        Ok(config)
    }

    /// Checks that this is a network that can be built.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
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
        if let Some(unknown) =
            self.mid_block_type.as_deref().filter(|name| ![ATTENDING_MIDDLE, PLAIN_MIDDLE].contains(name))
        {
            return Err(format!(
                "mid_block_type is {unknown:?}; supported are {ATTENDING_MIDDLE}, {PLAIN_MIDDLE} and null"
            ));
        }
        self.check_sizes(blocks)?;
        self.check_transformers(blocks)?;
        self.check_added()
    }

    fn check_sizes(&self, blocks: usize) -> Result<(), String> {
        let lists = [
            ("layers_per_block", &self.layers_per_block),
            ("cross_attention_dim", &self.cross_attention_dim),
            ("attention_head_dim", &self.attention_head_dim),
        ];
        if let Some((key, value)) = lists.into_iter().find(|(_, value)| !value.fits(blocks)) {
            return Err(format!("{key} is {value}; a number above 0, or one for each of {blocks} blocks, is needed"));
        }
        for (index, &channels) in self.block_out_channels.iter().enumerate() {
            let (groups, heads) = (self.norm_num_groups, self.attention_head_dim.of(index));
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
        if self.time_embedding_dim == Some(0) {
            return Err("time_embedding_dim is 0; a number above 0 is needed".to_owned());
        }
        self.check_options(blocks)
    }

    fn check_options(&self, blocks: usize) -> Result<(), String> {
        if let Switches::Each(switches) = &self.only_cross_attention
            && switches.len() != blocks
        {
            return Err(format!("only_cross_attention is {switches:?}; one for each of {blocks} blocks is needed"));
        }
        let factor = self.mid_block_scale_factor;
        if factor == 0.0 || !factor.is_finite() {
            return Err(format!("mid_block_scale_factor is {factor}; a number other than 0 is needed"));
        }
        match self.time_cond_proj_dim {
            // The frequencies of fewer have no step between them.
            Some(width) if width < LEAST_GUIDANCE_WIDTH => {
                Err(format!("time_cond_proj_dim is {width}; {LEAST_GUIDANCE_WIDTH} or more is needed"))
            }
            _ => Ok(()),
        }
    }

    fn check_transformers(&self, blocks: usize) -> Result<(), String> {
        let down: Vec<usize> = (0..blocks)
            .map(|index| {
                // The middle takes the first number of the last block.
                let middle = usize::from(index + 1 == blocks && self.middle_attends());
                if self.attends_down(index) { self.layers_per_block.of(index) } else { middle }
            })
            .collect();
        let up: Vec<usize> = (0..blocks)
            .map(|index| {
                let layers = self.layers_per_block.of(blocks - 1 - index) + 1;
                if self.attends_up(index) { layers } else { 0 }
            })
            .collect();
        let layers = &self.transformer_layers_per_block;
        let wanted = format!("a number above 0 for each of {blocks} blocks, or for each attention in them, is needed");
        let mirrored: Vec<usize> = up.iter().rev().copied().collect();
        let fits = match &self.reverse_transformer_layers_per_block {
            Some(TransformerLayers::One(layers)) => {
                return Err(format!("reverse_transformer_layers_per_block is {layers}; {wanted}"));
            }
            Some(reverse) if !reverse.fits(&up) => {
                return Err(format!("reverse_transformer_layers_per_block is {reverse}; {wanted}"));
            }
            Some(_) => layers.fits(&down),
            None if layers.is_nested() => {
                let message = "reverse_transformer_layers_per_block is missing; transformer_layers_per_block is";
                return Err(format!("{message} {layers}, which does not say how the way up is made"));
            }
            None => layers.fits(&down) && layers.fits(&mirrored),
        };
        if fits { Ok(()) } else { Err(format!("transformer_layers_per_block is {layers}; {wanted}")) }
    }

    fn check_added(&self) -> Result<(), String> {
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

    /// Whether pixels of block `index`, counted on the way down, look at the text alone.
    pub(super) fn sees_only_text(&self, index: usize) -> bool {
        match &self.only_cross_attention {
            Switches::One(switch) => *switch,
            Switches::Each(switches) => switches[index],
        }
    }

    /// Whether the network is told the guidance scale, so that one pass a step is guided.
    #[must_use]
    pub fn is_told_guidance(&self) -> bool {
        self.time_cond_proj_dim.is_some()
    }

    /// The guidance scale's sinusoids, as diffusers' pipelines have them whatever the timestep's are.
    pub(super) fn guidance_sinusoids(&self) -> Option<Sinusoids> {
        self.time_cond_proj_dim.map(|width| Sinusoids { width, cosines_first: false, frequency_shift: 1.0 })
    }

    /// Whether the middle is there and attends to the text.
    pub(super) fn middle_attends(&self) -> bool {
        self.mid_block_type.as_deref() == Some(ATTENDING_MIDDLE)
    }

    /// Transformer layers of attention `layer` in block `index`, counted on the way down.
    pub(super) fn transformer_layers_down(&self, index: usize, layer: usize) -> usize {
        self.transformer_layers_per_block.of(index, layer)
    }

    /// Transformer layers of the middle's attention.
    pub(super) fn transformer_layers_in_the_middle(&self) -> usize {
        self.transformer_layers_per_block.of(self.block_out_channels.len() - 1, 0)
    }

    /// Transformer layers of attention `layer` in block `index`, counted on the way up.
    pub(super) fn transformer_layers_up(&self, index: usize, layer: usize) -> usize {
        match &self.reverse_transformer_layers_per_block {
            Some(reverse) => reverse.of(index, layer),
            None => self.transformer_layers_per_block.of(self.block_out_channels.len() - 1 - index, layer),
        }
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
        self.time_embedding_dim.unwrap_or(self.block_out_channels[0] * 4)
    }

    /// Whether the file was written by diffusers before 0.9.0, which gave every file the same `sample_size`. A version
    /// that cannot be read counts as new.
    pub(super) fn is_before_0_9(&self) -> bool {
        let Some(version) = &self.diffusers_version else { return false };
        let number =
            |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u32>().ok()).flatten();
        let mut parts = version.split('.').map_while(number);
        match (parts.next(), parts.next()) {
            (Some(major), minor) => (major, minor.unwrap_or(0)) < (0, 9),
            _ => false,
        }
    }

    /// Sinusoids of `width` values, as the configuration has them.
    pub(super) fn sinusoids(&self, width: usize) -> Sinusoids {
        Sinusoids { width, cosines_first: self.flip_sin_to_cos, frequency_shift: self.freq_shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Document, keys::tests::assert_complete};

    fn read(keys: &str) -> Result<UnetConfig, String> {
        let json = format!(r#"{{"_class_name": "UNet2DConditionModel", {keys}}}"#);
        let document = Document::parse(json.as_bytes())?;
        KEYS.check(&document.root)?;
        let config: UnetConfig = document.read(&KEYS.null_counts())?;
        config.check().map(|()| config)
    }

    fn refused(keys: &str) -> String {
        read(keys).unwrap_err()
    }

    #[test]
    fn every_key_of_diffusers_is_in_the_table() {
        assert_complete(&KEYS, "UNet2DConditionModel");
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        assert!(
            refused(r#""down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]"#)
                .contains("AttnDownBlock2D")
        );
        assert!(refused(r#""attention_head_dim": [5, 10]"#).contains("attention_head_dim is [5, 10]; a number"));
        assert!(refused(r#""attention_head_dim": 7"#).contains("does not divide"));
        assert!(refused(r#""norm_num_groups": 7"#).contains("norm_num_groups is 7"));
        assert!(refused(r#""addition_embed_type": "image""#).contains("addition_embed_type is \"image\""));
        assert!(refused(r#""up_block_types": []"#).contains("up_block_types 0"));
        let cases = [
            (r#""act_fn": "gelu""#, r#"act_fn is "gelu"; supported are "silu", "swish""#),
            (r#""num_attention_heads": 8"#, "num_attention_heads is 8; only null is supported"),
            (r#""time_cond_proj_dim": 3"#, "time_cond_proj_dim is 3; 4 or more is needed"),
            (r#""conv_in_kernel": 4"#, "conv_in_kernel is 4; supported are 1, 3"),
            (r#""conv_out_kernel": 17"#, "conv_out_kernel is 17; supported are 1, 3"),
            (r#""downsample_padding": 2"#, "downsample_padding is 2; supported are 0, 1"),
            (r#""mid_block_scale_factor": 0"#, "mid_block_scale_factor is 0; a number other than 0 is needed"),
            (r#""only_cross_attention": [true, false]"#, "only_cross_attention is [true, false]; one for each of 4"),
            (r#""resnet_time_scale_shift": "spatial""#, "resnet_time_scale_shift is \"spatial\"; supported are"),
            (r#""class_embed_type": "timestep""#, "class_embed_type is \"timestep\"; only null is supported"),
            (r#""attention_type": "gated""#, "attention_type is \"gated\"; only \"default\" is supported"),
            (r#""layers_per_block": "2""#, "layers_per_block is \"2\"; a whole number, or a list of them, is wanted"),
            (r#""layers_per_block": [1, 2.5]"#, "layers_per_block[1] is 2.5; a whole number, 0 or more, is wanted"),
            (
                r#""transformer_layers_per_block": true"#,
                "transformer_layers_per_block is true; a whole number, or a list",
            ),
            (r#""transformer_layers_per_block": [1, [2, 1], 1, 1]"#, "reverse_transformer_layers_per_block is missing"),
            (r#""transformer_layers_per_block": [1, 2]"#, "transformer_layers_per_block is [1, 2]; a number above 0"),
            (
                r#""reverse_transformer_layers_per_block": [1, [1, 1], 1, 1]"#,
                "reverse_transformer_layers_per_block is [1, [1, 1], 1, 1]; a number above 0 for each",
            ),
            (r#""mid_block_type": "UNetMidBlock2DSimpleCrossAttn""#, "mid_block_type is \"UNetMidBlock2DSimple"),
            (r#""time_embedding_dim": 0"#, "time_embedding_dim is 0"),
        ];
        for (keys, said) in cases {
            assert!(refused(keys).starts_with(said), "{}", refused(keys));
        }
    }

    #[test]
    fn stable_diffusion_s_own_defaults_can_be_built() {
        let config = read(r#""dropout": 0.1, "resnet_skip_time_act": null"#).unwrap();
        assert!(config.attends_down(2) && !config.attends_down(3) && !config.attends_up(0) && config.attends_up(1));
    }

    #[test]
    fn null_is_the_default_of_every_key_but_of_those_that_mean_something_by_it() {
        let nulls: Vec<String> = KEYS
            .keys
            .iter()
            .filter(|key| !KEYS.null_counts().contains(&key.name))
            .map(|key| format!("\"{}\": null", key.name))
            .collect();
        assert_eq!(read(&nulls.join(", ")).unwrap(), read(r#""_x": 0"#).unwrap());
        let config = read(r#""mid_block_type": null, "flip_sin_to_cos": null"#).unwrap();
        assert_eq!((config.mid_block_type, config.flip_sin_to_cos), (None, false));
    }

    #[test]
    fn a_middle_without_attention_takes_no_transformer_layers() {
        let keys = r#""mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 1, 0]"#;
        assert!(!read(keys).unwrap().middle_attends());
        assert!(refused(r#""transformer_layers_per_block": [1, 1, 1, 0]"#).contains("[1, 1, 1, 0]"));
    }

    #[test]
    fn versions_before_0_9_are_told_from_others() {
        let old = |version: &str| read(&format!("\"_diffusers_version\": \"{version}\"")).unwrap().is_before_0_9();
        for version in ["0.6.0", "0.8.1", "0.8.0.dev0", "0.2.2", "0"] {
            assert!(old(version), "{version}");
        }
        for version in ["0.9.0", "0.9.0.dev0", "0.18.2", "0.42.1", "1.0", "unknown"] {
            assert!(!old(version), "{version}");
        }
        assert!(!read(r#""_x": 0"#).unwrap().is_before_0_9());
    }
}
