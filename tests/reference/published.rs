//! The key sets of published checkpoints, `tests/published/`: each is read at its full size, and drawn with at a tiny one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use darkroom::{
    models::{Checkpoint, Family, ModelSource, ModelSpec},
    pipeline::{Generate, Unwatched},
    sampling::{SamplerKind, SamplingConfig},
};

use crate::support::{copy_folder, data, load, make_for_inpainting, psnr, tensors};

/// The lines of `pictures.rs` hold as many dB.
const LEAST_PSNR: f64 = 50.0;

/// A published checkpoint that can be drawn with.
struct Published {
    name: &'static str,
    family: Family,
    side: usize,
    /// The tiny checkpoint whose weights draw, and the layout of its UNet where that is another.
    tiny: &'static str,
    layout: Option<&'static str>,
    /// Whether its denoiser was made for inpainting.
    inpaints: bool,
}

const fn published(name: &'static str, family: Family, side: usize, tiny: &'static str) -> Published {
    Published { name, family, side, tiny, layout: None, inpaints: false }
}

const DRAWN: [Published; 11] = [
    Published {
        layout: Some("layouts/told_guidance"),
        ..published("lcm-dreamshaper-v7", Family::StableDiffusion1, 512, "sd15")
    },
    Published { inpaints: true, ..published("sd-inpainting-1.5", Family::StableDiffusion1, 512, "sd15") },
    Published { inpaints: true, ..published("sd-inpainting-2", Family::StableDiffusion2, 512, "sd2") },
    published("playground-2.5", Family::StableDiffusionXl, 1024, "sdxl"),
    published("sd-1.5", Family::StableDiffusion1, 512, "sd15"),
    published("sd-2.1", Family::StableDiffusion2, 768, "sd2"),
    published("sd-turbo", Family::StableDiffusion2, 512, "sd2"),
    published("sdxl-base-1.0", Family::StableDiffusionXl, 1024, "sdxl"),
    published("sdxl-turbo", Family::StableDiffusionXl, 512, "sdxl"),
    Published { layout: Some("layouts/nested"), ..published("ssd-1b", Family::StableDiffusionXl, 1024, "sdxl") },
    Published { layout: Some("layouts/no_middle"), ..published("tiny-sd", Family::StableDiffusion1, 512, "sd15") },
];

/// Published checkpoints that need what is not there: the file, and what is said of it.
const REFUSED: [(&str, &str); 1] =
    [("sdxl-refiner-1.0", "model_index.json: requires_aesthetics_score is true; only false is supported")];

/// Keys that say how large a tensor is or how many there are; the tiny checkpoint's values take their place.
const SIZES: [&str; 27] = [
    "sample_size",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "in_channels",
    "out_channels",
    "latent_channels",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "projection_dim",
    "model_max_length",
    "time_cond_proj_dim",
    "mid_block_type",
    "mid_block_scale_factor",
    "only_cross_attention",
];

/// Stands for Python's `-Infinity` in a file while the test handles it.
const INFINITY: &str = "minus infinity";

type Object = serde_json::Map<String, serde_json::Value>;

/// The files of a published checkpoint.
fn files(name: &str) -> BTreeMap<String, Object> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published").join(format!("{name}.json"));
    let text = fs::read_to_string(path).unwrap().replace("-Infinity", &format!("{INFINITY:?}"));
    serde_json::from_str(&text).unwrap()
}

fn write(root: &Path, file: &str, object: &Object) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = serde_json::to_string(object).unwrap().replace(&format!("{INFINITY:?}"), "-Infinity");
    fs::write(path, text).unwrap();
}

/// A published checkpoint's configuration at its full size, without weights.
fn full_size(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, object) in files(name) {
        write(folder.path(), &file, &object);
    }
    folder
}

