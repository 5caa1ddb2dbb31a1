//! CLIP's text encoder (Radford et al. 2021), as OpenAI's and OpenCLIP's checkpoints have it.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::{
    Error, Result,
    json::keys::{Class, Key, KeyTable},
    nn::{Activation, After, LayerNorm, Linear, Weights, attention, on_drawing_threads},
};

/// The sizes of a text encoder: its `config.json`, with transformers' defaults for what a file leaves out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Channels of a token.
    pub hidden_size: usize,
    /// Channels inside a layer's perceptron.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Tokens that the encoder sees.
    pub max_position_embeddings: usize,
    /// The perceptron's non-linearity.
    pub hidden_act: Activation,
    /// Added to the norms' variance.
    pub layer_norm_eps: f32,
    /// Channels of the pooled state, where there is one.
    pub projection_dim: usize,
    /// The token that a prompt ends with.
    pub eos_token_id: u32,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

/// The value that early configurations have in place of the real end token's id.
const LEGACY_END: u32 = 2;

const TRAINING: &str = "it acts in training alone";
const RETURNED: &str = "it says how a result is handed over, not what it is";
const HEADS: &str = "it is for networks with a head that a text encoder lacks";
const NOT_TAKEN: &str = "files of other versions have it; the class does not take it";

/// The keys of `CLIPTextConfig`, and those of older versions of it. With `null` for any of them transformers fails or does
/// what it does without the key.
pub(super) const KEYS: KeyTable = KeyTable {
    class: Class::Absent,
    keys: &[
        Key::honoured("vocab_size"),
        Key::honoured("hidden_size"),
        Key::honoured("intermediate_size"),
        Key::honoured("projection_dim"),
        Key::honoured("num_hidden_layers"),
        Key::honoured("num_attention_heads"),
        Key::honoured("max_position_embeddings"),
        Key::honoured("hidden_act"),
        Key::honoured("layer_norm_eps"),
        Key::idle("attention_dropout", TRAINING),
        Key::idle("initializer_range", TRAINING),
        Key::idle("initializer_factor", TRAINING),
        Key::idle("pad_token_id", "the tokenizer pads, and says with what"),
        Key::idle("bos_token_id", "the tokenizer says how a prompt begins"),
        Key::honoured("eos_token_id"),
        Key::idle("transformers_version", "it says who wrote the file"),
        Key::idle(
            "architectures",
            "model_index.json says the class; a projection that is missing is found when weights are read",
        ),
        Key::idle("output_hidden_states", RETURNED),
        Key::idle("return_dict", RETURNED),
        Key::idle("dtype", "--dtype says in which type the network computes"),
        Key::idle("chunk_size_feed_forward", "transformers' text encoder of CLIP does not look at it"),
        Key::only("is_encoder_decoder", &["false"], "a text encoder is no decoder"),
        Key::idle("id2label", HEADS),
        Key::idle("label2id", HEADS),
        Key::idle("problem_type", HEADS),
        Key::only("model_type", &["\"clip_text_model\"", "\"clip\""], "a class attribute; another is another network"),
        Key::only("use_attention_mask", &["false"], "diffusers reads it; the padding's attention is not masked here"),
        Key::idle("torch_dtype", "the older name of dtype"),
        Key::idle("dropout", NOT_TAKEN),
        Key::idle("gradient_checkpointing", NOT_TAKEN),
        Key::idle("use_cache", NOT_TAKEN),
    ],
};

impl ClipConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    ///
    /// The key, its value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || hidden == 0 || hidden % heads != 0 {
            return Err(format!("num_attention_heads is {heads}; a divisor of hidden_size {hidden} is needed"));
        }
        if !self.layer_norm_eps.is_finite() || self.layer_norm_eps < 0.0 {
            return Err(format!("layer_norm_eps is {}; a finite number, 0 or more, is needed", self.layer_norm_eps));
        }
        if self.max_position_embeddings < 2 || self.num_hidden_layers == 0 {
            return Err("max_position_embeddings below 2 or num_hidden_layers of 0 make no encoder".to_owned());
        }
        Ok(())
    }
}

