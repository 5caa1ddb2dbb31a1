//! A scheduler's options: its file as the class that draws reads it.
//!
//! Owns [`SchedulerOptions`], with every default filled in for one sampler and spacing. diffusers' rule fills them: what
//! the file says is kept, what it does not say is the drawing class's default. Next: `schedule` and `samplers` draw by the
//! options.

use super::{
    AlignedLevels, PredictionType, SamplerKind, SchedulerConfig, SpacingKind,
    scheduler_config::SPACING_KEYS,
    scheduler_keys::{KEYS, Key, Setting, Treatment},
};

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
    /// The range that x₀ is kept in.
    pub(super) clip: Option<f64>,
    /// Whether DPM-Solver's last step of a short schedule is of first order.
    pub(super) lower_order_final: bool,
    /// Whether DPM-Solver's last step is of first order in any case.
    pub(super) euler_at_final: bool,
    /// UniPC's B(h).
    pub(super) bh: Bh,
    /// The levels of [`SpacingKind::Ays`].
    pub(super) aligned: Option<AlignedLevels>,
    /// The levels of [`SpacingKind::Given`]: σ at which each step begins, falling.
    pub(super) sigmas: Vec<f64>,
}

/// The function B(h) of UniPC (Zhao et al. 2023, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bh {
    /// The step's length in λ.
    One,
    /// Its exponential less one.
    Two,
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
        if let Some(range) = self.clip.filter(|range| !(*range > 0.0 && range.is_finite())) {
            return Err(format!("clip_sample_range is {range}; a number above 0 is needed"));
        }
        if self.last_timestep() == 0 {
            let least = self.lambda_min;
            return Err(format!("lambda_min_clipped is {least}, which leaves no timestep of this noise schedule"));
        }
        Ok(())
    }
}

/// A file, read as one class reads it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub config: &'a SchedulerConfig,
    pub class: SamplerKind,
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
        let (clips, clip_range) = (self.flag("clip_sample")?, self.number("clip_sample_range")?);
        // Read by `own_spacing`, and overruled by a request that names a spacing.
        let chosen = SPACING_KEYS.map(|(key, _)| self.flag(key).map(|chosen| chosen.then_some(key)));
        let chosen: Vec<&str> = chosen.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if chosen.len() > 1 {
            return Err(format!("{} are both true; one spacing of σ can be chosen", chosen.join(" and ")));
        }
        let options = SchedulerOptions {
            sampler: self.class,
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
            clip: clips.then_some(clip_range),
            lower_order_final: self.flag("lower_order_final")?,
            euler_at_final: self.flag("euler_at_final")?,
            // diffusers takes the names of its other solvers for bh2 here.
            bh: if self.setting("solver_type") == Setting::Text("bh1".to_owned()) { Bh::One } else { Bh::Two },
            aligned: self.config.aligned,
            sigmas: Vec::new(),
        };
        options.check()?;
        Ok(options)
    }

    /// What the file says, or what this class takes where it does not.
    fn setting(self, name: &str) -> Setting {
        let key = Key::named(name);
        let chosen = self.config.own_sampler() != Ok(self.class);
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

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and small")]
    fn whole(self, name: &str) -> Result<usize, String> {
        let number = self.number(name)?;
        if number.fract() != 0.0 || !(0.0..=MAX_TIMESTEPS as f64).contains(&number) {
            return Err(format!("{name} is {number}; a whole number from 0 to {MAX_TIMESTEPS} is needed"));
        }
        Ok(number as usize)
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

    fn prediction_type(self) -> Result<PredictionType, String> {
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
