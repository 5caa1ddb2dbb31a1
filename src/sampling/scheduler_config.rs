//! What a checkpoint's `scheduler_config.json` says, and what it means to the class that draws.
//!
//! Owns [`SchedulerConfig`], the file as it is, and [`SchedulerOptions`], the same with every default filled in for one
//! sampler. diffusers' rule joins them: what the file says is kept, what it does not say is the drawing class's default.
//! Next: `schedule` and `sampler` draw by the options.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    PredictionType, SamplerKind, SpacingKind,
    scheduler_keys::{KEYS, Key, Setting, Treatment},
};
use crate::{Error, Result};

/// The most timesteps of training. Stable Diffusion has 1000.
const MAX_TIMESTEPS: usize = 100_000;

/// A scheduler's configuration as its file has it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "BTreeMap<String, Setting>")]
pub struct SchedulerConfig {
    /// The class that `model_index.json` names.
    class: Option<SamplerKind>,
    settings: BTreeMap<String, Setting>,
}

impl From<BTreeMap<String, Setting>> for SchedulerConfig {
    /// Keys that are `null` or not a number, and those that `_use_default_values` lists, count as absent.
    fn from(mut settings: BTreeMap<String, Setting>) -> Self {
        if let Some(Setting::Texts(unset)) = settings.remove("_use_default_values") {
            settings.retain(|key, _| !unset.contains(key));
        }
        let unset = |setting: &Setting| match setting {
            Setting::Null => true,
            Setting::Number(number) => number.is_nan(),
            _ => false,
        };
        settings.retain(|_, setting| !unset(setting));
        Self { class: None, settings }
    }
}

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

/// The classes of diffusers' schedulers, and the samplers they are.
const CLASSES: [(&str, SamplerKind); 6] = [
    ("PNDMScheduler", SamplerKind::Pndm),
    ("DDIMScheduler", SamplerKind::Ddim),
    ("EulerDiscreteScheduler", SamplerKind::Euler),
    ("EulerAncestralDiscreteScheduler", SamplerKind::EulerAncestral),
    ("HeunDiscreteScheduler", SamplerKind::Heun),
    ("DPMSolverMultistepScheduler", SamplerKind::Dpmpp2m),
];

impl SamplerKind {
    /// The sampler that a scheduler class of diffusers stands for.
    ///
    /// # Errors
    ///
    /// The classes that are supported.
    pub fn of_class(class: &str) -> Result<Self, String> {
        CLASSES.iter().find(|(name, _)| *name == class).map(|(_, kind)| *kind).ok_or_else(|| {
            let supported = CLASSES.map(|(name, _)| name).join(", ");
            format!("supported are {supported}")
        })
    }

    /// The scheduler class of diffusers that this sampler is.
    #[must_use]
    pub fn class(self) -> &'static str {
        CLASSES.iter().find(|(_, kind)| *kind == self).expect("every sampler has a class").0
    }
}

impl SchedulerConfig {
    /// Makes `class`, which `model_index.json` names, the one that draws, whatever the file's `_class_name` is.
    pub fn set_class(&mut self, class: SamplerKind) {
        self.class = Some(class);
    }

    /// Sets a key, whatever the file says.
    pub fn set(&mut self, key: &'static str, setting: Setting) {
        self.settings.insert(key.to_owned(), setting);
    }

