//! Noise and schedules.

use candle_core::{Device, Tensor};
use darkroom::sampling::{
    AlignedLevels, Asked, BatchNoise, Level, NoiseGenerator, Sampler, SamplerKind, Schedule, SchedulerConfig,
    SchedulerOptions, SpacingKind,
};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{json, tensors};

/// torch's vector code rounds sines, cosines and logarithms differently.
const NOISE_TOLERANCE: f32 = 2e-6;

#[test]
fn noise_is_torch_s_for_every_seed_and_size_and_goes_on_as_torch_s_does() {
    let data = tensors("noise.safetensors");
    let mut checked = 0;
    for (key, first) in data.iter().filter(|(key, _)| key.ends_with(".first")) {
        let mut parts = key.split('.');
        let seed: u64 = parts.next().unwrap().parse().unwrap();
        let count: usize = parts.next().unwrap().parse().unwrap();
        let mut generator = NoiseGenerator::new(seed);
        for wanted in [first, &data[&key.replace("first", "second")]] {
            let wanted: Vec<f32> = wanted.to_vec1().unwrap();
            let found = generator.normals(count);
            assert_eq!(found.len(), wanted.len());
            let furthest = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest < NOISE_TOLERANCE, "{key}: {furthest}");
        }
        checked += 1;
    }
    assert_eq!(checked, 36);
}

#[derive(Deserialize)]
struct Row {
    sampler: String,
    karras: bool,
    steps: usize,
    /// The file, among the other keys.
    #[serde(flatten)]
    file: serde_json::Map<String, Value>,
    timesteps: Vec<f64>,
    /// `null` for infinity.
    sigmas: Vec<Option<f64>>,
    previous_sigmas: Option<Vec<Option<f64>>>,
    init_noise_sigma: f64,
}

/// One entry for each network call: the timestep, σ, and the σ that the call's step goes to.
fn calls(schedule: &Schedule) -> Vec<(f64, f64, f64)> {
    let mut calls = Vec::new();
    for step in &schedule.steps {
        calls.push((step.level.timestep, step.level.sigma, step.next_sigma));
        if let Some(second) = step.second {
            calls.push((second.level.timestep, second.level.sigma, second.next_sigma));
        }
    }
    calls
}

/// diffusers computes in f32: of a small σ, which comes from one minus a product near 1, few digits are left.
/// Karras' spacing carries the error of its smallest σ to all.
fn close(found: f64, wanted: Option<f64>, karras: bool) -> bool {
    let share = if karras { 1e-3 } else { 1e-4 };
    match wanted {
        None => found.is_infinite(),
        Some(wanted) => (found - wanted).abs() <= share * wanted + 2e-7 / wanted.max(1e-3),
    }
}

#[test]
fn schedules_are_diffusers() {
    let rows: Vec<Row> = json("schedules.json");
    assert!(rows.len() > 100);
    for row in rows {
        let kind: SamplerKind = row.sampler.parse().unwrap();
        let spacing = if row.karras { SpacingKind::Karras } else { SpacingKind::Checkpoint };
        let mut file = row.file.clone();
        file.insert("prediction_type".into(), "v_prediction".into());
        let what = format!("{} {spacing}, {} steps, {file:?}", row.sampler, row.steps);
        let config: SchedulerConfig = serde_json::from_value(file.into()).unwrap();
        let options = config.options(kind, spacing).unwrap();
        let schedule = Schedule::new(&options, row.steps).unwrap();
        let calls = calls(&schedule);
        assert_eq!(calls.len(), row.timesteps.len(), "{what}");
        for (number, (timestep, sigma, next)) in calls.into_iter().enumerate() {
            // A timestep found from σ has σ's rounding in it.
            let tolerance = match (row.karras, kind) {
                (false, _) => 1e-3,
                (true, SamplerKind::Dpmpp2m) => 1.0,
                (true, _) => 0.5,
            };
            let wanted = row.timesteps[number];
            assert!((timestep - wanted).abs() <= tolerance, "{what}: {timestep} at {number}, wanted {wanted}");
            let wanted = row.sigmas[number];
            assert!(close(sigma, wanted, row.karras), "{what}: σ {sigma} at {number}, wanted {wanted:?}");
            let wanted =
                row.previous_sigmas.as_ref().map_or_else(|| row.sigmas[number + 1], |previous| previous[number]);
            // PNDM's second call repeats the first step: it ends at the second timestep.
            let repeated = kind == SamplerKind::Pndm && number == 1;
            assert!(repeated || close(next, wanted, row.karras), "{what}: to σ {next} at {number}, wanted {wanted:?}");
        }
        let first = schedule.steps[0].level.sigma;
        let in_sigma = !matches!(kind, SamplerKind::Ddim | SamplerKind::Pndm | SamplerKind::Dpmpp2m);
        let initial = if in_sigma { schedule.initial_scale * first.hypot(1.0) } else { schedule.initial_scale };
        assert!(close(initial, Some(row.init_noise_sigma), row.karras), "{what}: starts at {initial}");
    }
}

