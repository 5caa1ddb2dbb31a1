//! The update rules: from latents at one noise level to latents at the next.
//!
//! Each rule sees the network only as `(x, level) → x₀`, and latents at total variance 1. A sampler is built fresh for
//! each image and keeps its own history.

use candle_core::Tensor;

use super::{
    FinalSigmas, NoiseGenerator, PredictionType, SamplerKind, Schedule, SchedulerOptions,
    level::{noise_share, signal_share},
    schedule::{Level, Step},
};
use crate::Result;

/// Denoises latents: `(x, level) → x₀`, all `(1, c, h, w)` in f32.
pub type Denoise<'a> = dyn FnMut(&Tensor, Level) -> Result<Tensor> + 'a;

/// What happens to latents between two looks at the network in one step: `(x, level) → x`, where `level` is that of the
/// second look. Inpainting puts back what is kept there.
pub type Between<'a> = dyn FnMut(Tensor, Level) -> Result<Tensor> + 'a;

/// What a step asks of its surroundings.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct Asked<'a> {
    /// The network.
    pub denoise: &'a mut Denoise<'a>,
    /// Called between two looks at the network.
    pub between: &'a mut Between<'a>,
    /// Fresh noise, for the rules that add any.
    pub noise: &'a mut NoiseGenerator,
}

/// How many steps or more make DPM-Solver++'s last step of second order, where it does not end at σ = 0.
const DPM_SOLVER_LONG: usize = 15;

/// One update rule with its history.
#[derive(Debug)]
pub struct Sampler {
    rule: Rule,
    prediction: PredictionType,
}

#[derive(Debug)]
enum Rule {
    Ddim { clip: Option<f64> },
    Pndm { outputs: Vec<Tensor> },
    Euler,
    EulerAncestral,
    Heun { clip: Option<f64> },
    Dpmpp2m { previous: Option<(Tensor, f64)>, steps_left: usize, last_is_first_order: bool },
}

/// What a step gives.
#[derive(Debug, Clone)]
pub struct Stepped {
    /// The latents at the step's end.
    pub latents: Tensor,
    /// What the network last took the picture to be, for previews.
    pub denoised: Tensor,
}

impl Sampler {
    /// A sampler for one image, drawn along `schedule`.
    #[must_use]
    pub fn new(options: &SchedulerOptions, schedule: &Schedule) -> Self {
        let steps = schedule.steps.len();
        let rule = match options.sampler {
            SamplerKind::Ddim => Rule::Ddim { clip: options.clip },
            SamplerKind::Pndm => Rule::Pndm { outputs: Vec::new() },
            SamplerKind::Euler => Rule::Euler,
            SamplerKind::EulerAncestral => Rule::EulerAncestral,
            SamplerKind::Heun => Rule::Heun { clip: options.clip },
            SamplerKind::Dpmpp2m => Rule::Dpmpp2m {
                previous: None,
                steps_left: steps,
                last_is_first_order: options.euler_at_final
                    || options.final_sigmas == FinalSigmas::Zero
                    || (options.lower_order_final && schedule.whole < DPM_SOLVER_LONG),
            },
        };
        Self { rule, prediction: options.prediction_type }
    }

    /// Takes one step from latents `x`, asking the network once or twice.
    ///
    /// # Errors
    ///
    /// What the network fails with, or the tensor library.
    pub fn step(&mut self, x: &Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
        let denoised = (asked.denoise)(x, step.level)?;
        let (from, to) = (step.level.sigma, step.next_sigma);
        match &mut self.rule {
            Rule::Ddim { clip } => {
                let latents = ddim(x, &denoised, from, to, *clip)?;
                Ok(Stepped { latents, denoised })
            }
            Rule::Euler => Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised }),
            Rule::EulerAncestral => {
                let latents = euler_ancestral(x, &denoised, from, to, asked.noise)?;
                Ok(Stepped { latents, denoised })
            }
            Rule::Heun { clip } => heun(x, denoised, step, asked, *clip),
            Rule::Pndm { outputs } => pndm(x, &denoised, step, asked, outputs, self.prediction),
            Rule::Dpmpp2m { previous, steps_left, last_is_first_order } => {
                *steps_left = steps_left.saturating_sub(1);
                let first_order = *steps_left == 0 && *last_is_first_order;
                let history = if first_order { None } else { previous.take() };
                let latents = dpmpp_2m(x, &denoised, from, to, history)?;
                *previous = Some((denoised.clone(), from));
                Ok(Stepped { latents, denoised })
            }
        }
    }
}

/// Along the straight line in σ from `x` with x₀ fixed: DDIM's step (Song et al. 2020, equation 12, η = 0), which is
/// Euler's on the probability-flow ODE (Karras et al. 2022, algorithm 1 without the correction).
fn transfer(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    let of_x = noise_share(to) / noise_share(from);
    let of_denoised = signal_share(to) - signal_share(from) * of_x;
    Ok(((x * of_x)? + (denoised * of_denoised)?)?)
}

/// As [`transfer`], with x₀ kept within ± `clip` while the direction to it stays.
fn ddim(x: &Tensor, denoised: &Tensor, from: f64, to: f64, clip: Option<f64>) -> Result<Tensor> {
    let moved = transfer(x, denoised, from, to)?;
    match clip {
        None => Ok(moved),
        Some(range) => Ok((moved + ((denoised.clamp(-range, range)? - denoised)? * signal_share(to))?)?),
    }
}

