//! A scheduler's options, as one class draws by them.
//!
//! Owns [`SchedulerOptions`], with every default filled in for one sampler and spacing. diffusers' rule fills them: what
//! the file says is kept, what it does not say is the drawing class's default. `scheduler_reader` fills them in. Next:
//! `schedule` and `samplers` draw by the options.

use super::{
    Algorithm, AlignedLevels, Bound, Edm, PredictionType, SamplerKind, Solver, SpacingKind, UniPcOptions, Variance,
};
use crate::Result;

/// A scheduler's configuration with every default filled in, for one sampler and spacing.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerOptions {
    /// The update rule.
    pub sampler: SamplerKind,
    /// How σ are spaced.
    pub spacing: SpacingKind,
    /// What the network gives.
    pub prediction_type: PredictionType,
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    /// The betas themselves, in place of the three above.
    pub(super) trained_betas: Option<Vec<f64>>,
    /// Whether betas were rescaled to zero terminal SNR in training (Lin et al. 2023, algorithm 1).
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) timestep_spacing: TimestepSpacing,
    /// Added to timesteps of leading spacing.
    pub(super) steps_offset: usize,
    /// Whether the last step of DDIM and PNDM goes to σ = 0, or to the first training timestep's σ.
    pub(super) set_alpha_to_one: bool,
    /// Where the last step of the others goes.
    pub(super) final_sigmas: FinalSigmas,
    /// Whether the network is told a quarter of σ's logarithm in place of a timestep.
    pub(super) continuous_timesteps: bool,
    pub(super) interpolation: Interpolation,
    /// The least λ = −ln σ whose timesteps are visited.
    pub(super) lambda_min: f64,
    /// The ends of Karras' spacing, where they are not the schedule's.
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// What is done with x₀.
    pub(super) bound: Bound,
    /// DPM-Solver's options, UniPC's and DEIS'.
    pub(super) solver: Solver,
    pub(super) uni_pc: UniPcOptions,
    /// DDPM's noise.
    pub(super) variance: Variance,
    /// Whether PNDM starts by Runge and Kutta's method.
    pub(super) runge_kutta_start: bool,
    /// Among how many timesteps distilled networks choose.
    pub(super) original_steps: usize,
    /// What a latent consistency model's timesteps are multiplied by.
    pub(super) timestep_scaling: f64,
    /// How much of the noise of DDPM's step DDIM adds, or TCD's γ.
    pub(super) eta: f64,
    /// Of a network that was preconditioned as EDM's.
    pub(super) edm: Option<Edm>,
    /// The levels of [`SpacingKind::Ays`].
    pub(super) aligned: Option<AlignedLevels>,
    /// The levels of [`SpacingKind::Given`]: σ at which each step begins, falling.
    pub(super) sigmas: Vec<f64>,
}

/// How betas go from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their square roots evenly, as latent diffusion does (Rombach et al. 2022).
    ScaledLinear,
    /// The squared cosine of Nichol and Dhariwal 2021, equation 17, capped.
    SquaredcosCapV2,
    /// From cumulative products that fall exponentially; diffusers' Heun alone has it.
    Exponential,
}

/// How the timesteps of a drawing are chosen among those of training (Lin et al. 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Evenly, both ends included.
    Linspace,
    /// Multiples of a whole number from zero.
    Leading,
    /// Evenly, counted from the last.
    Trailing,
}

/// Where the last step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalSigmas {
    /// At σ = 0.
    Zero,
    /// At the first training timestep's σ.
    SigmaMin,
}

/// How σ are read from those of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// At each timestep, linearly between its neighbours.
    Linear,
    /// Evenly in their logarithm between the ends, whatever the timesteps are.
    LogLinear,
}

impl SchedulerOptions {
    /// The same with the levels of a request, as [`SamplingConfig::sigmas`](super::SamplingConfig::sigmas) has them.
    #[must_use]
    pub fn with_sigmas(self, sigmas: &[f64]) -> Self {
        // Where the last step ends is said apart.
        let sigmas = sigmas.iter().copied().filter(|sigma| *sigma > 0.0).collect();
        Self { spacing: SpacingKind::Given, sigmas, ..self }
    }

