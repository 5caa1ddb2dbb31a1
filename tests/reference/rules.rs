//! Whole pictures by update rules that a request names or a checkpoint's scheduler file asks for.

use std::{fs, path::Path, sync::Arc};

use darkroom::{
    models::ModelSource,
    pipeline::{Generate, InferencePipeline, Unwatched},
    sampling::SamplingConfig,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{copy_folder, data, json as read, load, pipeline, psnr, tensors};

/// The least likeness to diffusers' picture, in dB.
const LEAST_PSNR: f64 = 50.0;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// `null` where the checkpoint's file is to be `scheduler`, whose class then draws.
    sampler: Option<String>,
    scheduler: Option<Value>,
    eta: Option<f64>,
    strength: Option<f64>,
    steps: usize,
    guidance_scale: f64,
    seed: u64,
    prompt: String,
}

/// The checkpoint with another scheduler. Its encoder is read when it is needed, so the folder has to stay.
fn with_scheduler(scheduler: &Value) -> (InferencePipeline, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root: &Path = folder.path();
    copy_folder(&data("sd15/model"), root);
    fs::write(root.join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
    let index = root.join("model_index.json");
    let mut named: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    named["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
    fs::write(index, named.to_string()).unwrap();
    (load(ModelSource::Directory(root.to_owned())), folder)
}

#[test]
fn every_rule_draws_diffusers_picture() {
    let own = pipeline("sd15");
    let picture = Arc::new(image::open(data("inputs/picture.png")).unwrap().into_rgb8());
    let wanted = tensors("sd15/rules.safetensors");
    let cases: Vec<Case> = read("sd15/rules.json");
    assert_eq!(cases.len(), wanted.len());
    let mut failures = Vec::new();
    for case in cases {
        let config = SamplingConfig {
            prompt: case.prompt,
            width: Some(64),
            height: Some(64),
            steps: case.steps,
            guidance_scale: case.guidance_scale,
            seed: case.seed,
            sampler: case.sampler.as_ref().map(|name| name.parse().unwrap()),
            eta: case.eta,
            image: case.strength.map(|_| Arc::clone(&picture)),
            strength: case.strength.unwrap_or(1.0),
            ..SamplingConfig::default()
        };
        let drawn = match &case.scheduler {
            Some(scheduler) => {
                let (other, _folder) = with_scheduler(scheduler);
                other.generate(&config, &mut Unwatched)
            }
            None => own.generate(&config, &mut Unwatched),
        };
        let drawn = drawn.unwrap().images.remove(0).into_rgb8().into_raw();
        let wanted: Vec<u8> = wanted[&case.name].flatten_all().unwrap().to_vec1().unwrap();
        let found = psnr(&drawn, &wanted);
        if found < LEAST_PSNR {
            failures.push(format!("{}: {found:.1} dB", case.name));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
