//! The update rules: from latents at one noise level to latents at the next.
//!
//! Each rule sees the network only as `(x, level) → x₀`, and latents at total variance 1. A sampler is built fresh for
//! each batch of images and keeps their history. The file is a little long: it names every rule, and half are tests.

mod ddim;
mod deis;
mod dpm_2;
mod dpm_multi;
mod dpm_single;
mod dpm_solver;
mod dpmpp_2s_ancestral;
mod dpmpp_3m_sde;
mod dpmpp_sde;
mod euler_ancestral;
mod heun;
mod lcm;
mod lms;
mod pndm;
mod tcd;
mod uni_pc;

use candle_core::Tensor;

use super::{
    BatchNoise, Bound, FinalSigmas, SamplerKind, Schedule, SchedulerOptions, Variance,
    schedule::{Level, Step},
    select,
};
use crate::Result;
use ddim::transfer;
use dpm_multi::Multistep;
use dpm_single::Single;
use dpm_solver::Orders;
use pndm::Pndm;
use tcd::Tcd;
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

/// One update rule with its history. Clones share the history's numbers.
#[derive(Debug, Clone)]
pub struct Sampler {
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Ddim { bound: Bound, eta: f64 },
    Pndm(Pndm),
    Euler,
    EulerAncestral,
    Heun { bound: Bound },
    Multistep(Multistep),
    Dpm2,
    Dpm2Ancestral,
    Lms { slopes: Vec<(Tensor, f64)> },
    UniPc(UniPc),
    Deis { bound: Bound, orders: Orders, slopes: Vec<(Tensor, f64)> },
    Ddpm { bound: Bound, variance: Variance },
    Dpmpp2sAncestral,
    DpmppSde,
    Dpmpp3mSde { outputs: Vec<(Tensor, f64)> },
    Single(Single),
    Lcm { bound: Bound, scaling: f64 },
    Tcd(Tcd),
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
        let (steps, whole) = (schedule.steps.len(), schedule.whole);
        let bound = options.bound;
        let orders = || Orders::new(&options.solver, steps, whole, options.final_sigmas == FinalSigmas::Zero);
        let rule = match options.sampler {
            SamplerKind::Ddim => Rule::Ddim { bound, eta: options.eta },
            SamplerKind::Pndm => {
                let ends = if options.runge_kutta_start { schedule.ends_of_second_looks() } else { Vec::new() };
                Rule::Pndm(Pndm::new(options.prediction_type, ends))
            }
            SamplerKind::Euler | SamplerKind::EdmEuler => Rule::Euler,
            SamplerKind::EulerAncestral => Rule::EulerAncestral,
            SamplerKind::Heun => Rule::Heun { bound },
            SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde | SamplerKind::EdmDpmpp2m => {
                Rule::Multistep(Multistep::new(options.solver.clone(), bound, orders()))
            }
            SamplerKind::Dpm2 => Rule::Dpm2,
            SamplerKind::Dpm2Ancestral => Rule::Dpm2Ancestral,
            SamplerKind::Lms => Rule::Lms { slopes: Vec::new() },
            SamplerKind::UniPc => Rule::UniPc(UniPc::new(options, steps, whole)),
            SamplerKind::Deis => Rule::Deis { bound, orders: orders(), slopes: Vec::new() },
            SamplerKind::Ddpm => Rule::Ddpm { bound, variance: options.variance },
            SamplerKind::Dpmpp2sAncestral => Rule::Dpmpp2sAncestral,
            SamplerKind::DpmppSde => Rule::DpmppSde,
            SamplerKind::Dpmpp3mSde => Rule::Dpmpp3mSde { outputs: Vec::new() },
            SamplerKind::DpmSingle => Rule::Single(Single::new(options, steps, whole)),
            SamplerKind::Lcm => Rule::Lcm { bound, scaling: options.timestep_scaling },
            SamplerKind::Tcd => Rule::Tcd(Tcd::new(options, schedule)),
        };
        Self { rule }
    }

    /// Takes one step from latents `x`, asking the network once or more often.
    ///
    /// # Errors
    ///
    /// What the network fails with, or the tensor library.
    pub fn step(&mut self, x: &Tensor, step: &Step, asked: Asked<'_>) -> Result<Stepped> {
        let denoised = (asked.denoise)(x, step.level)?;
        let (from, to) = (step.level.sigma, step.next_sigma);
        let ends = (from, to);
        let latents = match &mut self.rule {
            // These look at the network again.
            Rule::Heun { bound } => return heun::heun(x, denoised, step, asked, *bound),
            Rule::Pndm(rule) => return rule.step(x, &denoised, step, asked),
            Rule::Dpm2 => return dpm_2::dpm_2(x, denoised, step, asked),
            Rule::Dpm2Ancestral => return dpm_2::dpm_2_ancestral(x, denoised, step, asked),
            Rule::Dpmpp2sAncestral => {
                return dpmpp_2s_ancestral::dpmpp_2s_ancestral(x, denoised, step, asked);
            }
            Rule::DpmppSde => return dpmpp_sde::dpmpp_sde(x, denoised, step, asked),
            Rule::Ddim { bound, eta } => ddim::ddim(x, &denoised, ends, *bound, *eta, asked.noise)?,
            Rule::Euler => transfer(x, &denoised, from, to)?,
            Rule::EulerAncestral => euler_ancestral::euler_ancestral(x, &denoised, from, to, asked.noise)?,
            Rule::Multistep(rule) => rule.step(x, &denoised, ends, asked.noise)?,
            Rule::Single(rule) => rule.step(x, &denoised, ends, asked.noise)?,
            Rule::Lms { slopes } => lms::lms(x, &denoised, from, to, slopes)?,
            Rule::UniPc(rule) => rule.step(x, &denoised, from, to)?,
            Rule::Deis { bound, orders, slopes } => {
                remember(slopes, deis::slope(x, &bound.of(denoised.clone())?, from)?, from);
                deis::deis(x, &slopes[..orders.next()], from, to)?
            }
            Rule::Ddpm { bound, variance } => {
                let denoised = bound.of(denoised.clone())?;
                euler_ancestral::ddpm(x, &denoised, step, *variance, asked.noise)?
            }
            Rule::Dpmpp3mSde { outputs } => {
                remember(outputs, denoised.clone(), from);
                dpmpp_3m_sde::dpmpp_3m_sde(x, outputs, ends, asked.noise)?
            }
            Rule::Lcm { bound, scaling } => {
                let denoised = bound.of(denoised.clone())?;
                lcm::lcm(x, &denoised, step.level, to, *scaling, asked.noise)?
            }
            Rule::Tcd(rule) => rule.step(x, &denoised, ends, asked.noise)?,
        };
        Ok(Stepped { latents, denoised })
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
            | Self::Ddpm { .. }
            | Self::Dpmpp2sAncestral
            | Self::DpmppSde
            | Self::Lcm { .. }
            | Self::Tcd(_) => Vec::new(),
            Self::Pndm(rule) => rule.outputs.iter_mut().collect(),
            Self::Multistep(rule) => rule.outputs.iter_mut().map(|(tensor, _)| tensor).collect(),
            Self::Lms { slopes: outputs } | Self::Deis { slopes: outputs, .. } | Self::Dpmpp3mSde { outputs } => {
                outputs.iter_mut().map(|(tensor, _)| tensor).collect()
            }
            Self::UniPc(rule) => rule.history(),
            Self::Single(rule) => rule.history(),
        }
    }
}

