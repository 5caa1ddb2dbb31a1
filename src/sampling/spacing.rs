//! How a drawing's σ are spaced where the checkpoint's own timesteps do not decide.
//!
//! Owns every named spacing, a few lines each. Next: `schedule` finds their timesteps, and where the last step ends.

use super::{SamplerKind, SchedulerOptions, SpacingKind, beta::beta_quantile, config::STEPS};
use crate::{Error, Result};

/// Karras et al. 2022, equation 5.
const KARRAS_RHO: f64 = 7.0;

/// σ at which each of about `steps` steps begins. `training` has all of training's, growing; `spaced` those of the
/// checkpoint's own spacing, falling.
pub(super) fn spaced_sigmas(
    options: &SchedulerOptions,
    training: &[f64],
    spaced: &[f64],
    steps: usize,
) -> Result<Vec<f64>> {
    let (least, most) = (training[0], training[training.len() - 1]);
    Ok(match options.spacing {
        SpacingKind::Given => options.sigmas.clone(),
        SpacingKind::Ays => {
            options.aligned.expect("only a configuration that has levels gives options of this spacing").sigmas(steps)
        }
        SpacingKind::Lu => evenly(most.ln(), least.ln(), steps).into_iter().map(f64::exp).collect(),
        // The angle of x₀ and noise falls evenly.
        SpacingKind::KlOptimal => evenly(most.atan(), least.atan(), steps).into_iter().map(f64::tan).collect(),
        SpacingKind::SgmUniform => sgm_uniform(training, steps),
        SpacingKind::Simple => {
            (0..steps).map(|number| training[training.len() - 1 - number * training.len() / steps]).collect()
        }
        SpacingKind::DdimUniform => ddim_uniform(training, steps)?,
        _ => between_ends(options, (most, least), spaced, steps)?,
    })
}

/// The spacings that go between two ends: the checkpoint's where it names them, else all of training for DPM-Solver++ and
/// what `spaced` spans for the others, as in diffusers.
fn between_ends(options: &SchedulerOptions, all: (f64, f64), spaced: &[f64], steps: usize) -> Result<Vec<f64>> {
    let (most, least) =
        if options.sampler.is_of_dpm_solver_kind() { all } else { (spaced[0], spaced[spaced.len() - 1]) };
    // diffusers' LMS and DPM-Solver SDE do not read the checkpoint's here.
    let ignores =
        matches!(options.sampler, SamplerKind::Lms | SamplerKind::DpmppSde) && options.spacing == SpacingKind::Karras;
    let ends = if ignores { (None, None) } else { (options.sigma_max, options.sigma_min) };
    let (most, least) = (ends.0.unwrap_or(most), ends.1.unwrap_or(least));
    if steps > 1 && most < least {
        let message =
            format!("is {steps}; with this model's sigma_min and sigma_max σ would rise, {most:.3} to {least:.3}");
        return Err(Error::invalid("steps", message));
    }
    let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
    Ok(match options.spacing {
        SpacingKind::Exponential => evenly(most.ln(), least.ln(), steps).into_iter().map(f64::exp).collect(),
        SpacingKind::Beta => {
            evenly(1.0, 0.0, steps).into_iter().map(|part| least + beta_quantile(part) * (most - least)).collect()
        }
        // Equation 5.
        _ => evenly(root(most), root(least), steps).into_iter().map(|root| root.powf(KARRAS_RHO)).collect(),
    })
}

/// `count` numbers from `first` to `last`, evenly; of one, the first.
#[expect(clippy::cast_precision_loss, reason = "steps are few")]
fn evenly(first: f64, last: f64, count: usize) -> Vec<f64> {
    let part = |number: usize| if count == 1 { 0.0 } else { number as f64 / (count - 1) as f64 };
    (0..count).map(|number| first + part(number) * (last - first)).collect()
}

/// Evenly in timesteps from the last of training towards the first, which is not reached; σ between timesteps is linear in
/// its logarithm.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "timesteps are few and not negative"
)]
fn sgm_uniform(training: &[f64], steps: usize) -> Vec<f64> {
    let last = training.len() - 1;
    let sigma = |number: usize| {
        let timestep = (last * (steps - number)) as f64 / steps as f64;
        let below = (timestep as usize).min(last - 1);
        let (low, high) = (training[below].ln(), training[below + 1].ln());
        (low + (timestep - below as f64) * (high - low)).exp()
    };
    (0..steps).map(sigma).collect()
}

/// Every `N/n`th timestep (whole division) from the second on. There are more than `steps` where `n` does not divide `N`
/// well, and one fewer where every timestep is a step. More than a request may ask for are refused.
fn ddim_uniform(training: &[f64], steps: usize) -> Result<Vec<f64>> {
    let mut sigmas: Vec<f64> = training.iter().skip(1).step_by((training.len() / steps).max(1)).copied().collect();
    if sigmas.len() > *STEPS.end() {
        let drawn = sigmas.len();
        let message =
            format!("is {steps}, of which ddim_uniform makes {drawn} with this model; {} are allowed", STEPS.end());
        return Err(Error::invalid("steps", message));
    }
    sigmas.reverse();
    Ok(sigmas)
}
