//! The noise levels that a drawing visits, on the host in f64.
//!
//! A [`Schedule`] is a list of steps, each from one σ to another. The two ends of neighbouring steps are not always the
//! same: diffusers' DDIM and PNDM go to the timestep `N/n` (whole division) below, whatever comes next, and the picture
//! depends on it.

use super::{
    BetaSchedule, FinalSigmas, SamplerKind, SchedulerConfig, SpacingKind, TimestepSpacing,
    level::noise_share,
    scheduler_config::{SpacingDefault, TerminalSigma},
};
use crate::{Error, Result};

/// Karras et al. 2022, equation 5.
const KARRAS_RHO: f64 = 7.0;

/// A noise level, with the timestep that the network is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// In training timesteps, with a fraction where σ lies between two.
    pub timestep: f64,
    /// Noise over signal; may be infinite.
    pub sigma: f64,
}

/// One step of a drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Where the latents are.
    pub level: Level,
    /// The σ to go to.
    pub next_sigma: f64,
    /// A second look at the network, for samplers that take one in this step.
    pub second: Option<SecondLook>,
}

/// Where a sampler looks at the network a second time in one step, and the step it takes then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SecondLook {
    /// Where the network is asked.
    pub level: Level,
    /// The σ that the corrected step starts from.
    pub from_sigma: f64,
    /// The σ that it goes to.
    pub next_sigma: f64,
}

