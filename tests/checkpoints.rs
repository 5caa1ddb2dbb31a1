//! Checkpoints that are not as they should be, and what the pipeline says of requests that the model cannot honour.

use std::{
    fs,
    path::{Path, PathBuf},
};

use darkroom::{
    Error,
    models::{Checkpoint, DeviceChoice, DtypeChoice, ModelSource, ModelSpec},
    pipeline::{Generate, InferencePipeline, LoadOptions, Monitor},
    sampling::{CropOffset, Limits, LongPrompt, PictureSize, SamplerKind, SamplingConfig, SpacingKind},
};
use image::DynamicImage;
use serde_json::{Value, json};

const SIZE: PictureSize = PictureSize { width: 64, height: 64 };
const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/data").join(name).join("model")
}

/// A copy of a tiny checkpoint, to be broken.
fn copy(name: &str) -> tempfile::TempDir {
    fn copy_folder(from: &Path, to: &Path) {
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
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&reference(name), folder.path());
    folder
}

fn load(root: &Path) -> darkroom::Result<InferencePipeline> {
    load_as(root, DtypeChoice::F32)
}

fn load_as(root: &Path, dtype: DtypeChoice) -> darkroom::Result<InferencePipeline> {
    let source = ModelSource::Directory(root.to_owned());
    let options = LoadOptions { source, device: DeviceChoice::Cpu, dtype, ..LoadOptions::default() };
    InferencePipeline::load(&options, &mut |_| {})
}

fn refused(root: &Path) -> String {
    load(root).map(|_| ()).unwrap_err().to_string()
}

