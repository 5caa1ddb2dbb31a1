//! Noise and schedules.

use darkroom::sampling::{
    BetaSchedule, NoiseGenerator, SamplerKind, Schedule, SchedulerConfig, SpacingKind, TimestepSpacing,
};
use serde::Deserialize;

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
    beta_schedule: BetaSchedule,
    beta_start: f64,
    beta_end: f64,
    timestep_spacing: TimestepSpacing,
    rescale_betas_zero_snr: bool,
    steps_offset: usize,
    set_alpha_to_one: Option<bool>,
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
        let config = SchedulerConfig {
            beta_schedule: row.beta_schedule,
            beta_start: row.beta_start,
            beta_end: row.beta_end,
            timestep_spacing: Some(row.timestep_spacing),
            rescale_betas_zero_snr: row.rescale_betas_zero_snr,
            steps_offset: row.steps_offset,
            set_alpha_to_one: row.set_alpha_to_one,
            prediction_type: darkroom::sampling::PredictionType::VPrediction,
            ..SchedulerConfig::default()
        };
        let what = format!(
            "{} {spacing}, {} steps, {:?}, {:?}, zero SNR {}",
            row.sampler, row.steps, row.beta_schedule, row.timestep_spacing, row.rescale_betas_zero_snr
        );
        let schedule = Schedule::new(&config, kind, spacing, row.steps).unwrap();
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
