//! What a drawing is asked to be, and the one place where that is checked.
//!
//! Next: the pipeline turns a valid [`SamplingConfig`] into a schedule, a sampler and noise. The file is long because every
//! value that a request can set is declared, bounded and named here.

use std::{fmt, str::FromStr, sync::Arc};

use image::{GrayImage, RgbImage};

use super::{CropOffset, LongPrompt, PictureSize, PromptSyntax, TimestepSpacing, steps_of_strength};
use crate::{Error, Result};

/// The largest seed: 2^53 - 1, the largest integer that JSON readers keep exactly.
pub const MAX_SEED: u64 = (1 << 53) - 1;
/// The sides that a drawing may have, in pixels.
pub const SIDE_PX: std::ops::RangeInclusive<usize> = 64..=2048;
pub(super) const STEPS: std::ops::RangeInclusive<usize> = 1..=150;
const GUIDANCE: std::ops::RangeInclusive<f64> = 0.0..=30.0;
/// The levels that a request can list: zero-terminal-SNR training ends at 4096.
const SIGMAS: std::ops::RangeInclusive<f64> = 0.0001..=10_000.0;
const IMAGE_GUIDANCE: std::ops::RangeInclusive<f64> = 1.0..=30.0;
const MAX_CLIP_SKIP: usize = 12;
const MAX_MASK_BLUR: f32 = 64.0;
const MAX_PADDING: u32 = 512;

/// How much of a picture is drawn anew when a request does not say.
pub const DEFAULT_STRENGTH: f64 = 0.75;

/// How far a picture that is edited is followed when a request does not say.
pub const DEFAULT_IMAGE_GUIDANCE_SCALE: f64 = 1.5;

/// Everything that decides a picture, apart from the model.
///
/// The same values give the same pixels, at every thread count and batch size.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingConfig {
    /// What to draw: 1 to 10000 characters.
    pub prompt: String,
    /// What to steer away from; used only when `guidance_scale` is above 1. Stable Diffusion XL draws one picture for `None`
    /// (its conditioning is zeros) and another for an empty text (which is encoded); for the other families they are the same.
    pub negative_prompt: Option<String>,
    /// Width in pixels, a multiple of 8 in 64..=2048; `None` is the model's native width.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8 in 64..=2048; `None` is the model's native height.
    pub height: Option<usize>,
    /// Sampler steps, 1..=150.
    pub steps: usize,
    /// Classifier-free guidance, 0..=30; 1 or less makes one network pass per step.
    pub guidance_scale: f64,
    /// Seed of the first image, at most 2^53 - 1; image `i` has `seed + i`.
    pub seed: u64,
    /// How many images.
    pub n: usize,
    /// The update rule; `None` is the checkpoint's own.
    pub sampler: Option<SamplerKind>,
    /// The spacing of the noise levels; `None` is the checkpoint's own.
    pub scheduler: Option<SpacingKind>,
    /// The noise levels themselves in place of a spacing: σ at which each step begins, 1 to 150, falling; a 0 may stand at
    /// the end, where the last step ends in any case.
    pub sigmas: Option<Vec<f64>>,
    /// How much noise each step of `ddim` adds, 0..=1: 1 is DDPM's. For `tcd` it is γ. `None` is 0 for the first and 0.3 for
    /// the second; the other samplers have no such choice.
    pub eta: Option<f64>,
    /// The picture to start from; `None` draws from noise alone. It is resized to the size of the drawing.
    pub image: Option<Arc<RgbImage>>,
    /// What of `image` is drawn anew: white (128 and more). It is resized to the size of the drawing.
    pub mask: Option<Arc<GrayImage>>,
    /// How far the mask's edge fades, as a standard deviation in pixels of the drawing, 0..=64.
    pub mask_blur: f32,
    /// Draws the region of the mask with a margin of this many pixels of `image`, 0..=512, at the full size of the drawing,
    /// and puts it back into `image`; `None` draws the whole picture.
    pub inpaint_padding: Option<u32>,
    /// The part of the noise that is added to `image`, and of the steps that are drawn: above 0, up to 1.
    pub strength: f64,
    /// How many of the text encoder's last layers to leave out, 0..=12 and fewer than it has.
    pub clip_skip: usize,
    /// Steps between previews; 0 is none.
    pub preview_every: usize,
    /// Whether brackets in the texts mean something.
    pub prompt_syntax: PromptSyntax,
    /// What becomes of texts that are longer than the text encoder's window.
    pub long_prompt: LongPrompt,
    /// What the second text encoder reads, 1 to 10000 characters; `None` is `prompt`. Stable Diffusion XL alone takes this
    /// and what follows.
    pub prompt_2: Option<String>,
    /// What the second text encoder reads to steer away from, at most 10000 characters; `None` is `negative_prompt`.
    pub negative_prompt_2: Option<String>,
    /// The size that the picture is said to have had before it was scaled; `None` is its own.
    pub original_size: Option<PictureSize>,
    /// What is said to have been cut away from it; `None` is nothing.
    pub crop: Option<CropOffset>,
    /// The size that it is said to be meant for; `None` is its own.
    pub target_size: Option<PictureSize>,
    /// How far the deviation of a guided output is brought back to that of the output with the prompt, 0..=1 (Lin et al.
    /// 2023, section 3.4); 0 leaves it.
    pub guidance_rescale: f64,
    /// The part of the drawn steps before which there is no guidance: step `i` of `n` is guided where
    /// `guidance_start <= i / n < guidance_end`. Others make one network pass.
    pub guidance_start: f64,
    /// The part of the drawn steps from which on there is no guidance, above `guidance_start` and up to 1.
    pub guidance_end: f64,
    /// How far `image` is followed by a model that edits pictures, 1..=30; `None` is 1.5. Others do not take it.
    pub image_guidance_scale: Option<f64>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: None,
            width: None,
            height: None,
            steps: 20,
            guidance_scale: 7.5,
            seed: 0,
            n: 1,
            sampler: None,
            scheduler: None,
            sigmas: None,
            eta: None,
            image: None,
            mask: None,
            mask_blur: 0.0,
            inpaint_padding: None,
            strength: DEFAULT_STRENGTH,
            clip_skip: 0,
            preview_every: 0,
            prompt_syntax: PromptSyntax::default(),
            long_prompt: LongPrompt::default(),
            prompt_2: None,
            negative_prompt_2: None,
            original_size: None,
            crop: None,
            target_size: None,
            guidance_rescale: 0.0,
            guidance_start: 0.0,
            guidance_end: 1.0,
            image_guidance_scale: None,
        }
    }
}

