//! What networks do with a feature map besides convolving it.
//!
//! A feature map is `(b, c, h, w)` today. Only this folder knows: the networks speak of channels, tokens and sizes, so
//! that the layout can change under them.

use candle_core::Tensor;

use crate::Result;

/// A map's height and width.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn size(map: &Tensor) -> Result<(usize, usize)> {
    let (_, _, height, width) = map.dims4()?;
    Ok((height, width))
}

/// The maps' channels one after another.
///
/// # Errors
///
/// Maps of different sizes.
pub fn concat_channels(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[first, second], 1)?)
}

/// The map at another size, each value taken from the nearest one.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn upsample_nearest(map: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    Ok(map.upsample_nearest2d(height, width)?)
}

/// One token a pixel: `(b, h * w, c)`.
///
/// # Errors
///
/// A tensor that is no feature map.
pub fn to_tokens(map: &Tensor) -> Result<Tensor> {
    Ok(map.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// A map of `(height, width)` from one token a pixel.
///
/// # Errors
///
/// Another number of tokens.
pub fn from_tokens(tokens: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (b, _, c) = tokens.dims3()?;
    Ok(tokens.transpose(1, 2)?.reshape((b, c, height, width))?)
}

/// The map with one value a channel added: `values` is `(b, c)`.
///
/// # Errors
///
/// Another number of channels.
pub fn add_to_channels(map: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (b, c) = values.dims2()?;
    Ok(map.broadcast_add(&values.reshape((b, c, 1, 1))?)?)
}
