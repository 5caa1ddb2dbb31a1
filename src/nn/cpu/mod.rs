//! The arithmetic on the CPU: f32 or bf16, channels last, on all threads of the global pool.
//!
//! Owns the kernels. It must not know tensors' shapes beyond slices and counts: the layers above choose it for f32 and
//! bf16 on the CPU, where it is several times as fast as the tensor library.

mod attention;
mod copy;
mod doubling;
mod element;
mod gather;
mod isa;
mod lanes;
mod math;
mod multiply;
mod norm;
mod pack;
mod peak;
mod product;
mod shared;
#[cfg(test)]
mod tests;
mod tile;
mod winograd;

pub use attention::{AttentionInputs, AttentionSizes, attention};
pub use copy::{concat_rows, convert, widen_halves};
pub use doubling::{DoublingWeights, convolve_doubled};
pub use element::Element;
pub use gather::Gather;
pub use isa::Isa;
pub use norm::{Affine, Factors, Moments, NormalMaps, Then, factors, group_norm, group_norm_by, layer_norm, spread};
pub use pack::{LayerSizes, PackedWeights};
pub use peak::{PeakOf, multiply_peak};
pub use product::{Finish, Source, product};
pub use winograd::{WinogradWeights, band_bytes, convolve_normal, convolve_normal_by};