/// What one worker allows a request to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels in one image.
    pub max_pixels: usize,
    /// Most images in one request.
    pub max_batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 4_194_304, max_batch: 8 }
    }
}

impl SamplingConfig {
    /// Checks every value against what is allowed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for the first value out of range, naming it, what was given and what is allowed.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        self.validate_prompts()?;
        for (field, side) in [("width", self.width), ("height", self.height)] {
            if let Some(side) = side.filter(|side| !SIDE_PX.contains(side) || side % 8 != 0) {
                return Err(Error::invalid(field, format!("is {side}; a multiple of 8 from 64 to 2048 is allowed")));
            }
        }
        if let (Some(width), Some(height)) = (self.width, self.height)
            && width * height > limits.max_pixels
        {
            let (pixels, most) = (width * height, limits.max_pixels);
            return Err(Error::invalid(
                "width",
                format!("times height is {pixels} pixels; this worker allows at most {most}"),
            ));
        }
        // Their number is that of the steps.
        self.validate_sigmas()?;
        if !STEPS.contains(&self.steps) {
            return Err(Error::invalid("steps", format!("is {}; 1 to 150 are allowed", self.steps)));
        }
        if let Some(eta) = self.eta {
            if !(0.0..=1.0).contains(&eta) {
                return Err(Error::invalid("eta", format!("is {eta}; 0 to 1 is allowed")));
            }
            // Where the checkpoint chooses the sampler, it checks this too.
            self.sampler.map_or(Ok(()), |sampler| sampler.check_eta(eta))?;
        }
        if !GUIDANCE.contains(&self.guidance_scale) {
            return Err(Error::invalid("guidance_scale", format!("is {}; 0 to 30 is allowed", self.guidance_scale)));
        }
        self.validate_guidance()?;
        if self.n == 0 || self.n > limits.max_batch {
            let (n, most) = (self.n, limits.max_batch);
            return Err(Error::invalid("n", format!("is {n}; this worker allows 1 to {most} images a request")));
        }
        // The last image's seed has to be one that a client can send again.
        if self.seed.checked_add(self.n as u64 - 1).is_none_or(|last| last > MAX_SEED) {
            let seed = self.seed;
            return Err(Error::invalid(
                "seed",
                format!("is {seed}; 0 to {MAX_SEED} is allowed, that of the last of n images too"),
            ));
        }
        if self.clip_skip > MAX_CLIP_SKIP {
            return Err(Error::invalid("clip_skip", format!("is {}; 0 to {MAX_CLIP_SKIP} is allowed", self.clip_skip)));
        }
        if self.preview_every > *STEPS.end() {
            return Err(Error::invalid("preview_every", format!("is {}; 0 to 150 is allowed", self.preview_every)));
        }
        self.validate_picture()
    }

    /// Checks the noise levels that a request lists.
    fn validate_sigmas(&self) -> Result<()> {
        let Some(sigmas) = &self.sigmas else { return Ok(()) };
        let invalid = |message: String| Err(Error::invalid("sigmas", message));
        let levels = steps_of_sigmas(sigmas);
        if !STEPS.contains(&levels) {
            return invalid(format!("has {levels} values before a last 0; 1 to {} are allowed", STEPS.end()));
        }
        if let Some(sigma) = sigmas[..levels].iter().find(|sigma| !SIGMAS.contains(sigma)) {
            let (least, most) = (SIGMAS.start(), SIGMAS.end());
            return invalid(format!("has {sigma}; {least} to {most} is allowed, and 0 as the last value"));
        }
        if let Some(pair) = sigmas.windows(2).find(|pair| pair[0] <= pair[1]) {
            return invalid(format!("goes from {} to {}; values that fall are allowed", pair[0], pair[1]));
        }
        if let Some(scheduler) = self.scheduler {
            return invalid(format!("is given beside the scheduler {scheduler}; one of the two is allowed"));
        }
        if self.steps != levels {
            let message = format!("is {}; the {levels} steps of sigmas are allowed, or no steps at all", self.steps);
            return Err(Error::invalid("steps", message));
        }
        Ok(())
    }

    /// Checks what belongs to guidance besides its scale.
    fn validate_guidance(&self) -> Result<()> {
        let Self { guidance_rescale: rescale, guidance_start: start, guidance_end: end, .. } = *self;
        if !(0.0..=1.0).contains(&rescale) {
            return Err(Error::invalid("guidance_rescale", format!("is {rescale}; 0 to 1 is allowed")));
        }
        if !(0.0..1.0).contains(&start) {
            return Err(Error::invalid("guidance_start", format!("is {start}; 0 and more, below 1, is allowed")));
        }
        if !(end > start && end <= 1.0) {
            let message = format!("is {end}; above guidance_start, which is {start}, and up to 1 is allowed");
            return Err(Error::invalid("guidance_end", message));
        }
        match self.image_guidance_scale.filter(|scale| !IMAGE_GUIDANCE.contains(scale)) {
            Some(scale) => Err(Error::invalid("image_guidance_scale", format!("is {scale}; 1 to 30 is allowed"))),
            None => Ok(()),
        }
    }

    /// Checks what belongs to a picture to start from.
    fn validate_picture(&self) -> Result<()> {
        if self.image.is_none() && self.mask.is_some() {
            return Err(Error::invalid("mask", "is given without an image to repaint"));
        }
        if !(self.strength > 0.0 && self.strength <= 1.0) {
            return Err(Error::invalid("strength", format!("is {}; above 0 and up to 1 is allowed", self.strength)));
        }
        if !(0.0..=MAX_MASK_BLUR).contains(&self.mask_blur) {
            let message = format!("is {}; 0 to {MAX_MASK_BLUR} pixels are allowed", self.mask_blur);
            return Err(Error::invalid("mask_blur", message));
        }
        if let Some(padding) = self.inpaint_padding {
            if self.mask.is_none() {
                return Err(Error::invalid("inpaint_padding", format!("is {padding}, without a mask to crop to")));
            }
            if padding > MAX_PADDING {
                return Err(Error::invalid("inpaint_padding", format!("is {padding}; 0 to {MAX_PADDING} is allowed")));
            }
        }
        if self.mask_blur > 0.0 && self.mask.is_none() {
            return Err(Error::invalid("mask_blur", format!("is {}, without a mask to blur", self.mask_blur)));
        }
        Ok(())
    }

    /// How many steps are drawn for each image: all of them, or the part that `strength` leaves of a picture.
    #[must_use]
    pub fn steps_drawn(&self) -> usize {
        if self.image.is_some() { steps_of_strength(self.steps, self.strength) } else { self.steps }
    }
}

