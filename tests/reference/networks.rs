//! Tokens, text encoders, UNets and VAEs, one by one.

use candle_core::{DType, Device, IndexOp, Tensor};
use darkroom::{
    models::{
        Added, Checkpoint, Conditioning, ModelSource, ModelSpec, Prepared, PromptTokenizer, TextWindow, Tiling, Unet,
        UnetConfig, VaeDecoder, VaeEncoder,
    },
    nn::{LoadProgress, Weights},
    sampling::NoiseGenerator,
};
use serde::Deserialize;

use crate::support::{
    CHECKPOINTS, checkpoint, json, load, pipeline, relative_error, spec, tensors, with_weights, with_weights_as,
};

/// What f32 arithmetic in another order may differ by.
const TOLERANCE: f32 = 1e-4;
/// What f16 arithmetic may differ by.
const F16_TOLERANCE: f32 = 2e-2;

#[derive(Deserialize)]
struct PromptTokens {
    prompt: String,
    tokenizer: Wanted,
    tokenizer_2: Option<Wanted>,
}

#[derive(Deserialize)]
struct Wanted {
    ids: Vec<u32>,
    cut: bool,
    whole: Vec<u32>,
}

#[test]
fn prompts_become_the_ids_that_transformers_gives() {
    for name in CHECKPOINTS {
        let spec = spec(name);
        for (number, encoder) in spec.text_encoders.iter().enumerate() {
            let window = encoder.config.max_position_embeddings;
            let tokens = TextWindow { tokens: window, vocabulary: encoder.config.vocab_size };
            let tokenizer = PromptTokenizer::load(&checkpoint(name), encoder.tokenizer, tokens).unwrap();
            for case in json::<Vec<PromptTokens>>(&format!("{name}/tokens.json")) {
                let wanted = if number == 0 { &case.tokenizer } else { case.tokenizer_2.as_ref().unwrap() };
                let found = tokenizer.encode("prompt", &case.prompt).unwrap();
                assert_eq!(found.ids, wanted.ids, "{name}, {:?}", case.prompt);
                let left_out = wanted.whole.len() - wanted.whole.len().min(window);
                assert_eq!((found.left_out, found.left_out > 0), (left_out, wanted.cut), "{name}, {:?}", case.prompt);
            }
        }
    }
}

#[test]
pub fn text_is_encoded_as_diffusers_does() {
    for name in CHECKPOINTS {
        let pipeline = pipeline(name);
        let wanted = tensors(&format!("{name}/text.safetensors"));
        let cases: Vec<PromptTokens> = json(&format!("{name}/tokens.json"));
        for (skip, key) in [(0, "embeddings"), (1, "embeddings_clip_skip_1")] {
            for (row, case) in cases[..wanted[key].dim(0).unwrap()].iter().enumerate() {
                let found = pipeline.encode_text(&case.prompt, skip).unwrap();
                let error = relative_error(&found.states, &wanted[key].i(row..=row).unwrap());
                assert!(error < TOLERANCE, "{name}, {key}, {:?}: {error}", case.prompt);
                let pooled = wanted.get("pooled");
                assert_eq!(found.pooled.is_some(), pooled.is_some(), "{name}");
                if let (Some(found), Some(wanted)) = (found.pooled, pooled) {
                    let error = relative_error(&found, &wanted.i(row..=row).unwrap());
                    assert!(error < TOLERANCE, "{name}, pooled, {:?}: {error}", case.prompt);
                }
            }
        }
    }
}

#[test]
pub fn unets_give_what_diffusers_gives_at_whole_and_fractional_timesteps_and_odd_sizes() {
    for name in CHECKPOINTS {
        let unet = with_weights(name, "unet", |weights| Unet::new(&spec(name).unet, weights).unwrap());
        let data = tensors(&format!("{name}/unet.safetensors"));
        let added = data.get("text_embeds").map(|pooled| {
            let rows: Vec<Vec<f32>> = data["time_ids"].to_vec2().unwrap();
            let row = |row: Vec<f32>| row.into_iter().map(f64::from).collect::<Vec<_>>().try_into().unwrap();
            let sizes = rows.into_iter().map(row).collect();
            Added { pooled: pooled.clone(), sizes }
        });
        let conditioning = Conditioning { text: data["encoder_hidden_states"].clone(), added };
        let prepared = unet.prepare(&conditioning).unwrap();
        let timesteps: Vec<f32> = data["timesteps"].to_vec1().unwrap();
        let check = |sample: &Tensor, timestep: f32, wanted: &Tensor| {
            let found = unet.forward(sample, f64::from(timestep), &prepared).unwrap();
            let error = relative_error(&found, wanted);
            assert!(error < TOLERANCE, "{name} at {timestep}: {error}");
        };
        for (number, timestep) in timesteps.iter().enumerate() {
            check(&data["sample"], *timestep, &data["outputs"].i(number).unwrap());
        }
        check(&data["odd_sample"], timesteps[0], &data["odd_output"]);
    }
}

