//! Times candle-transformers' Stable Diffusion 1.5 on the CPU, in f32: `time-candle CHECKPOINT [SIZE] [RUNS]`.
//!
//! CHECKPOINT is a directory in diffusers layout. Prints for each stage of `darkroom bench` the median seconds of its
//! runs, after one that does not count; of the whole picture one run that counts, and none before it. Its bf16 is not
//! timed because its products on the CPU have none.

use std::{env, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device, Module, Tensor};
use candle_transformers::models::stable_diffusion::{StableDiffusionConfig, build_clip_transformer};

const STEPS: usize = 20;
const GUIDANCE: f64 = 7.5;
const WINDOW: usize = 77;
const TIMESTEP: f64 = 500.0;
const LATENT_SCALE: f64 = 0.18215;

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let root = Path::new(args.first().context("time-candle CHECKPOINT [SIZE] [RUNS]")?);
    let number = |place: usize, other: usize| args.get(place).map_or(Ok(other), |text| text.parse::<usize>());
    let (size, runs) = (number(1, 256)?, number(2, 3)?);
    let (device, dtype) = (Device::Cpu, DType::F32);
    let config = StableDiffusionConfig::v1_5(None, Some(size), Some(size));
    let file = |part: &str, name: &str| root.join(part).join(name);
    let text_file = file("text_encoder", "model.safetensors");
    let text = build_clip_transformer(&config.clip, text_file, &device, dtype)?;
    let unet = file("unet", "diffusion_pytorch_model.safetensors");
    let unet = config.build_unet(unet, &device, 4, false, dtype)?;
    let vae = config.build_vae(file("vae", "diffusion_pytorch_model.safetensors"), &device, dtype)?;

    let ids: Vec<u32> = (0..2 * WINDOW as u32).map(|index| index * 7919 % 49406).collect();
    let ids = Tensor::from_vec(ids, (2, WINDOW), &device)?;
    // Its text encoder takes one prompt at a time.
    let encode = || Tensor::cat(&[text.forward(&ids.narrow(0, 0, 1)?)?, text.forward(&ids.narrow(0, 1, 1)?)?], 0);
    let side = size / 8;
    let latents = Tensor::randn(0f32, 1.0, (1, 4, side, side), &device)?;
    let pair = Tensor::cat(&[&latents, &latents], 0)?;
    let context = Tensor::randn(0f32, 1.0, (2, WINDOW, 768), &device)?;

    time("text_pair", runs, || Ok(drop(encode()?)))?;
    time("unet_pair", runs, || Ok(drop(unet.forward(&pair, TIMESTEP, &context)?)))?;
    time("vae_decode", runs, || Ok(drop(vae.decode(&latents)?)))?;

    let began = Instant::now();
    let context = encode()?;
    let mut scheduler = config.build_scheduler(STEPS)?;
    let mut latents = (&latents * scheduler.init_noise_sigma())?;
    for timestep in scheduler.timesteps().to_vec() {
        let input = scheduler.scale_model_input(Tensor::cat(&[&latents, &latents], 0)?, timestep)?;
        let halves = unet.forward(&input, timestep as f64, &context)?.chunk(2, 0)?;
        let noise = (&halves[0] + ((&halves[1] - &halves[0])? * GUIDANCE)?)?;
        latents = scheduler.step(&noise, timestep, &latents)?;
    }
    let pixels = vae.decode(&(latents / LATENT_SCALE)?)?;
    let pixels = ((((pixels / 2.0)? + 0.5)?.clamp(0f32, 1.0)? * 255.0)?).to_dtype(DType::U8)?;
    let pixels = pixels.squeeze(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
    let side = u32::try_from(size)?;
    let picture = image::RgbImage::from_raw(side, side, pixels).ok_or_else(|| anyhow!("the pixels are whole"))?;
    picture.write_to(&mut std::io::Cursor::new(Vec::new()), image::ImageFormat::Png)?;
    println!("image      {:9.4} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn time(stage: &str, runs: usize, call: impl Fn() -> Result<()>) -> Result<()> {
    call()?;
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        call()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    println!("{stage:<10} {:9.4} s", seconds[seconds.len() / 2]);
    Ok(())
}
