//! A scheduler's file as the class that draws reads it.
//!
//! Owns [`Reader`], which fills in every default for one class and refuses what no drawing honours. The file is a little long:
//! each choice that a key has is spelled out where it is read. Next: [`SchedulerOptions`].

use super::{
    Algorithm, BetaSchedule, Bh, Bound, Edm, FinalSigmas, Interpolation, PredictionType, SamplerKind, SchedulerConfig,
    SchedulerOptions, Solver, SolverType, SpacingKind, TimestepSpacing, UniPcOptions, Variance,
    scheduler_config::SPACING_KEYS,
    scheduler_keys::{KEYS, Key, Setting, Treatment},
};

/// TCD's γ where a request does not say (Zheng et al. 2024, section 4).
const DEFAULT_GAMMA: f64 = 0.3;
/// The most timesteps of training. Stable Diffusion has 1000.
const MAX_TIMESTEPS: usize = 100_000;

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
            aligned: self.config.aligned,
            sigmas: Vec::new(),
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