/// Changes one key of a JSON file.
fn set(root: &Path, file: &str, key: &str, value: Value) {
    let path = root.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_file_that_is_missing_is_named_with_what_it_is_for() {
    let files = [
        ("model_index.json", "the index of a checkpoint"),
        ("scheduler/scheduler_config.json", "the scheduler's configuration"),
        ("unet/config.json", "the denoiser's configuration"),
        (WEIGHTS, "the weights of unet"),
        ("vae/config.json", "the autoencoder's configuration"),
        ("text_encoder/config.json", "a text encoder's configuration"),
        ("tokenizer/vocab.json", "the tokenizer's vocabulary"),
        ("tokenizer/merges.txt", "the tokenizer's merges"),
    ];
    for (file, wanted) in files {
        let folder = copy("sd15");
        fs::remove_file(folder.path().join(file)).unwrap();
        let message = refused(folder.path());
        let path = folder.path().join(file);
        assert!(message.starts_with(&format!("{}: no such file; {wanted}", path.display())), "{message}");
    }
}

#[test]
fn a_truncated_weight_file_is_named() {
    let folder = copy("sd15");
    let path = folder.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let message = refused(folder.path());
    assert!(message.starts_with(&format!("{}: is not a whole safetensors file", path.display())), "{message}");
}

#[test]
fn a_file_that_is_another_kind_of_file_is_named_as_what_it_is() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daa\nsize 3438167540\n";
    let lfs = "is a Git LFS pointer to 3438167540 bytes and not the file itself: run `git lfs pull`";
    let page = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>";
    for (file, bytes, said) in [
        (WEIGHTS, pointer.as_bytes(), lfs),
        ("model_index.json", pointer.as_bytes(), lfs),
        ("vae/config.json", pointer.as_bytes(), lfs),
        ("tokenizer/vocab.json", pointer.as_bytes(), lfs),
        ("tokenizer/merges.txt", pointer.as_bytes(), lfs),
        (WEIGHTS, page.as_bytes(), "is a web page"),
        ("unet/config.json", page.as_bytes(), "is a web page"),
        ("tokenizer/merges.txt", page.as_bytes(), "is a web page"),
        (WEIGHTS, b"", "is empty: fetch the file again"),
        ("scheduler/scheduler_config.json", b"", "is empty: fetch the file again"),
        ("tokenizer/merges.txt", b"", "is empty: fetch the file again"),
        (WEIGHTS, b"PK\x03\x04\0\0\x08\x08\0\0archive/data.pkl", "is a zip archive, as PyTorch writes pickled weights"),
        (WEIGHTS, b"\x80\x02ccollections\nOrderedDict\n", "is pickled weights, which may run code"),
    ] {
        let folder = copy("sd15");
        let path = folder.path().join(file);
        fs::write(&path, bytes).unwrap();
        let message = refused(folder.path());
        assert!(message.starts_with(&format!("{}: {said}", path.display())), "{message}");
    }
    // A shard, and the index of shards.
    for file in [
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ] {
        let folder = copy("sd2");
        let path = folder.path().join(file);
        fs::write(&path, pointer).unwrap();
        assert!(refused(folder.path()).starts_with(&format!("{}: {lfs}", path.display())));
    }
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let folder = copy("sd15");
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join("unet/config.json")).unwrap()).unwrap();
    let mut widths = config["block_out_channels"].clone();
    let first = widths[0].as_u64().unwrap();
    widths[0] = Value::from(first * 2);
    set(folder.path(), "unet/config.json", "block_out_channels", widths);
    match load(folder.path()).map(|_| ()).unwrap_err() {
        Error::TensorShape { path, tensor, found, wanted } => {
            assert_eq!(path, folder.path().join(WEIGHTS));
            assert_eq!(tensor, "down_blocks.0.resnets.0.norm1.weight");
            let first = usize::try_from(first).unwrap();
            assert_eq!((found, wanted), (vec![first], vec![first * 2]));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_tensor_that_is_missing_is_named_with_the_shape_that_is_wanted() {
    let folder = copy("sd15");
    set(folder.path(), "unet/config.json", "layers_per_block", Value::from(3));
    match load(folder.path()).map(|_| ()).unwrap_err() {
        Error::MissingTensor { path, tensor, wanted } => {
            assert_eq!(path, folder.path().join(WEIGHTS));
            assert!(tensor.starts_with("down_blocks.0.resnets."), "{tensor}");
            assert!(!wanted.is_empty());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_a_configuration_asks_for_and_is_not_there_is_named() {
    let cases = [
        (
            "model_index.json",
            "_class_name",
            Value::from("FluxPipeline"),
            "\"FluxPipeline\"; supported are \"StableDiffusion",
        ),
        (
            "model_index.json",
            "scheduler",
            json!(["diffusers", "SASolverScheduler"]),
            "scheduler is \"SASolverScheduler\"; supported are PNDM",
        ),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            Value::from("flow"),
            "prediction_type is \"flow\"; supported are",
        ),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            Value::from("flow"),
            "prediction_type is \"flow\"; supported are",
        ),
        (
            "unet/config.json",
            "class_embed_type",
            Value::from("timestep"),
            "class_embed_type is \"timestep\"; only null",
        ),
        ("unet/config.json", "in_channels", Value::from(8), "in_channels is 8, the autoencoder's latent_channels 4"),
        ("vae/config.json", "act_fn", Value::from("relu"), "act_fn is \"relu\"; supported are \"silu\", \"swish\""),
        ("unet/config.json", "cross_attention_dim", Value::from(77), "cross_attention_dim is 77, the text encoders'"),
        ("unet/config.json", "sample_size", Value::Null, "sample_size is missing"),
        ("vae/config.json", "scaling_factor", Value::from(0), "scaling_factor is 0"),
        ("text_encoder/config.json", "num_attention_heads", Value::from(7), "num_attention_heads is 7"),
        ("text_encoder/config.json", "hidden_act", Value::from("relu"), "hidden_act is \"relu\"; supported are"),
    ];
    for (file, key, value, said) in cases {
        let folder = copy("sd15");
        set(folder.path(), file, key, value);
        let message = refused(folder.path());
        let path = folder.path().join(file);
        assert!(message.starts_with(&path.display().to_string()) && message.contains(said), "{message}");
    }
}

#[test]
fn a_denoiser_of_another_pipeline_is_named() {
    let folder = copy("sdxl");
    set(folder.path(), "unet/config.json", "addition_embed_type", Value::Null);
    let said = "unet/config.json: addition_embed_type is null, which does not fit the pipeline in model_index.json";
    assert!(refused(folder.path()).ends_with(said), "{}", refused(folder.path()));
}

/// Removes one key of a JSON file.
fn remove(root: &Path, file: &str, key: &str) {
    let path = root.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove(key).unwrap();
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn the_index_names_the_class_that_draws_and_the_file_does_where_the_index_is_silent() {
    const FILE: &str = "scheduler/scheduler_config.json";
    let defaults = |root: &Path| {
        let pipeline = load(root).unwrap();
        (pipeline.model().default_sampler, pipeline.model().default_scheduler)
    };
    let folder = copy("sd15");
    let root = folder.path();
    // PNDM, whose file this is, does not take the first; Euler does not take the second.
    set(root, FILE, "use_karras_sigmas", Value::from(true));
    assert_eq!(defaults(root), (SamplerKind::Pndm, SpacingKind::Checkpoint));
    set(root, "model_index.json", "scheduler", json!(["diffusers", "EulerDiscreteScheduler"]));
    set(root, FILE, "skip_prk_steps", Value::from(1));
    assert_eq!(defaults(root), (SamplerKind::Euler, SpacingKind::Karras));
    for (entry, said) in [
        (json!([null, null]), "scheduler is [null,null]; [\"diffusers\", CLASS] is needed"),
        (
            json!(["mine", "PNDMScheduler"]),
            "scheduler is [\"mine\",\"PNDMScheduler\"]; [\"diffusers\", CLASS] is needed",
        ),
        (json!("PNDMScheduler"), "scheduler is \"PNDMScheduler\"; [\"diffusers\", CLASS] is needed"),
    ] {
        let folder = copy("sd15");
        set(folder.path(), "model_index.json", "scheduler", entry);
        let path = folder.path().join("model_index.json");
        assert_eq!(refused(folder.path()), format!("{}: {said}", path.display()));
    }
    // What the file says is checked as the class that draws reads it.
    set(root, FILE, "timestep_type", Value::from("odd"));
    let said = format!("{}: timestep_type is \"odd\"; ", root.join(FILE).display());
    let message = refused(root);
    assert!(message.starts_with(&said), "{message}");
    set(root, FILE, "timestep_type", Value::from("discrete"));
    // Of spacings the file may name one, which a request gets that names none.
    set(root, FILE, "use_karras_sigmas", Value::from(false));
    set(root, FILE, "use_beta_sigmas", Value::from(true));
    assert_eq!(defaults(root), (SamplerKind::Euler, SpacingKind::Beta));
    set(root, FILE, "use_beta_sigmas", Value::from(false));
    set(root, FILE, "use_karras_sigmas", Value::from(true));

    remove(root, "model_index.json", "scheduler");
    set(root, FILE, "_class_name", Value::from("HeunDiscreteScheduler"));
    assert_eq!(defaults(root), (SamplerKind::Heun, SpacingKind::Karras));
    set(root, FILE, "_class_name", Value::from("IPNDMScheduler"));
    let message = refused(root);
    let said = format!("{}: _class_name is \"IPNDMScheduler\"; supported are PNDM", root.join(FILE).display());
    assert!(message.starts_with(&said), "{message}");
    remove(root, FILE, "_class_name");
    assert!(refused(root).contains("scheduler_config.json: _class_name is missing"));
}

#[test]
fn a_key_that_another_sampler_would_read_refuses_that_sampler_alone() {
    let folder = copy("sd15");
    set(folder.path(), "scheduler/scheduler_config.json", "solver_order", Value::from(4));
    let pipeline = load(folder.path()).unwrap();
    pipeline.check(&config(2)).unwrap();
    for sampler in [SamplerKind::Dpmpp2m, SamplerKind::Deis] {
        let error = pipeline.check(&SamplingConfig { sampler: Some(sampler), ..config(2) }).unwrap_err();
        assert!(matches!(error, Error::UnsupportedParameter { field: "sampler", .. }));
        let class = sampler.class();
        let said = format!("is {sampler}, which draws as {class} does; this model's solver_order is 4; only 1");
        assert!(error.to_string().starts_with(&format!("sampler: {said}")), "{error}");
    }
    pipeline.check(&SamplingConfig { sampler: Some(SamplerKind::Euler), ..config(2) }).unwrap();
}

#[test]
fn eta_counts_where_the_sampler_adds_noise_by_it() {
    let pipeline = load(&reference("sd15")).unwrap();
    // The checkpoint's own sampler is PNDM.
    let error = pipeline.check(&SamplingConfig { eta: Some(0.5), ..config(2) }).unwrap_err();
    assert_eq!(error.to_string(), "eta: is 0.5, which means nothing to the sampler pndm; ddim and tcd take it");
    for sampler in [SamplerKind::Ddim, SamplerKind::Tcd] {
        let draw = |eta| {
            let config = SamplingConfig { sampler: Some(sampler), eta, ..config(3) };
            bytes(&pipeline.generate(&config, &mut Told::default()).unwrap().images[0]).to_vec()
        };
        assert_ne!(draw(None), draw(Some(0.9)), "{sampler}");
        let default = if sampler == SamplerKind::Ddim { 0.0 } else { 0.3 };
        assert_eq!(draw(None), draw(Some(default)), "{sampler}");
        // What differs in it is not drawn together.
        let one = SamplingConfig { sampler: Some(sampler), eta: Some(0.1), ..config(3) };
        assert!(!pipeline.can_join(&one, &SamplingConfig { eta: Some(0.2), ..one.clone() }));
        assert!(pipeline.can_join(&one, &one));
    }
}

#[test]
fn a_checkpoint_takes_the_samplers_that_its_network_was_preconditioned_for() {
    let pipeline = load(&reference("sd15")).unwrap();
    assert!(!pipeline.model().samplers.contains(&SamplerKind::EdmEuler));
    assert_eq!(pipeline.model().samplers.len(), SamplerKind::ALL.len() - 2);
    let error = pipeline.check(&SamplingConfig { sampler: Some(SamplerKind::EdmEuler), ..config(2) }).unwrap_err();
    assert!(matches!(error, Error::UnsupportedParameter { field: "sampler", .. }), "{error}");
    let folder = copy("sd15");
    set(folder.path(), "model_index.json", "scheduler", json!(["diffusers", "EDMEulerScheduler"]));
    let pipeline = load(folder.path()).unwrap();
    assert_eq!(pipeline.model().samplers, [SamplerKind::EdmEuler, SamplerKind::EdmDpmpp2m]);
    assert_eq!(pipeline.model().default_sampler, SamplerKind::EdmEuler);
    let error = pipeline.check(&SamplingConfig { sampler: Some(SamplerKind::Ddim), ..config(2) }).unwrap_err();
    assert!(error.to_string().starts_with("sampler: is ddim; this model's network was preconditioned"), "{error}");
}

/// Steps with two looks at the network stay whole, whatever part of them is drawn.
#[test]
fn every_sampler_begins_with_a_picture_at_any_strength() {
    let pipeline = load(&reference("sd2")).unwrap();
    let picture = std::sync::Arc::new(image::RgbImage::from_pixel(64, 64, image::Rgb([90, 120, 60])));
    for sampler in pipeline.model().samplers.clone() {
        for strength in [0.25, 0.5, 1.0] {
            let image = Some(std::sync::Arc::clone(&picture));
            let config = SamplingConfig { sampler: Some(sampler), image, strength, ..config(4) };
            let mut told = Told::default();
            pipeline.generate(&config, &mut told).unwrap();
            let steps = darkroom::sampling::steps_of_strength(4, strength);
            assert_eq!(told.steps.last(), Some(&(steps, steps)), "{sampler} {strength}");
        }
    }
}

#[test]
fn a_schedule_of_fewer_steps_than_asked_for_counts_its_own() {
    let folder = copy("sd15");
    let file = "scheduler/scheduler_config.json";
    set(folder.path(), "model_index.json", "scheduler", json!(["diffusers", "DPMSolverMultistepScheduler"]));
    set(folder.path(), file, "timestep_spacing", Value::from("trailing"));
    set(folder.path(), file, "lambda_min_clipped", Value::from(-1.5));
    let pipeline = load(folder.path()).unwrap();
    let mut told = Told::default();
    pipeline.generate(&SamplingConfig { preview_every: 1, ..config(9) }, &mut told).unwrap();
    let last = told.steps.len();
    assert!(last < 9, "{:?}", told.steps);
    assert_eq!(told.steps, (1..=last).map(|step| (step, last)).collect::<Vec<_>>());
    assert_eq!(told.previews.len(), last - 1);
}

/// All JSON of a folder.
fn json_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(json_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_json_of_a_checkpoint_may_begin_with_a_byte_order_mark_and_have_nulls() {
    // Indexes of shards, vocabularies and special tokens among them.
    for name in ["sd2", "sdxl"] {
        let folder = copy(name);
        let defaults = r#"{"default_steps": 3, "default_guidance_scale": 2.0}"#;
        fs::write(folder.path().join("darkroom.json"), defaults).unwrap();
        let files = json_files(folder.path());
        assert!(files.len() >= 9, "{files:?}");
        for path in files {
            let mut text = fs::read_to_string(&path).unwrap();
            // What says nothing: keys that are null, of files that have keys and not a vocabulary's words.
            if path.file_name().unwrap() != "vocab.json" {
                text =
                    text.trim_end().strip_suffix('}').unwrap().to_owned() + r#", "unk_token": null, "_unset": null}"#;
                text = text.replacen('{', r#"{"use_cache": null, "default_seed": null, "#, 1);
            }
            fs::write(&path, format!("\u{feff}{text}")).unwrap();
        }
        let pipeline = load(folder.path()).unwrap();
        let wanted = load(&reference(name)).unwrap();
        let draw = |pipeline: &InferencePipeline| pipeline.generate(&config(2), &mut Told::default()).unwrap();
        let config = |pipeline: &InferencePipeline| pipeline.model().default_steps;
        assert_eq!((config(&pipeline), config(&wanted)), (3, 20), "{name}");
        assert_eq!(bytes(&draw(&pipeline).images[0]), bytes(&draw(&wanted).images[0]), "{name}");
    }
}

#[test]
fn null_says_what_diffusers_makes_of_it() {
    for (file, key) in [
        ("unet/config.json", "upcast_attention"),
        ("unet/config.json", "only_cross_attention"),
        ("unet/config.json", "norm_eps"),
        ("unet/config.json", "freq_shift"),
        ("vae/config.json", "act_fn"),
        ("vae/config.json", "force_upcast"),
        ("vae/config.json", "scaling_factor"),
        ("text_encoder/config.json", "layer_norm_eps"),
        ("tokenizer/tokenizer_config.json", "bos_token"),
        ("tokenizer/special_tokens_map.json", "pad_token"),
        ("scheduler/scheduler_config.json", "beta_start"),
        ("model_index.json", "feature_extractor"),
    ] {
        let folder = copy("sd15");
        set(folder.path(), file, key, Value::Null);
        load(folder.path()).map(|_| ()).unwrap_or_else(|error| panic!("{error}"));
    }
    // None is false to Python: an empty text in place of zeros, and an autoencoder that stays in f16.
    let folder = copy("sdxl");
    let spec = |folder: &Path| ModelSpec::read(&Checkpoint::Directory(folder.to_owned())).unwrap();
    assert!(spec(folder.path()).force_zeros_for_empty_prompt && spec(folder.path()).vae.force_upcast);
    set(folder.path(), "model_index.json", "force_zeros_for_empty_prompt", Value::Null);
    set(folder.path(), "vae/config.json", "force_upcast", Value::Null);
    assert!(!spec(folder.path()).force_zeros_for_empty_prompt && !spec(folder.path()).vae.force_upcast);
}

#[test]
fn keys_that_a_pipeline_of_diffusers_does_not_look_at_change_no_picture() {
    let draw = |root: &Path| load(root).unwrap().generate(&config(2), &mut Told::default()).unwrap().images.remove(0);
    for (name, alike) in [("sd15", true), ("sdxl", false)] {
        let plain = draw(&reference(name));
        let folder = copy(name);
        let root = folder.path();
        set(root, "vae/config.json", "shift_factor", json!(4.0));
        // The index names the classes.
        set(root, "vae/config.json", "_class_name", json!("FlaxAutoencoderKL"));
        set(root, "unet/config.json", "_class_name", json!("FlaxUNet2DConditionModel"));
        set(root, "vae/config.json", "latents_mean", json!([3.0, -2.0, 1.0, 4.0]));
        assert_eq!(bytes(&draw(root)), bytes(&plain), "{name}: one of two");
        // Stable Diffusion XL looks at both or neither, the others at neither.
        set(root, "vae/config.json", "latents_std", json!([2.0, 0.5, 3.0, 1.5]));
        assert_eq!(bytes(&draw(root)) == bytes(&plain), alike, "{name}: both");
    }
}

/// Remembers what it is told, and stops the drawing before the network call after `stop_after` steps.
#[derive(Default)]
struct Told {
    steps: Vec<(usize, usize)>,
    previews: Vec<(usize, (u32, u32))>,
    stop_after: Option<usize>,
}

impl Monitor for Told {
    fn should_stop(&self) -> bool {
        self.stop_after.is_some_and(|steps| self.steps.len() >= steps)
    }

    fn progress(&mut self, step: usize, total: usize) {
        self.steps.push((step, total));
    }

    fn preview(&mut self, step: usize, image: DynamicImage) {
        self.previews.push((step, (image.width(), image.height())));
    }
}

fn config(steps: usize) -> SamplingConfig {
    SamplingConfig { prompt: "a fox".into(), steps, seed: 7, ..SamplingConfig::default() }
}

fn bytes(image: &DynamicImage) -> &[u8] {
    image.as_bytes()
}

#[test]
fn a_picture_does_not_depend_on_the_batch_it_was_drawn_in() {
    let pipeline = load(&reference("sd2")).unwrap();
    let mut told = Told::default();
    let batch = pipeline.generate(&SamplingConfig { n: 3, ..config(2) }, &mut told).unwrap();
    assert_eq!(told.steps, [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]);
    for (number, image) in batch.images.iter().enumerate() {
        let alone = SamplingConfig { seed: 7 + number as u64, ..config(2) };
        let alone = pipeline.generate(&alone, &mut Told::default()).unwrap();
        assert_eq!(bytes(image), bytes(&alone.images[0]), "image {number}");
    }
    assert_ne!(bytes(&batch.images[0]), bytes(&batch.images[1]));
}

#[test]
fn a_drawing_stops_before_the_next_network_call() {
    let pipeline = load(&reference("sd15")).unwrap();
    let mut told = Told { stop_after: Some(2), ..Told::default() };
    let error = pipeline.generate(&config(50), &mut told).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    assert_eq!(told.steps.len(), 2);
    let mut told = Told { stop_after: Some(0), ..Told::default() };
    assert!(matches!(pipeline.generate(&config(50), &mut told).map(|_| ()), Err(Error::Interrupted)));
}

#[test]
fn previews_come_when_asked_for_and_change_nothing() {
    let pipeline = load(&reference("sd15")).unwrap();
    let mut told = Told::default();
    let with = pipeline.generate(&SamplingConfig { preview_every: 2, ..config(5) }, &mut told).unwrap();
    assert_eq!(told.previews, [(2, (64, 64)), (4, (64, 64))]);
    let without = pipeline.generate(&config(5), &mut Told::default()).unwrap();
    assert_eq!(bytes(&with.images[0]), bytes(&without.images[0]));
}

#[test]
fn what_the_model_cannot_honour_is_refused_by_name_before_anything_is_drawn() {
    let pipeline = load(&reference("sd15")).unwrap();
    let cases = [
        (SamplingConfig { clip_skip: 9, ..config(2) }, "clip_skip: is 9; this model's text encoder allows 0 to "),
        (SamplingConfig { width: Some(65), ..config(2) }, "width: is 65; "),
        (SamplingConfig { steps: 0, ..config(2) }, "steps: is 0; "),
        (
            SamplingConfig { prompt_2: Some("a".into()), ..config(2) },
            "prompt_2: is for Stable Diffusion XL; this model is stable-diffusion-1",
        ),
        (
            SamplingConfig { negative_prompt: Some("a".into()), negative_prompt_2: Some("a".into()), ..config(2) },
            "negative_prompt_2: is for Stable Diffusion XL; ",
        ),
        (SamplingConfig { original_size: Some(SIZE), ..config(2) }, "original_size: is for Stable Diffusion XL; "),
        (SamplingConfig { target_size: Some(SIZE), ..config(2) }, "target_size: is for Stable Diffusion XL; "),
        (
            SamplingConfig { crop: Some(CropOffset { left: 0, top: 0 }), ..config(2) },
            "crop: is for Stable Diffusion XL; ",
        ),
        (
            SamplingConfig { prompt: "a BREAK b".into(), long_prompt: LongPrompt::Truncate, ..config(2) },
            "prompt: has a BREAK, which starts a chunk; with long_prompt \"truncate\" there is one chunk alone",
        ),
    ];
    for (config, said) in cases {
        let message = pipeline.generate(&config, &mut Told::default()).map(|_| ()).unwrap_err().to_string();
        assert!(message.starts_with(said), "{message}");
    }
    let limits = Limits { max_pixels: 4096, max_batch: 1 };
    let source = ModelSource::Directory(reference("sd15"));
    let options = LoadOptions { source, limits, ..LoadOptions::default() };
    let small = InferencePipeline::load(&options, &mut |_| {}).unwrap();
    let tall = SamplingConfig { height: Some(128), ..config(2) };
    let message = small.check(&tall).unwrap_err().to_string();
    assert_eq!(message, "width: 64 times height 128 is more pixels than this worker allows, 4096");
}

#[test]
fn what_the_caller_should_know_is_said() {
    let pipeline = load(&reference("sd15")).unwrap();
    let long = SamplingConfig { prompt: "fox, ".repeat(80), ..config(1) };
    let warnings = pipeline.generate(&long, &mut Told::default()).unwrap().warnings;
    let left_out = "prompt was cut: this model reads 10 chunks of up to 14 tokens, the last 20 were left out";
    assert_eq!(warnings, [left_out]);
    let cut = SamplingConfig { long_prompt: LongPrompt::Truncate, ..long };
    let warnings = pipeline.generate(&cut, &mut Told::default()).unwrap().warnings;
    assert_eq!(warnings, ["prompt was cut: this model reads 14 tokens, the last 146 were left out"]);
    let fits = SamplingConfig { prompt: "fox, ".repeat(70), ..config(1) };
    assert_eq!(pipeline.generate(&fits, &mut Told::default()).unwrap().warnings, [""; 0]);
    let heavy = SamplingConfig { prompt: "(fox:11)".into(), negative_prompt: Some("(dog:-99)".into()), ..config(1) };
    let warnings = pipeline.generate(&heavy, &mut Told::default()).unwrap().warnings;
    let limited = ["prompt", "negative_prompt"]
        .map(|field| format!("{field} has weights beyond -10 to 10, which were limited to that"));
    assert_eq!(warnings, limited);
    let unguided = SamplingConfig { negative_prompt: Some("blurry".into()), guidance_scale: 1.0, ..config(1) };
    let warnings = pipeline.generate(&unguided, &mut Told::default()).unwrap().warnings;
    assert_eq!(warnings, ["negative_prompt has no effect at guidance_scale 1; above 1 it has"]);
    let empty = SamplingConfig { negative_prompt: Some(String::new()), ..unguided };
    assert_eq!(pipeline.generate(&empty, &mut Told::default()).unwrap().warnings, [""; 0]);
}

#[test]
fn an_empty_negative_prompt_is_an_absent_one_except_where_absent_means_zeros() {
    let draw = |root: &Path, negative: Option<&str>| {
        let negative_prompt = negative.map(str::to_owned);
        let config = SamplingConfig { negative_prompt, ..config(2) };
        bytes(&load(root).unwrap().generate(&config, &mut Told::default()).unwrap().images[0]).to_vec()
    };
    for name in ["sd15", "sd2"] {
        assert_eq!(draw(&reference(name), None), draw(&reference(name), Some("")), "{name}");
    }
    let xl = copy("sdxl");
    let empty = draw(xl.path(), Some(""));
    assert_ne!(draw(xl.path(), None), empty);
    set(xl.path(), "model_index.json", "force_zeros_for_empty_prompt", Value::from(false));
    assert_eq!(draw(xl.path(), None), empty);
    assert_eq!(draw(xl.path(), Some("")), empty);
}

/// A file of a tokenizer that numbers one token more.
fn one_more_token(root: &Path, token: &str) {
    let file = root.join("tokenizer/added_tokens.json");
    let vocabulary: Value = serde_json::from_slice(&fs::read(root.join("tokenizer/vocab.json")).unwrap()).unwrap();
    let next = vocabulary.as_object().unwrap().len();
    fs::write(file, serde_json::json!({ token: next }).to_string()).unwrap();
}

#[test]
fn a_token_that_the_text_encoder_does_not_know_is_refused_where_a_prompt_has_it() {
    let folder = copy("sd15");
    one_more_token(folder.path(), "<cat-toy>");
    let pipeline = load(folder.path()).unwrap();
    pipeline.check(&config(1)).unwrap();
    let toy = SamplingConfig { prompt: "a <cat-toy>!".into(), ..config(1) };
    let negative = SamplingConfig { negative_prompt: Some("<cat-toy>".into()), ..config(1) };
    for (config, field) in [(&toy, "prompt"), (&negative, "negative_prompt")] {
        let error = pipeline.check(config).unwrap_err();
        assert!(matches!(error, Error::UnsupportedParameter { field: named, .. } if named == field), "{error}");
        let message = error.to_string();
        let said = format!("{field}: has the token \"<cat-toy>\" of id ");
        assert!(message.starts_with(&said) && message.contains("text encoder knows ids below"), "{message}");
    }
    // What is not read is not refused.
    pipeline.check(&SamplingConfig { guidance_scale: 1.0, ..negative }).unwrap();
    let late = SamplingConfig { prompt: "fox, ".repeat(70) + "<cat-toy>", ..config(1) };
    pipeline.check(&late).unwrap();
    let cut =
        SamplingConfig { prompt: "fox, ".repeat(7) + "<cat-toy>", long_prompt: LongPrompt::Truncate, ..config(1) };
    pipeline.check(&cut).unwrap();
    pipeline.check(&SamplingConfig { long_prompt: LongPrompt::Chunks, ..cut }).unwrap_err();
}

#[test]
fn a_start_end_or_padding_that_the_text_encoder_does_not_know_is_refused_at_once() {
    for key in ["bos_token", "eos_token", "pad_token"] {
        let folder = copy("sd15");
        set(folder.path(), "tokenizer/special_tokens_map.json", key, Value::from("<odd>"));
        let message = refused(folder.path());
        let path = folder.path().join("tokenizer/vocab.json");
        let said = format!("{}: has no token \"<odd>\", the {key}, among the ", path.display());
        assert!(message.starts_with(&said), "{message}");
    }
}

#[test]
fn tokenizers_of_different_lengths_are_refused() {
    let folder = copy("sdxl");
    set(folder.path(), "tokenizer_2/tokenizer_config.json", "model_max_length", Value::from(12));
    let message = refused(folder.path());
    let path = folder.path().join("tokenizer_2/tokenizer_config.json");
    let said = "model_max_length leaves 12 tokens, the first tokenizer gives 16; they have to be the same";
    assert_eq!(message, format!("{}: {said}", path.display()));
}

#[test]
fn a_tokenizer_json_of_another_kind_is_refused() {
    for (key, value, said) in [
        ("vocab", serde_json::json!([["a", 0.0]]), "model.vocab is a list; an object is wanted"),
        ("merges", serde_json::json!(["a b", "ab"]), "has the merge \"ab\", which is no pair"),
    ] {
        let folder = copy("sd2v");
        let path = folder.path().join("tokenizer/tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json["model"][key] = value;
        fs::write(&path, json.to_string()).unwrap();
        let message = refused(folder.path());
        assert!(message.starts_with(&path.display().to_string()) && message.contains(said), "{message}");
    }
}

#[test]
fn weights_that_are_no_numbers_fail_the_job_and_draw_no_black_picture() {
    let folder = copy("sd2v");
    let path = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let bias = tensors.get_mut("decoder.conv_out.bias").unwrap();
    *bias = candle_core::Tensor::new(&[f32::NAN, 0.0, 0.0], &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let pipeline = load(folder.path()).unwrap();
    let error = pipeline.generate(&config(1), &mut Told::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { stage: "the autoencoder" }), "{error}");
}

#[test]
fn what_overflows_f16_is_decoded_again_in_f32() {
    let folder = copy("sd2v");
    set(folder.path(), "vae/config.json", "force_upcast", Value::from(false));
    let path = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    // A picture a hundred thousand times too bright, and the last norm that brings it back: f16 ends at 65504.
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    for name in ["decoder.conv_in.weight", "decoder.conv_in.bias"] {
        let tensor = tensors.get_mut(name).unwrap();
        *tensor = (&*tensor * 1e5).unwrap();
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let wide = load(folder.path()).unwrap().generate(&config(1), &mut Told::default()).unwrap();
    let narrow = load_as(folder.path(), DtypeChoice::F16).unwrap().generate(&config(1), &mut Told::default()).unwrap();
    let difference = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let (wide, narrow) = (bytes(&wide.images[0]), bytes(&narrow.images[0]));
    let mean = wide.iter().zip(narrow).map(difference).sum::<f64>() / wide.len() as f64;
    // The denoiser stays in f16, so the pictures are alike and not equal; a black one would be at 10 dB or less.
    assert!(10.0 * (255.0 * 255.0 / mean).log10() > 30.0, "mean square {mean}");
}
