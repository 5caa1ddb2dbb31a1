//! Reading the reference data, and distances from it.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
};

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

/// A file of the reference data. The repository may lie elsewhere than where this was built: cargo says where when it runs
/// tests, and so does whoever runs a test binary that has travelled.
pub fn data(path: &str) -> PathBuf {
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    root.join("tests/reference/data").join(path)
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
    let options = LoadOptions { source, device: DeviceChoice::Cpu, dtype, limits, ..LoadOptions::default() };
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

/// Copies a folder and all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Gives the denoiser of a checkpoint with four latent channels five more inputs: a mask and what is kept. `widen` makes
/// the first layer's weights, `(o, 9, 3, 3)`, from those that it has.
pub fn make_for_inpainting(root: &Path, widen: impl FnOnce(&Tensor) -> Tensor) {
    widen_denoiser(root, 9, widen);
}

/// Gives the tiny checkpoint `sd15` at `root` the denoiser that edits pictures by instruction.
pub fn make_for_editing(root: &Path) {
    let first = tensors("sd15/editing.safetensors").remove("conv_in.weight").unwrap();
    widen_denoiser(root, 8, |_| first);
    let index = root.join("model_index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["_class_name"] = "StableDiffusionInstructPix2PixPipeline".into();
    fs::write(index, json.to_string()).unwrap();
}

/// Gives a denoiser `channels` inputs.
fn widen_denoiser(root: &Path, channels: usize, widen: impl FnOnce(&Tensor) -> Tensor) {
    let config = root.join("unet/config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["in_channels"] = channels.into();
    fs::write(config, json.to_string()).unwrap();
    let first = "conv_in.weight";
    for entry in fs::read_dir(root.join("unet")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let mut unet = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
            // Of shards, one has it.
            if let Some(old) = unet.remove(first) {
                let wide = widen(&old).to_dtype(old.dtype()).unwrap();
                unet.insert(first.to_owned(), wide);
                return candle_core::safetensors::save(&unet, path).unwrap();
            }
        }
    }
    panic!("no weights of a first layer");
}