/// How many steps a list of noise levels has: a 0 at its end is where the last step ends.
#[must_use]
pub fn steps_of_sigmas(sigmas: &[f64]) -> usize {
    sigmas.len() - usize::from(sigmas.last() == Some(&0.0))
}

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Denoising diffusion implicit models, deterministic (Song et al. 2020).
    Ddim,
    /// Pseudo numerical methods, linear multi-step (Liu et al. 2022).
    Pndm,
    /// Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn).
    Euler,
    /// Euler with ancestral noise.
    EulerAncestral,
    /// Heun's second-order method (Karras et al. 2022, algorithm 1).
    Heun,
    /// DPM-Solver++(2M) (Lu et al. 2022).
    Dpmpp2m,
    /// DPM-Solver-2, the midpoint method in log σ (Lu et al. 2022; Karras et al. 2022, algorithm 2).
    Dpm2,
    /// The same with ancestral noise.
    Dpm2Ancestral,
    /// Linear multi-step, of fourth order.
    Lms,
    /// The unified predictor and corrector, of second order (Zhao et al. 2023).
    UniPc,
    /// The diffusion exponential integrator, of second order in log ρ (Zhang and Chen 2023).
    Deis,
    /// Denoising diffusion probabilistic models (Ho et al. 2020).
    Ddpm,
    /// DPM-Solver++(2S) with ancestral noise (Lu et al. 2022; k-diffusion).
    Dpmpp2sAncestral,
    /// DPM-Solver++ on the reverse SDE, of second order in one step (Lu et al. 2022; k-diffusion).
    DpmppSde,
    /// DPM-Solver++(2M) on the reverse SDE.
    Dpmpp2mSde,
    /// DPM-Solver++(3M) on the reverse SDE (k-diffusion).
    Dpmpp3mSde,
    /// DPM-Solver++ by single steps, of up to third order (Lu et al. 2022).
    DpmSingle,
    /// Latent consistency models' multi-step sampling (Luo et al. 2023).
    Lcm,
    /// Trajectory consistency distillation's strategic stochastic sampling (Zheng et al. 2024).
    Tcd,
    /// Euler's method for networks that were preconditioned as EDM's (Karras et al. 2022).
    EdmEuler,
    /// DPM-Solver++(2M) for the same.
    EdmDpmpp2m,
}

