//! The update rules: from latents at one noise level to latents at the next.
//!
//! Each rule sees the network only as `(x, level) → x₀`, and latents at total variance 1. A sampler is built fresh for
//! each batch of images and keeps their history.

mod ddim;
mod deis;
mod dpm_2;
mod dpmpp_2m;
mod euler_ancestral;
mod heun;
mod lms;
mod pndm;
mod uni_pc;

use candle_core::Tensor;

use super::{
    BatchNoise, FinalSigmas, PredictionType, SamplerKind, Schedule, SchedulerOptions,
    schedule::{Level, Step},
    select,
};
use crate::Result;
use ddim::transfer;
use uni_pc::UniPc;

/// Denoises latents: `(x, level) → x₀`, all `(b, c, h, w)` in f32.
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
    /// Fresh noise of each image, for the rules that add any.
    pub noise: &'a mut BatchNoise,
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
    Dpm2,
    Dpm2Ancestral,
    Lms { slopes: Vec<(Tensor, f64)> },
    UniPc(UniPc),
    Deis { previous: Option<(Tensor, f64)>, steps_left: usize, last_is_first_order: bool },
    Ddpm { clip: Option<f64> },
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
    /// A sampler for a batch of images, all drawn along `schedule`.
    #[must_use]
    pub fn new(options: &SchedulerOptions, schedule: &Schedule) -> Self {
        let steps = schedule.steps.len();
        let last_is_first_order = options.euler_at_final
            || options.final_sigmas == FinalSigmas::Zero
            || (options.lower_order_final && schedule.whole < DPM_SOLVER_LONG);
        let rule = match options.sampler {
            SamplerKind::Ddim => Rule::Ddim { clip: options.clip },
            SamplerKind::Pndm => Rule::Pndm { outputs: Vec::new() },
            SamplerKind::Euler => Rule::Euler,
            SamplerKind::EulerAncestral => Rule::EulerAncestral,
            SamplerKind::Heun => Rule::Heun { clip: options.clip },
            SamplerKind::Dpmpp2m => Rule::Dpmpp2m { previous: None, steps_left: steps, last_is_first_order },
            SamplerKind::Dpm2 => Rule::Dpm2,
            SamplerKind::Dpm2Ancestral => Rule::Dpm2Ancestral,
            SamplerKind::Lms => Rule::Lms { slopes: Vec::new() },
            SamplerKind::UniPc => Rule::UniPc(UniPc::new(options.bh, steps, options.lower_order_final)),
            SamplerKind::Deis => Rule::Deis { previous: None, steps_left: steps, last_is_first_order },
            SamplerKind::Ddpm => Rule::Ddpm { clip: options.clip },
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
                let latents = ddim::ddim(x, &denoised, from, to, *clip)?;
                Ok(Stepped { latents, denoised })
            }
            Rule::Euler => Ok(Stepped { latents: transfer(x, &denoised, from, to)?, denoised }),
            Rule::EulerAncestral => {
                let latents = euler_ancestral::euler_ancestral(x, &denoised, from, to, asked.noise)?;
                Ok(Stepped { latents, denoised })
            }
            Rule::Heun { clip } => heun::heun(x, denoised, step, asked, *clip),
            Rule::Pndm { outputs } => pndm::pndm(x, &denoised, step, asked, outputs, self.prediction),
            Rule::Dpmpp2m { previous, steps_left, last_is_first_order } => {
                *steps_left = steps_left.saturating_sub(1);
                let first_order = *steps_left == 0 && *last_is_first_order;
                let history = if first_order { None } else { previous.take() };
                let latents = dpmpp_2m::dpmpp_2m(x, &denoised, from, to, history)?;
                *previous = Some((denoised.clone(), from));
                Ok(Stepped { latents, denoised })
            }
            Rule::Dpm2 => dpm_2::dpm_2(x, denoised, step, asked),
            Rule::Dpm2Ancestral => dpm_2::dpm_2_ancestral(x, denoised, step, asked),
            Rule::Lms { slopes } => Ok(Stepped { latents: lms::lms(x, &denoised, from, to, slopes)?, denoised }),
            Rule::UniPc(rule) => Ok(Stepped { latents: rule.step(x, &denoised, from, to)?, denoised }),
            Rule::Deis { previous, steps_left, last_is_first_order } => {
                *steps_left = steps_left.saturating_sub(1);
                let first_order = *steps_left == 0 && *last_is_first_order;
                let slope = deis::slope(x, &denoised, from)?;
                let history = previous.replace((slope.clone(), from)).filter(|_| !first_order);
                Ok(Stepped { latents: deis::deis(x, &slope, from, to, history.as_ref())?, denoised })
            }
            Rule::Ddpm { clip } => {
                let denoised = clip.map_or(Ok(denoised.clone()), |range| denoised.clamp(-range, range))?;
                let latents = euler_ancestral::euler_ancestral(x, &denoised, from, to, asked.noise)?;
                Ok(Stepped { latents, denoised })
            }
        }
    }

    /// Keeps the history of the images at `kept` of the batch, in that order.
    ///
    /// # Errors
    ///
    /// The tensor library's.
    pub fn select(&mut self, kept: &[usize]) -> Result<()> {
        for tensor in self.rule.history() {
            *tensor = select(tensor, kept)?;
        }
        Ok(())
    }
}

