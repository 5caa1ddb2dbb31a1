//! Which of training's timesteps a drawing visits.

use super::{SchedulerOptions, TimestepSpacing};

/// The timesteps of `steps` steps, falling; not all are whole for linspace spacing.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
pub(super) fn timesteps(options: &SchedulerOptions, steps: usize) -> Vec<f64> {
    let all = options.num_train_timesteps;
    let timestep = |number: usize| match options.timestep_spacing {
        TimestepSpacing::Linspace if steps == 1 => 0.0,
        TimestepSpacing::Linspace => even(all - 1, steps - 1, steps - 1 - number),
        TimestepSpacing::Leading => ((steps - 1 - number) * (all / steps) + options.steps_offset) as f64,
        TimestepSpacing::Trailing => trailing(all, all as f64 / steps as f64, number),
    };
    (0..steps).map(timestep).map(|t| t.min((all - 1) as f64)).collect()
}

/// DPM-Solver++'s timesteps, which count the end as one more.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
pub(super) fn dpm_solver_timesteps(options: &SchedulerOptions, steps: usize) -> Vec<f64> {
    let all = options.num_train_timesteps;
    let last = options.last_timestep();
    let stride = all as f64 / steps as f64;
    let timestep = |number: usize| match options.timestep_spacing {
        TimestepSpacing::Linspace => even(last - 1, steps, steps - number).round_ties_even(),
        TimestepSpacing::Leading => ((steps - number) * (last / (steps + 1)) + options.steps_offset) as f64,
        TimestepSpacing::Trailing => trailing(last, stride, number),
    };
    let cut = options.timestep_spacing == TimestepSpacing::Trailing && last < all;
    let above_zero = |number: &usize| !cut || *number as f64 * stride < last as f64;
    (0..steps).take_while(above_zero).map(timestep).map(|t| t.min((all - 1) as f64)).collect()
}

/// The `number`th of the multiples of `last / count`, rounded as numpy does, which decides where a half is rounded to.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn even(last: usize, count: usize, number: usize) -> f64 {
    number as f64 * (last as f64 / count as f64)
}

/// The `number`th of the timesteps from `last` down, `stride` apart.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn trailing(last: usize, stride: f64, number: usize) -> f64 {
    (last as f64 - number as f64 * stride).round_ties_even() - 1.0
}