    /// Checks that this configuration asks its own class for nothing that is not there.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
        let sampler = self.own_sampler()?;
        self.resolve(sampler, self.own_spacing()).map(|_| ()).map_err(|(_, message)| message)
    }

    /// The sampler of the checkpoint's own class: that of `model_index.json`, else the file's `_class_name`.
    ///
    /// # Errors
    ///
    /// The class and those that are supported.
    pub fn own_sampler(&self) -> Result<SamplerKind, String> {
        match (self.class, self.settings.get("_class_name")) {
            (Some(class), _) => Ok(class),
            (None, Some(Setting::Text(class))) => {
                SamplerKind::of_class(class).map_err(|supported| format!("_class_name is {class:?}; {supported}"))
            }
            (None, Some(other)) => Err(format!("_class_name is {other}; a class is needed")),
            (None, None) => Err("_class_name is missing; the class of the scheduler is needed".to_owned()),
        }
    }

    /// The spacing that a request gets when it names none. A class that does not take `use_karras_sigmas` ignores it.
    #[must_use]
    pub fn own_spacing(&self) -> SpacingKind {
        let takes = |class| Key::named("use_karras_sigmas").is_read_by(class);
        match self.settings.get("use_karras_sigmas") {
            Some(Setting::Flag(true)) if self.own_sampler().is_ok_and(takes) => SpacingKind::Karras,
            _ => SpacingKind::Checkpoint,
        }
    }

    /// The options of a drawing with this sampler and spacing.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedParameter`] where the file asks the sampler's class for what is not there, naming the key.
    pub fn options(&self, sampler: SamplerKind, spacing: SpacingKind) -> Result<SchedulerOptions> {
        self.resolve(sampler, spacing).map_err(|(class, message)| {
            let given = if class == sampler { sampler.name() } else { spacing.name() };
            let field = if class == sampler { "sampler" } else { "scheduler" };
            let class = class.class();
            Error::unsupported(field, format!("is {given}, which draws as {class} does; this model's {message}"))
        })
    }

    /// As [`options`](Self::options); an error has the class that does not take the key's value.
    fn resolve(&self, sampler: SamplerKind, spacing: SpacingKind) -> Result<SchedulerOptions, (SamplerKind, String)> {
        let own = Reader { config: self, class: sampler };
        own.check().map_err(|message| (sampler, message))?;
        // Where diffusers' class cannot space σ itself, the levels of Karras' spacing are those of its Euler.
        let spaces = Key::named("use_karras_sigmas").is_read_by(sampler);
        let class = if spacing == SpacingKind::Karras && !spaces { SamplerKind::Euler } else { sampler };
        let levels = Reader { config: self, class };
        levels.check().map_err(|message| (class, message))?;
        let mut options = levels.options(spacing).map_err(|message| (class, message))?;
        options.sampler = sampler;
        Ok(options)
    }
}

/// A file, read as one class reads it.
#[derive(Clone, Copy)]
struct Reader<'a> {
    config: &'a SchedulerConfig,
    class: SamplerKind,
}

