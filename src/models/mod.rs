//! Models: what a checkpoint is, where its weights come from, the device that draws, one file per network.
//!
//! Owns the reading of checkpoints and the networks of the Stable Diffusion family. It must not know the queue or the
//! network server. Next: `pipeline` puts the networks together.

mod added_tokens;
mod bundled;
mod checkpoint;
mod clip;
mod device;
mod digest;
mod footprint;
mod hub;
mod hub_cache;
mod hub_environment;
mod layout;
mod source;
mod spec;
mod tokenizer;
mod unet;
mod unet_config;
mod vae;
mod vae_config;
mod vae_encoder;

pub use bundled::NAME as BUNDLED_MODEL_NAME;
pub use checkpoint::Checkpoint;
pub use clip::{ClipConfig, ClipTextModel, Pooling, TextStates};
pub use device::{DeviceChoice, DtypeChoice, device_name};
pub use digest::{WeightsDigest, short_digest};
pub use footprint::NumberBytes;
pub use hub::Hub;
pub use hub_cache::{checkpoint_folder, repository_name};
pub use source::ModelSource;
pub use spec::{Family, ModelSpec, TextEncoderSpec};
pub use tokenizer::{PromptTokenizer, TextWindow, Tokens};
pub use unet::{Added, Conditioning, Prepared, Unet};
pub use unet_config::{PerBlock, UnetConfig};
pub use vae::{Tiling, VaeDecoder, decoder_beginning};
pub use vae_config::VaeConfig;
pub use vae_encoder::{LatentDistribution, VaeEncoder};