/// The steps of a drawing.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The factor of unit noise that the latents start as.
    pub initial_scale: f64,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// The schedule of `steps` steps that `sampler` takes on a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for more steps than the checkpoint has timesteps.
    pub fn new(config: &SchedulerConfig, sampler: SamplerKind, spacing: SpacingKind, steps: usize) -> Result<Self> {
        if steps == 0 || steps > config.num_train_timesteps {
            let most = config.num_train_timesteps;
            return Err(Error::invalid("steps", format!("is {steps}; this model has {most} timesteps to choose from")));
        }
        Ok(match (sampler, spacing) {
            (SamplerKind::Ddim, SpacingKind::Checkpoint) => Self::on_timesteps(config, Ends::DDIM, steps),
            (SamplerKind::Pndm, SpacingKind::Checkpoint) => {
                Self::on_timesteps(config, Ends::PNDM, steps).with_pndm_start(config)
            }
            _ => Self::on_sigmas(config, sampler, spacing, steps),
        })
    }

    /// The part of the schedule of `steps` steps that a drawing of `strength` takes: the last `steps · strength`, rounded
    /// down, as diffusers counts them. Noise is added to a picture up to the level where the part begins (SDEdit, Meng et
    /// al. 2022). A step with two looks at the network stays whole, so a drawing never begins in the middle of one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for more steps than the checkpoint has timesteps, or when no step is left.
    pub fn last_part(
        config: &SchedulerConfig,
        sampler: SamplerKind,
        spacing: SpacingKind,
        steps: usize,
        strength: f64,
    ) -> Result<Self> {
        let whole = Self::new(config, sampler, spacing, steps)?;
        let skipped = steps - steps_of_strength(steps, strength);
        if skipped == steps {
            #[expect(clippy::cast_precision_loss, reason = "steps are few")]
            let least = (1000.0 / steps as f64).ceil() / 1000.0;
            let message = format!("is {strength}, which leaves no step of {steps} to draw; {least} leaves one");
            return Err(Error::invalid("strength", message));
        }
        Ok(match (sampler, spacing) {
            _ if skipped == 0 => whole,
            (SamplerKind::Pndm, SpacingKind::Checkpoint) => whole.pndm_from(skipped, config),
            _ => whole.from(skipped, sampler),
        })
    }

    fn from(mut self, skipped: usize, sampler: SamplerKind) -> Self {
        self.steps.drain(..skipped);
        if sampler == SamplerKind::Pndm {
            self.add_first_look();
        }
        self
    }

    /// PNDM's schedule without the first `skipped` steps, as diffusers' list of timesteps makes it: the second timestep
    /// stands there twice, for the second look, so what is left of a list that is cut behind it begins one timestep early,
    /// and its second look replaces a step.
    fn pndm_from(self, skipped: usize, config: &SchedulerConfig) -> Self {
        let stride = config.num_train_timesteps / self.steps.len();
        let mut first = self.steps[(skipped - 1).max(1)];
        first.second = Some(pndm_look(config, self.steps[skipped].level, stride));
        let rest = self.steps[skipped + 1..].iter().copied();
        Self { initial_scale: self.initial_scale, steps: std::iter::once(first).chain(rest).collect() }
    }

    /// DDIM's and PNDM's: from each timestep to the one `N/n` below.
    fn on_timesteps(config: &SchedulerConfig, ends: Ends, steps: usize) -> Self {
        let sigmas = config.training_sigmas(ends.first);
        let last = if config.set_alpha_to_one.unwrap_or(ends.last_is_zero) { 0.0 } else { sigmas[0] };
        let stride = config.num_train_timesteps / steps;
        let step = |timestep: f64| {
            let next_sigma = index(timestep).checked_sub(stride).map_or(last, |t| sigmas[t]);
            let level = Level { timestep, sigma: sigmas[index(timestep)] };
            Step { level, next_sigma, second: None }
        };
        let timesteps = timesteps(config, config.timestep_spacing(SpacingDefault::DdimAndPndm), steps);
        Self { initial_scale: 1.0, steps: timesteps.into_iter().map(|t| step(t.round_ties_even())).collect() }
    }

    /// PNDM looks twice in its first step: there is no history yet to extrapolate from (Liu et al. 2022, section 3.3,
    /// with the pseudo improved Euler step of latent diffusion's PLMS).
    fn with_pndm_start(mut self, config: &SchedulerConfig) -> Self {
        let stride = config.num_train_timesteps / self.steps.len();
        if let [first, second, ..] = &mut self.steps[..] {
            first.second = Some(pndm_look(config, second.level, stride));
        }
        self
    }

    /// The samplers of the k-diffusion kind: from each σ to the next.
    fn on_sigmas(config: &SchedulerConfig, sampler: SamplerKind, spacing: SpacingKind, steps: usize) -> Self {
        let training = config.training_sigmas(TerminalSigma::Clamped);
        let multistep = sampler == SamplerKind::Dpmpp2m;
        let timestep_spacing = config.timestep_spacing(SpacingDefault::Others);
        let timesteps = if multistep {
            dpm_solver_timesteps(config, timestep_spacing, steps)
        } else {
            timesteps(config, timestep_spacing, steps)
        };
        let on_timesteps = |t: &f64| Level { timestep: *t, sigma: interpolate(&training, *t) };
        let mut levels: Vec<Level> = timesteps.iter().map(on_timesteps).collect();
        if spacing == SpacingKind::Karras {
            // DPM-Solver++ spans all of training, the others what the timesteps span, as in diffusers.
            let (most, least) = if multistep {
                (training[training.len() - 1], training[0])
            } else {
                (levels[0].sigma, levels[levels.len() - 1].sigma)
            };
            levels = karras(most, least, steps)
                .map(|sigma| Level { timestep: timestep_of(&training, sigma), sigma })
                .collect();
            if multistep {
                // Rounded, but for this one schedule of betas, in diffusers.
                let cut = config.beta_schedule == BetaSchedule::SquaredcosCapV2;
                let whole = if cut { f64::trunc } else { f64::round_ties_even };
                levels.iter_mut().for_each(|level| level.timestep = whole(level.timestep));
            }
        }
        let starts_at_sigma = timestep_spacing != TimestepSpacing::Leading && !multistep;
        let initial_scale = if starts_at_sigma { noise_share(levels[0].sigma) } else { 1.0 };
        let last = match config.final_sigmas_type {
            FinalSigmas::SigmaMin if matches!(sampler, SamplerKind::Euler | SamplerKind::Dpmpp2m) => training[0],
            _ => 0.0,
        };
        let next_sigmas = levels.iter().skip(1).map(|level| level.sigma).chain([last]);
        let steps =
            levels.iter().zip(next_sigmas).map(|(level, next_sigma)| Step { level: *level, next_sigma, second: None });
        let mut schedule = Self { initial_scale, steps: steps.collect() };
        match sampler {
            SamplerKind::Heun => schedule.add_heun_looks(config.rescale_betas_zero_snr),
            SamplerKind::Pndm => schedule.add_first_look(),
            _ => {}
        }
        schedule
    }

    /// Heun's method looks again at the end of every step but the last, which ends where there is no noise. From the
    /// almost infinite σ of a zero-terminal-SNR checkpoint a single look is all that makes sense: there the second
    /// slope, times a step of four thousand, would drown the picture.
    fn add_heun_looks(&mut self, first_is_plain: bool) {
        for number in usize::from(first_is_plain)..self.steps.len() - 1 {
            self.look_again_at_the_end(number);
        }
    }

    fn add_first_look(&mut self) {
        if self.steps.len() > 1 {
            self.look_again_at_the_end(0);
        }
    }

    fn look_again_at_the_end(&mut self, number: usize) {
        let level = self.steps[number + 1].level;
        let from_sigma = self.steps[number].level.sigma;
        self.steps[number].second = Some(SecondLook { level, from_sigma, next_sigma: level.sigma });
    }
}

