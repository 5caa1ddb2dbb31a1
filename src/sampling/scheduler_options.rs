//! A scheduler's options: its file as the class that draws reads it.
//!
//! Owns [`SchedulerOptions`], with every default filled in for one sampler and spacing. diffusers' rule fills them: what
//! the file says is kept, what it does not say is the drawing class's default. Next: `schedule` and `samplers` draw by the
//! options.

use super::{
    Algorithm, Bh, Bound, Edm, PredictionType, SamplerKind, SchedulerConfig, Solver, SolverType, SpacingKind,
    UniPcOptions, Variance,
    scheduler_config::SPACING_KEYS,
    scheduler_keys::{KEYS, Key, Setting, Treatment},
};
use crate::Result;

/// TCD's γ where a request does not say (Zheng et al. 2024, section 4).
const DEFAULT_GAMMA: f64 = 0.3;

/// The most timesteps of training. Stable Diffusion has 1000.
const MAX_TIMESTEPS: usize = 100_000;

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
    /// Refuses numbers that no drawing can be made of.
    fn check(&self) -> Result<(), String> {
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

/// A file, read as one class reads it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub config: &'a SchedulerConfig,
    pub class: SamplerKind,
    /// The sampler that the class reads the file for.
    pub sampler: SamplerKind,
}

