//! The layers that networks are made of: products and norms, with what follows them fused where that pays.
//!
//! Tokens are `(b, n, c)`; a feature map's layout is private to this folder: see [`feature_map`](super::feature_map). In
//! f32 on the CPU everything goes through the kernels in `cpu`, elsewhere through the tensor library.

use candle_core::{D, DType, Tensor};

use super::{
    Activation, Weights,
    cpu::{self, Affine, Finish, Gather, PackedWeights, Source, Then},
    feature_map,
    host::{is_kernels, tensor_of, with_values},
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
}

/// A layer's weights, in the form that its device wants.
#[derive(Debug)]
enum Form {
    /// For the kernels.
    Packed(PackedWeights),
    /// For the tensor library: a matrix `(inputs, outputs)` or a convolution's `(outputs, inputs, k, k)`, and a bias that
    /// broadcasts.
    Tensors { weight: Tensor, bias: Option<Tensor> },
}

/// Packs tensors of `(outputs, inputs, ..)` for the kernels.
fn pack(weight: &Tensor, bias: Option<&Tensor>) -> Result<Form> {
    let (outputs, inputs) = (weight.dim(0)?, weight.dim(1)?);
    let taps = weight.elem_count() / (outputs * inputs);
    let none = Tensor::zeros(0, DType::F32, weight.device())?;
    let packed = with_values(weight, |weight| {
        with_values(bias.unwrap_or(&none), |bias| Ok(PackedWeights::new(weight, bias, outputs, inputs, taps)))
    })?;
    Ok(Form::Packed(packed))
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
        Self::read(weights, inputs, outputs, Some(weights.tensor("bias", &[outputs])?))
    }

    /// As [`new`](Self::new), for a layer that has no bias.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Self::read(weights, inputs, outputs, None)
    }

    fn read(weights: &Weights, inputs: usize, outputs: usize, bias: Option<Tensor>) -> Result<Self> {
        let shapes: [&[usize]; 2] = [&[outputs, inputs], &[outputs, inputs, 1, 1]];
        let weight = weights.tensor_of("weight", &shapes)?;
        let form = if is_kernels(&weight) {
            pack(&weight, bias.as_ref())?
        } else {
            Form::Tensors { weight: weight.t()?, bias }
        };
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
            Form::Packed(packed) => {
                let (rows, shape) = rows_of(x, packed.inputs(), packed.outputs())?;
                let mut result = vec![0.0; rows * packed.outputs()];
                with_values(x, |x| {
                    with_finish(after, rows, |finish| {
                        cpu::product(Source::Rows(x), packed, rows, finish, &mut result);
                        Ok(())
                    })
                })?;
                tensor_of(result, shape)
            }
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
        if let Form::Packed(packed) = &self.form
            && packed.can_gate()
        {
            count_product(x.elem_count(), 1, self.outputs);
            let (rows, shape) = rows_of(x, packed.inputs(), packed.outputs() / 2)?;
            let mut result = vec![0.0; rows * packed.outputs() / 2];
            let finish = Finish { gated: true, ..Finish::default() };
            with_values(x, |x| {
                cpu::product(Source::Rows(x), packed, rows, &finish, &mut result);
                Ok(())
            })?;
            return tensor_of(result, shape);
        }
        let halves = self.forward(x)?.chunk(2, D::Minus1)?;
        Ok((&halves[0] * Activation::Gelu.forward(&halves[1].contiguous()?)?)?)
    }
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
fn with_finish<T>(after: After<'_>, rows: usize, run: impl FnOnce(&Finish<'_>) -> Result<T>) -> Result<T> {
    let finish = Finish { activation: after.activation, ..Finish::default() };
    let with_residual = |finish: Finish<'_>| match after.residual {
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
    /// As many zeros as there are inputs.
    zeros: Vec<f32>,
}

impl Conv2d {
    /// Reads `weight` `(outputs, inputs, kernel, kernel)` and `bias`; the map keeps its size.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let weight = weights.tensor("weight", &[outputs, inputs, kernel, kernel])?;
        let bias = weights.tensor("bias", &[outputs])?;
        let form = if is_kernels(&weight) {
            pack(&weight, Some(&bias))?
        } else {
            Form::Tensors { weight, bias: Some(bias.reshape((1, outputs, 1, 1))?) }
        };
        let padding = (kernel / 2, kernel / 2);
        Ok(Self { form, inputs, outputs, kernel, stride: 1, padding, zeros: vec![0.0; inputs] })
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

