//! The layers that networks are made of: products and norms, with what follows them fused where that pays.
//!
//! Tokens are `(b, n, c)`; a feature map's layout is private to this folder: see [`feature_map`](super::feature_map). In
//! f32 and bf16 on the CPU everything goes through the kernels in `cpu`, elsewhere through the tensor library. The file is
//! long because each layer has both ways side by side, so that they can be seen to do the same.

use candle_core::{D, DType, Device, Tensor};
use half::bf16;

use super::{
    Activation, Weights,
    cpu::{self, Affine, Factors, Finish, Gather, LayerSizes, Moments, NormalMaps, PackedWeights, Source, Then},
    feature_map,
    host::{Number, by_number, is_kernels, tensor_of, with_values},
    strips::Spread,
    work::count_product,
};
use crate::Result;

/// What follows a product, in this order.
#[derive(Debug, Clone, Copy, Default)]
pub struct After<'a> {
    /// Added to all of an image: `(b, outputs)`.
    pub per_image: Option<&'a Tensor>,
    /// Applied then.
    pub activation: Option<Activation>,
    /// Added last: of the result's shape.
    pub residual: Option<&'a Tensor>,
    /// Whether the kernels' result, and what is added to it, is in f32 whatever the layer computes in: for sums that go on
    /// through a network, which rounding each time would add up in.
    pub wide: bool,
}

impl<'a> After<'a> {
    /// Nothing but that the result goes on in the type of `sum`, a sum that is in f32 or in the layer's type.
    #[must_use]
    pub fn as_type_of(sum: &Tensor) -> Self {
        Self { wide: sum.dtype() == DType::F32, ..Self::default() }
    }

    /// The result is added to `sum`, and is in its type.
    #[must_use]
    pub fn added_to(sum: &'a Tensor) -> Self {
        Self { residual: Some(sum), ..Self::as_type_of(sum) }
    }

    /// The type of the kernels' result, of a layer that computes in `dtype`.
    pub(super) fn dtype(&self, dtype: DType) -> DType {
        if self.wide { DType::F32 } else { dtype }
    }
}

/// A layer's weights, in the form that its device wants.
#[derive(Debug)]
enum Form {
    /// For the kernels, in f32.
    F32(PackedWeights<f32>),
    /// For the kernels, in bf16.
    Bf16(PackedWeights<bf16>),
    /// For the tensor library: a matrix `(inputs, outputs)` or a convolution's `(outputs, inputs, k, k)`, and a bias that
    /// broadcasts.
    Tensors { weight: Tensor, bias: Option<Tensor> },
}

/// Whether a layer adds a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bias {
    Present,
    Absent,
}

impl Form {
    /// Reads `weight`, of one of `shapes`, and `bias`. `arrange` makes of both what the tensor library wants.
    fn read(
        weights: &Weights,
        sizes: LayerSizes,
        shapes: &[&[usize]],
        bias: Bias,
        arrange: impl FnOnce(Tensor, Option<Tensor>) -> Result<Self>,
    ) -> Result<Self> {
        let bias_shape = [sizes.outputs];
        if !weights.has_kernels() {
            let weight = weights.tensor_of("weight", shapes)?;
            let bias = (bias == Bias::Present).then(|| weights.tensor("bias", &bias_shape)).transpose()?;
            return arrange(weight, bias);
        }
        let weight = weights.raw("weight", shapes)?;
        let bias = match bias {
            Bias::Present => weights.raw("bias", &[&bias_shape])?.to_vec(),
            Bias::Absent => Vec::new(),
        };
        let numbers = weight.numbers();
        let read = |start: usize, into: &mut [f32]| numbers.read(start, into);
        Ok(match weights.dtype() {
            DType::BF16 => Self::Bf16(PackedWeights::new(sizes, &bias, read)),
            _ => Self::F32(PackedWeights::new(sizes, &bias, read)),
        })
    }
}

/// A product with a matrix, and a bias.
#[derive(Debug)]
pub struct Linear {
    form: Form,
    outputs: usize,
}