    /// Refuses numbers that no drawing can be made of.
    pub(super) fn check(&self) -> Result<(), String> {
        let timesteps = self.num_train_timesteps;
        let betas = self.trained_betas.as_ref().map_or(timesteps, Vec::len);
        if timesteps < 2 || betas != timesteps {
            return Err(format!("num_train_timesteps is {timesteps} with {betas} betas; two or more are needed"));
        }
        let in_range = |beta: &f64| *beta > 0.0 && *beta < 1.0;
        let ends = [self.beta_start, self.beta_end];
        if !self.trained_betas.as_deref().unwrap_or(&ends).iter().all(in_range) {
            let key = if self.trained_betas.is_some() { "trained_betas" } else { "beta_start or beta_end" };
            return Err(format!("{key} has a beta that is not between 0 and 1"));
        }
        if let (Some(least), Some(most)) = (self.sigma_min, self.sigma_max)
            && least >= most
        {
            return Err(format!("sigma_min is {least}, sigma_max {most}; the first has to be below the second"));
        }
        self.check_bound()?;
        self.check_solver()?;
        if self.last_timestep() == 0 {
            let least = self.lambda_min;
            return Err(format!("lambda_min_clipped is {least}, which leaves no timestep of this noise schedule"));
        }
        if self.sampler.is_for_distilled() && !(1..=timesteps).contains(&self.original_steps) {
            let steps = self.original_steps;
            return Err(format!("original_inference_steps is {steps}; 1 to {timesteps} are supported"));
        }
        if let Some(Edm { sigma_data, rho }) = self.edm {
            for (key, value) in [("sigma_data", sigma_data), ("rho", rho.unwrap_or(1.0))] {
                if !(value > 0.0 && value.is_finite()) {
                    return Err(format!("{key} is {value}; a number above 0 is needed"));
                }
            }
        }
        Ok(())
    }

    fn check_bound(&self) -> Result<(), String> {
        match self.bound {
            Bound::None => Ok(()),
            Bound::Range(range) if range > 0.0 && range.is_finite() => Ok(()),
            Bound::Range(range) => Err(format!("clip_sample_range is {range}; a number above 0 is needed")),
            Bound::Dynamic { ratio, .. } if !(0.0..=1.0).contains(&ratio) => {
                Err(format!("dynamic_thresholding_ratio is {ratio}; 0 to 1 is supported"))
            }
            Bound::Dynamic { most, .. } if !(most > 0.0 && most.is_finite()) => {
                Err(format!("sample_max_value is {most}; a number above 0 is needed"))
            }
            Bound::Dynamic { .. } => Ok(()),
        }
    }

    /// Takes from the options of the sampler's own class what is not a matter of levels.
    pub(super) fn take_rule_of(&mut self, own: Self) {
        self.bound = own.bound;
        self.variance = own.variance;
        self.original_steps = own.original_steps;
        self.timestep_scaling = own.timestep_scaling;
        self.eta = own.eta;
    }

    /// Refuses what diffusers refuses, or has no formula for.
    fn check_solver(&self) -> Result<(), String> {
        let Solver { algorithm, order, .. } = self.solver;
        let name = algorithm.name();
        if !algorithm.is_of_x0() && self.final_sigmas == FinalSigmas::Zero {
            return Err(format!("algorithm_type is {name:?} with final_sigmas_type \"zero\"; it needs \"sigma_min\""));
        }
        let single = self.sampler == SamplerKind::DpmSingle;
        if single && algorithm == Algorithm::SdeDpmSolver {
            return Err(format!("algorithm_type is {name:?}, which DPMSolverSinglestepScheduler does not take"));
        }
        if single && algorithm == Algorithm::DpmSolver && matches!(self.bound, Bound::Dynamic { .. }) {
            return Err(format!("thresholding is true with algorithm_type {name:?}; only false is supported"));
        }
        let has_third_order =
            !(algorithm == Algorithm::SdeDpmSolver || self.edm.is_some() && algorithm.is_stochastic());
        if order == 3 && !has_third_order {
            return Err(format!("solver_order is 3 with algorithm_type {name:?}; 1 and 2 are supported"));
        }
        Ok(())
    }

    /// The options with how much noise a request asks of each step.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) for samplers that have no such choice.
    pub fn with_eta(mut self, eta: Option<f64>) -> Result<Self> {
        let Some(eta) = eta else { return Ok(self) };
        self.sampler.check_eta(eta)?;
        self.eta = eta;
        Ok(self)
    }
}
