//! Lanczos resampling of 8-bit pictures, with Pillow's numbers.
//!
//! diffusers shrinks and enlarges input pictures with Pillow, and every level that differs there becomes a difference in
//! the drawing. Pillow resamples rows first, then columns, in fixed point with 22 bits behind the point, and rounds to
//! bytes in between (its `Resample.c`); libraries that compute in floating point differ by one level here and there.

use image::{GrayImage, RgbImage};

/// Lobes of the filter on each side.
const LOBES: f64 = 3.0;
/// Bits behind the point: 32 without the sign, the byte, and one for the filter's overshoot.
const PRECISION_BITS: u32 = 22;

/// A picture that can be resampled: interleaved bytes of some channels.
pub trait Plane: Sized {
    /// Bytes a pixel.
    const CHANNELS: usize;

    /// The bytes, row by row.
    fn bytes(&self) -> &[u8];

    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// A picture of `width` by `height` from its bytes, of which there are enough.
    fn from_bytes(width: u32, height: u32, bytes: Vec<u8>) -> Self;
}

macro_rules! plane {
    ($image:ty, $channels:literal) => {
        impl Plane for $image {
            const CHANNELS: usize = $channels;

            fn bytes(&self) -> &[u8] {
                self.as_raw()
            }

            fn size(&self) -> (u32, u32) {
                self.dimensions()
            }

            fn from_bytes(width: u32, height: u32, bytes: Vec<u8>) -> Self {
                Self::from_raw(width, height, bytes).expect("there are as many bytes as pixels times channels")
            }
        }
    };
}

plane!(RgbImage, 3);
plane!(GrayImage, 1);

/// The picture at exactly `width` by `height` pixels; its proportions are not kept.
///
/// # Panics
///
/// For a picture without pixels, or a side of zero.
#[must_use]
pub fn resize<P: Plane + Clone>(picture: &P, width: u32, height: u32) -> P {
    let (from_width, from_height) = picture.size();
    assert!(from_width > 0 && from_height > 0 && width > 0 && height > 0, "a picture has pixels");
    if (from_width, from_height) == (width, height) {
        return picture.clone();
    }
    let (rows, old_columns) = (from_height as usize, from_width as usize);
    let columns = width as usize;
    // A side that stays is left out, and not filtered at factor one.
    let narrowed = if from_width == width {
        picture.bytes().to_vec()
    } else {
        let taps = taps(old_columns, columns);
        let mut narrowed = vec![0; rows * columns * P::CHANNELS];
        for (from, to) in picture
            .bytes()
            .chunks_exact(old_columns * P::CHANNELS)
            .zip(narrowed.chunks_exact_mut(columns * P::CHANNELS))
        {
            for (tap, pixel) in taps.iter().zip(to.chunks_exact_mut(P::CHANNELS)) {
                for (channel, byte) in pixel.iter_mut().enumerate() {
                    *byte = tap.apply(|index| from[index * P::CHANNELS + channel]);
                }
            }
        }
        narrowed
    };
    if from_height == height {
        return P::from_bytes(width, height, narrowed);
    }
    let stride = columns * P::CHANNELS;
    let mut resized = vec![0; height as usize * stride];
    for (tap, row) in taps(rows, height as usize).iter().zip(resized.chunks_exact_mut(stride)) {
        for (column, byte) in row.iter_mut().enumerate() {
            *byte = tap.apply(|index| narrowed[index * stride + column]);
        }
    }
    P::from_bytes(width, height, resized)
}

/// What one pixel of the result is made of.
struct Tap {
    first: usize,
    weights: Vec<i64>,
}

impl Tap {
    fn apply(&self, byte: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION_BITS - 1);
        let weighted = |(offset, weight): (usize, &i64)| weight * i64::from(byte(self.first + offset));
        let sum: i64 = half + self.weights.iter().enumerate().map(weighted).sum::<i64>();
        u8::try_from((sum >> PRECISION_BITS).clamp(0, 255)).expect("it is clamped to a byte")
    }
}

/// The weights of each of `to` pixels made of `from`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are far below 2^53, and values are clamped before they become indices"
)]
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    // The filter is stretched where the picture shrinks, so that no detail is left out.
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    let tap = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |at: usize| lanczos((at as f64 - centre + 0.5) / stretch);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION_BITS)).round() as i64;
        Tap { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

/// The windowed sinc of three lobes (Duchon 1979).
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_colour_stays_and_an_edge_overshoots_within_bytes() {
        let plain = RgbImage::from_pixel(9, 5, image::Rgb([3, 128, 255]));
        for (width, height) in [(9, 5), (64, 5), (9, 1), (3, 40)] {
            let resized = resize(&plain, width, height);
            assert_eq!(resized.dimensions(), (width, height));
            assert!(resized.pixels().all(|pixel| pixel.0 == [3, 128, 255]));
        }
        let edge = GrayImage::from_fn(8, 1, |x, _| image::Luma([if x < 4 { 0 } else { 255 }]));
        let large = resize(&edge, 32, 1);
        assert_eq!((large.as_raw()[0], large.as_raw()[31]), (0, 255));
        assert!(large.as_raw().windows(2).any(|pair| pair[0] < pair[1]));
    }
}