#[test]
pub fn unets_in_the_layouts_of_distilled_models_give_what_diffusers_gives() {
    for name in ["layouts/nested", "layouts/plain_middle", "layouts/no_middle", "layouts/options"] {
        let config = UnetConfig::read(&checkpoint(name)).unwrap();
        let unet = with_weights(name, "unet", |weights| Unet::new(&config, weights).unwrap());
        let data = tensors(&format!("{name}/unet.safetensors"));
        let pooled = data.get("text_embeds");
        let added = pooled.map(|pooled| Added { pooled: pooled.clone(), sizes: vec![[64.0; 6]; 2] });
        let conditioning = Conditioning { text: data["encoder_hidden_states"].clone(), added };
        let prepared = unet.prepare(&conditioning).unwrap();
        for (sample, output) in [("sample", "output"), ("odd_sample", "odd_output")] {
            let Some(sample) = data.get(sample) else { continue };
            let error = relative_error(&unet.forward(sample, 321.0, &prepared).unwrap(), &data[output]);
            assert!(error < TOLERANCE, "{name}, {output}: {error}");
        }
    }
}

#[test]
fn a_unet_is_told_each_image_s_guidance_scale_as_diffusers_tells_it() {
    let name = "layouts/told_guidance";
    let config = UnetConfig::read(&checkpoint(name)).unwrap();
    let unet = with_weights(name, "unet", |weights| Unet::new(&config, weights).unwrap());
    let data = tensors(&format!("{name}/unet.safetensors"));
    let told: Vec<Prepared> = [1.0, 8.5]
        .into_iter()
        .enumerate()
        .map(|(row, scale)| {
            let text = data["encoder_hidden_states"].i(row..=row).unwrap();
            let prepared = unet.prepare(&Conditioning { text, added: None }).unwrap();
            unet.tell_guidance(prepared, scale).unwrap()
        })
        .collect();
    let joined = Prepared::join(&told.iter().collect::<Vec<_>>()).unwrap();
    let error = relative_error(&unet.forward(&data["sample"], 321.0, &joined).unwrap(), &data["output"]);
    assert!(error < TOLERANCE, "{error}");
    let second = unet.forward(&data["sample"].i(1..2).unwrap(), 321.0, &told[1]).unwrap();
    let error = relative_error(&second, &data["output"].i(1..2).unwrap());
    assert!(error < TOLERANCE, "alone: {error}");
}

