//! Noise levels that were optimised for a family of models: Align Your Steps (Sabour et al. 2024).
//!
//! Owns the published lists of ten steps, and how they become as many steps as a request wants.

/// The families that the paper's authors published levels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlignedLevels {
    /// Stable Diffusion 1.5.
    StableDiffusion1,
    /// Stable Diffusion XL.
    StableDiffusionXl,
}

/// σ of ten steps and where the last ends, from the authors' page, which diffusers' `AysSchedules` repeats.
type Levels = [f64; 11];

const STABLE_DIFFUSION_1: Levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];
const STABLE_DIFFUSION_XL: Levels = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029];

impl AlignedLevels {
    /// σ at which `steps` steps begin: the published ones, linearly in their logarithm between neighbours.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "levels are few"
    )]
    pub(super) fn sigmas(self, steps: usize) -> Vec<f64> {
        let levels = match self {
            Self::StableDiffusion1 => STABLE_DIFFUSION_1,
            Self::StableDiffusionXl => STABLE_DIFFUSION_XL,
        };
        let last = levels.len() - 1;
        let sigma = |number: usize| {
            let place = (number * last) as f64 / steps as f64;
            let below = (place as usize).min(last - 1);
            let (low, high) = (levels[below].ln(), levels[below + 1].ln());
            (low + (place - below as f64) * (high - low)).exp()
        };
        (0..steps).map(sigma).collect()
    }
}