/// A named spacing, or levels that are listed.
#[derive(Deserialize)]
struct SpacingRow {
    scheduler: String,
    sampler: String,
    steps: usize,
    /// Levels as a request lists them.
    given: Option<Vec<f64>>,
    family: Option<String>,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
}

const SD: &str = r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;

#[test]
fn named_spacings_and_listed_sigmas_are_diffusers_or_their_definitions() {
    let rows: Vec<SpacingRow> = json("spacings.json");
    let mut named: Vec<&str> = rows.iter().map(|row| row.scheduler.as_str()).collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, ["ays", "ddim_uniform", "kl_optimal", "lu", "sgm_uniform", "sigmas", "simple"]);
    for row in rows {
        let what = format!("{} {:?}, {} steps", row.scheduler, row.family, row.steps);
        let mut config: SchedulerConfig = serde_json::from_str(SD).unwrap();
        match row.family.as_deref() {
            Some("stable-diffusion-1") => config.align(AlignedLevels::StableDiffusion1),
            Some("stable-diffusion-xl") => config.align(AlignedLevels::StableDiffusionXl),
            _ => {}
        }
        let sampler: SamplerKind = row.sampler.parse().unwrap();
        let options = match &row.given {
            Some(sigmas) => config.options(sampler, SpacingKind::Given).unwrap().with_sigmas(sigmas),
            None => config.options(sampler, row.scheduler.parse().unwrap()).unwrap(),
        };
        let schedule = Schedule::new(&options, row.steps).unwrap();
        assert_eq!(schedule.steps.len(), row.timesteps.len(), "{what}");
        for (number, step) in schedule.steps.iter().enumerate() {
            let Level { timestep, sigma } = step.level;
            let (wanted, wanted_timestep) = (row.sigmas[number], row.timesteps[number]);
            assert!((sigma - wanted).abs() < 1e-4 * wanted, "{what}: σ {sigma} at {number}, wanted {wanted}");
            assert!((timestep - wanted_timestep).abs() < 0.05, "{what}: {timestep}, wanted {wanted_timestep}");
            let next = row.sigmas[number + 1];
            assert!((step.next_sigma - next).abs() <= 1e-4 * next, "{what}: to {} at {number}", step.next_sigma);
        }
    }
}

#[test]
fn a_spacing_of_timesteps_is_what_the_checkpoint_s_key_would_be() {
    for row in json::<Vec<Row>>("schedules.json").into_iter().filter(|row| !row.karras) {
        let kind: SamplerKind = row.sampler.parse().unwrap();
        let named: SchedulerConfig = serde_json::from_value(row.file.clone().into()).unwrap();
        let spacing = row.file["timestep_spacing"].as_str().unwrap().parse().unwrap();
        let mut other = row.file.clone();
        other.insert(
            "timestep_spacing".into(),
            if spacing == SpacingKind::Leading { "trailing" } else { "leading" }.into(),
        );
        let other: SchedulerConfig = serde_json::from_value(other.into()).unwrap();
        let schedule = |config: &SchedulerConfig, spacing| {
            Schedule::new(&config.options(kind, spacing).unwrap(), row.steps).unwrap()
        };
        let found = schedule(&other, spacing);
        assert_eq!(found, schedule(&named, SpacingKind::Checkpoint), "{kind} {spacing}");
        assert!(row.steps == 1 || found != schedule(&other, SpacingKind::Checkpoint), "{kind} {spacing}");
    }
}