#[test]
pub fn a_unet_draws_latents_once_for_several_texts_as_it_draws_them_repeated() {
    for name in CHECKPOINTS {
        let unet = with_weights(name, "unet", |weights| Unet::new(&spec(name).unet, weights).unwrap());
        let data = tensors(&format!("{name}/unet.safetensors"));
        let text = data["encoder_hidden_states"].clone();
        let batch = text.dim(0).unwrap();
        assert!(batch > 1);
        let added = data.get("text_embeds").map(|pooled| Added {
            pooled: pooled.clone(),
            sizes: (0..batch).map(|row| [64.0 + row as f64; 6]).collect(),
        });
        let prepared = unet.prepare(&Conditioning { text, added }).unwrap();
        let one = data["sample"].i(0..1).unwrap();
        let repeated = Tensor::cat(&vec![&one; batch], 0).unwrap();
        let numbers = |latents: &Tensor| -> Vec<f32> {
            unet.forward(latents, 77.0, &prepared).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(numbers(&one), numbers(&repeated), "{name}");
    }
}

#[test]
pub fn vaes_decode_as_diffusers_does() {
    for name in CHECKPOINTS {
        let vae = with_weights(name, "vae", |weights| VaeDecoder::new(&spec(name).vae, weights).unwrap());
        let data = tensors(&format!("{name}/vae.safetensors"));
        let error = relative_error(&vae.decode_raw(&data["latents"], Tiling::Off).unwrap(), &data["decoded"]);
        assert!(error < TOLERANCE, "{name}: {error}");
    }
}

#[test]
pub fn vaes_encode_as_diffusers_does_at_odd_sizes_too() {
    for name in CHECKPOINTS {
        let vae = with_weights(name, "vae", |weights| VaeEncoder::new(&spec(name).vae, weights).unwrap());
        check_encodings(name, &vae, TOLERANCE);
    }
    check_encodings("pocket", &load(ModelSource::Bundled).load_encoder().unwrap(), TOLERANCE);
}

#[test]
fn a_vae_encodes_through_the_tensor_library_as_through_the_kernels() {
    // In f16 no kernel takes it.
    let vae =
        with_weights_as("sd15", "vae", DType::F16, |weights| VaeEncoder::new(&spec("sd15").vae, weights).unwrap());
    check_encodings("sd15", &vae, F16_TOLERANCE);
}

fn check_encodings(name: &str, vae: &VaeEncoder, tolerance: f32) {
    let data = tensors(&format!("{name}/vae.safetensors"));
    for kind in ["", "odd_"] {
        let found = vae.encode(&data[&format!("{kind}image")], Tiling::Off).unwrap();
        for (part, found) in [("mean", found.mean), ("logvar", found.log_variance)] {
            let error = relative_error(&found, &data[&format!("{kind}encoded_{part}")]);
            assert!(error < tolerance, "{name}, {kind}image, {part}: {error}");
        }
    }
}

#[test]
fn a_picture_without_a_whole_latent_is_not_encoded() {
    let vae = with_weights("sd15", "vae", |weights| VaeEncoder::new(&spec("sd15").vae, weights).unwrap());
    let thin = Tensor::zeros((1, 3, 64, 7), DType::F32, &Device::Cpu).unwrap();
    let message = vae.encode(&thin, Tiling::Off).unwrap_err().to_string();
    assert_eq!(message, "image: 7 by 64 pixels are too few; at least 8 a side are needed");
}

/// A UNet's output in bf16 and in f32 for the same noise: the cosine of the angle between them.
fn bf16_cosine(checkpoint: &Checkpoint, side: usize) -> f64 {
    let spec = ModelSpec::read(checkpoint).unwrap();
    let noise = |seed: u64, shape: &[usize]| {
        let values = NoiseGenerator::new(seed).normals(shape.iter().product());
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let latents = noise(1, &[2, spec.unet.in_channels, side, side]);
    let text = noise(2, &[2, 77, spec.unet.cross_attention_dim.of(0)]);
    let outputs = [DType::F32, DType::BF16].map(|dtype| {
        let mut quiet = |_| {};
        let progress = LoadProgress::new(&mut quiet);
        let weights = Weights::open(checkpoint.weights("unet").unwrap(), &Device::Cpu, dtype, &progress).unwrap();
        let unet = Unet::new(&spec.unet, &weights).unwrap();
        let prepared = unet.prepare(&Conditioning { text: text.clone(), added: None }).unwrap();
        let output = unet.forward(&latents, 500.0, &prepared).unwrap();
        output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let [wide, narrow] = &outputs;
    dot(wide, narrow) / (dot(wide, wide) * dot(narrow, narrow)).sqrt()
}

#[test]
fn a_unet_in_bf16_points_where_it_does_in_f32() {
    let cosine = bf16_cosine(&Checkpoint::Bundled, 16);
    assert!(cosine >= 0.999, "{cosine}");
}

/// ```sh
/// DARKROOM_CHECKPOINT=directory cargo test --test reference full_size -- --ignored
/// ```
#[test]
#[ignore = "needs the directory of a full-size Stable Diffusion 1.5 in DARKROOM_CHECKPOINT"]
fn a_full_size_unet_in_bf16_points_where_it_does_in_f32() {
    let root = std::env::var_os("DARKROOM_CHECKPOINT").expect("DARKROOM_CHECKPOINT names a directory");
    let cosine = bf16_cosine(&Checkpoint::Directory(root.into()), 32);
    println!("cosine {cosine}");
    assert!(cosine >= 0.999, "{cosine}");
}

#[test]
fn all_layers_may_be_left_out_and_no_more() {
    for name in CHECKPOINTS {
        let (pipeline, spec) = (pipeline(name), spec(name));
        pipeline.encode_text("a fox", spec.most_clip_skip()).unwrap();
    }
    let (pipeline, layers) = (pipeline("sd15"), spec("sd15").text_encoders[0].config.num_hidden_layers);
    let message = pipeline.encode_text("a fox", layers + 1).unwrap_err().to_string();
    assert_eq!(message, format!("clip_skip: leaves out {} layers; the text encoder has {layers}", layers + 1));
}