/// A tiny checkpoint with the keys of a published one: only sizes are its own.
fn tiny(published: &Published) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    copy_folder(&data(&format!("{}/model", published.tiny)), root);
    if let Some(layout) = published.layout {
        fs::remove_dir_all(root.join("unet")).unwrap();
        copy_folder(&data(&format!("{layout}/model/unet")), &root.join("unet"));
    }
    for (file, mut object) in files(published.name) {
        let own: PathBuf = root.join(&file);
        let own: Object = serde_json::from_slice(&fs::read(own).unwrap()).unwrap();
        for size in SIZES {
            match own.get(size) {
                Some(value) => object.insert(size.to_owned(), value.clone()),
                None => object.remove(size),
            };
        }
        write(root, &file, &object);
    }
    if published.inpaints {
        make_for_inpainting(root, |first| {
            let more = [first, first, &first.narrow(1, 0, 1).unwrap()];
            Tensor::cat(&more, 1).unwrap()
        });
    }
    folder
}

fn config() -> SamplingConfig {
    SamplingConfig {
        prompt: "a photo of a red fox in the snow".to_owned(),
        steps: 6,
        seed: 42,
        width: Some(64),
        height: Some(64),
        guidance_scale: 7.5,
        ..SamplingConfig::default()
    }
}

fn draw(published: &Published) -> Vec<u8> {
    let folder = tiny(published);
    let pipeline = load(ModelSource::Directory(folder.path().to_owned()));
    pipeline.generate(&config(), &mut Unwatched).unwrap().images.remove(0).into_rgb8().into_raw()
}

#[test]
fn published_key_sets_are_read_at_their_full_size() {
    for published in &DRAWN {
        let folder = full_size(published.name);
        let spec = ModelSpec::read(&Checkpoint::Directory(folder.path().to_owned()));
        let spec = spec.unwrap_or_else(|error| panic!("{}: {error}", published.name));
        assert_eq!(spec.family, published.family, "{}", published.name);
        assert_eq!(spec.native_size(), (published.side, published.side), "{}", published.name);
    }
}

#[test]
fn published_key_sets_that_need_more_are_refused_by_file_and_key() {
    for (name, said) in REFUSED {
        let folder = full_size(name);
        let message = ModelSpec::read(&Checkpoint::Directory(folder.path().to_owned())).unwrap_err().to_string();
        assert!(message.contains(said), "{name}: {message}");
        assert!(message.starts_with(&folder.path().display().to_string()), "{name}: {message}");
    }
}

#[test]
fn published_key_sets_draw() {
    for published in &DRAWN {
        let picture = draw(published);
        assert_eq!(picture.len(), 64 * 64 * 3);
        let (least, most) = (picture.iter().min().unwrap(), picture.iter().max().unwrap());
        assert!(most - least > 50, "{}: {least} to {most}", published.name);
    }
}

#[test]
fn the_key_sets_of_stable_diffusion_1_5_and_xl_draw_diffusers_picture() {
    for (name, picture) in [("sd-1.5", "pndm.checkpoint"), ("sdxl-base-1.0", "euler.checkpoint")] {
        let published = DRAWN.iter().find(|published| published.name == name).unwrap();
        let wanted = tensors(&format!("{}/pictures.safetensors", published.tiny));
        let wanted: Vec<u8> = wanted[picture].flatten_all().unwrap().to_vec1().unwrap();
        let found = psnr(&draw(published), &wanted);
        assert!(found >= LEAST_PSNR, "{name}: {found:.1} dB");
    }
}

#[test]
fn early_files_of_stable_diffusion_mean_a_picture_of_512_pixels() {
    let side = |version: Option<&str>, sample_size: usize, name: &str| {
        let folder = full_size(name);
        let mut unet = files(name).remove("unet/config.json").unwrap();
        unet.remove("_diffusers_version");
        if let Some(version) = version {
            unet.insert("_diffusers_version".to_owned(), version.into());
        }
        unet.insert("sample_size".to_owned(), sample_size.into());
        write(folder.path(), "unet/config.json", &unet);
        ModelSpec::read(&Checkpoint::Directory(folder.path().to_owned())).unwrap().native_size().0
    };
    for version in ["0.2.2", "0.6.0", "0.8.1"] {
        assert_eq!(side(Some(version), 32, "sd-1.5"), 512, "{version}");
        assert_eq!(side(Some(version), 96, "sd-2.1"), 768, "{version}");
        assert_eq!(side(Some(version), 32, "sdxl-base-1.0"), 256, "{version}");
    }
    for version in [Some("0.9.0"), Some("0.42.1"), None] {
        assert_eq!(side(version, 32, "sd-1.5"), 256, "{version:?}");
    }
}

