//! The small model inside this program, behind the feature `bundled-model`.

use crate::nn::WeightFile;

/// Where the model's files seem to be, in messages.
pub const ROOT: &str = "bundled";

/// The name that the bundled model goes by.
pub const NAME: &str = "pocket";

#[cfg(feature = "bundled-model")]
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../models/pocket/", $path)))),*]
    };
}

#[cfg(feature = "bundled-model")]
const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "darkroom.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

#[cfg(not(feature = "bundled-model"))]
const FILES: &[(&str, &[u8])] = &[];

/// The bytes of a file of the bundled model.
pub fn file(path: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, bytes)| *bytes)
}

/// A weight file of the bundled model; empty when there is no such file.
pub fn weight_file(path: &str) -> WeightFile {
    let entry = FILES.iter().find(|(name, _)| *name == path);
    entry.map_or(WeightFile::Embedded("", &[]), |(name, bytes)| WeightFile::Embedded(name, bytes))
}
