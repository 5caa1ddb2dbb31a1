//! What a checkpoint's `scheduler_config.json` says, and which class draws by it.
//!
//! Owns [`SchedulerConfig`], the file as it is. The checkpoint's own class is checked when it loads, another class that a
//! request chooses by its sampler when the request comes. The file is long with its tests, which are half of it. Next: `scheduler_options` reads the file as that class does.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Algorithm, AlignedLevels, SamplerKind, SpacingKind,
    scheduler_keys::{Key, Setting},
    scheduler_options::SchedulerOptions,
    scheduler_reader::Reader,
};
use crate::{Error, Result};

/// A scheduler's configuration as its file has it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "BTreeMap<String, Setting>")]
pub struct SchedulerConfig {
    /// The class that `model_index.json` names.
    class: Option<SamplerKind>,
    pub(super) settings: BTreeMap<String, Setting>,
    pub(super) aligned: Option<AlignedLevels>,
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
        Self { class: None, settings, aligned: None }
    }
}

/// The keys that choose a spacing of σ.
pub(super) const SPACING_KEYS: [(&str, SpacingKind); 4] = [
    ("use_karras_sigmas", SpacingKind::Karras),
    ("use_exponential_sigmas", SpacingKind::Exponential),
    ("use_beta_sigmas", SpacingKind::Beta),
    ("use_lu_lambdas", SpacingKind::Lu),
];