impl Reader<'_> {
    /// Refuses what no drawing of this class honours.
    fn check(self) -> Result<(), String> {
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

    fn options(self, spacing: SpacingKind) -> Result<SchedulerOptions, String> {
        let prediction_type = self.prediction_type()?;
        let clips = self.flag("clip_sample")?;
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
            clip: clips.then(|| self.number("clip_sample_range")).transpose()?,
            lower_order_final: self.flag("lower_order_final")?,
            euler_at_final: self.flag("euler_at_final")?,
        };
        options.check()?;
        Ok(options)
    }

    /// What the file says, or what this class takes where it does not.
    fn setting(self, name: &str) -> Setting {
        let key = Key::named(name);
        let said = self.config.settings.get(name).filter(|_| key.is_read_by(self.class));
        let chosen = self.config.own_sampler() != Ok(self.class);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> SchedulerConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            (r#"{"_class_name": "LCMScheduler"}"#, "_class_name is \"LCMScheduler\"; supported are PNDMScheduler"),
            ("{}", "_class_name is missing"),
            (r#"{"_class_name": "PNDMScheduler"}"#, "skip_prk_steps is false; only true"),
            (r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, "thresholding is true; only false"),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "algorithm_type is \"sde-dpmsolver++\"",
            ),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "solver_order is 3; only 2"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}"#, "variance_type is"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}"#, "use_flow_sigmas is true"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": 9}"#, "lambda_min_clipped is 9"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": true}"#, "use_beta_sigmas is true"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": true}"#, "use_exponential_sigmas"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "sigma_min": 0}"#, "sigma_min is 0; a number above 0"),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "sigma_min": 3, "sigma_max": 2}"#,
                "sigma_min is 3, sigma_max 2",
            ),
            (r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "half"}"#, "timestep_type is \"half\""),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": 0}"#,
                "final_sigmas_type is 0; supported are zero, sigma_min",
            ),
            (r#"{"_class_name": "HeunDiscreteScheduler", "clip_sample": "yes"}"#, "clip_sample is \"yes\"; true or"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "exp"}"#, "beta_schedule is \"exp\""),
            (r#"{"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}"#, "prediction_type is"),
            (r#"{"_class_name": "DDIMScheduler", "steps_offset": 0.5}"#, "steps_offset is 0.5; a whole number"),
            (r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1}"#, "num_train_timesteps is 1"),
            (r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1e9}"#, "num_train_timesteps is 1000000000"),
            (r#"{"_class_name": "DDIMScheduler", "beta_end": 2}"#, "beta_start or beta_end has a beta that is not"),
            (r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1]}"#, "num_train_timesteps is 1000 with 1 betas"),
            (
                r#"{"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}"#,
                "beta_schedule is \"sigmoid\"; supported are linear",
            ),
        ];
        for (json, said) in cases {
            let message = read(json).check().unwrap_err();
            assert!(message.starts_with(said), "{message}");
        }
        read(r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true}"#).check().unwrap();
    }

    #[test]
    fn a_key_of_another_class_counts_once_a_request_chooses_that_class() {
        let file = r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "thresholding": true,
            "use_karras_sigmas": true, "interpolation_type": "log_linear"}"#;
        let config = read(file);
        config.check().unwrap();
        assert_eq!(config.own_spacing(), SpacingKind::Checkpoint, "PNDM does not take use_karras_sigmas");
        let refused = config.options(SamplerKind::Dpmpp2m, SpacingKind::Checkpoint).unwrap_err();
        assert!(matches!(refused, Error::UnsupportedParameter { field: "sampler", .. }));
        let said = "sampler: is dpmpp_2m, which draws as DPMSolverMultistepScheduler does; this model's thresholding is \
                    true; only false is supported";
        assert_eq!(refused.to_string(), said);
        let euler = config.options(SamplerKind::Euler, SpacingKind::Checkpoint).unwrap();
        assert_eq!(euler.interpolation, Interpolation::LogLinear);
        let pndm = config.options(SamplerKind::Pndm, SpacingKind::Checkpoint).unwrap();
        assert_eq!(pndm.interpolation, Interpolation::Linear);
    }

    #[test]
    fn karras_spacing_of_a_class_that_has_none_reads_what_euler_reads() {
        let config = read(r#"{"_class_name": "DDIMScheduler", "sigma_max": 9, "use_beta_sigmas": true}"#);
        config.check().unwrap();
        let refused = config.options(SamplerKind::Ddim, SpacingKind::Karras).unwrap_err().to_string();
        assert!(refused.starts_with("scheduler: is karras, which draws as EulerDiscreteScheduler does"), "{refused}");
        let config = read(r#"{"_class_name": "DDIMScheduler", "sigma_max": 9}"#);
        assert_eq!(config.options(SamplerKind::Ddim, SpacingKind::Karras).unwrap().sigma_max, Some(9.0));
        assert_eq!(config.options(SamplerKind::Ddim, SpacingKind::Checkpoint).unwrap().sigma_max, None);
    }

    #[test]
    fn the_index_s_class_draws_and_its_defaults_fill_in() {
        let mut config = read(r#"{"_class_name": "PNDMScheduler", "steps_offset": 1}"#);
        config.set_class(SamplerKind::Heun);
        config.check().unwrap();
        assert_eq!(config.own_sampler(), Ok(SamplerKind::Heun));
        let options = config.options(SamplerKind::Heun, SpacingKind::Checkpoint).unwrap();
        assert_eq!((options.beta_start, options.beta_end), (0.00085, 0.012));
        assert_eq!((options.timestep_spacing, options.steps_offset), (TimestepSpacing::Linspace, 1));
    }

    #[test]
    fn null_not_a_number_and_values_noted_as_defaults_are_absent() {
        let config = read(
            r#"{"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true, "timestep_spacing": "trailing",
                "steps_offset": null, "_use_default_values": ["use_karras_sigmas", "timestep_spacing"]}"#,
        );
        assert_eq!(config.own_spacing(), SpacingKind::Checkpoint);
        let options = config.options(SamplerKind::Euler, SpacingKind::Checkpoint).unwrap();
        assert_eq!((options.timestep_spacing, options.steps_offset), (TimestepSpacing::Linspace, 0));
        let json = br#"{"sigma_min": NaN, "sigma_max": null, "lambda_min_clipped": -Infinity}"#;
        let config: SchedulerConfig = crate::json::from_slice(json).unwrap();
        let options = config.options(SamplerKind::Dpmpp2m, SpacingKind::Karras).unwrap();
        assert_eq!((options.sigma_min, options.lambda_min), (None, f64::NEG_INFINITY));
        let json = br#"{"_class_name": "EulerDiscreteScheduler", "sigma_max": Infinity}"#;
        let config: SchedulerConfig = crate::json::from_slice(json).unwrap();
        assert_eq!(config.check(), Err("sigma_max is inf; a number above 0 is needed".to_owned()));
    }

    #[test]
    fn clipping_by_default_is_for_a_checkpoint_of_ddim_alone() {
        let clip = |json: &str, sampler| read(json).options(sampler, SpacingKind::Checkpoint).unwrap().clip;
        assert_eq!(clip(r#"{"_class_name": "DDIMScheduler"}"#, SamplerKind::Ddim), Some(1.0));
        assert_eq!(clip(r#"{"_class_name": "EulerDiscreteScheduler"}"#, SamplerKind::Ddim), None);
        let said = r#"{"_class_name": "EulerDiscreteScheduler", "clip_sample": true, "clip_sample_range": 3}"#;
        let clips = SamplerKind::ALL.map(|sampler| clip(said, sampler));
        assert_eq!(clips, [Some(3.0), None, None, None, Some(3.0), None]);
    }
}
