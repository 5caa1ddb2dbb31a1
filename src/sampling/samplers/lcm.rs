//! Latent consistency models.

use candle_core::Tensor;

use super::super::{
    BatchNoise,
    level::{noise_share, signal_share},
    schedule::Level,
};
use crate::Result;

/// The deviation that the boundary condition takes the data to have.
const SIGMA_DATA: f64 = 0.5;

/// Luo et al. 2023, algorithm 3: the consistency function is x₀ with the boundary condition's scalings (appendix, equation
/// 9, by timesteps that `scaling` multiplies), and noise takes it to the next level. Each step draws one normal for each
/// latent, but the last, which ends at σ = 0.
pub(super) fn lcm(
    x: &Tensor,
    denoised: &Tensor,
    level: Level,
    to: f64,
    scaling: f64,
    noise: &mut BatchNoise,
) -> Result<Tensor> {
    let scaled = level.timestep * scaling;
    let length = scaled.hypot(SIGMA_DATA);
    let (skip, out) = ((SIGMA_DATA / length).powi(2), scaled / length);
    let consistent = ((denoised * out)? + (x * skip)?)?;
    if to == 0.0 {
        return Ok(consistent);
    }
    Ok(((consistent * signal_share(to))? + (noise.like(x)? * noise_share(to))?)?)
}