impl SamplerKind {
    /// Every sampler, in the order in which they are shown.
    pub const ALL: [Self; 21] = [
        Self::Ddim,
        Self::Pndm,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Dpmpp2m,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Lms,
        Self::UniPc,
        Self::Deis,
        Self::Ddpm,
        Self::Dpmpp2sAncestral,
        Self::DpmppSde,
        Self::Dpmpp2mSde,
        Self::Dpmpp3mSde,
        Self::DpmSingle,
        Self::Lcm,
        Self::Tcd,
        Self::EdmEuler,
        Self::EdmDpmpp2m,
    ];

    /// Whether diffusers' class is made as its DPM-Solver is: it counts the end as one more timestep, and keeps latents at
    /// total variance 1.
    pub(super) const fn is_of_dpm_solver_kind(self) -> bool {
        use SamplerKind::{Deis, DpmSingle, Dpmpp2m, Dpmpp2mSde, Dpmpp3mSde, UniPc};
        matches!(self, Dpmpp2m | Dpmpp2mSde | Dpmpp3mSde | DpmSingle | UniPc | Deis)
    }

    /// Whether it draws with networks that were preconditioned as EDM's, and with no other.
    pub(super) const fn is_edm(self) -> bool {
        matches!(self, Self::EdmEuler | Self::EdmDpmpp2m)
    }

    /// Whether it is made for networks that were distilled to few steps.
    pub(super) const fn is_for_distilled(self) -> bool {
        matches!(self, Self::Lcm | Self::Tcd)
    }

    /// Refuses `eta` for samplers to which it means nothing.
    pub(super) fn check_eta(self, eta: f64) -> Result<()> {
        if matches!(self, Self::Ddim | Self::Tcd) {
            return Ok(());
        }
        let message = format!("is {eta}, which means nothing to the sampler {self}; ddim and tcd take it");
        Err(Error::invalid("eta", message))
    }