/// The classes of diffusers' schedulers, and the samplers they are.
const CLASSES: [(&str, SamplerKind); 18] = [
    ("PNDMScheduler", SamplerKind::Pndm),
    ("DDIMScheduler", SamplerKind::Ddim),
    ("EulerDiscreteScheduler", SamplerKind::Euler),
    ("EulerAncestralDiscreteScheduler", SamplerKind::EulerAncestral),
    ("HeunDiscreteScheduler", SamplerKind::Heun),
    ("DPMSolverMultistepScheduler", SamplerKind::Dpmpp2m),
    ("KDPM2DiscreteScheduler", SamplerKind::Dpm2),
    ("KDPM2AncestralDiscreteScheduler", SamplerKind::Dpm2Ancestral),
    ("LMSDiscreteScheduler", SamplerKind::Lms),
    ("UniPCMultistepScheduler", SamplerKind::UniPc),
    ("DEISMultistepScheduler", SamplerKind::Deis),
    ("DDPMScheduler", SamplerKind::Ddpm),
    ("DPMSolverSDEScheduler", SamplerKind::DpmppSde),
    ("DPMSolverSinglestepScheduler", SamplerKind::DpmSingle),
    ("LCMScheduler", SamplerKind::Lcm),
    ("TCDScheduler", SamplerKind::Tcd),
    ("EDMEulerScheduler", SamplerKind::EdmEuler),
    ("EDMDPMSolverMultistepScheduler", SamplerKind::EdmDpmpp2m),
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

    /// The scheduler class of diffusers that this sampler is, or that reads the checkpoint's file for it.
    #[must_use]
    pub fn class(self) -> &'static str {
        CLASSES.iter().find(|(_, kind)| *kind == self.reader()).expect("every reader has a class").0
    }

    /// The sampler whose class reads the checkpoint's file for this one, where diffusers has no class of its own for it.
    pub(super) const fn reader(self) -> Self {
        match self {
            // Any levels will do; Euler's class has the most ways to choose them.
            Self::Dpmpp2sAncestral => Self::Euler,
            Self::Dpmpp2mSde | Self::Dpmpp3mSde => Self::Dpmpp2m,
            other => other,
        }
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

    /// Gives [`SpacingKind::Ays`] its levels, which a checkpoint's family decides.
    pub fn align(&mut self, levels: AlignedLevels) {
        self.aligned = Some(levels);
    }

    /// The spacings that a request can name.
    #[must_use]
    pub fn spacings(&self) -> Vec<SpacingKind> {
        let is_edm = self.own_class().is_ok_and(SamplerKind::is_edm);
        let is_taken = |spacing: &SpacingKind| {
            if is_edm { EDM_SPACINGS.contains(spacing) } else { *spacing != SpacingKind::Ays || self.aligned.is_some() }
        };
        SpacingKind::ALL.into_iter().filter(is_taken).collect()
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

    /// The sampler of the checkpoint's own class.
    ///
    /// # Errors
    ///
    /// The class and those that are supported.
    pub fn own_sampler(&self) -> Result<SamplerKind, String> {
        Ok(match self.own_class()? {
            SamplerKind::Dpmpp2m if self.solves_the_sde() => SamplerKind::Dpmpp2mSde,
            own => own,
        })
    }

    /// Whether `algorithm_type` is one that adds noise.
    fn solves_the_sde(&self) -> bool {
        let sdes = [Algorithm::SdeDpmSolver, Algorithm::SdeDpmSolverPp].map(Algorithm::name);
        matches!(self.settings.get("algorithm_type"), Some(Setting::Text(name)) if sdes.contains(&name.as_str()))
    }

    /// The sampler that the checkpoint's own class stands for: that of `model_index.json`, else the file's `_class_name`.
    pub(super) fn own_class(&self) -> Result<SamplerKind, String> {
        match (self.class, self.settings.get("_class_name")) {
            (Some(class), _) => Ok(class),
            (None, Some(Setting::Text(class))) => {
                SamplerKind::of_class(class).map_err(|supported| format!("_class_name is {class:?}; {supported}"))
            }
            (None, Some(other)) => Err(format!("_class_name is {other}; a class is needed")),
            (None, None) => Err("_class_name is missing; the class of the scheduler is needed".to_owned()),
        }
    }

    /// The spacing that a request gets when it names none. A class that does not take the
    /// keys of spacings ignores them.
    #[must_use]
    pub fn own_spacing(&self) -> SpacingKind {
        let chosen = SPACING_KEYS.iter().find(|(key, _)| {
            let takes = |class| Key::named(key).is_read_by(class);
            self.settings.get(*key) == Some(&Setting::Flag(true)) && self.own_class().is_ok_and(takes)
        });
        chosen.map_or(SpacingKind::Checkpoint, |(_, spacing)| *spacing)
    }

    /// The options of a drawing with this sampler and spacing.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedParameter`] where the file asks the sampler's class for what is not there, naming the key, and for
    /// a sampler or spacing that the network was not trained for.
    pub fn options(&self, sampler: SamplerKind, spacing: SpacingKind) -> Result<SchedulerOptions> {
        self.check_preconditioning(sampler, spacing)?;
        if spacing.timesteps().is_some() && sampler.is_for_distilled() {
            let message =
                format!("is {spacing}, but {sampler} chooses among the timesteps of its network's distillation");
            return Err(Error::unsupported("scheduler", message));
        }
        if spacing == SpacingKind::Ays && self.aligned.is_none() {
            let allowed: Vec<&str> = self.spacings().into_iter().map(SpacingKind::name).collect();
            let message = format!(
                "is {spacing}, which has no levels for this model's family; one of {} is allowed",
                allowed.join(", ")
            );
            return Err(Error::unsupported("scheduler", message));
        }
        self.resolve(sampler, spacing).map_err(|(class, message)| {
            let given = if class == sampler.reader() { sampler.name() } else { spacing.name() };
            let field = match (class == sampler.reader(), spacing) {
                (true, _) => "sampler",
                (false, SpacingKind::Given) => "sigmas",
                (false, _) => "scheduler",
            };
            let class = class.class();
            Error::unsupported(field, format!("is {given}, which draws as {class} does; this model's {message}"))
        })
    }

    /// The samplers that draw with this checkpoint's network.
    #[must_use]
    pub fn samplers(&self) -> Vec<SamplerKind> {
        let is_taken = |sampler: &SamplerKind| self.options(*sampler, SpacingKind::Checkpoint).is_ok();
        SamplerKind::ALL.into_iter().filter(is_taken).collect()
    }

    /// Networks that were preconditioned as EDM's go with its samplers and σ, and others do not.
    fn check_preconditioning(&self, sampler: SamplerKind, spacing: SpacingKind) -> Result<()> {
        let is_edm = self.own_class().is_ok_and(SamplerKind::is_edm);
        if sampler.is_edm() != is_edm {
            let wanted = SamplerKind::ALL.into_iter().filter(|kind| kind.is_edm() == is_edm).map(SamplerKind::name);
            let wanted = wanted.collect::<Vec<_>>().join(", ");
            let kind = if is_edm { "was" } else { "was not" };
            let message = format!("is {sampler}; this model's network {kind} preconditioned as EDM's: one of {wanted}");
            return Err(Error::unsupported("sampler", message));
        }
        if is_edm && !EDM_SPACINGS.contains(&spacing) {
            let allowed = EDM_SPACINGS.map(SpacingKind::name).join(", ");
            let message = format!("is {spacing}; this model's network was preconditioned as EDM's: one of {allowed}");
            return Err(Error::unsupported(
                if spacing == SpacingKind::Given { "sigmas" } else { "scheduler" },
                message,
            ));
        }
        Ok(())
    }

    /// As [`options`](Self::options); an error has the class that does not take the key's value.
    fn resolve(&self, sampler: SamplerKind, spacing: SpacingKind) -> Result<SchedulerOptions, (SamplerKind, String)> {
        let own = Reader { config: self, class: sampler.reader(), sampler };
        own.check().map_err(|message| (own.class, message))?;
        let timesteps = spacing.timesteps();
        let spacing = if timesteps.is_some() { SpacingKind::Checkpoint } else { spacing };
        // Where diffusers' class cannot space σ itself, the levels of a spacing are those of its Euler.
        let spaces = own.class.is_edm() || Key::named("use_karras_sigmas").is_read_by(own.class);
        let class = if spacing != SpacingKind::Checkpoint && !spaces { SamplerKind::Euler } else { own.class };
        let levels = Reader { config: self, class, sampler };
        levels.check().map_err(|message| (class, message))?;
        let mut options = levels.options(spacing).map_err(|message| (class, message))?;
        if class != own.class {
            // Only the levels are Euler's.
            options.take_rule_of(own.options(SpacingKind::Checkpoint).map_err(|message| (own.class, message))?);
        }
        if let Some(timesteps) = timesteps {
            options.timestep_spacing = timesteps;
        }
        Ok(options)
    }
}

/// The spacings that EDM has.
const EDM_SPACINGS: [SpacingKind; 3] = [SpacingKind::Checkpoint, SpacingKind::Karras, SpacingKind::Exponential];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{
        Bound, Interpolation, TimestepSpacing,
        scheduler_keys::{KEYS, Treatment},
    };

    fn read(json: &str) -> SchedulerConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            (
                r#"{"_class_name": "SASolverScheduler"}"#,
                "_class_name is \"SASolverScheduler\"; supported are PNDMScheduler",
            ),
            ("{}", "_class_name is missing"),
            (r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": 1}"#, "skip_prk_steps is 1; true or false"),
            (
                r#"{"_class_name": "DDIMScheduler", "thresholding": true, "dynamic_thresholding_ratio": 2}"#,
                "dynamic_thresholding_ratio is 2; 0 to 1",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "thresholding": true, "sample_max_value": 0}"#,
                "sample_max_value is 0; a number above 0",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}"#,
                "algorithm_type is \"sde-dpmsolver\" with final_sigmas_type \"zero\"; it needs \"sigma_min\"",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver", "solver_order": 3,
                    "final_sigmas_type": "sigma_min"}"#,
                "solver_order is 3 with algorithm_type \"sde-dpmsolver\"; 1 and 2 are supported",
            ),
            (
                r#"{"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver",
                    "final_sigmas_type": "sigma_min"}"#,
                "algorithm_type is \"sde-dpmsolver\", which DPMSolverSinglestepScheduler does not take",
            ),
            (
                r#"{"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "dpmsolver", "thresholding": true,
                    "final_sigmas_type": "sigma_min"}"#,
                "thresholding is true with algorithm_type \"dpmsolver\"; only false",
            ),
            (r#"{"_class_name": "DEISMultistepScheduler", "algorithm_type": "sde-dpmsolver"}"#, "algorithm_type is"),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}"#,
                "solver_order is 4; only 1 or 2 or 3",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_type": "rk"}"#,
                "solver_type is \"rk\"; supported",
            ),
            (r#"{"_class_name": "UniPCMultistepScheduler", "disable_corrector": [-1]}"#, "disable_corrector is a list"),
            (
                r#"{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}"#,
                "variance_type is \"learned_range\"",
            ),
            (r#"{"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}"#, "variance_type is"),
            (
                r#"{"_class_name": "LCMScheduler", "original_inference_steps": 0}"#,
                "original_inference_steps is 0; 1 to 1000 are",
            ),
            (
                r#"{"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}"#,
                "noise_sampler_seed is 3; only null",
            ),
            (r#"{"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}"#, "prediction_type is \"sample\""),
            (r#"{"_class_name": "EDMEulerScheduler", "sigma_data": 0}"#, "sigma_data is 0; a number above 0"),
            (
                r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++",
                    "solver_order": 3}"#,
                "solver_order is 3 with algorithm_type \"sde-dpmsolver++\"; 1 and 2",
            ),
            (
                r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}"#,
                "algorithm_type is",
            ),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}"#, "variance_type is"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}"#, "use_flow_sigmas is true"),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": 9}"#, "lambda_min_clipped is 9"),
            (r#"{"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": 1}"#, "use_beta_sigmas is 1; true or"),
            (
                r#"{"_class_name": "LMSDiscreteScheduler", "use_exponential_sigmas": true, "use_beta_sigmas": true}"#,
                "use_exponential_sigmas and use_beta_sigmas are both true",
            ),
            (r#"{"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": 1}"#, "use_karras_sigmas is 1; true or"),
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
        read(r#"{"_class_name": "PNDMScheduler"}"#).check().unwrap();
    }

    #[test]
    fn no_key_that_a_class_reads_is_ignored() {
        for sampler in CLASSES.map(|(_, sampler)| sampler) {
            for key in KEYS {
                let mut config = SchedulerConfig::default();
                config.set_class(sampler);
                config.check().unwrap();
                config.set(key.name, Setting::Texts(vec!["neither".to_owned()]));
                let found = config.check();
                if key.is_read_by(sampler) && !matches!(key.treatment, Treatment::Idle) {
                    let message = found.unwrap_err();
                    assert!(message.starts_with(&format!("{} is a list of 1 strings; ", key.name)), "{message}");
                } else {
                    assert_eq!(found, Ok(()), "{sampler} does not read {}", key.name);
                }
            }
        }
    }

    #[test]
    fn a_key_of_another_class_counts_once_a_request_chooses_that_class() {
        let file = r#"{"_class_name": "PNDMScheduler", "solver_order": 4,
            "use_karras_sigmas": true, "interpolation_type": "log_linear"}"#;
        let config = read(file);
        config.check().unwrap();
        assert_eq!(config.own_spacing(), SpacingKind::Checkpoint, "PNDM does not take use_karras_sigmas");
        let refused = config.options(SamplerKind::Dpmpp2m, SpacingKind::Checkpoint).unwrap_err();
        assert!(matches!(refused, Error::UnsupportedParameter { field: "sampler", .. }));
        let said = "sampler: is dpmpp_2m, which draws as DPMSolverMultistepScheduler does; this model's solver_order is \
                    4; only 1 or 2 or 3 is supported";
        assert_eq!(refused.to_string(), said);
        let euler = config.options(SamplerKind::Euler, SpacingKind::Checkpoint).unwrap();
        assert_eq!(euler.interpolation, Interpolation::LogLinear);
        let pndm = config.options(SamplerKind::Pndm, SpacingKind::Checkpoint).unwrap();
        assert_eq!(pndm.interpolation, Interpolation::Linear);
    }

    #[test]
    fn zero_terminal_snr_counts_for_classes_without_it_where_a_request_chose_them() {
        use SamplerKind::{Deis, Dpm2, Dpm2Ancestral, DpmSingle, DpmppSde, Heun, Lms, Pndm};
        let file = r#"{"skip_prk_steps": true, "rescale_betas_zero_snr": true}"#;
        let trained = |kind: &SamplerKind| !kind.is_edm();
        for class in CLASSES.map(|(_, class)| class).into_iter().filter(trained) {
            let mut config = read(file);
            config.set_class(class);
            for sampler in SamplerKind::ALL.into_iter().filter(trained) {
                let options = config.options(sampler, SpacingKind::Checkpoint).unwrap();
                let deaf = matches!(class, Pndm | Heun | Dpm2 | Dpm2Ancestral | Lms | Deis | DpmSingle | DpmppSde);
                let ignored = sampler == class && deaf;
                assert_eq!(options.rescale_betas_zero_snr, !ignored, "{sampler} of {class}");
            }
        }
    }

    #[test]
    fn karras_spacing_of_a_class_that_has_none_reads_what_euler_reads() {
        let config = read(r#"{"_class_name": "DDIMScheduler", "sigma_max": 9, "timestep_type": "half"}"#);
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
        let bound = |json: &str, sampler| read(json).options(sampler, SpacingKind::Checkpoint).unwrap().bound;
        assert_eq!(bound(r#"{"_class_name": "DDIMScheduler"}"#, SamplerKind::Ddim), Bound::Range(1.0));
        assert_eq!(bound(r#"{"_class_name": "EulerDiscreteScheduler"}"#, SamplerKind::Ddim), Bound::None);
        let said = r#"{"_class_name": "EulerDiscreteScheduler", "clip_sample": true, "clip_sample_range": 3}"#;
        let trained = SamplerKind::ALL.into_iter().filter(|kind| !kind.is_edm());
        let clips: Vec<_> = trained.filter(|sampler| bound(said, *sampler) == Bound::Range(3.0)).collect();
        // TCD's class takes the keys, and does nothing with them; so does the rule here.
        assert_eq!(
            clips,
            [SamplerKind::Ddim, SamplerKind::Heun, SamplerKind::Ddpm, SamplerKind::Lcm, SamplerKind::Tcd]
        );
        // The rule's own keys hold for levels that are another class's.
        let karras =
            read(r#"{"_class_name": "DDIMScheduler"}"#).options(SamplerKind::Ddim, SpacingKind::Karras).unwrap();
        assert_eq!(karras.bound, Bound::Range(1.0));
    }

    #[test]
    fn a_name_says_whether_noise_is_added_and_the_file_how() {
        let sampler = |json: &str| read(json).own_sampler();
        let file = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver", "solver_order": 1,
            "final_sigmas_type": "sigma_min"}"#;
        assert_eq!(sampler(file), Ok(SamplerKind::Dpmpp2mSde));
        let algorithm = |json: &str, kind| {
            let solver = read(json).options(kind, SpacingKind::Checkpoint).unwrap().solver;
            (solver.algorithm, solver.order)
        };
        assert_eq!(algorithm(file, SamplerKind::Dpmpp2mSde), (Algorithm::SdeDpmSolver, 1));
        assert_eq!(algorithm(file, SamplerKind::Dpmpp2m), (Algorithm::DpmSolverPp, 1));
        let file = r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#;
        assert_eq!(sampler(file), Ok(SamplerKind::Dpmpp2m));
        assert_eq!(algorithm(file, SamplerKind::Dpmpp2m), (Algorithm::DpmSolverPp, 3));
        assert_eq!(algorithm(file, SamplerKind::Dpmpp2mSde), (Algorithm::SdeDpmSolverPp, 2));
    }

    #[test]
    fn networks_that_were_preconditioned_as_edm_s_go_with_its_samplers_alone() {
        let edm = read(r#"{"_class_name": "EDMDPMSolverMultistepScheduler"}"#);
        assert_eq!(edm.samplers(), [SamplerKind::EdmEuler, SamplerKind::EdmDpmpp2m]);
        let refused =
            |config: &SchedulerConfig, sampler, spacing| config.options(sampler, spacing).unwrap_err().to_string();
        let said =
            "sampler: is euler; this model's network was preconditioned as EDM's: one of edm_euler, edm_dpmpp_2m";
        assert_eq!(refused(&edm, SamplerKind::Euler, SpacingKind::Checkpoint), said);
        let said = "scheduler: is beta; this model's network was preconditioned as EDM's: one of checkpoint, karras, \
                    exponential";
        assert_eq!(refused(&edm, SamplerKind::EdmEuler, SpacingKind::Beta), said);
        let other = read(r#"{"_class_name": "DDIMScheduler"}"#);
        let said = "sampler: is edm_euler; this model's network was not preconditioned as EDM's: one of ddim, pndm, ";
        let found = refused(&other, SamplerKind::EdmEuler, SpacingKind::Checkpoint);
        assert!(found.starts_with(said), "{found}");
        assert_eq!(other.samplers().len(), SamplerKind::ALL.len() - 2);
    }
}