/// PNDM's second look, at `level`: the step from one stride above it, corrected by what the network gives there.
fn pndm_look(config: &SchedulerConfig, level: Level, stride: usize) -> SecondLook {
    let sigmas = config.training_sigmas(TerminalSigma::Clamped);
    let from = (index(level.timestep) + stride).min(sigmas.len() - 1);
    SecondLook { level, from_sigma: sigmas[from], next_sigma: level.sigma }
}

/// How many of `steps` a drawing of `strength` takes, rounded down as diffusers does it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "steps are few, and the product is not negative"
)]
#[must_use]
pub fn steps_of_strength(steps: usize, strength: f64) -> usize {
    ((steps as f64 * strength.clamp(0.0, 1.0)) as usize).min(steps)
}

/// Where DDIM's and PNDM's schedules begin and end.
#[derive(Debug, Clone, Copy)]
struct Ends {
    first: TerminalSigma,
    /// Whether the last step goes to σ = 0 where the file does not say, or to the first training timestep's σ.
    last_is_zero: bool,
}

impl Ends {
    /// DDIM can start from no signal at all.
    const DDIM: Self = Self { first: TerminalSigma::Exact, last_is_zero: true };
    /// PNDM extrapolates outputs, and looks back at its first level.
    const PNDM: Self = Self { first: TerminalSigma::Clamped, last_is_zero: false };
}

/// The timesteps of `steps` steps, falling; not all are whole for linspace spacing.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn timesteps(config: &SchedulerConfig, spacing: TimestepSpacing, steps: usize) -> Vec<f64> {
    let all = config.num_train_timesteps;
    let timestep = |number: usize| match spacing {
        TimestepSpacing::Linspace if steps == 1 => 0.0,
        TimestepSpacing::Linspace => even(all - 1, steps - 1, steps - 1 - number),
        TimestepSpacing::Leading => ((steps - 1 - number) * (all / steps) + config.steps_offset) as f64,
        TimestepSpacing::Trailing => trailing(all, steps, number),
    };
    (0..steps).map(timestep).map(|t| t.min((all - 1) as f64)).collect()
}

/// DPM-Solver++'s timesteps, which count the end as one more.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn dpm_solver_timesteps(config: &SchedulerConfig, spacing: TimestepSpacing, steps: usize) -> Vec<f64> {
    let all = config.num_train_timesteps;
    let timestep = |number: usize| match spacing {
        TimestepSpacing::Linspace => even(all - 1, steps, steps - number).round_ties_even(),
        TimestepSpacing::Leading => ((steps - number) * (all / (steps + 1)) + config.steps_offset) as f64,
        TimestepSpacing::Trailing => trailing(all, steps, number),
    };
    (0..steps).map(timestep).map(|t| t.min((all - 1) as f64)).collect()
}

