//! The arithmetic on the CPU: f32, channels last, on all threads of the global pool.
//!
//! Owns the kernels. It must not know tensors' shapes beyond slices and counts: the layers above choose it for f32 on the
//! CPU, where it is several times as fast as the tensor library.

mod attention;
mod isa;
mod math;
mod norm;
mod peak;
mod product;

pub use attention::{AttentionInputs, AttentionSizes, attention};
pub use norm::{Affine, Then, group_norm, layer_norm};
pub use peak::{PeakOf, multiply_peak};
pub use product::{Finish, Gather, PackedWeights, Source, product};
