//! Layers that the networks share, and the reading of their weights.
//!
//! Owns the arithmetic. It must not know checkpoints or sampling: `models` gives it weight files and sizes.

mod activation;
mod attention;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod cuda_machine;
mod doubling;
pub mod feature_map;
mod host;
mod layers;
mod mistaken;
mod normal_conv;
mod resnet;
mod strips;
mod time;
mod weights;
mod work;

pub use activation::Activation;
pub use attention::{attention, most_score_bytes};
pub use cpu::band_bytes;
#[cfg(feature = "cuda")]
pub use cuda::open_cuda;
pub use doubling::Doubling;
pub use host::{has_fast_bf16, has_kernels, multiply_peak, on_drawing_threads, without_kernels};
pub use layers::{After, Conv2d, GroupNorm, LayerNorm, Linear};
pub use mistaken::mistaken_for;
pub use normal_conv::NormalConv;
pub use resnet::{ResnetBlock, ResnetSizes};
pub use strips::Strips;
pub use time::{EmbeddingMlp, Sinusoids};
pub use weights::{LoadProgress, WeightFile, Weights};
pub use work::operations_done;