impl Reader<'_> {
    /// Refuses what no drawing of this class honours.
    pub(super) fn check(self) -> Result<(), String> {
        for key in KEYS.iter().filter(|key| key.is_read_by(self.class)) {
            let setting = self.setting(key.name);
            if let Treatment::Only(allowed) = key.treatment
                && !allowed.iter().any(|value| Setting::from(*value) == setting)
            {
                let allowed: Vec<String> = allowed.iter().map(|value| Setting::from(*value).to_string()).collect();
                return Err(format!("{} is {setting}; only {} is supported", key.name, allowed.join(" or ")));
            }
        }
        Ok(())
    }

    /// Everything that a drawing needs, with this class's defaults for what the file does not say.
    pub(super) fn options(self, spacing: SpacingKind) -> Result<SchedulerOptions, String> {
        let prediction_type = self.prediction_type()?;
        let edm = self.edm(spacing)?;
        // Read by `own_spacing`, and overruled by a request that names a spacing.
        let chosen = SPACING_KEYS.map(|(key, _)| self.flag(key).map(|chosen| chosen.then_some(key)));
        let chosen: Vec<&str> = chosen.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if chosen.len() > 1 {
            return Err(format!("{} are both true; one spacing of σ can be chosen", chosen.join(" and ")));
        }
        let options = SchedulerOptions {
            sampler: self.sampler,
            spacing,
            prediction_type,
            num_train_timesteps: self.whole("num_train_timesteps")?,
            beta_start: self.number("beta_start")?,
            beta_end: self.number("beta_end")?,
            beta_schedule: self.beta_schedule()?,
            trained_betas: self.trained_betas()?,
            rescale_betas_zero_snr: self.flag("rescale_betas_zero_snr")?,
            timestep_spacing: self.one_of(
                "timestep_spacing",
                &[
                    ("linspace", TimestepSpacing::Linspace),
                    ("leading", TimestepSpacing::Leading),
                    ("trailing", TimestepSpacing::Trailing),
                ],
            )?,
            steps_offset: self.whole("steps_offset")?,
            set_alpha_to_one: self.flag("set_alpha_to_one")?,
            final_sigmas: self
                .one_of("final_sigmas_type", &[("zero", FinalSigmas::Zero), ("sigma_min", FinalSigmas::SigmaMin)])?,
            // diffusers tells networks of other prediction types the timestep all the same.
            continuous_timesteps: self.one_of("timestep_type", &[("discrete", false), ("continuous", true)])?
                && prediction_type == PredictionType::VPrediction,
            interpolation: self.one_of(
                "interpolation_type",
                &[("linear", Interpolation::Linear), ("log_linear", Interpolation::LogLinear)],
            )?,
            lambda_min: self.number("lambda_min_clipped")?,
            sigma_min: self.sigma("sigma_min")?,
            sigma_max: self.sigma("sigma_max")?,
            bound: self.bound(edm)?,
            solver: self.solver()?,
            uni_pc: self.uni_pc()?,
            variance: self.variance()?,
            runge_kutta_start: self.class == SamplerKind::Pndm && !self.flag("skip_prk_steps")?,
            original_steps: self.whole("original_inference_steps")?,
            timestep_scaling: self.number("timestep_scaling")?,
            eta: if self.class == SamplerKind::Tcd { DEFAULT_GAMMA } else { 0.0 },
            edm,
        };
        options.check()?;
        Ok(options)
    }

    /// What the file says, or what this class takes where it does not.
    fn setting(self, name: &str) -> Setting {
        let key = Key::named(name);
        let chosen = self.config.own_class() != Ok(self.class);
        let is_read = if chosen { key.is_read_by_chosen(self.class) } else { key.is_read_by(self.class) };
        let said = self.config.settings.get(name).filter(|_| is_read);
        let default = key.when_chosen.filter(|_| chosen).unwrap_or_else(|| key.default_of(self.class));
        said.cloned().unwrap_or_else(|| default.into())
    }

    fn flag(self, name: &str) -> Result<bool, String> {
        match self.setting(name) {
            Setting::Flag(flag) => Ok(flag),
            other => Err(format!("{name} is {other}; true or false is needed")),
        }
    }

    fn number(self, name: &str) -> Result<f64, String> {
        match self.setting(name) {
            Setting::Number(number) => Ok(number),
            other => Err(format!("{name} is {other}; a number is needed")),
        }
    }

    fn whole(self, name: &str) -> Result<usize, String> {
        let number = self.number(name)?;
        whole(number).ok_or_else(|| format!("{name} is {number}; a whole number from 0 to {MAX_TIMESTEPS} is needed"))
    }

    fn sigma(self, name: &str) -> Result<Option<f64>, String> {
        match self.setting(name) {
            Setting::Null => Ok(None),
            Setting::Number(sigma) if sigma > 0.0 && sigma.is_finite() => Ok(Some(sigma)),
            other => Err(format!("{name} is {other}; a number above 0 is needed")),
        }
    }

    fn one_of<T: Copy>(self, name: &str, choices: &[(&str, T)]) -> Result<T, String> {
        let setting = self.setting(name);
        let chosen = choices.iter().find(|(choice, _)| matches!(&setting, Setting::Text(text) if text == choice));
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let allowed: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            format!("{name} is {setting}; supported are {}", allowed.join(", "))
        })
    }

    fn bound(self, edm: Option<Edm>) -> Result<Bound, String> {
        let (clips, range) = (self.flag("clip_sample")?, self.number("clip_sample_range")?);
        let (ratio, most) = (self.number("dynamic_thresholding_ratio")?, self.number("sample_max_value")?);
        Ok(if self.flag("thresholding")? {
            Bound::Dynamic { ratio, most, scale: edm.map_or(1.0, |edm| edm.sigma_data) }
        } else if clips {
            Bound::Range(range)
        } else {
            Bound::None
        })
    }

    /// The solver's options. diffusers' classes take the names of each other's for their own, but not all of them.
    fn solver(self) -> Result<Solver, String> {
        use Algorithm::{DpmSolver, DpmSolverPp, SdeDpmSolver, SdeDpmSolverPp};
        let algorithms = [
            (DpmSolverPp.name(), DpmSolverPp),
            (SdeDpmSolverPp.name(), SdeDpmSolverPp),
            ("deis", DpmSolverPp),
            (DpmSolver.name(), DpmSolver),
            (SdeDpmSolver.name(), SdeDpmSolver),
        ];
        let algorithm = match self.class {
            SamplerKind::EdmDpmpp2m => self.one_of("algorithm_type", &algorithms[..3])?,
            // It has one algorithm.
            SamplerKind::Deis => {
                let names = ["deis", "dpmsolver", "dpmsolver++"].map(|name| (name, DpmSolverPp));
                self.one_of("algorithm_type", &names)?
            }
            _ => self.one_of("algorithm_type", &algorithms)?,
        };
        let kinds = [
            ("midpoint", SolverType::Midpoint),
            ("heun", SolverType::Heun),
            ("logrho", SolverType::Midpoint),
            ("bh1", SolverType::Midpoint),
            ("bh2", SolverType::Midpoint),
        ];
        // A request's name decides whether noise is added; else the file does.
        let algorithm = match self.sampler {
            SamplerKind::Dpmpp2m if algorithm.is_stochastic() => DpmSolverPp,
            SamplerKind::Dpmpp2mSde if !algorithm.is_stochastic() => SdeDpmSolverPp,
            SamplerKind::Dpmpp3mSde => SdeDpmSolverPp,
            _ => algorithm,
        };
        let order = self.whole("solver_order")?;
        let is_own = self.config.own_sampler() == Ok(self.sampler);
        let order = if self.sampler == SamplerKind::Dpmpp2mSde && !is_own { order.min(2) } else { order };
        Ok(Solver {
            algorithm,
            order,
            kind: self.one_of("solver_type", &kinds)?,
            lower_order_final: self.flag("lower_order_final")?,
            euler_at_final: self.flag("euler_at_final")?,
        })
    }

    fn uni_pc(self) -> Result<UniPcOptions, String> {
        let uncorrected = match self.setting("disable_corrector") {
            Setting::Numbers(steps) => steps.into_iter().map(whole).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let uncorrected = uncorrected.ok_or_else(|| {
            format!("disable_corrector is {}; a list of whole numbers is needed", self.setting("disable_corrector"))
        })?;
        Ok(UniPcOptions {
            // diffusers takes the names of its other solvers for bh2 here.
            bh: if self.setting("solver_type") == Setting::Text("bh1".to_owned()) { Bh::One } else { Bh::Two },
            predicts_x0: self.flag("predict_x0")?,
            uncorrected,
        })
    }

    fn variance(self) -> Result<Variance, String> {
        Ok(match self.setting("variance_type") {
            Setting::Text(name) if name == "fixed_large" && self.class == SamplerKind::Ddpm => Variance::Large,
            // The logarithm is how diffusers computes it.
            _ => Variance::Small,
        })
    }

    /// How the network was preconditioned, and how σ are spaced for it.
    fn edm(self, spacing: SpacingKind) -> Result<Option<Edm>, String> {
        let schedule = self.one_of("sigma_schedule", &[("karras", true), ("exponential", false)])?;
        let (sigma_data, rho) = (self.number("sigma_data")?, self.number("rho")?);
        let is_karras = match spacing {
            SpacingKind::Karras => true,
            SpacingKind::Exponential => false,
            _ => schedule,
        };
        Ok(self.class.is_edm().then_some(Edm { sigma_data, rho: is_karras.then_some(rho) }))
    }

    fn prediction_type(self) -> Result<PredictionType, String> {
        if self.class.is_edm() {
            // What EDM's network gives is −v in units of the data's deviation; diffusers calls that epsilon.
            let choices = [("epsilon", PredictionType::NegativeV), ("v_prediction", PredictionType::VPrediction)];
            return self.one_of("prediction_type", &choices);
        }
        // The last is an old name, which diffusers' Euler alone still knows.
        let choices = [
            ("epsilon", PredictionType::Epsilon),
            ("v_prediction", PredictionType::VPrediction),
            ("sample", PredictionType::Sample),
            ("original_sample", PredictionType::Sample),
        ];
        self.one_of("prediction_type", if self.class == SamplerKind::Euler { &choices } else { &choices[..3] })
    }

    fn beta_schedule(self) -> Result<BetaSchedule, String> {
        let choices = [
            ("linear", BetaSchedule::Linear),
            ("scaled_linear", BetaSchedule::ScaledLinear),
            ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
            ("exp", BetaSchedule::Exponential),
        ];
        self.one_of("beta_schedule", if self.class == SamplerKind::Heun { &choices } else { &choices[..3] })
    }

    fn trained_betas(self) -> Result<Option<Vec<f64>>, String> {
        match self.setting("trained_betas") {
            Setting::Null => Ok(None),
            Setting::Numbers(betas) => Ok(Some(betas)),
            other => Err(format!("trained_betas is {other}; a list of numbers is needed")),
        }
    }
}

/// A number that counts timesteps or steps.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and small"
)]
fn whole(number: f64) -> Option<usize> {
    (number.fract() == 0.0 && (0.0..=MAX_TIMESTEPS as f64).contains(&number)).then_some(number as usize)
}