/// How many of the last outputs a rule of third order keeps.
const THREE: usize = 3;

/// Puts what the network gave at σ before the older ones.
fn remember(outputs: &mut Vec<(Tensor, f64)>, output: Tensor, sigma: f64) {
    outputs.insert(0, (output, sigma));
    outputs.truncate(THREE);
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::sampling::level::{noise_share, signal_share};
    use crate::sampling::{AlignedLevels, NoiseGenerator, SchedulerConfig, SpacingKind};

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
        let mut config: SchedulerConfig = serde_json::from_str(json).unwrap();
        config.align(AlignedLevels::StableDiffusion1);
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
        let edm: SchedulerConfig = serde_json::from_str(r#"{"_class_name": "EDMEulerScheduler"}"#).unwrap();
        for kind in SamplerKind::ALL {
            let config = if kind.is_edm() { &edm } else { &config };
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

    /// Those that draw this picture by the ODE: the others add noise, or are for other networks.
    fn solves_the_ode(kind: SamplerKind) -> bool {
        use SamplerKind::{Ddim, Deis, Dpm2, DpmSingle, Dpmpp2m, Euler, Heun, Lms, Pndm, UniPc};
        [Ddim, Deis, Dpm2, DpmSingle, Dpmpp2m, Euler, Heun, Lms, Pndm, UniPc].contains(&kind)
    }

    #[test]
    fn every_deterministic_rule_converges_to_the_exact_solution() {
        for kind in SamplerKind::ALL.into_iter().filter(|kind| solves_the_ode(*kind)) {
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