#[test]
fn every_sampler_draws_numbers_on_every_spacing_and_on_part_of_it() {
    let mut config: SchedulerConfig = serde_json::from_str(SD).unwrap();
    config.align(AlignedLevels::StableDiffusion1);
    for sampler in config.samplers() {
        for spacing in SpacingKind::ALL {
            let is_distilled = matches!(sampler, SamplerKind::Lcm | SamplerKind::Tcd);
            if is_distilled && config.options(sampler, spacing).is_err() {
                let named = [SpacingKind::Leading, SpacingKind::Linspace, SpacingKind::Trailing];
                assert!(named.contains(&spacing), "{sampler} {spacing}");
                continue;
            }
            for (steps, strength) in [(1, 1.0), (2, 1.0), (9, 1.0), (9, 0.5)] {
                let options = config.options(sampler, spacing).unwrap();
                let schedule = Schedule::last_part(&options, steps, strength).unwrap();
                let drawn = draw(&options, &schedule);
                assert!(drawn.0.iter().all(|value| value.is_finite()), "{sampler} {spacing} {steps}: {drawn:?}");
            }
        }
        let options = config.options(sampler, SpacingKind::Given).unwrap().with_sigmas(&[9.0, 3.0, 1.0, 0.0]);
        let schedule = Schedule::last_part(&options, 3, 0.7).unwrap();
        let levels: Vec<f64> = schedule.steps.iter().map(|step| step.level.sigma).collect();
        assert!(levels == [3.0, 1.0], "{sampler}: {levels:?}");
        assert!(draw(&options, &schedule).0.iter().all(|value| value.is_finite()), "{sampler}");
    }
}

/// A file and the class that draws it, which may be another than the file's.
#[derive(Deserialize)]
struct FileRow {
    class: String,
    /// What a request names, where that is no class.
    sampler: Option<String>,
    eta: Option<f64>,
    file: Value,
    steps: usize,
    #[serde(flatten)]
    levels: Option<Levels>,
    /// What four numbers end as, with [`toy`] for a network.
    latents: Vec<f32>,
}

/// What each network call is told, where an option counts for that.
#[derive(Deserialize)]
struct Levels {
    timesteps: Vec<f64>,
    /// `null` for infinity.
    sigmas: Vec<Option<f64>>,
    init_noise_sigma: f64,
}

/// As `toy` in `options.py`.
fn toy(x: &Tensor, timestep: f64) -> Tensor {
    ((x * 2.0).unwrap().sin().unwrap() + 0.3 * (timestep / 300.0).cos()).unwrap()
}

/// The latents that a drawing with [`toy`] ends in, and the level of each network call.
fn draw(options: &SchedulerOptions, schedule: &Schedule) -> (Vec<f32>, Vec<Level>) {
    let mut noise = BatchNoise::new(vec![NoiseGenerator::new(0)]);
    let mut sampler = Sampler::new(options, schedule);
    let mut asked_at = Vec::new();
    let mut x = Tensor::new(&[[[[1.5_f32, -0.7, 0.3, -2.0]]]], &Device::Cpu).unwrap();
    x = (x * schedule.initial_scale).unwrap();
    for step in &schedule.steps {
        let mut denoise = |x: &Tensor, level: Level| {
            asked_at.push(level);
            options.prediction_type.denoised(x, &toy(x, level.timestep), level.sigma)
        };
        let asked = Asked { denoise: &mut denoise, between: &mut |x, _| Ok(x), noise: &mut noise };
        x = sampler.step(&x, step, asked).unwrap().latents;
    }
    let latents = (x * (schedule.final_scale * schedule.unit)).unwrap();
    (latents.flatten_all().unwrap().to_vec1().unwrap(), asked_at)
}

