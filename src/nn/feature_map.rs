//! What networks do with a feature map besides convolving it.
//!
//! A feature map is `(b, h, w, c)` for the CPU kernels and `(b, c, h, w)` for the tensor library. Only this folder knows:
//! the networks speak of channels, tokens and sizes.

use candle_core::{D, DType, Tensor};
use half::bf16;

use super::{
    cpu,
    host::{by_number, has_kernels, is_kernels, tensor_of, with_values},
};
use crate::Result;

/// Where a map's channels are.
fn channel_axis(map: &Tensor) -> usize {
    if is_kernels(map) { 3 } else { 1 }
}

/// The same numbers in another type; a map's or tokens'.
///
/// # Errors
///
/// A type that the device does not have.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype || !is_kernels(x) || !has_kernels(x.device(), dtype) {
        return Ok(x.to_dtype(dtype)?);
    }
    let shape = x.dims().to_vec();
    if dtype == DType::BF16 {
        return with_values::<f32, _>(x, |x| tensor_of(cpu::convert::<f32, bf16>(x), shape));
    }
    with_values::<bf16, _>(x, |x| tensor_of(cpu::convert::<bf16, f32>(x), shape))
}

/// A map from planes `(b, c, h, w)`.
///
/// # Errors
///
/// A tensor of another rank.
pub fn from_planes(planes: &Tensor) -> Result<Tensor> {
    if is_kernels(planes) { Ok(planes.permute((0, 2, 3, 1))?.contiguous()?) } else { Ok(planes.clone()) }
}

/// Planes `(b, c, h, w)` from a map.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn to_planes(map: &Tensor) -> Result<Tensor> {
    if is_kernels(map) { Ok(map.permute((0, 3, 1, 2))?.contiguous()?) } else { Ok(map.clone()) }
}

/// A map's height and width.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn size(map: &Tensor) -> Result<(usize, usize)> {
    let (_, first, second, third) = map.dims4()?;
    Ok(if is_kernels(map) { (first, second) } else { (second, third) })
}

/// `count` rows of a map, from row `start` on: a view of it where that is possible.
pub(super) fn rows(map: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    Ok(map.narrow(row_axis(map), start, count)?)
}

/// The maps' rows one after another.
pub(super) fn concat_rows(maps: &[&Tensor]) -> Result<Tensor> {
    Ok(Tensor::cat(maps, row_axis(maps[0]))?)
}

/// Where a map's rows are.
fn row_axis(map: &Tensor) -> usize {
    if is_kernels(map) { 1 } else { 2 }
}

/// The maps' channels one after another.
///
/// # Errors
///
/// Maps of different sizes.
pub fn concat_channels(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    if is_kernels(first) && first.dims()[..3] == second.dims()[..3] && first.dtype() == second.dtype() {
        let (b, h, w, c) = first.dims4()?;
        let widths = (c, second.dim(3)?);
        let joined = by_number!(first.dtype(), N => with_values::<N, _>(first, |first| {
            with_values::<N, _>(second, |second| {
                tensor_of(cpu::concat_rows(first, second, widths), vec![b, h, w, widths.0 + widths.1])
            })
        }));
        return joined;
    }
    Ok(Tensor::cat(&[first, second], channel_axis(first))?)
}

/// A batch of `count` of maps or tokens: what is there, one whole batch after another, as often as makes so many.
///
/// # Errors
///
/// A count that is no multiple of what is there.
pub fn repeat(x: &Tensor, count: usize) -> Result<Tensor> {
    let batch = x.dim(0)?;
    if batch == count {
        return Ok(x.clone());
    }
    if !count.is_multiple_of(batch) {
        return Err(candle_core::Error::Msg(format!("a batch of {batch} cannot be repeated to {count}")).into());
    }
    Ok(Tensor::cat(&vec![x; count / batch], 0)?)
}

/// One token a pixel: `(b, h * w, c)`.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn to_tokens(map: &Tensor) -> Result<Tensor> {
    if is_kernels(map) {
        let (b, _, _, c) = map.dims4()?;
        return Ok(map.reshape((b, (), c))?);
    }
    Ok(map.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// A map of `(height, width)` from one token a pixel.
///
/// # Errors
///
/// Another number of tokens.
pub fn from_tokens(tokens: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (b, _, c) = tokens.dims3()?;
    if is_kernels(tokens) {
        return Ok(tokens.reshape((b, height, width, c))?);
    }
    Ok(tokens.transpose(D::Minus2, D::Minus1)?.reshape((b, c, height, width))?)
}

/// The map with one value a channel added: `values` is `(b, c)`.
///
/// # Errors
///
/// Another number of channels.
pub(super) fn add_to_channels(map: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (b, c) = values.dims2()?;
    let mut shape = [b, 1, 1, 1];
    shape[channel_axis(map)] = c;
    Ok(map.broadcast_add(&values.reshape(&shape)?)?)
}

/// The map with each channel scaled and shifted: `values` is `(b, 2 c)`, what is added to a scale of 1 and then what is
/// added to the result.
///
/// # Errors
///
/// Another number of channels.
pub(super) fn modulate(map: &Tensor, values: &Tensor) -> Result<Tensor> {
    let halves = values.to_dtype(map.dtype())?.chunk(2, 1)?;
    let (b, c) = halves[0].dims2()?;
    let mut shape = [b, 1, 1, 1];
    shape[channel_axis(map)] = c;
    let of = |half: &Tensor| half.contiguous()?.reshape(&shape);
    Ok(map.broadcast_mul(&(of(&halves[0])? + 1.0)?)?.broadcast_add(&of(&halves[1])?)?)
}