    /// The name on the wire and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpm2 => "dpm_2",
            Self::Dpm2Ancestral => "dpm_2_ancestral",
            Self::Lms => "lms",
            Self::UniPc => "uni_pc",
            Self::Deis => "deis",
            Self::Ddpm => "ddpm",
            Self::Dpmpp2sAncestral => "dpmpp_2s_ancestral",
            Self::DpmppSde => "dpmpp_sde",
            Self::Dpmpp2mSde => "dpmpp_2m_sde",
            Self::Dpmpp3mSde => "dpmpp_3m_sde",
            Self::DpmSingle => "dpm_single",
            Self::Lcm => "lcm",
            Self::Tcd => "tcd",
            Self::EdmEuler => "edm_euler",
            Self::EdmDpmpp2m => "edm_dpmpp_2m",
        }
    }
}

/// How the noise levels are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpacingKind {
    /// As the checkpoint's own scheduler spaces them.
    Checkpoint,
    /// Karras et al. 2022, equation 5, with rho = 7.
    Karras,
    /// Evenly in log σ.
    Exponential,
    /// By the quantiles of a beta distribution, which favours both ends (Lee et al. 2024).
    Beta,
    /// Evenly in λ = −ln σ over all of training (Lu et al. 2022).
    Lu,
    /// Evenly in timesteps, from the last of training towards the first, as Stability's generative-models space them.
    SgmUniform,
    /// Every `N/n`th timestep of training from the last, rounded down.
    Simple,
    /// Every `N/n`th timestep of training from the second, with `N/n` rounded down, so that there may be more than `n`.
    DdimUniform,
    /// Evenly in the arc tangent of σ over all of training (Sabour et al. 2024).
    KlOptimal,
    /// Levels optimised for the model's family (Sabour et al. 2024).
    Ays,
    /// The checkpoint's timesteps as multiples of a whole number from zero.
    Leading,
    /// The checkpoint's timesteps evenly, both ends included.
    Linspace,
    /// The checkpoint's timesteps evenly, counted from the last.
    Trailing,
    /// By the `sigmas` of a request. It has no place in [`ALL`](Self::ALL), since a request cannot name it.
    Given,
}

impl SpacingKind {
    /// Every spacing, in the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::Checkpoint,
        Self::Karras,
        Self::Exponential,
        Self::Beta,
        Self::Lu,
        Self::SgmUniform,
        Self::Simple,
        Self::DdimUniform,
        Self::KlOptimal,
        Self::Ays,
        Self::Leading,
        Self::Linspace,
        Self::Trailing,
    ];

    /// The spacing of the checkpoint's timesteps that this is a name for.
    pub(super) const fn timesteps(self) -> Option<TimestepSpacing> {
        match self {
            Self::Leading => Some(TimestepSpacing::Leading),
            Self::Linspace => Some(TimestepSpacing::Linspace),
            Self::Trailing => Some(TimestepSpacing::Trailing),
            _ => None,
        }
    }

    /// The name on the wire and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
            Self::Lu => "lu",
            Self::SgmUniform => "sgm_uniform",
            Self::Simple => "simple",
            Self::DdimUniform => "ddim_uniform",
            Self::KlOptimal => "kl_optimal",
            Self::Ays => "ays",
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
            Self::Given => "sigmas",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for SpacingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// Reads a sampler's name; `euler_a` is short for `euler_ancestral`.
    fn from_str(name: &str) -> Result<Self> {
        if name == "euler_a" {
            return Ok(Self::EulerAncestral);
        }
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let allowed = Self::ALL.map(Self::name).join(", ");
            Error::invalid("sampler", format!("is \"{name}\"; one of {allowed} is allowed"))
        })
    }
}

