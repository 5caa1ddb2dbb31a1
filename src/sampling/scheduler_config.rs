//! What a checkpoint's `scheduler_config.json` says: how it was trained, and how it wants to be sampled.

use serde::Deserialize;

use super::{PredictionType, SamplerKind, SpacingKind, level::sigma_of};

/// diffusers' stand-in for the zero at the end of a zero-terminal-SNR schedule, where a finite σ is needed.
const LEAST_ALPHA_PRODUCT: f64 = 1.0 / (1_u64 << 24) as f64;

/// A scheduler's configuration, with diffusers' defaults for what a file leaves out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The scheduler's class in diffusers, which decides the checkpoint's own sampler.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// How many timesteps there were in training.
    pub num_train_timesteps: usize,
    /// The first beta.
    pub beta_start: f64,
    /// The last beta.
    pub beta_end: f64,
    /// How betas go from the first to the last.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, in place of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the network gives.
    pub prediction_type: PredictionType,
    /// How timesteps are chosen; the class decides when it is left out.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to timesteps of leading spacing.
    pub steps_offset: usize,
    /// Whether the last step of DDIM and PNDM goes to σ = 0, or to the first training timestep's σ.
    pub set_alpha_to_one: Option<bool>,
    /// Whether DDIM keeps x₀ within ± `clip_sample_range`.
    pub clip_sample: Option<bool>,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// Dynamic thresholding, which is for networks that draw pixels.
    pub thresholding: bool,
    /// Whether betas were rescaled to zero terminal SNR in training (Lin et al. 2023, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// Whether σ are spaced as Karras et al. 2022 do.
    pub use_karras_sigmas: Option<bool>,
    /// Another spacing of σ, not supported.
    pub use_exponential_sigmas: Option<bool>,
    /// Another spacing of σ, not supported.
    pub use_beta_sigmas: Option<bool>,
    /// Another spacing of σ, not supported.
    pub use_lu_lambdas: Option<bool>,
    /// Whether the network is of the flow-matching kind, not supported.
    pub use_flow_sigmas: Option<bool>,
    /// Where the last step of Euler and DPM-Solver++ ends.
    pub final_sigmas_type: FinalSigmas,
    /// How σ are read between training timesteps.
    pub interpolation_type: Option<String>,
    /// Whether PNDM starts without Runge-Kutta steps; only that is supported.
    pub skip_prk_steps: Option<bool>,
    /// The variant of DPM-Solver; only `dpmsolver++` is supported.
    pub algorithm_type: Option<String>,
    /// The order of DPM-Solver; only 2 is supported.
    pub solver_order: Option<usize>,
    /// The second-order rule of DPM-Solver; only `midpoint` is supported.
    pub solver_type: Option<String>,
    /// Whether DPM-Solver's last step of a short schedule is of first order.
    pub lower_order_final: bool,
    /// Whether DPM-Solver's last step is of first order in any case.
    pub euler_at_final: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
            thresholding: false,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
            use_flow_sigmas: None,
            final_sigmas_type: FinalSigmas::Zero,
            interpolation_type: None,
            skip_prk_steps: None,
            algorithm_type: None,
            solver_order: None,
            solver_type: None,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

/// How betas go from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their square roots evenly, as latent diffusion does (Rombach et al. 2022).
    ScaledLinear,
    /// The squared cosine of Nichol and Dhariwal 2021, equation 17, capped.
    SquaredcosCapV2,
}

/// How the timesteps of a drawing are chosen among those of training (Lin et al. 2023, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly, both ends included.
    Linspace,
    /// Multiples of a whole number from zero.
    Leading,
    /// Evenly, counted from the last.
    Trailing,
}

/// Where the last step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At σ = 0.
    Zero,
    /// At the first training timestep's σ.
    SigmaMin,
}

impl SchedulerConfig {
    /// Checks that this configuration asks for nothing that is not there.
    ///
    /// # Errors
    ///
    /// The key, its value and what is supported.
    pub fn check(&self) -> Result<(), String> {
        self.own_sampler()?;
        let one_of = |key: &str, value: &Option<String>, allowed: &str| match value {
            Some(value) if value != allowed => Err(format!("{key} is {value:?}; only {allowed:?} is supported")),
            _ => Ok(()),
        };
        one_of("algorithm_type", &self.algorithm_type, "dpmsolver++")?;
        one_of("solver_type", &self.solver_type, "midpoint")?;
        one_of("interpolation_type", &self.interpolation_type, "linear")?;
        if let Some(order) = self.solver_order.filter(|order| *order != 2) {
            return Err(format!("solver_order is {order}; only 2 is supported"));
        }
        let switches = [
            ("thresholding", self.thresholding),
            ("use_exponential_sigmas", self.use_exponential_sigmas == Some(true)),
            ("use_beta_sigmas", self.use_beta_sigmas == Some(true)),
            ("use_lu_lambdas", self.use_lu_lambdas == Some(true)),
            ("use_flow_sigmas", self.use_flow_sigmas == Some(true)),
        ];
        if let Some((key, _)) = switches.into_iter().find(|(_, on)| *on) {
            return Err(format!("{key} is true; only false is supported"));
        }
        if self.class_name == "PNDMScheduler" && self.skip_prk_steps != Some(true) {
            return Err("skip_prk_steps is false; only true is supported".to_owned());
        }
        let betas = self.trained_betas.as_ref().map_or(self.num_train_timesteps, Vec::len);
        if self.num_train_timesteps < 2 || betas != self.num_train_timesteps {
            let timesteps = self.num_train_timesteps;
            return Err(format!("num_train_timesteps is {timesteps} with {betas} betas; two or more are needed"));
        }
        let in_range = |beta: &f64| *beta > 0.0 && *beta < 1.0;
        let ends = [self.beta_start, self.beta_end];
        if !self.trained_betas.as_deref().unwrap_or(&ends).iter().all(in_range) {
            return Err("a beta is not between 0 and 1".to_owned());
        }
        Ok(())
    }

