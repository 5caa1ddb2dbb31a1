//! Every network of the tiny checkpoints, on the device and in the number type that the environment names.
//!
//! `cargo test` runs it on the CPU in f32. `benches/gpu.sh` runs the same test binary on a machine with a GPU:
//!
//! ```sh
//! CARGO_MANIFEST_DIR=$PWD DARKROOM_TEST_DEVICE=cuda DARKROOM_TEST_DTYPE=f16 ./reference device --nocapture
//! ```
//!
//! Each case is one line of JSON, so that a program can hold it against what torch gives in the same number type.

use std::env;

use candle_core::{DType, Device, IndexOp, Tensor};
use darkroom::{
    models::{
        Added, Conditioning, DeviceChoice, DtypeChoice, ModelSource, Tiling, Unet, UnetConfig, VaeDecoder, VaeEncoder,
    },
    nn::{LoadProgress, Weights},
    pipeline::{InferencePipeline, LoadOptions},
};
use serde::Deserialize;
use serde_json::json;

use crate::support::{CHECKPOINTS, checkpoint, data, json, spec, tensors};

/// The least likeness to diffusers' f32 of any case in f32, in dB.
const LEAST_OF_F32: f64 = 45.0;
/// The least mean likeness in f16 and bf16, in dB.
const LEAST_MEAN_OF_HALF: f64 = 35.0;

/// Where the networks run.
struct Place {
    choice: DeviceChoice,
    dtype_choice: DtypeChoice,
    device: Device,
    dtype: DType,
}

impl Place {
    /// `DARKROOM_TEST_DEVICE` and `DARKROOM_TEST_DTYPE`; without them the CPU and f32.
    fn from_environment() -> Self {
        let choice: DeviceChoice = named("DARKROOM_TEST_DEVICE", "cpu").parse().unwrap();
        let dtype_choice: DtypeChoice = named("DARKROOM_TEST_DTYPE", "f32").parse().unwrap();
        let device = choice.open().unwrap();
        let dtype = dtype_choice.resolve(&device);
        Self { choice, dtype_choice, device, dtype }
    }

    fn pipeline(&self, name: &str) -> InferencePipeline {
        let source = ModelSource::Directory(data(&format!("{name}/model")));
        let options = LoadOptions { source, device: self.choice, dtype: self.dtype_choice, ..LoadOptions::default() };
        InferencePipeline::load(&options, &mut |_| {}).unwrap()
    }

    fn with_weights<T>(&self, name: &str, component: &str, build: impl FnOnce(&Weights) -> T) -> T {
        let mut quiet = |_| {};
        let progress = LoadProgress::new(&mut quiet);
        let files = checkpoint(name).weights(component).unwrap();
        build(&Weights::open(files, &self.device, self.dtype, &progress).unwrap())
    }

    fn here(&self, x: &Tensor) -> Tensor {
        x.to_device(&self.device).unwrap()
    }
}

fn named(variable: &str, default: &str) -> String {
    env::var(variable).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// The cases so far, each with its likeness.
struct Report<'a> {
    place: &'a Place,
    found: Vec<(String, f64)>,
}

impl Report<'_> {
    fn add(&mut self, checkpoint: &str, network: &str, case: &str, found: &Tensor, wanted: &Tensor) {
        let decibels = likeness(found, wanted);
        let (device, dtype) = (self.place.choice.to_string(), self.place.dtype_choice.to_string());
        let line = json!({
            "checkpoint": checkpoint, "network": network, "case": case, "device": device, "dtype": dtype, "db": decibels,
        });
        println!("{line}");
        self.found.push((format!("{checkpoint}, {network}, {case}"), decibels));
    }
}

/// How much tensors are alike in dB: the square of the range of the wanted values over the mean square of the differences,
/// as of pictures; at most 200, and 0 where a value is no number.
fn likeness(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.dims(), wanted.dims());
    let values = |x: &Tensor| -> Vec<f32> {
        x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (found, wanted) = (values(found), values(wanted));
    let (least, most) = wanted.iter().fold((f32::MAX, f32::MIN), |(least, most), x| (least.min(*x), most.max(*x)));
    let squares = found.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let mean = squares.sum::<f64>() / wanted.len() as f64;
    let decibels = 10.0 * (f64::from(most - least).powi(2) / mean).log10();
    if decibels.is_nan() { 0.0 } else { decibels.min(200.0) }
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
}