impl FromStr for SpacingKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let allowed = Self::ALL.map(Self::name).join(", ");
            Error::invalid("scheduler", format!("is \"{name}\"; one of {allowed} is allowed"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::prompts::MAX_PROMPT_CHARS, *};

    fn valid() -> SamplingConfig {
        SamplingConfig { prompt: "a fox".into(), ..SamplingConfig::default() }
    }

    fn refused(config: &SamplingConfig) -> (&'static str, String) {
        match config.validate(&Limits::default()) {
            Err(Error::InvalidParameter { field, message }) => (field, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let widest = SamplingConfig {
            prompt: "é".repeat(MAX_PROMPT_CHARS),
            width: Some(2048),
            height: Some(2048),
            steps: 150,
            guidance_scale: 30.0,
            seed: MAX_SEED - 7,
            n: 8,
            ..valid()
        };
        widest.validate(&Limits::default()).unwrap();
        let sigmas = (0..=150).rev().map(f64::from).collect();
        let listed = SamplingConfig { sigmas: Some(sigmas), steps: 150, ..valid() };
        listed.validate(&Limits::default()).unwrap();
        let least = SamplingConfig { width: Some(64), height: Some(64), steps: 1, guidance_scale: 0.0, ..valid() };
        least.validate(&Limits::default()).unwrap();
    }

    #[test]
    fn each_value_past_its_limit_is_named() {
        let cases = [
            ("prompt", SamplingConfig { prompt: String::new(), ..valid() }),
            ("prompt", SamplingConfig { prompt: "a".repeat(10_001), ..valid() }),
            ("negative_prompt", SamplingConfig { negative_prompt: Some("a".repeat(10_001)), ..valid() }),
            ("width", SamplingConfig { width: Some(65), ..valid() }),
            ("width", SamplingConfig { width: Some(56), ..valid() }),
            ("height", SamplingConfig { height: Some(2056), ..valid() }),
            ("steps", SamplingConfig { steps: 0, ..valid() }),
            ("steps", SamplingConfig { steps: 151, ..valid() }),
            ("guidance_scale", SamplingConfig { guidance_scale: 30.1, ..valid() }),
            ("guidance_scale", SamplingConfig { guidance_scale: f64::NAN, ..valid() }),
            ("seed", SamplingConfig { seed: MAX_SEED + 1, ..valid() }),
            ("seed", SamplingConfig { seed: MAX_SEED, n: 2, ..valid() }),
            ("n", SamplingConfig { n: 0, ..valid() }),
            ("n", SamplingConfig { n: 9, ..valid() }),
            ("clip_skip", SamplingConfig { clip_skip: 13, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![]), ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![0.0]), steps: 1, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![2.0, 2.0]), steps: 2, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![2.0, 0.0, 0.0]), steps: 1, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![2.0, -1.0]), steps: 2, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![f64::INFINITY, 1.0]), steps: 2, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some(vec![f64::NAN]), steps: 1, ..valid() }),
            ("sigmas", SamplingConfig { sigmas: Some((1..=151).rev().map(f64::from).collect()), ..valid() }),
            (
                "sigmas",
                SamplingConfig { sigmas: Some(vec![2.0]), steps: 1, scheduler: Some(SpacingKind::Lu), ..valid() },
            ),
            ("steps", SamplingConfig { sigmas: Some(vec![2.0, 1.0, 0.0]), steps: 3, ..valid() }),
            ("preview_every", SamplingConfig { preview_every: 151, ..valid() }),
            ("eta", SamplingConfig { eta: Some(1.1), ..valid() }),
            ("eta", SamplingConfig { eta: Some(f64::NAN), ..valid() }),
            ("eta", SamplingConfig { eta: Some(0.5), sampler: Some(SamplerKind::Ddpm), ..valid() }),
            ("strength", SamplingConfig { strength: 0.0, ..valid() }),
            ("strength", SamplingConfig { strength: f64::NAN, ..valid() }),
            ("mask", SamplingConfig { mask: Some(Arc::new(GrayImage::new(8, 8))), ..valid() }),
            ("mask_blur", SamplingConfig { mask_blur: 65.0, ..valid() }),
            ("mask_blur", SamplingConfig { mask_blur: 2.0, ..valid() }),
        ];
        for (field, config) in cases {
            assert_eq!(refused(&config).0, field);
        }
    }

    #[test]
    fn a_message_says_what_was_given_and_what_is_allowed() {
        let (_, message) = refused(&SamplingConfig { width: Some(100), ..valid() });
        assert_eq!(message, "is 100; a multiple of 8 from 64 to 2048 is allowed");
    }

    #[test]
    fn names_are_read_back() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
        }
        for kind in SpacingKind::ALL {
            assert_eq!(kind.name().parse::<SpacingKind>().unwrap(), kind);
        }
        assert_eq!("euler_a".parse::<SamplerKind>().unwrap(), SamplerKind::EulerAncestral);
        let error = "ddimm".parse::<SamplerKind>().unwrap_err().to_string();
        assert_eq!(
            error,
            "sampler: is \"ddimm\"; one of ddim, pndm, euler, euler_ancestral, heun, dpmpp_2m, dpm_2, dpm_2_ancestral, \
             lms, uni_pc, deis, ddpm, dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde, dpm_single, lcm, tcd, \
             edm_euler, edm_dpmpp_2m is allowed"
        );
    }
}