impl Rule {
    /// Everything that is kept of the batch's images from one step to the next.
    fn history(&mut self) -> Vec<&mut Tensor> {
        match self {
            Self::Ddim { .. }
            | Self::Euler
            | Self::EulerAncestral
            | Self::Heun { .. }
            | Self::Dpm2
            | Self::Dpm2Ancestral
            | Self::Ddpm { .. } => Vec::new(),
            Self::Pndm { outputs } => outputs.iter_mut().collect(),
            Self::Dpmpp2m { previous, .. } | Self::Deis { previous, .. } => {
                previous.iter_mut().map(|(tensor, _)| tensor).collect()
            }
            Self::Lms { slopes } => slopes.iter_mut().map(|(tensor, _)| tensor).collect(),
            Self::UniPc(rule) => rule.history(),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::level::{noise_share, signal_share};
    use crate::sampling::{NoiseGenerator, SchedulerConfig, SpacingKind};

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
        let mut noise = BatchNoise::new(vec![NoiseGenerator::new(0)]);
        let mut denoise = exact_denoiser(0.25);
        let mut x = Tensor::new(&[[[[schedule.initial_scale as f32]]]], &Device::Cpu).unwrap();
        for step in &schedule.steps {
            let asked = Asked { denoise: &mut denoise, between: &mut |x, _| Ok(x), noise: &mut noise };
            x = sampler.step(&x, step, asked).unwrap().latents;
        }
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    }

    /// A batch of images at different places, where noise is fresh and history counts.
    struct Batch {
        x: Tensor,
        noise: BatchNoise,
        sampler: Sampler,
    }

    impl Batch {
        fn new(options: &SchedulerOptions, schedule: &Schedule, seeds: &[u64]) -> Self {
            let start = |seed: &u64| NoiseGenerator::new(*seed + 100).normals(32);
            let values: Vec<f32> = seeds.iter().flat_map(start).collect();
            Self {
                x: Tensor::from_vec(values, (seeds.len(), 1, 8, 4), &Device::Cpu).unwrap(),
                noise: BatchNoise::new(seeds.iter().map(|seed| NoiseGenerator::new(*seed)).collect()),
                sampler: Sampler::new(options, schedule),
            }
        }

        fn step(&mut self, step: &Step) {
            // Not linear, so that each rule's history differs from step to step.
            let mut denoise = |x: &Tensor, _| Ok((x * 1.5)?.sin()?);
            let asked = Asked { denoise: &mut denoise, between: &mut |x, _| Ok(x), noise: &mut self.noise };
            self.x = self.sampler.step(&self.x, step, asked).unwrap().latents;
        }

        fn select(&mut self, kept: &[usize]) {
            self.x = select(&self.x, kept).unwrap();
            self.noise.select(kept);
            self.sampler.select(kept).unwrap();
        }

        fn values(&self) -> Vec<f32> {
            self.x.flatten_all().unwrap().to_vec1().unwrap()
        }
    }

    #[test]
    fn an_image_is_what_it_is_alone_whoever_leaves_its_batch() {
        let config: SchedulerConfig = serde_json::from_str(r#"{"steps_offset": 1}"#).unwrap();
        for kind in SamplerKind::ALL {
            let options = config.options(kind, SpacingKind::Checkpoint).unwrap();
            let schedule = Schedule::new(&options, 9).unwrap();
            let mut together = Batch::new(&options, &schedule, &[1, 2, 3, 4]);
            let mut alone = Batch::new(&options, &schedule, &[4]);
            let mut other = Batch::new(&options, &schedule, &[2]);
            for (number, step) in schedule.steps.iter().enumerate() {
                match number {
                    2 => together.select(&[1, 2, 3]),
                    5 => together.select(&[2, 0]),
                    _ => {}
                }
                for batch in [&mut together, &mut alone, &mut other] {
                    batch.step(step);
                }
            }
            assert_eq!(together.values(), [alone.values(), other.values()].concat(), "{kind}");
        }
    }

    fn adds_noise(kind: SamplerKind) -> bool {
        matches!(kind, SamplerKind::EulerAncestral | SamplerKind::Dpm2Ancestral | SamplerKind::Ddpm)
    }

    #[test]
    fn every_deterministic_rule_converges_to_the_exact_solution() {
        for kind in SamplerKind::ALL.into_iter().filter(|kind| !adds_noise(*kind)) {
            for spacing in SpacingKind::ALL {
                let (few, many) = (draw(kind, spacing, 10), draw(kind, spacing, 100));
                let error = |x: f32| (x - 0.5).abs();
                // The last of beta's steps is a long one, which rules of first order feel.
                let most = if spacing == SpacingKind::Beta { 0.03 } else { 0.02 };
                assert!(error(many) < most, "{kind} {spacing}: {many}");
                assert!(error(many) < error(few) + 1e-3, "{kind} {spacing}: {few}, {many}");
            }
        }
    }
}
