//! Layers that the networks share, and the reading of their weights.
//!
//! Owns the arithmetic. It must not know checkpoints or sampling: `models` gives it weight files and sizes.

mod attention;
pub mod feature_map;
mod layers;
mod resnet;
mod time;
mod weights;

pub use attention::attention;
pub use layers::{Activation, Conv2d, GroupNorm, LayerNorm, Linear};
pub use resnet::{ResnetBlock, ResnetSizes};
pub use time::{EmbeddingMlp, Sinusoids};
pub use weights::{LoadProgress, WeightFile, Weights};