impl Linear {
    /// Reads `weight` `(outputs, inputs)` and `bias` `(outputs)`. A 1×1 convolution's weight is taken, too.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Self::read(weights, inputs, outputs, Bias::Present)
    }

    /// As [`new`](Self::new), for a layer that has no bias.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Self::read(weights, inputs, outputs, Bias::Absent)
    }

    fn read(weights: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<Self> {
        let shapes: [&[usize]; 2] = [&[outputs, inputs], &[outputs, inputs, 1, 1]];
        let arrange = |weight: Tensor, bias| Ok(Form::Tensors { weight: weight.t()?, bias });
        let form = Form::read(weights, LayerSizes { outputs, inputs, taps: 1 }, &shapes, bias, arrange)?;
        Ok(Self { form, outputs })
    }

    /// `(.., inputs)` to `(.., outputs)`.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_then(x, After::default())
    }

    /// `(.., inputs)` to `(.., outputs)`, and what follows. `per_image` is not for tokens.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_then(&self, x: &Tensor, after: After<'_>) -> Result<Tensor> {
        count_product(x.elem_count(), 1, self.outputs);
        match &self.form {
            Form::F32(packed) => multiply_rows(packed, x, after),
            Form::Bf16(packed) => multiply_rows(packed, x, after),
            Form::Tensors { weight, bias } => {
                let y = match *x.dims() {
                    [b, n, c] => x.reshape((b * n, c))?.matmul(weight)?.reshape((b, n, ()))?,
                    _ => x.matmul(weight)?,
                };
                let y = match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                };
                follow(y, after)
            }
        }
    }

    /// The first half of the outputs times GELU of the second: `(.., inputs)` to `(.., outputs / 2)` (Shazeer 2020).
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_gated(&self, x: &Tensor) -> Result<Tensor> {
        let gated = match &self.form {
            Form::F32(packed) if packed.can_gate() => multiply_gated(packed, x)?,
            Form::Bf16(packed) if packed.can_gate() => multiply_gated(packed, x)?,
            _ => {
                let halves = self.forward(x)?.chunk(2, D::Minus1)?;
                return Ok((&halves[0] * Activation::Gelu.forward(&halves[1].contiguous()?)?)?);
            }
        };
        count_product(x.elem_count(), 1, self.outputs);
        Ok(gated)
    }
}

/// Rows of tokens by the kernels. Those in another type are rounded first.
fn multiply_rows<N: Number>(packed: &PackedWeights<N>, x: &Tensor, after: After<'_>) -> Result<Tensor> {
    let (rows, shape) = rows_of(x, packed.inputs(), packed.outputs())?;
    let x = feature_map::cast(x, N::DTYPE)?;
    by_number!(after.dtype(N::DTYPE), O => {
        let run = |finish: &Finish<'_, O>| {
            with_values(&x, |x| Ok(cpu::product(Source::Rows(x), packed, rows, finish)))
        };
        tensor_of(with_finish(after, rows, run)?, shape)
    })
}

/// As [`multiply_rows`], the first half of the outputs times GELU of the second.
fn multiply_gated<N: Number>(packed: &PackedWeights<N>, x: &Tensor) -> Result<Tensor> {
    let (rows, shape) = rows_of(x, packed.inputs(), packed.outputs() / 2)?;
    let finish: Finish<'_, N> = Finish { gated: true, ..Finish::default() };
    tensor_of(with_values(x, |x| Ok(cpu::product(Source::Rows(x), packed, rows, &finish)))?, shape)
}

/// How many rows of `inputs` a tensor has, and its shape with `outputs` instead.
fn rows_of(x: &Tensor, inputs: usize, outputs: usize) -> Result<(usize, Vec<usize>)> {
    let mut shape = x.dims().to_vec();
    let last = shape.last_mut().filter(|last| **last == inputs);
    let Some(last) = last else {
        let message = format!("a layer of {inputs} inputs was given {:?}", x.dims());
        return Err(candle_core::Error::Msg(message).into());
    };
    *last = outputs;
    Ok((x.elem_count() / inputs, shape))
}

/// Hands what follows a product to the kernels.
pub(super) fn with_finish<N: Number, T>(
    after: After<'_>,
    rows: usize,
    run: impl FnOnce(&Finish<'_, N>) -> Result<T>,
) -> Result<T> {
    let finish = Finish { activation: after.activation, ..Finish::default() };
    let with_residual = |finish: Finish<'_, N>| match after.residual {
        Some(residual) => with_values(residual, |residual| run(&Finish { residual: Some(residual), ..finish })),
        None => run(&finish),
    };
    match after.per_image {
        Some(added) => {
            let rows_of_image = rows / added.dim(0)?;
            with_values(added, |added| with_residual(Finish { per_image: Some((added, rows_of_image)), ..finish }))
        }
        None => with_residual(finish),
    }
}

