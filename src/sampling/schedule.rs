//! The noise levels that a drawing visits, on the host in f64.
//!
//! A [`Schedule`] is a list of steps, each from one σ to another. The two ends of neighbouring steps are not always the
//! same: diffusers' DDIM and PNDM go to the timestep `N/n` (whole division) below, whatever comes next, and the picture
//! depends on it. The file is a little long: whole schedules and their last parts, for pictures to start from, are made of
//! the same pieces.

use super::{
    BetaSchedule, FinalSigmas, Interpolation, SamplerKind, SchedulerOptions, SpacingKind, TimestepSpacing,
    level::noise_share,
    spacing::spaced_sigmas,
    timesteps::{dpm_solver_timesteps, timesteps},
    training::TerminalSigma,
};
use crate::{Error, Result};

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
    /// The σ that the corrected step starts from, or that the first part of a step by Runge and Kutta goes to.
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
    /// The factor of the last step's latents that makes them a picture's.
    pub final_scale: f64,
    /// How many steps the whole schedule has, of which `steps` may be the last part.
    pub whole: usize,
    /// In units of what the latents are: 1, or the data's deviation for networks that were preconditioned as EDM's.
    pub unit: f64,
}

impl Schedule {
    /// The schedule of a drawing that was asked to have `steps` steps. diffusers' DPM-Solver has fewer where
    /// `lambda_min_clipped` cuts trailing timesteps off, its Euler one more for continuous timesteps with log-linear σ.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParameter`] for more steps than the checkpoint has timesteps, or so few that all their σ are below
    /// the checkpoint's `sigma_min`.
    pub fn new(options: &SchedulerOptions, steps: usize) -> Result<Self> {
        let most = match options.spacing {
            SpacingKind::Checkpoint if options.sampler.is_for_distilled() => options.original_steps,
            SpacingKind::Checkpoint => options.last_timestep(),
            _ => options.num_train_timesteps,
        };
        if steps == 0 || steps > most {
            return Err(Error::invalid("steps", format!("is {steps}; this model has {most} timesteps to choose from")));
        }
        match (options.sampler, options.spacing) {
            (SamplerKind::Ddim, SpacingKind::Checkpoint) => {
                // DDIM can start from no signal at all.
                Ok(Self::on_timesteps(options, TerminalSigma::Exact, steps))
            }
            (SamplerKind::Pndm, SpacingKind::Checkpoint) => {
                // PNDM extrapolates outputs, and looks back at its first level.
                let schedule = Self::on_timesteps(options, TerminalSigma::Clamped, steps);
                Ok(if options.runge_kutta_start {
                    schedule.with_runge_kutta_start(options)
                } else {
                    schedule.with_pndm_start(options)
                })
            }
            (SamplerKind::Lcm | SamplerKind::Tcd, SpacingKind::Checkpoint) => {
                Ok(Self::on_distilled_timesteps(options, steps))
            }
            (SamplerKind::EdmEuler | SamplerKind::EdmDpmpp2m, _) => Ok(Self::of_edm(options, steps)),
            (SamplerKind::Ddpm, SpacingKind::Checkpoint) => Ok(Self::on_listed_timesteps(options, steps)),
            _ => Self::on_sigmas(options, steps),
        }
    }

