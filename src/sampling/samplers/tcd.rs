//! Trajectory consistency distillation.

use candle_core::Tensor;

use super::{
    super::{BatchNoise, Schedule, SchedulerOptions, level::signal_share, schedule::index, training::TerminalSigma},
    ddim::transfer,
};
use crate::Result;

/// The σ below the next that each step goes to before noise takes it up again, the next step's last.
#[derive(Debug)]
pub(super) struct Tcd {
    lower: Vec<f64>,
}

impl Tcd {
    /// γ of Zheng et al. 2024, algorithm 4, says how far below: 0 adds no noise, 1 goes to x₀ as latent consistency models do.
    pub(super) fn new(options: &SchedulerOptions, schedule: &Schedule) -> Self {
        let sigmas = options.training_sigmas(TerminalSigma::Exact);
        let lower = schedule.steps.windows(2).map(|pair| {
            // f32 as in diffusers, which decides where a whole product is rounded to.
            #[expect(clippy::cast_possible_truncation, reason = "timesteps are few")]
            let timestep = ((1.0 - options.eta) as f32 * pair[1].level.timestep as f32).floor();
            sigmas[index(f64::from(timestep))].min(pair[0].next_sigma)
        });
        let mut lower: Vec<f64> = lower.chain(schedule.steps.last().map(|step| step.next_sigma)).collect();
        lower.reverse();
        Self { lower }
    }

    /// Strategic stochastic sampling: the network takes latents along their trajectory to the lower σ, and noise takes them
    /// from there to the next. Each step that noise makes up for draws one normal for each latent.
    pub(super) fn step(
        &mut self,
        x: &Tensor,
        denoised: &Tensor,
        (from, to): (f64, f64),
        noise: &mut BatchNoise,
    ) -> Result<Tensor> {
        let lower = self.lower.pop().unwrap_or(to);
        let latents = transfer(x, denoised, from, lower)?;
        if lower >= to {
            return Ok(latents);
        }
        let share = signal_share(to) / signal_share(lower);
        Ok(((latents * share)? + (noise.like(x)? * (1.0 - share * share).sqrt())?)?)
    }
}
