//! A convolution behind a group norm, as every residual block has two.

use candle_core::{DType, Tensor};
use half::bf16;

use super::{
    After, Conv2d, GroupNorm, Weights,
    cpu::{self, Finish, NormalMaps, WinogradWeights},
    host::{Number, by_number, is_kernels, tensor_of, with_values},
    layers::with_finish,
    strips::Spread,
    work::count_product,
};
use crate::Result;

/// The most weights that are transformed, as 1280 channels to 1280 have. More are of the smallest maps, whose layers take as
/// long as their weights take to come from memory, and transformed there are a third more of them.
const MOST_WEIGHTS: usize = 15 << 20;
/// Products of an output that are left of a 3×3 kernel.
const PRODUCTS: usize = 6;

/// Group normalisation, SiLU and a 3×3 convolution with a bias, which keeps the map's size.
#[derive(Debug)]
pub struct NormalConv {
    norm: GroupNorm,
    conv: Form,
}

#[derive(Debug)]
enum Form {
    /// For the kernels, in f32.
    F32(WinogradWeights<f32>),
    /// For the kernels, in bf16.
    Bf16(WinogradWeights<bf16>),
    /// For the tensor library, and for many weights.
    Plain(Conv2d),
}

impl NormalConv {
    /// Reads `weight` `(outputs, inputs, 3, 3)` and `bias`, behind `norm`.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(norm: GroupNorm, weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Self::with_kernel(norm, weights, (inputs, outputs), 3)
    }

    /// As [`new`](Self::new), with a kernel of an odd number of pixels a side.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn with_kernel(
        norm: GroupNorm,
        weights: &Weights,
        (inputs, outputs): (usize, usize),
        kernel: usize,
    ) -> Result<Self> {
        let shape = [outputs, inputs, kernel, kernel];
        if kernel != 3 || !weights.has_kernels() || shape.iter().product::<usize>() > MOST_WEIGHTS {
            return Ok(Self { norm, conv: Form::Plain(Conv2d::new(weights, inputs, outputs, kernel)?) });
        }
        let (weight, bias) = (weights.raw("weight", &[&shape])?, weights.raw("bias", &[&[outputs]])?.to_vec());
        let numbers = weight.numbers();
        let read = |start: usize, into: &mut [f32]| numbers.read(start, into);
        let conv = match weights.dtype() {
            DType::BF16 => Form::Bf16(WinogradWeights::new((inputs, outputs), &bias, read)),
            _ => Form::F32(WinogradWeights::new((inputs, outputs), &bias, read)),
        };
        Ok(Self { norm, conv })
    }

    /// Feature map to feature map.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_then(x, After::default())
    }

    /// Feature map to feature map, and what follows.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_then(&self, x: &Tensor, after: After<'_>) -> Result<Tensor> {
        self.convolve(x, None, after)
    }

    /// How the groups of a feature map, or of rows of one, are spread: what [`forward_by`](Self::forward_by) is to be told.
    pub(super) fn spread(&self, x: &Tensor) -> Result<Spread> {
        self.norm.spread(x)
    }

    /// As [`forward_then`](Self::forward_then), of rows of a feature map whose groups are spread as `spread` says.
    pub(super) fn forward_by(&self, x: &Tensor, spread: &Spread, after: After<'_>) -> Result<Tensor> {
        self.convolve(x, Some(spread), after)
    }

    /// Normalised by the map's own spread, unless another is given.
    fn convolve(&self, x: &Tensor, spread: Option<&Spread>, after: After<'_>) -> Result<Tensor> {
        match (&self.conv, spread) {
            (Form::F32(weights), _) if is_kernels(x) => self.by_kernels(weights, x, spread, after),
            (Form::Bf16(weights), _) if is_kernels(x) => self.by_kernels(weights, x, spread, after),
            (Form::Plain(conv), None) => conv.forward_then(&self.norm.forward_silu(x)?, after),
            (Form::Plain(conv), Some(spread)) => conv.forward_then(&self.norm.forward_silu_by(x, spread)?, after),
            _ => Err(candle_core::Error::Msg(format!("the CPU kernels were given a tensor of {:?}", x.dtype())).into()),
        }
    }

    fn by_kernels<N: Number>(
        &self,
        weights: &WinogradWeights<N>,
        x: &Tensor,
        spread: Option<&Spread>,
        after: After<'_>,
    ) -> Result<Tensor> {
        let (images, height, width, channels) = x.dims4()?;
        if channels != weights.inputs() {
            let message = format!("a convolution of {} channels was given {channels}", weights.inputs());
            return Err(candle_core::Error::Msg(message).into());
        }
        let (pixels, outputs) = (images * height * width, weights.outputs());
        count_product(images * height * width.next_multiple_of(2), PRODUCTS * channels, outputs);
        let shape = vec![images, height, width, outputs];
        let factors = spread.map(|spread| self.norm.factors(spread)).transpose()?;
        self.norm.with_affine(|groups, affine| {
            by_number!(x.dtype(), X => with_values(x, |data: &[X]| by_number!(after.dtype(N::DTYPE), O => {
                let maps = NormalMaps { data, size: (height, width), groups, affine };
                let run = |finish: &Finish<'_, O>| {
                    Ok(match &factors {
                        Some(factors) => cpu::convolve_normal_by(&maps, factors, weights, finish),
                        None => cpu::convolve_normal(&maps, weights, finish),
                    })
                };
                tensor_of(with_finish(after, pixels, run)?, shape)
            })))
        })
    }
}