    /// The part of the schedule of `steps` steps that a drawing of `strength` takes: the last `steps · strength`, rounded
    /// down, as diffusers counts them. Noise is added to a picture up to the level where the part begins (SDEdit, Meng et
    /// al. 2022). A step with two looks at the network stays whole, so a drawing never begins in the middle of one.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and when no step is left.
    pub fn last_part(options: &SchedulerOptions, steps: usize, strength: f64) -> Result<Self> {
        let schedule = Self::new(options, steps)?;
        let skipped = steps - steps_of_strength(steps, strength);
        if skipped >= schedule.whole {
            #[expect(clippy::cast_precision_loss, reason = "steps are few")]
            let least = ((steps + 1 - schedule.whole.min(steps)) as f64 * 1000.0 / steps as f64).ceil() / 1000.0;
            let message = format!("is {strength}, which leaves no step of {steps} to draw; {least} leaves one");
            return Err(Error::invalid("strength", message));
        }
        Ok(match (options.sampler, options.spacing) {
            _ if skipped == 0 => schedule,
            (SamplerKind::Pndm, SpacingKind::Checkpoint) if options.runge_kutta_start => {
                schedule.from(skipped, options.sampler).with_runge_kutta_start(options)
            }
            (SamplerKind::Pndm, SpacingKind::Checkpoint) => schedule.pndm_from(skipped, options),
            _ => schedule.from(skipped, options.sampler),
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
    fn pndm_from(mut self, skipped: usize, options: &SchedulerOptions) -> Self {
        let stride = options.num_train_timesteps / self.whole;
        let mut first = self.steps[(skipped - 1).max(1)];
        first.second = Some(pndm_look(options, self.steps[skipped].level, stride));
        self.steps.splice(..=skipped, [first]);
        self
    }

    /// DDIM's and PNDM's: from each timestep to the one `N/n` below.
    fn on_timesteps(options: &SchedulerOptions, terminal: TerminalSigma, steps: usize) -> Self {
        let sigmas = options.training_sigmas(terminal);
        let last = if options.set_alpha_to_one { 0.0 } else { sigmas[0] };
        let stride = options.num_train_timesteps / steps;
        let step = |timestep: f64| {
            let next_sigma = index(timestep).checked_sub(stride).map_or(last, |t| sigmas[t]);
            let level = Level { timestep, sigma: sigmas[index(timestep)] };
            Step { level, next_sigma, second: None }
        };
        let steps: Vec<Step> = timesteps(options, steps).into_iter().map(|t| step(t.round_ties_even())).collect();
        let whole = steps.len();
        Self { initial_scale: 1.0, steps, final_scale: 1.0, whole, unit: 1.0 }
    }

    /// DDPM's: from each timestep to the next of the list, and to σ = 0.
    fn on_listed_timesteps(options: &SchedulerOptions, steps: usize) -> Self {
        let sigmas = options.training_sigmas(TerminalSigma::Exact);
        let level = |t: f64| Level { timestep: t, sigma: sigmas[index(t)] };
        let levels: Vec<Level> = timesteps(options, steps).into_iter().map(|t| level(t.round_ties_even())).collect();
        let next_sigma = |number: usize| levels.get(number + 1).map_or(0.0, |next| next.sigma);
        let step =
            |(number, level): (usize, &Level)| Step { level: *level, next_sigma: next_sigma(number), second: None };
        let steps: Vec<Step> = levels.iter().enumerate().map(step).collect();
        let whole = steps.len();
        Self { initial_scale: 1.0, steps, final_scale: 1.0, whole, unit: 1.0 }
    }

    /// PNDM looks twice in its first step: there is no history yet to extrapolate from (Liu et al. 2022, section 3.3,
    /// with the pseudo improved Euler step of latent diffusion's PLMS).
    fn with_pndm_start(mut self, options: &SchedulerOptions) -> Self {
        let stride = options.num_train_timesteps / self.steps.len();
        if let [first, second, ..] = &mut self.steps[..] {
            first.second = Some(pndm_look(options, second.level, stride));
        }
        self
    }

    /// PNDM's first three steps by Runge and Kutta's method (Liu et al. 2022, equation 13): each goes to the next timestep of
    /// the list, and looks half a stride above that. A drawing of fewer than four steps has fewer of them.
    fn with_runge_kutta_start(mut self, options: &SchedulerOptions) -> Self {
        let sigmas = options.training_sigmas(TerminalSigma::Clamped);
        let half = options.num_train_timesteps / self.whole / 2;
        for number in 0..(self.steps.len() - 1).min(3) {
            let next = self.steps[number + 1].level;
            let step = &mut self.steps[number];
            step.next_sigma = next.sigma;
            let middle = (index(next.timestep) + half).min(sigmas.len() - 1);
            #[expect(clippy::cast_precision_loss, reason = "timesteps are few")]
            let level = Level { timestep: middle as f64, sigma: sigmas[middle] };
            let first_end = sigmas[index(step.level.timestep).saturating_sub(half)];
            step.second = Some(SecondLook { level, from_sigma: first_end, next_sigma: next.sigma });
        }
        self
    }

    /// Where the first steps with a second look end, up to the first without.
    pub(super) fn ends_of_second_looks(&self) -> Vec<Level> {
        let steps = self.steps.windows(2).take_while(|pair| pair[0].second.is_some());
        steps.map(|pair| pair[1].level).collect()
    }

    /// The samplers of the k-diffusion kind: from each σ to the next.
    fn on_sigmas(options: &SchedulerOptions, steps: usize) -> Result<Self> {
        let training = options.training_sigmas(TerminalSigma::Clamped);
        let multistep = options.sampler.is_of_dpm_solver_kind();
        let mut timesteps = if multistep { dpm_solver_timesteps(options, steps) } else { timesteps(options, steps) };
        let mut sigmas: Vec<f64> = match options.interpolation {
            Interpolation::Linear => timesteps.iter().map(|t| interpolate(&training, *t)).collect(),
            Interpolation::LogLinear => log_linear(&training, steps),
        };
        if options.spacing != SpacingKind::Checkpoint {
            sigmas = spaced_sigmas(options, &training, &sigmas, steps)?;
            timesteps = sigmas.iter().map(|sigma| timestep_of(&training, *sigma)).collect();
            if let Some(whole) = whole_timesteps(options) {
                timesteps.iter_mut().for_each(|timestep| *timestep = whole(*timestep));
            }
        }
        if options.continuous_timesteps {
            timesteps = sigmas.iter().map(|sigma| 0.25 * sigma.ln()).collect();
        }
        let starts_at_sigma = options.timestep_spacing != TimestepSpacing::Leading && !multistep;
        let initial_scale = if starts_at_sigma { noise_share(sigmas[0]) } else { 1.0 };
        sigmas.push(last_sigma(options, training[0], sigmas[sigmas.len() - 1]));
        let step = |(number, timestep): (usize, f64)| {
            let level = Level { timestep, sigma: sigmas[number] };
            Step { level, next_sigma: sigmas[number + 1], second: None }
        };
        let steps: Vec<Step> = timesteps.into_iter().enumerate().map(step).collect();
        // The latents of the others are x₀ + σ ε in diffusers, not at total variance 1, and end as they are.
        let last = steps[steps.len() - 1].next_sigma;
        let final_scale = if multistep { 1.0 } else { last.hypot(1.0) };
        let whole = steps.len();
        let mut schedule = Self { initial_scale, steps, final_scale, whole, unit: 1.0 };
        match options.sampler {
            SamplerKind::Heun => schedule.add_heun_looks(options.rescale_betas_zero_snr),
            SamplerKind::Pndm => schedule.add_first_look(),
            SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral | SamplerKind::Dpmpp2sAncestral | SamplerKind::DpmppSde => {
                schedule.add_looks_halfway(options, &training)
            }
            _ => {}
        }
        Ok(schedule)
    }

    /// Heun's method looks again at the end of every step but the last, which ends where there is no noise. From the
    /// almost infinite σ of a zero-terminal-SNR checkpoint a single look is all that makes sense: there the second
    /// slope, times a step of four thousand, would drown the picture.
    fn add_heun_looks(&mut self, first_is_plain: bool) {
        for number in usize::from(first_is_plain)..self.steps.len() - 1 {
            self.look_again_at_the_end(number);
        }
    }

    /// DPM-Solver-2 looks again half way in log σ in every step but the last, and from an almost infinite σ, as Heun's. The
    /// way of the ancestral one ends below the next σ, and fresh noise makes up for the rest.
    fn add_looks_halfway(&mut self, options: &SchedulerOptions, training: &[f64]) {
        let last = self.steps.len() - 1;
        for step in &mut self.steps[..last].iter_mut().skip(usize::from(options.rescale_betas_zero_snr)) {
            let (from_sigma, next_sigma) = (step.level.sigma, step.next_sigma);
            let ancestral = matches!(options.sampler, SamplerKind::Dpm2Ancestral | SamplerKind::Dpmpp2sAncestral);
            let end = if ancestral { next_sigma * next_sigma / from_sigma } else { next_sigma };
            let sigma = (from_sigma * end).sqrt();
            let continuous = options.continuous_timesteps;
            let timestep = if continuous { 0.25 * sigma.ln() } else { timestep_of(training, sigma) };
            let level = Level { timestep, sigma };
            step.second = Some(SecondLook { level, from_sigma, next_sigma });
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

/// What is before the point. The last of training counts as just below itself: in diffusers' f32 it comes out so for the
/// betas of every Stable Diffusion model.
fn cut_off(timestep: f64) -> f64 {
    const ROUNDING: f64 = 1e-6;
    (timestep - ROUNDING).floor().max(0.0)
}

/// How diffusers makes the timesteps of spaced σ whole, where it does.
fn whole_timesteps(options: &SchedulerOptions) -> Option<fn(f64) -> f64> {
    // Those that diffusers knows by Karras' name or not at all are rounded as Karras' are.
    let cut = matches!(options.spacing, SpacingKind::Exponential | SpacingKind::Beta);
    match options.sampler {
        // The network's timesteps are whole, which cuts off what is not rounded.
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde | SamplerKind::Dpmpp3mSde
            if options.beta_schedule == BetaSchedule::SquaredcosCapV2 =>
        {
            Some(f64::trunc)
        }
        sampler if sampler.is_of_dpm_solver_kind() && cut => Some(cut_off),
        SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral if !cut => Some(f64::round_ties_even),
        sampler if sampler.is_of_dpm_solver_kind() => Some(f64::round_ties_even),
        _ => None,
    }
}

/// Where a schedule ends whose last step begins at σ `last`; `least` is the least of training.
fn last_sigma(options: &SchedulerOptions, least: f64, last: f64) -> f64 {
    let ends_at_its_last = matches!(options.sampler, SamplerKind::UniPc | SamplerKind::Deis);
    match (options.final_sigmas, options.spacing) {
        (FinalSigmas::Zero, _) => 0.0,
        (FinalSigmas::SigmaMin, SpacingKind::Checkpoint | SpacingKind::Lu) => least,
        (FinalSigmas::SigmaMin, SpacingKind::Karras | SpacingKind::Exponential | SpacingKind::Beta) => {
            if ends_at_its_last {
                last
            } else {
                least
            }
        }
        // DEIS computes with the logarithm of σ, so it ends above 0.
        (FinalSigmas::SigmaMin, _) if options.sampler == SamplerKind::Deis => least.min(last),
        // Where these end is a part of them.
        (FinalSigmas::SigmaMin, _) => 0.0,
    }
}

/// PNDM's second look, at `level`: the step from one stride above it, corrected by what the network gives there.
fn pndm_look(options: &SchedulerOptions, level: Level, stride: usize) -> SecondLook {
    let sigmas = options.training_sigmas(TerminalSigma::Clamped);
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

/// The index of a whole timestep.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "timesteps are whole and not negative")]
pub(super) fn index(timestep: f64) -> usize {
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

/// `steps + 1` values of σ from the most of training to the least, evenly in their logarithm.
#[expect(clippy::cast_precision_loss, reason = "steps are few")]
fn log_linear(training: &[f64], steps: usize) -> Vec<f64> {
    let (most, least) = (training[training.len() - 1].ln(), training[0].ln());
    (0..=steps).map(|number| (most + number as f64 / steps as f64 * (least - most)).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{AlignedLevels, SchedulerConfig};

    fn options(json: &str, sampler: SamplerKind, spacing: SpacingKind) -> SchedulerOptions {
        let mut config = serde_json::from_str::<SchedulerConfig>(json).unwrap();
        config.align(AlignedLevels::StableDiffusion1);
        config.options(sampler, spacing).unwrap()
    }

    #[test]
    fn ddim_uniform_refuses_steps_of_which_it_makes_more_than_a_request_may_have() {
        let json = r#"{"num_train_timesteps": 1000}"#;
        let options = options(json, SamplerKind::Euler, SpacingKind::DdimUniform);
        let message = "steps: is 150, of which ddim_uniform makes 167 with this model; 150 are allowed";
        assert_eq!(refused(&options, 150), message);
        assert_eq!(Schedule::new(&options, 142).unwrap().steps.len(), 143);
    }

    #[test]
    fn ays_is_refused_by_name_where_a_family_has_no_levels() {
        let config: SchedulerConfig = serde_json::from_str(r#"{"_class_name": "EulerDiscreteScheduler"}"#).unwrap();
        let message = config.options(SamplerKind::Euler, SpacingKind::Ays).unwrap_err().to_string();
        assert!(
            message
                .contains("scheduler: is ays, which has no levels for this model's family; one of checkpoint, karras"),
            "{message}"
        );
        assert!(!config.spacings().contains(&SpacingKind::Ays));
    }

    #[test]
    fn edm_refuses_spacings_and_levels_by_name() {
        let config: SchedulerConfig = serde_json::from_str(r#"{"_class_name": "EDMEulerScheduler"}"#).unwrap();
        for (spacing, field) in [(SpacingKind::Simple, "scheduler: is simple"), (SpacingKind::Given, "sigmas: ")] {
            let message = config.options(SamplerKind::EdmEuler, spacing).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("one of checkpoint, karras, exponential"), "{message}");
        }
        assert_eq!(config.spacings(), [SpacingKind::Checkpoint, SpacingKind::Karras, SpacingKind::Exponential]);
    }

    fn refused(options: &SchedulerOptions, steps: usize) -> String {
        Schedule::new(options, steps).unwrap_err().to_string()
    }

    #[test]
    fn more_steps_than_timesteps_are_refused() {
        let json = r#"{"num_train_timesteps": 50}"#;
        let euler = options(json, SamplerKind::Euler, SpacingKind::Karras);
        assert_eq!(refused(&euler, 51), "steps: is 51; this model has 50 timesteps to choose from");
        for sampler in SamplerKind::ALL.into_iter().filter(|kind| !kind.is_edm()) {
            for spacing in SpacingKind::ALL {
                if sampler.is_for_distilled() && spacing.timesteps().is_some() {
                    continue;
                }
                let schedule = Schedule::new(&options(json, sampler, spacing), 50).unwrap();
                // Its first timestep is the second of training.
                let wanted = if spacing == SpacingKind::DdimUniform { 49 } else { 50 };
                assert_eq!(schedule.steps.len(), wanted, "{sampler} {spacing}");
            }
        }
        // λ = −ln σ is 2.3 at σ = 0.1.
        let json = r#"{"lambda_min_clipped": 2.3}"#;
        let solver = options(json, SamplerKind::Dpmpp2m, SpacingKind::Checkpoint);
        assert_eq!(refused(&solver, 150), "steps: is 150; this model has 27 timesteps to choose from");
        let lcm = options(r#"{"original_inference_steps": 40}"#, SamplerKind::Lcm, SpacingKind::Checkpoint);
        assert_eq!(refused(&lcm, 41), "steps: is 41; this model has 40 timesteps to choose from");
    }

    #[test]
    fn steps_that_start_below_the_smallest_sigma_are_refused() {
        let json = r#"{"timestep_spacing": "leading", "sigma_min": 4}"#;
        let euler = options(json, SamplerKind::Euler, SpacingKind::Karras);
        let said = "steps: is 2; with this model's sigma_min and sigma_max σ would rise, 3.443 to 4.000";
        assert_eq!(refused(&euler, 2), said);
        Schedule::new(&euler, 20).unwrap();
    }

    #[test]
    fn a_sigma_s_timestep_is_where_that_sigma_is() {
        let sigmas = options("{}", SamplerKind::Ddim, SpacingKind::Checkpoint).training_sigmas(TerminalSigma::Exact);
        for timestep in [0.0, 1.0, 500.0, 998.0, 999.0] {
            assert!((timestep_of(&sigmas, interpolate(&sigmas, timestep)) - timestep).abs() < 1e-6);
        }
        assert_eq!((timestep_of(&sigmas, 1e-9), timestep_of(&sigmas, 1e9)), (0.0, 999.0));
    }
}
