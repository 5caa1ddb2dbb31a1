//! The convolution behind a doubling of a feature map.

use candle_core::{DType, Tensor};
use half::bf16;

use super::{
    After, Conv2d, Strips, Weights,
    cpu::{self, DoublingWeights},
    feature_map,
    host::{Number, by_number, tensor_of, with_values},
    strips::Halo,
    work::count_product,
};
use crate::Result;

/// Products of an output that are left of a 3×3 kernel.
const SUMMED_TAPS: usize = 4;

/// A 3×3 convolution with a bias, of a feature map that is scaled up to twice its size, each value from the nearest one.
#[derive(Debug)]
pub struct Doubling {
    /// For the kernels.
    summed: Option<Form>,
    /// For the tensor library, and for sizes that are one less than twice.
    whole: Option<Conv2d>,
}

#[derive(Debug)]
enum Form {
    F32(DoublingWeights<f32>),
    Bf16(DoublingWeights<bf16>),
}

impl Doubling {
    /// Reads `weight` `(channels, channels, 3, 3)` and `bias`.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize) -> Result<Self> {
        let summed = summed(weights, channels, Reading::Last)?;
        let whole = summed.is_none().then(|| Conv2d::new(weights, channels, channels, 3)).transpose()?;
        Ok(Self { summed, whole })
    }

    /// As [`new`](Self::new), for sizes that may be one less than twice, too.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn or_one_less(weights: &Weights, channels: usize) -> Result<Self> {
        let summed = summed(weights, channels, Reading::First)?;
        Ok(Self { summed, whole: Some(Conv2d::new(weights, channels, channels, 3)?) })
    }

    /// Feature map to a feature map of `size`, height and width, in the same type.
    ///
    /// # Errors
    ///
    /// A shape that does not fit, or another size than this can make.
    pub fn forward(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        let (height, width) = feature_map::size(x)?;
        match (&self.summed, &self.whole) {
            (Some(Form::F32(weights)), _) if size == (2 * height, 2 * width) => double(x, weights),
            (Some(Form::Bf16(weights)), _) if size == (2 * height, 2 * width) => double(x, weights),
            (_, Some(whole)) => whole.forward_scaled(x, size, After::as_type_of(x)),
            _ => {
                Err(candle_core::Error::Msg(format!("a map of {height}x{width} was to be doubled to {size:?}")).into())
            }
        }
    }
}

impl Doubling {
    /// A map in strips to one of twice its size.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_strips(&self, x: Strips) -> Result<Strips> {
        // An outermost row of the result is wrong where the strip goes on, and its neighbour is right: a row of the small map
        // around a strip is enough.
        x.each(Halo::Both, |strip| {
            let (height, width) = feature_map::size(strip.whole())?;
            strip.crop(&self.forward(strip.whole(), (2 * height, 2 * width))?, 2)
        })
    }
}

/// Whether weights are read once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    First,
    Last,
}

/// The weights of the kernels, where they compute.
fn summed(weights: &Weights, channels: usize, reading: Reading) -> Result<Option<Form>> {
    if !weights.has_kernels() {
        return Ok(None);
    }
    let (mut weight, mut bias) =
        (weights.raw("weight", &[&[channels, channels, 3, 3]])?, weights.raw("bias", &[&[channels]])?);
    if reading == Reading::First {
        (weight, bias) = (weight.read_again(), bias.read_again());
    }
    let bias = bias.to_vec();
    let numbers = weight.numbers();
    let read = |start: usize, into: &mut [f32]| numbers.read(start, into);
    Ok(Some(match weights.dtype() {
        DType::BF16 => Form::Bf16(DoublingWeights::new(channels, &bias, read)),
        _ => Form::F32(DoublingWeights::new(channels, &bias, read)),
    }))
}

fn double<N: Number>(x: &Tensor, weights: &DoublingWeights<N>) -> Result<Tensor> {
    let (images, height, width, channels) = x.dims4()?;
    if channels != weights.inputs() {
        let message = format!("a convolution of {} channels was given {channels}", weights.inputs());
        return Err(candle_core::Error::Msg(message).into());
    }
    let shape = vec![images, 2 * height, 2 * width, weights.outputs()];
    count_product(shape[..3].iter().product(), SUMMED_TAPS * channels, weights.outputs());
    let narrow = feature_map::cast(x, N::DTYPE)?;
    by_number!(x.dtype(), O => with_values(&narrow, |data: &[N]| {
        tensor_of::<O>(cpu::convolve_doubled(data, (height, width), weights), shape)
    }))
}
