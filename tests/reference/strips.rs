//! The autoencoder in strips against the autoencoder on whole maps, which the other tests compare with diffusers.

use candle_core::{DType, Device, Tensor};
use darkroom::{
    models::{Checkpoint, ModelSource, ModelSpec, Tiling, VaeDecoder, VaeEncoder},
    nn::{LoadProgress, Weights},
    sampling::NoiseGenerator,
};

use crate::support::{load, relative_error, tensors};

/// Grey levels from one end of the decoder's range to the other, by its unit.
const GREY_LEVELS: f32 = 127.5;
/// What f32 arithmetic in another order may differ by, in grey levels.
const F32_LEVELS: f32 = 0.05;
/// What bf16 and f16 may: moments that differ in their last digits round some numbers otherwise. Near white a step of bf16 is
/// half a level; two are seen, and another processor may add up in another order.
const NARROW_LEVELS: f32 = 1.5;

fn checkpoints() -> Vec<(&'static str, Checkpoint)> {
    let tiny = ["sd15", "sd2", "sdxl"].map(|name| (name, crate::support::checkpoint(name)));
    tiny.into_iter().chain([("pocket", Checkpoint::Bundled)]).collect()
}

fn with_vae<T>(checkpoint: &Checkpoint, dtype: DType, build: impl FnOnce(&ModelSpec, &Weights) -> T) -> T {
    let mut quiet = |_| {};
    let progress = LoadProgress::new(&mut quiet);
    let weights = Weights::open(checkpoint.weights("vae").unwrap(), &Device::Cpu, dtype, &progress).unwrap();
    build(&ModelSpec::read(checkpoint).unwrap(), &weights)
}

fn decoder(checkpoint: &Checkpoint, dtype: DType) -> (ModelSpec, VaeDecoder) {
    with_vae(checkpoint, dtype, |spec, weights| (spec.clone(), VaeDecoder::new(&spec.vae, weights).unwrap()))
}

fn noise(shape: (usize, usize, usize, usize)) -> Tensor {
    let values = NoiseGenerator::new(3).normals(shape.0 * shape.1 * shape.2 * shape.3);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The largest and the mean difference of two pictures in grey levels, as they are shown: from -1 to 1.
fn grey_levels(found: &Tensor, wanted: &Tensor) -> (f32, f32) {
    let shown = |picture: &Tensor| (picture.clamp(-1.0, 1.0).unwrap() * f64::from(GREY_LEVELS)).unwrap();
    let difference = (shown(found) - shown(wanted)).unwrap().abs().unwrap();
    (difference.max_all().unwrap().to_scalar().unwrap(), difference.mean_all().unwrap().to_scalar().unwrap())
}

fn check_decoded(name: &str, found: &Tensor, wanted: &Tensor, most: f32) {
    assert_eq!(found.dims(), wanted.dims());
    let (largest, mean) = grey_levels(found, wanted);
    println!("{name}: {largest:.6} grey levels at most, {mean:.6} on the mean");
    assert!(largest < most, "{name}: {largest}");
}

#[test]
fn pictures_in_strips_are_those_of_whole_maps() {
    for (name, checkpoint) in checkpoints() {
        let (spec, vae) = decoder(&checkpoint, DType::F32);
        // A height that strips do not divide; two images that must not share their moments.
        let latents = noise((2, spec.vae.latent_channels, 13, 6));
        let whole = vae.decode_raw(&latents, Tiling::Off).unwrap();
        for rows in [8, 16, 64, 1000] {
            let strips = vae.decode_raw(&latents, Tiling::Strips(rows)).unwrap();
            check_decoded(&format!("{name}, {rows} rows"), &strips, &whole, F32_LEVELS);
        }
    }
}

#[test]
fn no_seam_shows_in_a_drawing_of_trained_weights() {
    let (_, vae) = decoder(&Checkpoint::Bundled, DType::F32);
    let encoder = load(ModelSource::Bundled).load_encoder().unwrap();
    // Smooth colours, in which a seam would show: a gradient with a disc.
    let side = 256_usize;
    let pixel = |index: usize| {
        let (channel, y, x) = (index / (side * side), index / side % side, index % side);
        let disc = (x.abs_diff(128).pow(2) + y.abs_diff(120).pow(2)) < 60 * 60;
        let value = [x, y, side - x][channel] as f32 / side as f32;
        if disc { 1.0 - value } else { 2.0 * value - 1.0 }
    };
    let pixels: Vec<f32> = (0..3 * side * side).map(pixel).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
    let latents = encoder.encode(&pixels, Tiling::Off).unwrap().mean;
    let whole = vae.decode_raw(&latents, Tiling::Off).unwrap();
    let strips = vae.decode_raw(&latents, Tiling::ON).unwrap();
    check_decoded("pocket, 256 pixels", &strips, &whole, F32_LEVELS);
    for border in [64, 128, 192] {
        let rows = |picture: &Tensor| picture.narrow(2, border - 1, 2).unwrap();
        check_decoded(&format!("pocket, rows about {border}"), &rows(&strips), &rows(&whole), F32_LEVELS);
    }
}

#[test]
fn strips_go_through_narrow_types_and_the_tensor_library() {
    for dtype in [DType::BF16, DType::F16] {
        let (spec, vae) = decoder(&Checkpoint::Bundled, dtype);
        let latents = noise((1, spec.vae.latent_channels, 16, 8));
        let whole = vae.decode_raw(&latents, Tiling::Off).unwrap();
        let strips = vae.decode_raw(&latents, Tiling::Strips(32)).unwrap();
        check_decoded(&format!("pocket, {dtype:?}"), &strips, &whole, NARROW_LEVELS);
        assert!(grey_levels(&strips, &whole).1 < NARROW_LEVELS / 10.0);
    }
}

#[test]
fn latents_in_strips_are_those_of_whole_maps() {
    for (name, checkpoint) in checkpoints() {
        let vae = with_vae(&checkpoint, DType::F32, |spec, weights| VaeEncoder::new(&spec.vae, weights).unwrap());
        let image = &tensors(&format!("{name}/vae.safetensors"))["odd_image"];
        // 37 rows by 51: the factor divides neither.
        for pixels in [image.clone(), Tensor::cat(&[image, &image.affine(-0.5, 0.1).unwrap()], 0).unwrap()] {
            let whole = vae.encode(&pixels, Tiling::Off).unwrap();
            for rows in [4, 8, 16, 64] {
                let strips = vae.encode(&pixels, Tiling::Strips(rows)).unwrap();
                let error = relative_error(&strips.mean, &whole.mean);
                assert!(error < 1e-5, "{name}, {rows} rows: {error}");
                let error = relative_error(&strips.log_variance, &whole.log_variance);
                assert!(error < 1e-5, "{name}, {rows} rows: {error}");
            }
        }
    }
}