/// What follows a product, by the tensor library.
fn follow(mut y: Tensor, after: After<'_>) -> Result<Tensor> {
    if let Some(added) = after.per_image {
        y = feature_map::add_to_channels(&y, added)?;
    }
    if let Some(activation) = after.activation {
        y = activation.forward(&y)?;
    }
    Ok(match after.residual {
        Some(residual) => (y + residual)?,
        None => y,
    })
}

/// A 2-d convolution with a bias.
#[derive(Debug)]
pub struct Conv2d {
    form: Form,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    /// Zeros above the map and to its left, and below it and to its right.
    padding: (usize, usize),
}

impl Conv2d {
    /// Reads `weight` `(outputs, inputs, kernel, kernel)` and `bias`; the map keeps its size.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let shape = [outputs, inputs, kernel, kernel];
        let arrange = |weight, bias: Option<Tensor>| {
            let bias = bias.map(|bias| bias.reshape((1, outputs, 1, 1))).transpose()?;
            Ok(Form::Tensors { weight, bias })
        };
        let sizes = LayerSizes { outputs, inputs, taps: kernel * kernel };
        let form = Form::read(weights, sizes, &[&shape], Bias::Present, arrange)?;
        let padding = (kernel / 2, kernel / 2);
        Ok(Self { form, inputs, outputs, kernel, stride: 1, padding })
    }

    /// A 3×3 convolution that halves the map, rounding up.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn halving(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Self { stride: 2, ..Self::new(weights, channels, channels, 3)? })
    }

    /// A 3×3 convolution that halves the map, rounding down: its zeros are below the map and to its right alone.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn halving_down(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Self { stride: 2, padding: (0, 1), ..Self::new(weights, channels, channels, 3)? })
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
        self.convolve(x, feature_map::size(x)?, after)
    }

    /// The convolution of the map at another size, each value taken from the nearest one, and what follows.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub(super) fn forward_scaled(&self, x: &Tensor, size: (usize, usize), after: After<'_>) -> Result<Tensor> {
        self.convolve(x, size, after)
    }

    fn convolve(&self, x: &Tensor, scaled: (usize, usize), after: After<'_>) -> Result<Tensor> {
        let (size, padding) = (feature_map::size(x)?, self.padding);
        let side = |side: usize| (side + padding.0 + padding.1 - self.kernel) / self.stride + 1;
        let pixels = x.dim(0)? * side(scaled.0) * side(scaled.1);
        count_product(pixels, self.kernel * self.kernel * self.inputs, self.outputs);
        match &self.form {
            Form::F32(packed) => self.by_kernels(packed, x, scaled, after),
            Form::Bf16(packed) => self.by_kernels(packed, x, scaled, after),
            Form::Tensors { weight, bias } => {
                let x = if scaled == size { x.clone() } else { x.upsample_nearest2d(scaled.0, scaled.1)? };
                // The library knows only zeros that are the same all around.
                let (x, around) = if padding.0 == padding.1 { (x, padding.0) } else { (pad(&x, padding)?, 0) };
                let y = convolve(&x, weight, around, self.stride)?;
                let y = match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                };
                follow(y, after)
            }
        }
    }
}

impl Conv2d {
    fn by_kernels<N: Number>(
        &self,
        packed: &PackedWeights<N>,
        x: &Tensor,
        scaled: (usize, usize),
        after: After<'_>,
    ) -> Result<Tensor> {
        let (images, height, width, channels) = x.dims4()?;
        if channels != packed.inputs() {
            let message = format!("a convolution of {} channels was given {channels}", packed.inputs());
            return Err(candle_core::Error::Msg(message).into());
        }
        let (kernel, stride, padding) = (self.kernel, self.stride, self.padding);
        let x = feature_map::cast(x, N::DTYPE)?;
        with_values(&x, |data: &[N]| {
            let gather =
                Gather { data, channels, size: (height, width), scaled, kernel, stride, padding: [padding; 2] };
            let (height, width) = gather.output_size();
            let rows = images * height * width;
            by_number!(after.dtype(N::DTYPE), O => {
                let run = |finish: &Finish<'_, O>| Ok(cpu::product(Source::Map(&gather), packed, rows, finish));
                tensor_of(with_finish(after, rows, run)?, vec![images, height, width, packed.outputs()])
            })
        })
    }
}