fn text_encoders(report: &mut Report<'_>) {
    for name in CHECKPOINTS {
        let pipeline = report.place.pipeline(name);
        let wanted = tensors(&format!("{name}/text.safetensors"));
        let prompts: Vec<Prompt> = json(&format!("{name}/tokens.json"));
        let rows = wanted["embeddings"].dim(0).unwrap();
        assert!(prompts.len() >= rows);
        for (row, Prompt { prompt }) in prompts.iter().take(rows).enumerate() {
            let found = pipeline.encode_text(prompt, 0).unwrap();
            let of = |key: &str| wanted[key].i(row..=row).unwrap();
            report.add(name, "text", &row.to_string(), &found.states, &of("embeddings"));
            if let Some(pooled) = found.pooled {
                report.add(name, "text", &format!("{row} pooled"), &pooled, &of("pooled"));
            }
        }
    }
}

fn unets(report: &mut Report<'_>) {
    for name in CHECKPOINTS {
        let place = report.place;
        let unet = place.with_weights(name, "unet", |weights| Unet::new(&spec(name).unet, weights).unwrap());
        let data = tensors(&format!("{name}/unet.safetensors"));
        let added = data.get("text_embeds").map(|pooled| {
            let rows: Vec<Vec<f32>> = data["time_ids"].to_vec2().unwrap();
            let row = |row: Vec<f32>| row.into_iter().map(f64::from).collect::<Vec<_>>().try_into().unwrap();
            Added { pooled: place.here(pooled), sizes: rows.into_iter().map(row).collect() }
        });
        let text = place.here(&data["encoder_hidden_states"]);
        let prepared = unet.prepare(&Conditioning { text, added }).unwrap();
        let timesteps: Vec<f32> = data["timesteps"].to_vec1().unwrap();
        let draw = |sample: &str, timestep: f32| {
            unet.forward(&place.here(&data[sample]), f64::from(timestep), &prepared).unwrap()
        };
        for (number, timestep) in timesteps.iter().enumerate() {
            let wanted = data["outputs"].i(number).unwrap();
            report.add(name, "unet", &timestep.to_string(), &draw("sample", *timestep), &wanted);
        }
        report.add(name, "unet", "odd size", &draw("odd_sample", timesteps[0]), &data["odd_output"]);
    }
    for name in ["layouts/nested", "layouts/plain_middle", "layouts/no_middle"] {
        let place = report.place;
        let config = UnetConfig::read(&checkpoint(name)).unwrap();
        let unet = place.with_weights(name, "unet", |weights| Unet::new(&config, weights).unwrap());
        let data = tensors(&format!("{name}/unet.safetensors"));
        let added =
            data.get("text_embeds").map(|pooled| Added { pooled: place.here(pooled), sizes: vec![[64.0; 6]; 2] });
        let prepared = unet.prepare(&Conditioning { text: place.here(&data["encoder_hidden_states"]), added }).unwrap();
        let found = unet.forward(&place.here(&data["sample"]), 321.0, &prepared).unwrap();
        report.add(name, "unet", "321", &found, &data["output"]);
    }
}

fn vaes(report: &mut Report<'_>) {
    for name in CHECKPOINTS {
        let place = report.place;
        let data = tensors(&format!("{name}/vae.safetensors"));
        let config = spec(name).vae;
        let decoder = place.with_weights(name, "vae", |weights| VaeDecoder::new(&config, weights).unwrap());
        let decoded = decoder.decode_raw(&place.here(&data["latents"]), Tiling::Off).unwrap();
        report.add(name, "vae", "decoded", &decoded, &data["decoded"]);
        let encoder = place.with_weights(name, "vae", |weights| VaeEncoder::new(&config, weights).unwrap());
        for kind in ["", "odd_"] {
            let found = encoder.encode(&place.here(&data[&format!("{kind}image")]), Tiling::Off).unwrap();
            for (part, found) in [("mean", found.mean), ("logvar", found.log_variance)] {
                let key = format!("{kind}encoded_{part}");
                report.add(name, "vae", &key, &found, &data[&key]);
            }
        }
    }
}

#[test]
fn every_network_on_the_device_is_like_diffusers_on_the_cpu() {
    let place = Place::from_environment();
    let mut report = Report { place: &place, found: Vec::new() };
    text_encoders(&mut report);
    unets(&mut report);
    vaes(&mut report);
    let found = report.found;
    assert!(found.len() >= 60, "{} cases", found.len());
    if place.dtype == DType::F32 {
        let low: Vec<_> = found.iter().filter(|(_, decibels)| *decibels < LEAST_OF_F32).collect();
        assert!(low.is_empty(), "{low:#?}");
    } else {
        let mean = found.iter().map(|(_, decibels)| decibels).sum::<f64>() / found.len() as f64;
        assert!(mean >= LEAST_MEAN_OF_HALF, "{mean:.2} dB of {found:.1?}");
    }
}