/// Euler's step to less noise than asked for, and fresh noise up to it.
fn euler_ancestral(x: &Tensor, denoised: &Tensor, from: f64, to: f64, noise: &mut NoiseGenerator) -> Result<Tensor> {
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    let down = (to * to - up * up).max(0.0).sqrt();
    let of_x = signal_share(to) * down / noise_share(from);
    let of_denoised = signal_share(to) * (1.0 - down / from);
    let fresh = Tensor::from_vec(noise.normals(x.elem_count()), x.shape(), x.device())?;
    Ok((((x * of_x)? + (denoised * of_denoised)?)? + (fresh * (signal_share(to) * up))?)?)
}

/// Karras et al. 2022, algorithm 1: the mean of the slopes at both ends, to x₀ within ± `clip`.
fn heun(x: &Tensor, denoised: Tensor, step: &Step, asked: Asked<'_>, clip: Option<f64>) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    let clipped = |denoised: Tensor| match clip {
        Some(range) => denoised.clamp(-range, range),
        None => Ok(denoised),
    };
    let denoised = clipped(denoised)?;
    let predicted = transfer(x, &denoised, from, to)?;
    let Some(second) = step.second else { return Ok(Stepped { latents: predicted, denoised }) };
    let predicted = (asked.between)(predicted, second.level)?;
    let again = clipped((asked.denoise)(&predicted, second.level)?)?;
    let half = (to - from) / 2.0;
    let signal = signal_share(to);
    let first_slope = ((x * (signal / signal_share(from)))? - (&denoised * signal)?)?;
    let second_slope = (predicted - (&again * signal)?)?;
    let start = (x * (signal / signal_share(from)))?;
    let latents = ((start + (first_slope * (half / from))?)? + (second_slope * (half / to))?)?;
    Ok(Stepped { latents, denoised: again })
}

/// Liu et al. 2022, equation 12: a linear multi-step rule on the network's outputs, of up to fourth order, then DDIM's
/// step. As in diffusers, the outputs are combined as the network gives them, and turned into x₀ at the latents' level.
fn pndm(
    x: &Tensor,
    denoised: &Tensor,
    step: &Step,
    asked: Asked<'_>,
    outputs: &mut Vec<Tensor>,
    prediction: PredictionType,
) -> Result<Stepped> {
    let (from, to) = (step.level.sigma, step.next_sigma);
    outputs.insert(0, prediction.output(x, denoised, from)?);
    outputs.truncate(4);
    if let Some(second) = step.second {
        let predicted = (asked.between)(transfer(x, denoised, from, to)?, second.level)?;
        let again = (asked.denoise)(&predicted, second.level)?;
        let output = prediction.output(&predicted, &again, second.level.sigma)?;
        let mean = ((output + &outputs[0])? * 0.5)?;
        let denoised = prediction.denoised(x, &mean, second.from_sigma)?;
        return Ok(Stepped { latents: transfer(x, &denoised, second.from_sigma, second.next_sigma)?, denoised });
    }
    let weights: &[f64] = match outputs.len() {
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    };
    let mut combined = (&outputs[0] * weights[0])?;
    for (output, weight) in outputs.iter().zip(weights).skip(1) {
        combined = (combined + (output * *weight)?)?;
    }
    let denoised = prediction.denoised(x, &combined, from)?;
    Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised })
}

/// Lu et al. 2022 (DPM-Solver++), algorithm 2; of first order without a `previous` x₀ and its σ.
fn dpmpp_2m(x: &Tensor, denoised: &Tensor, from: f64, to: f64, previous: Option<(Tensor, f64)>) -> Result<Tensor> {
    let Some((previous, previous_sigma)) = previous else { return transfer(x, denoised, from, to) };
    // λ = −ln σ, so h = ln(from / to).
    let (h, h_before) = ((from / to).ln(), (previous_sigma / from).ln());
    let slope = ((denoised - previous)? * (h / h_before))?;
    let extrapolated = (denoised + (slope * 0.5)?)?;
    transfer(x, &extrapolated, from, to)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::{SchedulerConfig, SpacingKind};

    /// A picture whose best denoiser is known: x₀ is normal with variance `v`, so E[x₀ | x] is linear in x, and the
    /// probability-flow ODE ends at `x₀ = √v ε` for the noise ε it starts from.
    fn exact_denoiser(variance: f64) -> impl FnMut(&Tensor, Level) -> Result<Tensor> {
        move |x, level| {
            let (signal, noise) = (signal_share(level.sigma), noise_share(level.sigma));
            Ok((x * (signal * variance / (signal * signal * variance + noise * noise)))?)
        }
    }

    fn draw(kind: SamplerKind, spacing: SpacingKind, steps: usize) -> f32 {
        let json = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}"#;
        let config: SchedulerConfig = serde_json::from_str(json).unwrap();
        let options = config.options(kind, spacing).unwrap();
        let schedule = Schedule::new(&options, steps).unwrap();
        let mut sampler = Sampler::new(&options, &schedule);
        let mut noise = NoiseGenerator::new(0);
        let mut denoise = exact_denoiser(0.25);
        let mut x = Tensor::new(&[[[[schedule.initial_scale as f32]]]], &Device::Cpu).unwrap();
        for step in &schedule.steps {
            let asked = Asked { denoise: &mut denoise, between: &mut |x, _| Ok(x), noise: &mut noise };
            x = sampler.step(&x, step, asked).unwrap().latents;
        }
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn every_deterministic_rule_converges_to_the_exact_solution() {
        for kind in SamplerKind::ALL.into_iter().filter(|kind| *kind != SamplerKind::EulerAncestral) {
            for spacing in SpacingKind::ALL {
                let (few, many) = (draw(kind, spacing, 10), draw(kind, spacing, 100));
                let error = |x: f32| (x - 0.5).abs();
                assert!(error(many) < 0.02, "{kind} {spacing}: {many}");
                assert!(error(many) < error(few) + 1e-3, "{kind} {spacing}: {few}, {many}");
            }
        }
    }
}