/// The `number`th of the multiples of `last / count`, rounded as numpy does, which decides where a half is rounded to.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn even(last: usize, count: usize, number: usize) -> f64 {
    number as f64 * (last as f64 / count as f64)
}

#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn trailing(all: usize, steps: usize, number: usize) -> f64 {
    let stride = all as f64 / steps as f64;
    (all as f64 - number as f64 * stride).round_ties_even() - 1.0
}

/// The index of a whole timestep.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "timesteps are whole and not negative")]
fn index(timestep: f64) -> usize {
    timestep as usize
}

/// σ at a timestep, linearly between the training's.
fn interpolate(sigmas: &[f64], timestep: f64) -> f64 {
    let below = index(timestep.floor());
    let Some(above) = sigmas.get(below + 1) else { return sigmas[sigmas.len() - 1] };
    sigmas[below] + (above - sigmas[below]) * timestep.fract()
}

/// The timestep of a σ, linearly in its logarithm between the training's.
#[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
fn timestep_of(sigmas: &[f64], sigma: f64) -> f64 {
    let above = sigmas.partition_point(|training| *training <= sigma);
    let below = above.saturating_sub(1).min(sigmas.len() - 2);
    let (low, high) = (sigmas[below].ln(), sigmas[below + 1].ln());
    below as f64 + ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0)
}

/// Karras et al. 2022, equation 5: `steps` values of σ from `most` to `least`.
#[expect(clippy::cast_precision_loss, reason = "steps are few")]
fn karras(most: f64, least: f64, steps: usize) -> impl Iterator<Item = f64> {
    let (most, least) = (most.powf(1.0 / KARRAS_RHO), least.powf(1.0 / KARRAS_RHO));
    (0..steps).map(move |number| {
        let part = if steps == 1 { 0.0 } else { number as f64 / (steps - 1) as f64 };
        (most + part * (least - most)).powf(KARRAS_RHO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_steps_than_timesteps_are_refused() {
        let config = SchedulerConfig { num_train_timesteps: 50, ..SchedulerConfig::default() };
        let refused = Schedule::new(&config, SamplerKind::Euler, SpacingKind::Karras, 51).unwrap_err();
        assert_eq!(refused.to_string(), "steps: is 51; this model has 50 timesteps to choose from");
        for sampler in SamplerKind::ALL {
            for spacing in SpacingKind::ALL {
                let schedule = Schedule::new(&config, sampler, spacing, 50).unwrap();
                assert_eq!(schedule.steps.len(), 50, "{sampler} {spacing}");
            }
        }
    }

    #[test]
    fn a_strength_leaves_the_last_steps_or_is_refused() {
        let config = SchedulerConfig::default();
        for sampler in SamplerKind::ALL {
            for spacing in SpacingKind::ALL {
                let whole = Schedule::new(&config, sampler, spacing, 10).unwrap();
                assert_eq!(Schedule::last_part(&config, sampler, spacing, 10, 1.0).unwrap(), whole);
                let part = Schedule::last_part(&config, sampler, spacing, 10, 0.39).unwrap();
                assert_eq!(part.steps.len(), 3, "{sampler} {spacing}");
                assert_eq!(part.steps[1..], whole.steps[8..], "{sampler} {spacing}");
                let refused = Schedule::last_part(&config, sampler, spacing, 10, 0.09).unwrap_err().to_string();
                assert_eq!(refused, "strength: is 0.09, which leaves no step of 10 to draw; 0.1 leaves one");
            }
        }
    }

    #[test]
    fn a_sigma_s_timestep_is_where_that_sigma_is() {
        let sigmas = SchedulerConfig::default().training_sigmas(TerminalSigma::Exact);
        for timestep in [0.0, 1.0, 500.0, 998.0, 999.0] {
            assert!((timestep_of(&sigmas, interpolate(&sigmas, timestep)) - timestep).abs() < 1e-6);
        }
        assert_eq!((timestep_of(&sigmas, 1e-9), timestep_of(&sigmas, 1e9)), (0.0, 999.0));
    }
}
