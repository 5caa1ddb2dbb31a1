//! What drawings hold in memory: the estimates against what an allocator counts, and the limit.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Device, Tensor};
use darkroom::{
    Error,
    models::{
        Checkpoint, Conditioning, DeviceChoice, DtypeChoice, ModelSpec, NumberBytes, Tiling, Unet, VaeDecoder,
        VaeEncoder,
    },
    nn::{LoadProgress, Weights},
    pipeline::{Generate, InferencePipeline, LoadOptions, TilingChoice, Unwatched},
    sampling::SamplingConfig,
};

/// Counts the bytes that are held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator; counting touches no memory that is given out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `run` holds at a time.
fn most_held<T>(run: impl FnOnce() -> T) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let done = run();
    let most = MOST.load(Ordering::Relaxed) - before;
    drop(done);
    most
}

fn with_weights<T>(component: &str, dtype: DType, build: impl FnOnce(&Weights) -> T) -> T {
    let mut quiet = |_| {};
    let progress = LoadProgress::new(&mut quiet);
    let files = Checkpoint::Bundled.weights(component).unwrap();
    build(&Weights::open(files, &Device::Cpu, dtype, &progress).unwrap())
}

fn check(name: &str, estimated: usize, held: usize) {
    #[expect(clippy::cast_precision_loss, reason = "a share for a person")]
    let share = estimated as f64 / held as f64;
    println!("{name}: {estimated} estimated, {held} held: {share:.3}");
    assert!((0.9..1.1).contains(&share), "{name}: {estimated} estimated, {held} held");
}

fn zeros(shape: (usize, usize, usize, usize)) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn check_autoencoder(spec: &ModelSpec, dtype: DType) {
    let (height, width) = (768, 512);
    let bytes = NumberBytes::new(&Device::Cpu, dtype);
    let latents = zeros((1, spec.vae.latent_channels, height / spec.vae.factor(), width / spec.vae.factor()));
    let pixels = zeros((1, spec.vae.in_channels, height, width));
    let decoder = with_weights("vae", dtype, |weights| VaeDecoder::new(&spec.vae, weights).unwrap());
    let encoder = with_weights("vae", dtype, |weights| VaeEncoder::new(&spec.vae, weights).unwrap());
    for tiling in [Tiling::Off, Tiling::ON] {
        let held = most_held(|| decoder.decode_raw(&latents, tiling).unwrap());
        check(&format!("decoder, {dtype:?}, {tiling:?}"), spec.vae.decode_bytes((height, width), tiling, bytes), held);
        let held = most_held(|| encoder.encode(&pixels, tiling).unwrap());
        check(&format!("encoder, {dtype:?}, {tiling:?}"), spec.vae.encode_bytes((height, width), tiling, bytes), held);
    }
}

fn check_denoiser(spec: &ModelSpec, dtype: DType) {
    let (height, width, batch) = (96, 64, 2);
    let bytes = NumberBytes::new(&Device::Cpu, dtype);
    let unet = with_weights("unet", dtype, |weights| Unet::new(&spec.unet, weights).unwrap());
    let text = Tensor::zeros((batch, 24, spec.unet.cross_attention_dim.of(0)), DType::F32, &Device::Cpu).unwrap();
    let prepared = unet.prepare(&Conditioning { text, added: None }).unwrap();
    let latents = zeros((1, spec.unet.in_channels, height, width));
    let held = most_held(|| unet.forward(&latents, 500.0, &prepared).unwrap());
    check(&format!("denoiser, {dtype:?}"), spec.unet.pass_bytes((height, width), batch, bytes), held);
}

fn check_limit() {
    let load = |limit: Option<usize>, vae_tiling| {
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::F32,
            memory_limit: limit,
            vae_tiling,
            ..LoadOptions::default()
        };
        InferencePipeline::load(&options, &mut |_| {}).unwrap()
    };
    let config = |side: usize| SamplingConfig {
        prompt: "a red apple".to_owned(),
        width: Some(side),
        height: Some(side),
        steps: 1,
        seed: 4,
        ..SamplingConfig::default()
    };
    // Maps of 16 and 32 channels: a whole decoder takes more than 50 MB at 512 pixels.
    let limit = 80 << 20;
    let small = load(Some(limit), TilingChoice::Auto);
    assert_eq!(small.model().memory.limit_bytes, Some(limit));
    assert!(small.model().memory.weights_bytes > 1 << 20);
    small.check(&config(256)).unwrap();
    let error = small.check(&config(2048)).unwrap_err();
    assert!(matches!(error, Error::InvalidParameter { field: "width", .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("2048 times height 2048 needs") && message.contains("80 MiB are allowed"), "{message}");
    // Strips make room, and the picture stays the same.
    let free = load(None, TilingChoice::Off);
    let side = 640;
    assert!(load(Some(limit), TilingChoice::Off).check(&config(side)).is_err());
    small.check(&config(side)).unwrap();
    let drawn = small.generate(&config(side), &mut Unwatched).unwrap().images[0].to_rgb8();
    let wanted = free.generate(&config(side), &mut Unwatched).unwrap().images[0].to_rgb8();
    let most = drawn.as_raw().iter().zip(wanted.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most.unwrap() <= 1, "{most:?}");
}

/// One test, so that no other holds memory meanwhile.
#[test]
fn estimates_are_near_what_is_held_and_a_limit_is_kept() {
    let spec = ModelSpec::read(&Checkpoint::Bundled).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        check_autoencoder(&spec, dtype);
        check_denoiser(&spec, dtype);
    }
    check_limit();
}