    /// The sampler that the class stands for.
    ///
    /// # Errors
    ///
    /// The class and those that are supported.
    pub fn own_sampler(&self) -> Result<SamplerKind, String> {
        CLASSES.iter().find(|(class, _)| *class == self.class_name).map(|(_, kind)| *kind).ok_or_else(|| {
            let supported = CLASSES.map(|(class, _)| class).join(", ");
            format!("_class_name is {:?}; supported are {supported}", self.class_name)
        })
    }

    /// The spacing that a request gets when it names none.
    #[must_use]
    pub fn own_spacing(&self) -> SpacingKind {
        if self.use_karras_sigmas == Some(true) { SpacingKind::Karras } else { SpacingKind::Checkpoint }
    }

    /// The spacing of timesteps: what the file says, or else the default of the class that draws.
    pub(super) fn timestep_spacing(&self, class: SpacingDefault) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or(match class {
            SpacingDefault::DdimAndPndm => TimestepSpacing::Leading,
            SpacingDefault::Others => TimestepSpacing::Linspace,
        })
    }

    /// σ of every training timestep, growing. The last is infinite for v-prediction with zero terminal SNR, unless
    /// `clamped`.
    pub(super) fn training_sigmas(&self, end: TerminalSigma) -> Vec<f64> {
        let mut product = 1.0;
        let mut products: Vec<f64> = self
            .betas()
            .into_iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if self.rescale_betas_zero_snr {
            rescale_to_zero_terminal_snr(&mut products);
            // Noise cannot be divided out of latents that have no signal, so epsilon prediction needs a finite σ.
            if end == TerminalSigma::Clamped || self.prediction_type == PredictionType::Epsilon {
                *products.last_mut().expect("there are two timesteps or more") = LEAST_ALPHA_PRODUCT;
            }
        }
        products.into_iter().map(sigma_of).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
    fn betas(&self) -> Vec<f64> {
        if let Some(betas) = &self.trained_betas {
            return betas.clone();
        }
        let count = self.num_train_timesteps;
        let part = |index: usize| index as f64 / (count - 1) as f64;
        let between = |first: f64, last: f64, index| first + (last - first) * part(index);
        let beta = |index: usize| match self.beta_schedule {
            BetaSchedule::Linear => between(self.beta_start, self.beta_end, index),
            BetaSchedule::ScaledLinear => between(self.beta_start.sqrt(), self.beta_end.sqrt(), index).powi(2),
            BetaSchedule::SquaredcosCapV2 => {
                let product = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let (before, after) = (index as f64 / count as f64, (index + 1) as f64 / count as f64);
                (1.0 - product(after) / product(before)).min(0.999)
            }
        };
        (0..count).map(beta).collect()
    }
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

/// Whose default spacing of timesteps counts where a file names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpacingDefault {
    /// That of diffusers' DDIM and PNDM.
    DdimAndPndm,
    /// That of its samplers in σ.
    Others,
}

/// What the last σ of a zero-terminal-SNR schedule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TerminalSigma {
    /// Infinite, as in training.
    Exact,
    /// 4096, for samplers that compute with σ itself.
    Clamped,
}

/// Lin et al. 2023, algorithm 1, on the cumulative products of alphas.
fn rescale_to_zero_terminal_snr(products: &mut [f64]) {
    let (first, last) = (products[0].sqrt(), products[products.len() - 1].sqrt());
    for product in products {
        *product = ((product.sqrt() - last) * first / (first - last)).powi(2);
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
            (r#"{"_class_name": "LCMScheduler"}"#, "_class_name is \"LCMScheduler\""),
            (r#"{"_class_name": "PNDMScheduler"}"#, "skip_prk_steps is false"),
            (r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, "thresholding is true"),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "algorithm_type",
            ),
            (r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "solver_order is 3"),
            (r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1}"#, "num_train_timesteps is 1"),
            (r#"{"_class_name": "DDIMScheduler", "beta_end": 2}"#, "a beta is not between 0 and 1"),
            (r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1]}"#, "1000 with 1 betas"),
        ];
        for (json, said) in cases {
            let message = read(json).check().unwrap_err();
            assert!(message.contains(said), "{message}");
        }
        assert!(serde_json::from_str::<SchedulerConfig>(r#"{"beta_schedule": "sigmoid"}"#).is_err());
        read(r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true}"#).check().unwrap();
    }

    #[test]
    fn zero_terminal_snr_is_exact_for_v_prediction_alone() {
        let mut config = read(r#"{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#);
        assert_eq!(config.training_sigmas(TerminalSigma::Exact).last(), Some(&f64::INFINITY));
        let clamped = *config.training_sigmas(TerminalSigma::Clamped).last().unwrap();
        assert!((clamped - 4096.0).abs() < 1e-3, "{clamped}");
        config.prediction_type = PredictionType::Epsilon;
        assert!(config.training_sigmas(TerminalSigma::Exact).last().unwrap().is_finite());
    }
}