/// What the encoder makes of a batch of prompts, before its last norm.
#[derive(Debug)]
pub struct TextStates {
    /// Each prompt's state after all layers but those it leaves out: `(b, n, hidden_size)`.
    pub skipped: Tensor,
    /// The state after all layers.
    pub last: Tensor,
}

/// A text encoder.
#[derive(Debug)]
pub struct ClipTextModel {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    last_norm: LayerNorm,
    projection: Option<Linear>,
    mask: Tensor,
    end_token: u32,
}

/// Whether a text encoder projects a pooled state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// It gives the tokens' states alone.
    Absent,
    /// Its end token's state is projected, too.
    Projected,
}

impl ClipTextModel {
    /// Reads the encoder's tensors.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(config: &ClipConfig, pooling: Pooling, weights: &Weights) -> Result<Self> {
        // Newer transformers save without the prefix that published checkpoints have.
        let prefixed = weights.contains("text_model.embeddings.token_embedding.weight");
        let text = if prefixed { weights.at("text_model") } else { weights.clone() };
        let width = config.hidden_size;
        let window = config.max_position_embeddings;
        let embeddings = text.at("embeddings");
        let layer = |index| Layer::new(config, &text.at("encoder").entry("layers", index));
        let project = || Linear::without_bias(&weights.at("text_projection"), width, config.projection_dim);
        Ok(Self {
            tokens: embeddings.tensor("token_embedding.weight", &[config.vocab_size, width])?,
            positions: embeddings.tensor("position_embedding.weight", &[window, width])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            last_norm: LayerNorm::new(&text.at("final_layer_norm"), width, config.layer_norm_eps)?,
            projection: (pooling == Pooling::Projected).then(project).transpose()?,
            mask: causal_mask(window, weights.device())?,
            end_token: config.eos_token_id,
        })
    }

    /// The states of a batch of prompts of one length. For [`TextStates::skipped`], `skip` of the last layers are left out
    /// for each prompt.
    ///
    /// # Errors
    ///
    /// An id outside the vocabulary, more ids than the window has, or more layers left out than there are.
    pub fn forward(&self, ids: &[&[u32]], skip: &[usize]) -> Result<TextStates> {
        let layers = self.layers.len();
        if let Some(skip) = skip.iter().find(|skip| **skip > layers) {
            return Err(Error::invalid(
                "clip_skip",
                format!("leaves out {skip} layers; the text encoder has {layers}"),
            ));
        }
        on_drawing_threads(self.tokens.device(), || self.pass(ids, skip))
    }

    fn pass(&self, ids: &[&[u32]], skip: &[usize]) -> Result<TextStates> {
        let layers = self.layers.len();
        let (batch, length) = (ids.len(), ids[0].len());
        let flat = Tensor::from_vec(ids.concat(), batch * length, self.tokens.device())?;
        let embedded = self.tokens.embedding(&flat)?.reshape((batch, length, ()))?;
        let mut state = embedded.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let mask = self.mask.narrow(0, 0, length)?.narrow(1, 0, length)?.contiguous()?;
        // With none of the layers, with one, and so on.
        let mut states = vec![state.clone()];
        for layer in &self.layers {
            state = layer.forward(&state, &mask)?;
            states.push(state.clone());
        }
        let of_prompt = |(row, skip): (usize, &usize)| states[layers - skip].narrow(0, row, 1);
        let skipped: Vec<Tensor> = skip.iter().enumerate().map(of_prompt).collect::<candle_core::Result<_>>()?;
        Ok(TextStates { skipped: Tensor::cat(&skipped, 0)?, last: state })
    }

    /// The last norm of states.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn norm(&self, states: &Tensor) -> Result<Tensor> {
        self.last_norm.forward(states)
    }

    /// The projected state of each prompt's end token: `(b, projection_dim)`.
    ///
    /// # Errors
    ///
    /// A shape that does not fit. For an encoder without a projection, the end token's state as it is.
    pub fn pooled(&self, ids: &[&[u32]], last: &Tensor) -> Result<Tensor> {
        let normal = self.norm(last)?;
        let rows = ids.iter().enumerate().map(|(row, ids)| Ok(normal.get(row)?.get(self.end_of(ids))?));
        let ends = Tensor::stack(&rows.collect::<Result<Vec<_>>>()?, 0)?;
        match &self.projection {
            Some(projection) => projection.forward(&ends),
            None => Ok(ends),
        }
    }

    /// Where a prompt ends: at its first end token. Early configurations name a wrong one; there the largest id is it.
    fn end_of(&self, ids: &[u32]) -> usize {
        let end = if self.end_token == LEGACY_END { ids.iter().copied().max().unwrap_or(0) } else { self.end_token };
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }
}