impl Levels {
    /// How a drawing's levels differ from these.
    fn differences(
        &self,
        kind: SamplerKind,
        spacing: SpacingKind,
        schedule: &Schedule,
        calls: &[Level],
    ) -> Vec<String> {
        let mut found = Vec::new();
        let karras = spacing != SpacingKind::Checkpoint;
        if calls.len() != self.timesteps.len() {
            return vec![format!("{} calls, wanted {}", calls.len(), self.timesteps.len())];
        }
        for (number, Level { timestep, sigma }) in calls.iter().enumerate() {
            let sigma = sigma * schedule.unit;
            let tolerance = match (karras, kind) {
                (false, _) => 1e-3,
                (true, SamplerKind::Dpmpp2m | SamplerKind::DpmSingle | SamplerKind::UniPc | SamplerKind::Deis) => 1.0,
                (true, _) => 0.5,
            };
            let wanted = self.timesteps[number];
            // Half way f32 leaves diffusers fewer digits: a σ of the ancestral one is a root of a difference.
            let halfway = matches!(kind, SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral | SamplerKind::DpmppSde)
                && number % 2 == 1;
            let tolerance = if halfway { f64::max(tolerance, 5e-3) } else { tolerance };
            // Continuous timesteps are small, and as good as their σ.
            let tolerance = if wanted.abs() < 2.0 && wanted.fract() != 0.0 { 1e-3 } else { tolerance };
            if (timestep - wanted).abs() > tolerance {
                found.push(format!("timestep {timestep} at {number}, wanted {wanted}"));
            }
            let wanted = self.sigmas[number];
            let near = |wanted: f64| (sigma - wanted).abs() < 0.03 * wanted;
            if !(close(sigma, wanted, karras) || halfway && wanted.is_some_and(near)) {
                found.push(format!("σ {sigma} at {number}, wanted {wanted:?}"));
            }
        }
        let first = schedule.steps[0].level.sigma;
        // The others keep latents at total variance 1.
        let in_sigma = matches!(
            kind,
            SamplerKind::Euler
                | SamplerKind::EulerAncestral
                | SamplerKind::Heun
                | SamplerKind::Dpm2
                | SamplerKind::Dpm2Ancestral
                | SamplerKind::Lms
                | SamplerKind::DpmppSde
                | SamplerKind::EdmEuler
                | SamplerKind::EdmDpmpp2m
        );
        let scale = if in_sigma { first.hypot(1.0) * schedule.unit } else { 1.0 };
        let initial = schedule.initial_scale * scale;
        if !close(initial, Some(self.init_noise_sigma), karras) {
            found.push(format!("starts at {initial}, wanted {}", self.init_noise_sigma));
        }
        found
    }
}

#[test]
fn every_key_of_a_file_draws_what_the_class_of_the_index_draws_with_it() {
    let rows: Vec<FileRow> = json("scheduler_options.json");
    assert!(rows.len() > 1300);
    let mut failures = Vec::new();
    for row in rows {
        let mut config: SchedulerConfig = serde_json::from_value(row.file.clone()).unwrap();
        config.set_class(SamplerKind::of_class(&row.class).unwrap());
        config.check().unwrap_or_else(|error| panic!("{}: {}: {error}", row.class, row.file));
        let own = config.own_sampler().unwrap();
        let kind = row.sampler.as_ref().map_or(own, |name| name.parse().unwrap());
        let spacing = config.own_spacing();
        let what = format!("{kind} {spacing}, {} steps, η {:?}, {}", row.steps, row.eta, row.file);
        let options = config.options(kind, spacing).unwrap().with_eta(row.eta).unwrap();
        let schedule = Schedule::new(&options, row.steps).unwrap();
        let (found, calls) = draw(&options, &schedule);
        if let Some(levels) = row.levels {
            let differences = levels.differences(kind, spacing, &schedule, &calls);
            failures.extend(differences.into_iter().map(|difference| format!("{what}: {difference}")));
        }
        let furthest = found.iter().zip(&row.latents).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = row.latents.iter().fold(1.0, |most, value| value.abs().max(most));
        if furthest.is_nan() || furthest > 5e-3 * largest {
            failures.push(format!("{what}: {found:?}, wanted {:?}", row.latents));
        }
    }
    assert!(failures.is_empty(), "{} failures: {:#?}", failures.len(), &failures[..failures.len().min(40)]);
}
