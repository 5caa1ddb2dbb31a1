//! Euler's method with ancestral noise.

use candle_core::Tensor;

use super::super::{
    NoiseGenerator,
    level::{noise_share, signal_share},
};
use crate::Result;

/// Euler's step to less noise than asked for, and fresh noise up to it.
pub(super) fn euler_ancestral(
    x: &Tensor,
    denoised: &Tensor,
    from: f64,
    to: f64,
    noise: &mut NoiseGenerator,
) -> Result<Tensor> {
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    let down = (to * to - up * up).max(0.0).sqrt();
    let of_x = signal_share(to) * down / noise_share(from);
    let of_denoised = signal_share(to) * (1.0 - down / from);
    let fresh = Tensor::from_vec(noise.normals(x.elem_count()), x.shape(), x.device())?;
    Ok((((x * of_x)? + (denoised * of_denoised)?)? + (fresh * (signal_share(to) * up))?)?)
}
