//! The schedules of networks that were distilled to few steps: latent consistency models' and TCD's.

use super::{
    SamplerKind, SchedulerOptions,
    schedule::{Level, Schedule, Step, index},
    training::TerminalSigma,
};

impl Schedule {
    /// `steps` of the timesteps that the network was distilled at, as evenly as they go (Luo et al. 2023, section 4.3). Latent
    /// consistency models end at σ = 0, TCD at the least σ of training, as in diffusers.
    pub(super) fn on_distilled_timesteps(options: &SchedulerOptions, steps: usize) -> Self {
        let sigmas = options.training_sigmas(TerminalSigma::Exact);
        let stride = options.num_train_timesteps / options.original_steps;
        #[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
        let timestep = |number: usize| {
            let skipped = index((number as f64 * (options.original_steps as f64 / steps as f64)).floor());
            ((options.original_steps - skipped) * stride - 1) as f64
        };
        let level = |timestep: f64| Level { timestep, sigma: sigmas[index(timestep)] };
        let levels: Vec<Level> = (0..steps).map(timestep).map(level).collect();
        let last = if options.sampler == SamplerKind::Tcd { sigmas[0] } else { 0.0 };
        let next_sigma = |number: usize| levels.get(number + 1).map_or(last, |next| next.sigma);
        let step =
            |(number, level): (usize, &Level)| Step { level: *level, next_sigma: next_sigma(number), second: None };
        let steps: Vec<Step> = levels.iter().enumerate().map(step).collect();
        let whole = steps.len();
        Self { initial_scale: 1.0, steps, final_scale: 1.0, whole, unit: 1.0 }
    }
}