#[test]
fn a_checkpoint_that_is_told_the_guidance_scale_draws_diffusers_picture_in_one_pass_a_step() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&data("sd15/model"), folder.path());
    fs::remove_dir_all(folder.path().join("unet")).unwrap();
    copy_folder(&data("layouts/told_guidance/model/unet"), &folder.path().join("unet"));
    let pipeline = load(ModelSource::Directory(folder.path().to_owned()));
    let wanted = tensors("layouts/told_guidance/pictures.safetensors");
    for scale in [1.0, 8.5] {
        let config = SamplingConfig {
            steps: 4,
            guidance_scale: scale,
            sampler: Some(SamplerKind::Ddim),
            negative_prompt: Some("blurry".to_owned()),
            ..config()
        };
        let drawn = pipeline.generate(&config, &mut Unwatched).unwrap();
        let wanted: Vec<u8> = wanted[&format!("ddim.{scale:.1}")].flatten_all().unwrap().to_vec1().unwrap();
        let found = psnr(&drawn.images[0].to_rgb8().into_raw(), &wanted);
        assert!(found >= LEAST_PSNR, "{scale}: {found:.1} dB");
        let said = "negative_prompt has no effect with this model, which is told the guidance_scale instead";
        assert!(drawn.warnings.iter().any(|warning| warning == said), "{:?}", drawn.warnings);
    }
}

#[test]
fn a_latent_consistency_model_draws_diffusers_picture() {
    let published = DRAWN.iter().find(|published| published.name == "lcm-dreamshaper-v7").unwrap();
    let folder = tiny(published);
    let pipeline = load(ModelSource::Directory(folder.path().to_owned()));
    let (steps, guidance_scale) = (pipeline.model().default_steps, pipeline.model().default_guidance_scale);
    let drawn = pipeline.generate(&SamplingConfig { steps, guidance_scale, ..config() }, &mut Unwatched).unwrap();
    let wanted = tensors("layouts/told_guidance/pictures.safetensors");
    let wanted: Vec<u8> = wanted["lcm"].flatten_all().unwrap().to_vec1().unwrap();
    let found = psnr(&drawn.images[0].to_rgb8().into_raw(), &wanted);
    assert!(found >= LEAST_PSNR, "{found:.1} dB");
}

/// The index of a published latent consistency model.
fn consistent(change: impl FnOnce(&Path)) -> darkroom::Result<ModelSpec> {
    let folder = full_size("lcm-dreamshaper-v7");
    change(folder.path());
    ModelSpec::read(&Checkpoint::Directory(folder.path().to_owned()))
}

#[test]
fn a_latent_consistency_pipeline_has_its_own_defaults_and_needs_the_guidance_embedding() {
    let spec = consistent(|_| {}).unwrap();
    assert_eq!((spec.default_steps, spec.default_guidance_scale), (4, 8.5));
    assert_eq!((spec.family, spec.unet.time_cond_proj_dim), (Family::StableDiffusion1, Some(256)));
    assert_eq!(spec.scheduler.own_sampler().unwrap(), SamplerKind::Lcm);
    let message = consistent(|root| {
        let mut unet = files("lcm-dreamshaper-v7").remove("unet/config.json").unwrap();
        unet.remove("time_cond_proj_dim");
        write(root, "unet/config.json", &unet);
    });
    let message = message.unwrap_err().to_string();
    let said = "unet/config.json: time_cond_proj_dim is missing, which LatentConsistencyModelPipeline needs";
    assert!(message.contains(said), "{message}");
}