/// A convolution by the tensor library, or by what a device has for it.
fn convolve(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        return Ok(super::cuda::convolve(x, weight, padding, stride)?);
    }
    Ok(x.conv2d(weight, padding, stride, 1, 1)?)
}

/// Planes with zeros before and after each row and column.
fn pad(planes: &Tensor, (before, after): (usize, usize)) -> Result<Tensor> {
    Ok(planes.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?)
}

/// Group normalisation of a feature map (Wu and He 2018), in f32. The kernels' results are in the type of the network's
/// products, whatever comes in.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f64,
    dtype: DType,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, groups: usize, epsilon: f64) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> { Ok(weights.tensor(name, &[channels])?.to_dtype(DType::F32)?) };
        let (weight, bias) = (parameter("weight")?, parameter("bias")?);
        Ok(Self { weight, bias, groups, epsilon, dtype: weights.dtype() })
    }

    /// Feature map to feature map.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.normalise(x, Then::Nothing)
    }

    /// Feature map to feature map, with SiLU behind the norm.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.normalise(x, Then::Silu)
    }

    /// Hands the count of groups, and what is multiplied and added, to the kernels.
    pub(super) fn with_affine<T>(&self, run: impl FnOnce(usize, Affine<'_>) -> Result<T>) -> Result<T> {
        with_affine(&self.weight, &self.bias, self.epsilon, |affine| run(self.groups, affine))
    }

    /// How the groups of a feature map, or of rows of one, are spread.
    pub(super) fn spread(&self, x: &Tensor) -> Result<Spread> {
        if is_kernels(x) {
            let size = feature_map::size(x)?;
            return self.with_affine(|groups, affine| {
                by_number!(x.dtype(), X => with_values::<X, _>(x, |data| {
                    Ok(Spread(cpu::spread(&NormalMaps { data, size, groups, affine })))
                }))
            });
        }
        let (b, c, h, w) = x.dims4()?;
        let grouped = x.to_dtype(DType::F32)?.reshape((b, self.groups, c / self.groups * h * w))?;
        let means = grouped.mean_keepdim(D::Minus1)?;
        let squares = grouped.broadcast_sub(&means)?.sqr()?.sum(D::Minus1)?.to_vec2::<f32>()?;
        let means = means.squeeze(D::Minus1)?.to_vec2::<f32>()?;
        #[expect(clippy::cast_precision_loss, reason = "a map has fewer than 2^52 pixels")]
        let count = (c / self.groups * h * w) as f64;
        let of_group = |(mean, squares): (f32, f32)| Moments { count, mean: mean.into(), squares: squares.into() };
        let of_image = |(means, squares): (Vec<f32>, Vec<f32>)| means.into_iter().zip(squares).map(of_group).collect();
        Ok(Spread(means.into_iter().zip(squares).map(of_image).collect()))
    }

    /// What normalises each image's channels, where their groups are so spread.
    pub(super) fn factors(&self, spread: &Spread) -> Result<Vec<Factors>> {
        let (weight, bias) = (self.weight.to_device(&Device::Cpu)?, self.bias.to_device(&Device::Cpu)?);
        with_affine(&weight, &bias, self.epsilon, |affine| {
            Ok(spread.0.iter().map(|moments| cpu::factors(moments, affine)).collect())
        })
    }

    /// Rows of a feature map whose groups are spread as `spread` says, normalised, with SiLU behind that.
    pub(super) fn forward_silu_by(&self, x: &Tensor, spread: &Spread) -> Result<Tensor> {
        let factors = self.factors(spread)?;
        if is_kernels(x) {
            let size = feature_map::size(x)?;
            return self.with_affine(|groups, affine| {
                by_number!(x.dtype(), X => with_values::<X, _>(x, |data| by_number!(self.dtype, N => {
                    let maps = NormalMaps { data, size, groups, affine };
                    tensor_of::<N>(cpu::group_norm_by(&maps, &factors, Then::Silu), x.dims().to_vec())
                })))
            });
        }
        let (b, c, _, _) = x.dims4()?;
        let per_channel = |of: fn(Factors) -> Vec<f32>, factors: Vec<Factors>| {
            let values: Vec<f32> = factors.into_iter().flat_map(of).collect();
            Tensor::from_vec(values, (b, c, 1, 1), x.device())
        };
        let shift = per_channel(|factors| factors.shift, self.factors(spread)?)?;
        let scale = per_channel(|factors| factors.scale, factors)?;
        let normal = x.to_dtype(DType::F32)?.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        Activation::Silu.forward(&normal.to_dtype(x.dtype())?)
    }

    fn normalise(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        if is_kernels(x) {
            let size = feature_map::size(x)?;
            return self.with_affine(|groups, affine| {
                by_number!(x.dtype(), X => with_values::<X, _>(x, |data| by_number!(self.dtype, N => {
                    let maps = NormalMaps { data, size, groups, affine };
                    tensor_of::<N>(cpu::group_norm(&maps, then), x.dims().to_vec())
                })))
            });
        }
        let (b, c, h, w) = x.dims4()?;
        let grouped = x.to_dtype(DType::F32)?.reshape((b, self.groups, c / self.groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        #[expect(clippy::cast_precision_loss, reason = "a map has fewer numbers than f64 can count")]
        let share = 1.0 / (c / self.groups * h * w) as f64;
        // The mean and what is added to it at once.
        let deviation = centred.sqr()?.sum_keepdim(D::Minus1)?.affine(share, self.epsilon)?.sqrt()?;
        let normal = centred.broadcast_div(&deviation)?.reshape((b, c, h, w))?;
        let per_channel = |values: &Tensor| values.reshape((1, c, 1, 1));
        let scaled = normal.broadcast_mul(&per_channel(&self.weight)?)?.broadcast_add(&per_channel(&self.bias)?)?;
        let scaled = scaled.to_dtype(x.dtype())?;
        match then {
            Then::Nothing => Ok(scaled),
            Then::Silu => Activation::Silu.forward(&scaled),
        }
    }
}

fn with_affine<T>(
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    run: impl FnOnce(Affine<'_>) -> Result<T>,
) -> Result<T> {
    with_values(weight, |weight| with_values(bias, |bias| run(Affine { weight, bias, epsilon })))
}

/// Layer normalisation of tokens (Ba et al. 2016), in f32. The kernels' results are in the type of the network's products,
/// whatever comes in.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    /// Both in the network's type, where the tensor library computes in another than f32.
    narrow: Option<(Tensor, Tensor)>,
    epsilon: f32,
    dtype: DType,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, epsilon: f32) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> { Ok(weights.tensor(name, &[channels])?.to_dtype(DType::F32)?) };
        let (weight, bias, dtype) = (parameter("weight")?, parameter("bias")?, weights.dtype());
        let is_narrow = !weights.has_kernels() && dtype != DType::F32;
        let narrow = || -> Result<_> { Ok((weight.to_dtype(dtype)?, bias.to_dtype(dtype)?)) };
        let narrow = is_narrow.then(narrow).transpose()?;
        Ok(Self { weight, bias, narrow, epsilon, dtype })
    }

    /// `(.., channels)` to the same.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if is_kernels(x) {
            return with_affine(&self.weight, &self.bias, f64::from(self.epsilon), |affine| {
                by_number!(x.dtype(), X => with_values::<X, _>(x, |values| by_number!(self.dtype, N => {
                    tensor_of::<N>(cpu::layer_norm(values, affine), x.dims().to_vec())
                })))
            });
        }
        if let Some((weight, bias)) = self.narrow.as_ref().filter(|_| x.dtype() == self.dtype && !x.device().is_metal())
        {
            // On CUDA and on the CPU it reads narrow numbers and computes in f32.
            return Ok(candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, self.epsilon)?);
        }
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let normal = candle_nn::ops::layer_norm(&wide, &self.weight, &self.bias, self.epsilon)?;
        Ok(normal.to_dtype(x.dtype())?)
    }
}
