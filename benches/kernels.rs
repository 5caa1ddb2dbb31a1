//! Each kind of layer alone, over the sizes that Stable Diffusion 1.5 and XL have: `cargo bench`.
//!
//! Layers are made of weights in memory and called as the networks call them. An item is a multiplication or an addition,
//! so that items a second can be held against the peak of `darkroom bench`; for norms, which multiply no matrices, an
//! item is a number that is normalised. `DARKROOM_DTYPE` and `DARKROOM_THREADS` mean what they mean to the program.

use std::{fmt, time::Duration};

use candle_core::{DType, Device, Tensor};
use darkroom::{
    Result,
    models::DtypeChoice,
    nn::{
        Conv2d, Doubling, GroupNorm, LayerNorm, Linear, LoadProgress, NormalConv, WeightFile, Weights, attention,
        feature_map, operations_done,
    },
    threads,
};
use divan::{Bencher, Divan, counter::ItemsCount};
use safetensors::{Dtype, tensor::TensorView};

/// A guidance pair.
const BATCH: usize = 2;
const TEXT_TOKENS: usize = 77;
const NORM_GROUPS: usize = 32;

fn main() {
    let threads = std::env::var("DARKROOM_THREADS").ok().map(|count| count.parse().expect("a count of threads"));
    threads::start(threads.unwrap_or_else(threads::default_threads)).expect("the pool of threads starts");
    Divan::default().sample_size(1).max_time(Duration::from_secs(2)).config_with_args().main();
}

/// The number type that was asked for.
fn dtype() -> DType {
    let named = std::env::var("DARKROOM_DTYPE").unwrap_or_else(|_| "f32".to_owned());
    match named.parse().expect("a number type's name") {
        DtypeChoice::Auto | DtypeChoice::F32 => DType::F32,
        DtypeChoice::F16 => DType::F16,
        DtypeChoice::Bf16 => DType::BF16,
    }
}

/// Small numbers without a pattern that matters.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

fn tensor(shape: &[usize]) -> Tensor {
    let tensor = Tensor::from_vec(values(shape.iter().product()), shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype()).unwrap()
}

fn map(channels: usize, side: usize) -> Tensor {
    feature_map::from_planes(&tensor(&[BATCH, channels, side, side])).unwrap()
}

/// A layer of tensors `weight` and `bias`.
fn layer<T>(weight: &[usize], bias: usize, build: impl FnOnce(&Weights) -> Result<T>) -> T {
    let bytes = |count: usize| -> Vec<u8> { values(count).iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (weight_bytes, bias_bytes) = (bytes(weight.iter().product()), bytes(bias));
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let views = [("weight", view(weight, &weight_bytes)), ("bias", view(&[bias], &bias_bytes))];
    let file = safetensors::serialize(views, None).unwrap();
    let mut quiet = |_| {};
    let progress = LoadProgress::new(&mut quiet);
    // Weight files in memory are part of a program, so this one stays as long as the program does.
    let files = vec![WeightFile::Embedded("a benchmark", file.leak())];
    build(&Weights::open(files, &Device::Cpu, dtype(), &progress).unwrap()).unwrap()
}

/// Measures `run`, and counts what it multiplies and adds.
fn measure(bencher: Bencher, run: impl Fn() -> Tensor + Sync) {
    let before = operations_done();
    run();
    bencher.counter(ItemsCount::new(operations_done() - before)).bench(run);
}

/// A convolution: the map's side, the channels in and out.
#[derive(Clone, Copy)]
struct Conv(usize, usize, usize);

impl fmt::Display for Conv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{0}x{0}, {1} to {2}", self.0, self.1, self.2)
    }
}

const CONV_3X3: [Conv; 13] = [
    // Stable Diffusion 1.5 at 512 pixels.
    Conv(64, 320, 320),
    Conv(64, 960, 320),
    Conv(32, 640, 640),
    Conv(32, 1920, 640),
    Conv(16, 1280, 1280),
    Conv(16, 2560, 1280),
    Conv(8, 1280, 1280),
    // Its decoder.
    Conv(64, 512, 512),
    Conv(256, 256, 256),
    Conv(256, 128, 128),
    // XL at 1024 pixels.
    Conv(128, 320, 320),
    Conv(64, 640, 640),
    Conv(32, 1280, 1280),
];

#[divan::bench(args = CONV_3X3)]
fn conv_3x3(bencher: Bencher, Conv(side, inputs, outputs): Conv) {
    let conv = layer(&[outputs, inputs, 3, 3], outputs, |weights| Conv2d::new(weights, inputs, outputs, 3));
    let x = map(inputs, side);
    measure(bencher, || conv.forward(&x).unwrap());
}

#[divan::bench(args = CONV_3X3)]
fn norm_silu_conv_3x3(bencher: Bencher, Conv(side, inputs, outputs): Conv) {
    let norm = layer(&[inputs], inputs, |weights| GroupNorm::new(weights, inputs, NORM_GROUPS, 1e-5));
    let conv = layer(&[outputs, inputs, 3, 3], outputs, |weights| NormalConv::new(norm, weights, inputs, outputs));
    let x = map(inputs, side);
    measure(bencher, || conv.forward(&x).unwrap());
}

#[divan::bench(args = [Conv(64, 320, 320), Conv(32, 640, 640), Conv(16, 1280, 1280), Conv(128, 320, 320), Conv(64, 640, 640)])]
fn conv_3x3_halving(bencher: Bencher, Conv(side, channels, _): Conv) {
    let conv = layer(&[channels, channels, 3, 3], channels, |weights| Conv2d::halving(weights, channels));
    let x = map(channels, side);
    measure(bencher, || conv.forward(&x).unwrap());
}