    /// The convolution of the map at another size, each value taken from the nearest one.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward_scaled(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        self.convolve(x, size, After::default())
    }

    fn convolve(&self, x: &Tensor, scaled: (usize, usize), after: After<'_>) -> Result<Tensor> {
        let (size, padding) = (feature_map::size(x)?, self.padding);
        let side = |side: usize| (side + padding.0 + padding.1 - self.kernel) / self.stride + 1;
        let pixels = x.dim(0)? * side(scaled.0) * side(scaled.1);
        count_product(pixels, self.kernel * self.kernel * self.inputs, self.outputs);
        match &self.form {
            Form::Packed(packed) => with_values(x, |data| {
                let (kernel, stride, zeros) = (self.kernel, self.stride, self.zeros.as_slice());
                let gather = Gather { data, channels: x.dim(3)?, size, scaled, kernel, stride, padding, zeros };
                let (height, width) = gather.output_size();
                let images = x.dim(0)?;
                let rows = images * height * width;
                let mut result = vec![0.0; rows * packed.outputs()];
                with_finish(after, rows, |finish| {
                    cpu::product(Source::Map(&gather), packed, rows, finish, &mut result);
                    Ok(())
                })?;
                tensor_of(result, vec![images, height, width, packed.outputs()])
            }),
            Form::Tensors { weight, bias } => {
                let x = if scaled == size { x.clone() } else { x.upsample_nearest2d(scaled.0, scaled.1)? };
                // The library knows only zeros that are the same all around.
                let (x, around) = if padding.0 == padding.1 { (x, padding.0) } else { (pad(&x, padding)?, 0) };
                let y = x.conv2d(weight, around, self.stride, 1, 1)?;
                let y = match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                };
                follow(y, after)
            }
        }
    }
}

/// Planes with zeros before and after each row and column.
fn pad(planes: &Tensor, (before, after): (usize, usize)) -> Result<Tensor> {
    Ok(planes.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?)
}

/// Group normalisation of a feature map (Wu and He 2018), in f32.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, groups: usize, epsilon: f64) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> { Ok(weights.tensor(name, &[channels])?.to_dtype(DType::F32)?) };
        Ok(Self { weight: parameter("weight")?, bias: parameter("bias")?, groups, epsilon })
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

    fn normalise(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        if is_kernels(x) {
            let mut result = vec![0.0; x.elem_count()];
            let (images, groups) = (x.dim(0)?, self.groups);
            with_affine(&self.weight, &self.bias, self.epsilon, |affine| {
                with_values(x, |x| {
                    cpu::group_norm(x, images, groups, affine, then, &mut result);
                    Ok(())
                })
            })?;
            return tensor_of(result, x.dims().to_vec());
        }
        let (b, c, h, w) = x.dims4()?;
        let grouped = x.to_dtype(DType::F32)?.reshape((b, self.groups, c / self.groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.epsilon)?.sqrt()?;
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

/// Layer normalisation of tokens (Ba et al. 2016), in f32.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, one value a channel.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or of another shape.
    pub fn new(weights: &Weights, channels: usize, epsilon: f32) -> Result<Self> {
        let parameter = |name| -> Result<Tensor> { Ok(weights.tensor(name, &[channels])?.to_dtype(DType::F32)?) };
        Ok(Self { weight: parameter("weight")?, bias: parameter("bias")?, epsilon })
    }

    /// `(.., channels)` to the same.
    ///
    /// # Errors
    ///
    /// A shape that does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if is_kernels(x) {
            let mut result = vec![0.0; x.elem_count()];
            with_affine(&self.weight, &self.bias, f64::from(self.epsilon), |affine| {
                with_values(x, |x| {
                    cpu::layer_norm(x, affine, &mut result);
                    Ok(())
                })
            })?;
            return tensor_of(result, x.dims().to_vec());
        }
        let wide = x.to_dtype(DType::F32)?.contiguous()?;
        let normal = candle_nn::ops::layer_norm(&wide, &self.weight, &self.bias, self.epsilon)?;
        Ok(normal.to_dtype(x.dtype())?)
    }
}
