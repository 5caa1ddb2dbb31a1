//! Reading the reference data, and distances from it.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use darkroom::{
    models::{Checkpoint, DeviceChoice, DtypeChoice, ModelSource, ModelSpec},
    nn::{LoadProgress, Weights},
    pipeline::{InferencePipeline, LoadOptions},
    sampling::Limits,
};
use serde::de::DeserializeOwned;

/// The tiny checkpoints.
pub const CHECKPOINTS: [&str; 4] = ["sd15", "sd2", "sd2v", "sdxl"];

/// A file of the reference data.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/data").join(path)
}

pub fn json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(data(path)).unwrap()).unwrap()
}

pub fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data(path), &Device::Cpu).unwrap()
}

pub fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::Directory(data(&format!("{name}/model")))
}

pub fn spec(name: &str) -> ModelSpec {
    ModelSpec::read(&checkpoint(name)).unwrap()
}

pub fn load(source: ModelSource) -> InferencePipeline {
    load_as(source, DtypeChoice::F32)
}

pub fn load_as(source: ModelSource, dtype: DtypeChoice) -> InferencePipeline {
    let limits = Limits::default();
    let options = LoadOptions { source, device: DeviceChoice::Cpu, dtype, limits };
    InferencePipeline::load(&options, &mut |_| {}).unwrap()
}

pub fn pipeline(name: &str) -> InferencePipeline {
    load(ModelSource::Directory(data(&format!("{name}/model"))))
}

/// Hands the f32 weights of a component to `build`.
pub fn with_weights<T>(name: &str, component: &str, build: impl FnOnce(&Weights) -> T) -> T {
    with_weights_as(name, component, DType::F32, build)
}

/// Hands the weights of a component to `build`.
pub fn with_weights_as<T>(name: &str, component: &str, dtype: DType, build: impl FnOnce(&Weights) -> T) -> T {
    let mut quiet = |_| {};
    let progress = LoadProgress::new(&mut quiet);
    let files = checkpoint(name).weights(component).unwrap();
    build(&Weights::open(files, &Device::Cpu, dtype, &progress).unwrap())
}

/// The largest difference, as a share of the largest value.
pub fn relative_error(found: &Tensor, wanted: &Tensor) -> f32 {
    assert_eq!(found.dims(), wanted.dims());
    let largest = |x: Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    largest((found - wanted).unwrap()) / largest(wanted.clone())
}

/// Peak signal-to-noise ratio of two pictures of bytes, in dB.
pub fn psnr(found: &[u8], wanted: &[u8]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = found.iter().zip(wanted).map(square).sum::<f64>() / found.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}