#[divan::bench(args = [Conv(8, 1280, 1280), Conv(16, 1280, 1280), Conv(32, 640, 640), Conv(64, 640, 640), Conv(128, 256, 256)])]
fn conv_3x3_doubling(bencher: Bencher, Conv(side, channels, _): Conv) {
    let doubling = layer(&[channels, channels, 3, 3], channels, |weights| Doubling::new(weights, channels));
    let x = map(channels, side);
    measure(bencher, || doubling.forward(&x, (2 * side, 2 * side)).unwrap());
}

#[divan::bench(args = [Conv(64, 960, 320), Conv(32, 320, 640), Conv(16, 640, 1280), Conv(128, 640, 320), Conv(32, 2560, 1280)])]
fn conv_1x1(bencher: Bencher, Conv(side, inputs, outputs): Conv) {
    let conv = layer(&[outputs, inputs, 1, 1], outputs, |weights| Conv2d::new(weights, inputs, outputs, 1));
    let x = map(inputs, side);
    measure(bencher, || conv.forward(&x).unwrap());
}

/// A linear layer: tokens, channels in and out.
#[derive(Clone, Copy)]
struct Tokens(usize, usize, usize);

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens, {} to {}", self.0, self.1, self.2)
    }
}

const LINEAR: [Tokens; 11] = [
    Tokens(4096, 320, 320),
    Tokens(1024, 640, 640),
    Tokens(256, 1280, 1280),
    Tokens(64, 1280, 1280),
    Tokens(4096, 1280, 320),
    Tokens(1024, 2560, 640),
    Tokens(TEXT_TOKENS, 768, 320),
    // XL.
    Tokens(4096, 640, 640),
    Tokens(1024, 1280, 1280),
    Tokens(1024, 5120, 1280),
    Tokens(TEXT_TOKENS, 2048, 1280),
];

#[divan::bench(args = LINEAR)]
fn linear(bencher: Bencher, Tokens(tokens, inputs, outputs): Tokens) {
    let linear = layer(&[outputs, inputs], outputs, |weights| Linear::new(weights, inputs, outputs));
    let x = tensor(&[BATCH, tokens, inputs]);
    measure(bencher, || linear.forward(&x).unwrap());
}

#[divan::bench(args = [Tokens(4096, 320, 2560), Tokens(1024, 640, 5120), Tokens(256, 1280, 10240), Tokens(4096, 640, 5120), Tokens(1024, 1280, 10240)])]
fn linear_gated(bencher: Bencher, Tokens(tokens, inputs, outputs): Tokens) {
    let linear = layer(&[outputs, inputs], outputs, |weights| Linear::new(weights, inputs, outputs));
    let x = tensor(&[BATCH, tokens, inputs]);
    measure(bencher, || linear.forward_gated(&x).unwrap());
}

#[divan::bench(args = [Conv(64, 320, 320), Conv(32, 640, 640), Conv(16, 1280, 1280), Conv(8, 1280, 1280), Conv(256, 128, 128), Conv(128, 320, 320)])]
fn group_norm_silu(bencher: Bencher, Conv(side, channels, _): Conv) {
    let norm = layer(&[channels], channels, |weights| GroupNorm::new(weights, channels, NORM_GROUPS, 1e-5));
    let x = map(channels, side);
    bencher.counter(ItemsCount::new(x.elem_count())).bench(|| norm.forward_silu(&x).unwrap());
}

#[divan::bench(args = [Tokens(4096, 320, 320), Tokens(1024, 640, 640), Tokens(256, 1280, 1280), Tokens(4096, 640, 640), Tokens(1024, 1280, 1280)])]
fn layer_norm(bencher: Bencher, Tokens(tokens, channels, _): Tokens) {
    let norm = layer(&[channels], channels, |weights| LayerNorm::new(weights, channels, 1e-5));
    let x = tensor(&[BATCH, tokens, channels]);
    bencher.counter(ItemsCount::new(x.elem_count())).bench(|| norm.forward(&x).unwrap());
}

/// An attention: tokens that ask, heads, channels of a head.
#[derive(Clone, Copy)]
struct Heads(usize, usize, usize);

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens, {} heads of {}", self.0, self.1, self.2)
    }
}

const ATTENTION: [Heads; 6] = [
    Heads(4096, 8, 40),
    Heads(1024, 8, 80),
    Heads(256, 8, 160),
    Heads(64, 8, 160),
    // XL.
    Heads(4096, 10, 64),
    Heads(1024, 20, 64),
];

#[divan::bench(args = ATTENTION)]
fn attention_self(bencher: Bencher, Heads(tokens, heads, width): Heads) {
    let x = tensor(&[BATCH, tokens, heads * width]);
    measure(bencher, || attention(&x, &x, &x, heads, None).unwrap());
}

#[divan::bench(args = ATTENTION)]
fn attention_cross(bencher: Bencher, Heads(tokens, heads, width): Heads) {
    let (x, text) = (tensor(&[BATCH, tokens, heads * width]), tensor(&[BATCH, TEXT_TOKENS, heads * width]));
    measure(bencher, || attention(&x, &text, &text, heads, None).unwrap());
}

/// The one head of a decoder's middle, at 512 pixels.
#[divan::bench]
fn attention_decoder(bencher: Bencher) {
    let x = tensor(&[1, 4096, 512]);
    measure(bencher, || attention(&x, &x, &x, 1, None).unwrap());
}