/// Zero where a token may look, minus infinity at those after it: `(window, window)` f32.
fn causal_mask(window: usize, device: &Device) -> Result<Tensor> {
    let value = |index: usize| if index % window > index / window { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..window * window).map(value).collect();
    Ok(Tensor::from_vec(values, (window, window), device)?.to_dtype(DType::F32)?)
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    norm2: LayerNorm,
    inner: Linear,
    outer: Linear,
    activation: Activation,
}

impl Layer {
    fn new(config: &ClipConfig, weights: &Weights) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = weights.at("self_attn");
        let square = |name| Linear::new(&attention.at(name), width, width);
        Ok(Self {
            norm1: LayerNorm::new(&weights.at("layer_norm1"), width, config.layer_norm_eps)?,
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            out: square("out_proj")?,
            heads: config.num_attention_heads,
            norm2: LayerNorm::new(&weights.at("layer_norm2"), width, config.layer_norm_eps)?,
            inner: Linear::new(&weights.at("mlp.fc1"), width, inner)?,
            outer: Linear::new(&weights.at("mlp.fc2"), inner, width)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let y = self.norm1.forward(x)?;
        let (q, k, v) = (self.query.forward(&y)?, self.key.forward(&y)?, self.value.forward(&y)?);
        let x = self.out.forward_then(&attention(&q, &k, &v, self.heads, Some(mask))?, After::added_to(x))?;
        let activated = After { activation: Some(self.activation), ..After::default() };
        let y = self.inner.forward_then(&self.norm2.forward(&x)?, activated)?;
        self.outer.forward_then(&y, After::added_to(&x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{Document, keys::tests::assert_complete};

    #[test]
    fn every_key_of_transformers_is_in_the_table() {
        assert_complete(&KEYS, "CLIPTextConfig");
    }

    fn read(json: &str) -> Result<ClipConfig, String> {
        let document = Document::parse(json.as_bytes())?;
        KEYS.check(&document.root)?;
        let config: ClipConfig = document.read(&KEYS.null_counts())?;
        config.check().map(|()| config)
    }

    #[test]
    fn null_is_the_default_of_every_key() {
        let nulls: Vec<String> = KEYS.keys.iter().map(|key| format!("\"{}\": null", key.name)).collect();
        assert_eq!(read(&format!("{{{}}}", nulls.join(", "))).unwrap(), ClipConfig::default());
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let cases = [
            (r#"{"model_type": "t5"}"#, "model_type is \"t5\"; supported are \"clip_text_model\", \"clip\""),
            (r#"{"use_attention_mask": true}"#, "use_attention_mask is true; only false is supported"),
            (r#"{"eos_token_id": [1, 2]}"#, "eos_token_id is a list; a whole number, 0 or more, is wanted"),
            (r#"{"num_attention_heads": 7}"#, "num_attention_heads is 7; a divisor of hidden_size 512 is needed"),
            (r#"{"layer_norm_eps": Infinity}"#, "layer_norm_eps is inf; a finite number, 0 or more, is needed"),
        ];
        for (json, said) in cases {
            let message = read(json).unwrap_err();
            assert!(message.starts_with(said), "{message}");
        }
    }
}
