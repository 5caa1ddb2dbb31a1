//! The schedules of networks that were preconditioned as EDM's (Karras et al. 2022).
//!
//! In units of the data's deviation σ_data, such a network sees latents at total variance 1 as the others do, and gives the
//! velocity: with σ' = σ/σ_data, table 1's c_in is that of latents at σ', c_skip and c_out are those of v-prediction. So
//! levels have σ', latents are divided by σ_data, and every rule and prediction type is that of the other networks.

use super::{
    Edm, FinalSigmas, SchedulerOptions,
    schedule::{Level, Schedule, Step},
};

/// σ of diffusers' classes where a file says nothing.
const SIGMAS: (f64, f64) = (0.002, 80.0);

impl Schedule {
    /// `steps` of σ by equation 5, or evenly in their logarithm, from `sigma_max` to `sigma_min` and then to zero.
    #[expect(clippy::cast_precision_loss, reason = "steps are few")]
    pub(super) fn of_edm(options: &SchedulerOptions, steps: usize) -> Self {
        let Edm { sigma_data, rho } = options.edm.expect("options that EDM's samplers are drawn by have its numbers");
        let (least, most) = (options.sigma_min.unwrap_or(SIGMAS.0), options.sigma_max.unwrap_or(SIGMAS.1));
        let sigma = |number: usize| {
            let part = if steps == 1 { 0.0 } else { number as f64 / (steps - 1) as f64 };
            let between = |most: f64, least: f64| most + part * (least - most);
            match rho {
                Some(rho) => between(most.powf(1.0 / rho), least.powf(1.0 / rho)).powf(rho),
                None => between(most.ln(), least.ln()).exp(),
            }
        };
        // Table 1's c_noise.
        let level = |sigma: f64| Level { timestep: 0.25 * sigma.ln(), sigma: sigma / sigma_data };
        let levels: Vec<Level> = (0..steps).map(sigma).map(level).collect();
        let last = match options.final_sigmas {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => levels[steps - 1].sigma,
        };
        let next_sigma = |number: usize| levels.get(number + 1).map_or(last, |next| next.sigma);
        let step =
            |(number, level): (usize, &Level)| Step { level: *level, next_sigma: next_sigma(number), second: None };
        Self {
            // Noise has the deviation √(σ_max² + 1) in diffusers, whatever the data's is.
            initial_scale: most.hypot(1.0) / most.hypot(sigma_data),
            steps: levels.iter().enumerate().map(step).collect(),
            final_scale: last.hypot(1.0),
            whole: steps,
            unit: sigma_data,
        }
    }
}
