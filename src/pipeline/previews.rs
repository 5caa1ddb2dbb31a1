//! What a picture looks like before it is finished: latents taken to colours by a linear projection.
//!
//! Owns the projection, which is fitted once against the loaded autoencoder, so that it fits any. A preview asks no network.

use std::sync::{Arc, PoisonError};

use candle_core::{Device, Tensor};
use image::{DynamicImage, Rgb, RgbImage};

use super::InferencePipeline;
use crate::{Error, Result, sampling::NoiseGenerator};

/// A preview's longer side at most.
const MAX_SIDE_PX: usize = 256;
/// The side of the latents that the projection is fitted on.
const FITTED_SIDE: usize = 16;
/// Those latents run smoothly between random ones so far apart.
const CORNER_DISTANCE: usize = 4;
/// Running between random corners takes a third of the deviation away, about.
const CORNER_DEVIATION: f32 = 1.5;
/// On top lies noise of this deviation.
const NOISE_DEVIATION: f32 = 0.25;
/// Added to each channel's mean square, 1 about, so that the equations have one solution for any autoencoder.
const RIDGE: f64 = 1e-4;
const COLOURS: usize = 3;
/// A whole share, where pictures are enlarged.
const ONE: u32 = 256;

/// Takes latents to colours: each of red, green and blue is a sum of weighted channels and a constant (the last weight).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Projection {
    weights: [Vec<f64>; COLOURS],
}

impl InferencePipeline {
    /// A picture of unfinished latents `(1, c, h, w)` f32, at most [`MAX_SIDE_PX`] long. What is not finite is shown as some
    /// colour.
    pub(super) fn preview(&self, denoised: &Tensor) -> Result<DynamicImage> {
        let (_, _, height, width) = denoised.dims4()?;
        let small = self.projection()?.paint(&planes(denoised)?, side(height)?, side(width)?);
        let longer = height.max(width);
        let longest = (self.spec.vae.factor() * longer).min(MAX_SIDE_PX);
        let scaled = |length: usize| side((length * longest).div_ceil(longer));
        Ok(DynamicImage::ImageRgb8(enlarged(&small, scaled(width)?, scaled(height)?)))
    }

    /// The projection, fitted when it is first asked for, so that a worker that shows none is ready the sooner.
    pub(super) fn projection(&self) -> Result<Arc<Projection>> {
        let mut kept = self.projection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(projection) = &*kept {
            return Ok(Arc::clone(projection));
        }
        let latents = smooth_latents(self.spec.vae.latent_channels);
        let shape = (1, self.spec.vae.latent_channels, FITTED_SIDE, FITTED_SIDE);
        let on_device = Tensor::from_slice(&latents, shape, &self.networks.device)?;
        let pixels = self.pixels(&on_device)?.to_device(&Device::Cpu)?.clamp(-1.0, 1.0)?;
        let colours = planes(&pixels.avg_pool2d(self.spec.vae.factor())?)?;
        let fitted = Projection::fit(&latents, &colours, FITTED_SIDE * FITTED_SIDE);
        Ok(Arc::clone(kept.insert(Arc::new(fitted))))
    }
}

impl Projection {
    /// The projection whose squared distance from `colours` is least. Both are one plane of `cells` numbers after another.
    fn fit(latents: &[f32], colours: &[f32], cells: usize) -> Self {
        let mut columns: Vec<Vec<f64>> = latents.chunks_exact(cells).map(wide).collect();
        columns.push(vec![1.0; cells]);
        let targets: Vec<Vec<f64>> = colours.chunks_exact(cells).map(wide).collect();
        let count = columns.len();
        let mut equations: Vec<Vec<f64>> = Vec::new();
        for (number, column) in columns.iter().enumerate() {
            let mut row: Vec<f64> = columns.iter().chain(&targets).map(|other| mean_product(column, other)).collect();
            if number + 1 < count {
                row[number] += RIDGE;
            }
            equations.push(row);
        }
        let solutions = solve(equations);
        Self { weights: std::array::from_fn(|colour| solutions.iter().map(|row| row[colour]).collect()) }
    }

    /// The colours of latents, one plane after another, of -1 to 1 as bytes.
    fn paint(&self, latents: &[f32], height: u32, width: u32) -> RgbImage {
        let cells = height as usize * width as usize;
        let mut picture = RgbImage::new(width, height);
        for (cell, pixel) in picture.pixels_mut().enumerate() {
            for (weights, byte) in self.weights.iter().zip(&mut pixel.0) {
                let (constant, weights) = weights.split_last().expect("the last weight is the constant");
                let values = latents.iter().skip(cell).step_by(cells);
                let colour: f64 = weights.iter().zip(values).map(|(weight, value)| weight * f64::from(*value)).sum();
                *byte = to_byte(constant + colour);
            }
        }
        picture
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of what is too large, or no number, saturates"
)]
fn to_byte(colour: f64) -> u8 {
    ((colour + 1.0) * 127.5).round() as u8
}

/// The picture at another size, each pixel between the four nearest ones: in whole numbers, as it is done every few steps.
fn enlarged(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let columns = neighbours(picture.width(), width);
    let rows = neighbours(picture.height(), height);
    RgbImage::from_fn(width, height, |x, y| {
        let (left, right, across) = columns[x as usize];
        let (top, bottom, down) = rows[y as usize];
        let corner = |x: u32, y: u32| picture.get_pixel(x, y).0.map(u32::from);
        let (a, b, c, d) = (corner(left, top), corner(right, top), corner(left, bottom), corner(right, bottom));
        Rgb(std::array::from_fn(|colour| {
            let upper = a[colour] * (ONE - across) + b[colour] * across;
            let lower = c[colour] * (ONE - across) + d[colour] * across;
            let mixed = (upper * (ONE - down) + lower * down + ONE * ONE / 2) / (ONE * ONE);
            u8::try_from(mixed).unwrap_or(u8::MAX)
        }))
    })
}

/// For each of `to` pixels in a line, those of `from` before and after its middle, and the share of the latter in parts of
/// [`ONE`].
fn neighbours(from: u32, to: u32) -> Vec<(u32, u32, u32)> {
    let middle = |index: u32| ((2 * index + 1) * from * ONE / (2 * to)).saturating_sub(ONE / 2);
    let place = |at: u32| (at / ONE, (at / ONE + 1).min(from - 1), at % ONE);
    (0..to).map(|index| place(middle(index))).collect()
}

/// Latents as a picture's are, about: smooth, with some noise, of variance 1. One plane after another.
fn smooth_latents(channels: usize) -> Vec<f32> {
    let corners_a_side = FITTED_SIDE / CORNER_DISTANCE + 1;
    let mut noise = NoiseGenerator::new(0);
    let mut latents = Vec::with_capacity(channels * FITTED_SIDE * FITTED_SIDE);
    for _ in 0..channels {
        let corners = noise.normals(corners_a_side * corners_a_side);
        let corner = |row: usize, column: usize| CORNER_DEVIATION * corners[row * corners_a_side + column];
        let fresh = noise.normals(FITTED_SIDE * FITTED_SIDE);
        for (cell, fresh) in fresh.iter().enumerate() {
            let ((row, down), (column, right)) = (place(cell / FITTED_SIDE), place(cell % FITTED_SIDE));
            let between = |row: usize| corner(row, column) * (1.0 - right) + corner(row, column + 1) * right;
            latents.push(between(row) * (1.0 - down) + between(row + 1) * down + NOISE_DEVIATION * fresh);
        }
    }
    latents
}

/// The corner before a latent, and how far the latent is from it on the way to the next.
#[expect(clippy::cast_precision_loss, reason = "both are small")]
fn place(index: usize) -> (usize, f32) {
    (index / CORNER_DISTANCE, (index % CORNER_DISTANCE) as f32 / CORNER_DISTANCE as f32)
}

/// Solves linear equations, each its coefficients and then a right side for every solution, by Gauss's elimination. The
/// coefficients are symmetric and positive definite, so that no pivot is zero.
fn solve(mut equations: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let count = equations.len();
    for pivot in 0..count {
        let divisor = equations[pivot][pivot];
        equations[pivot].iter_mut().for_each(|value| *value /= divisor);
        let solved = equations[pivot].clone();
        for row in (0..count).filter(|row| *row != pivot) {
            let share = equations[row][pivot];
            equations[row].iter_mut().zip(&solved).for_each(|(value, solved)| *value -= share * solved);
        }
    }
    equations.into_iter().map(|row| row[count..].to_vec()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "cells are few")]
fn mean_product(first: &[f64], second: &[f64]) -> f64 {
    first.iter().zip(second).map(|(a, b)| a * b).sum::<f64>() / first.len() as f64
}

fn wide(plane: &[f32]) -> Vec<f64> {
    plane.iter().copied().map(f64::from).collect()
}

/// The numbers of one image, one plane after another.
fn planes(image: &Tensor) -> Result<Vec<f32>> {
    Ok(image.flatten_all()?.to_vec1()?)
}

fn side(length: usize) -> Result<u32> {
    u32::try_from(length).map_err(|error| Error::Image(error.to_string()))
}

#[cfg(test)]
mod tests {
    use image::imageops;

    use super::*;
    use crate::{
        models::{DeviceChoice, DtypeChoice, ModelSource},
        pipeline::{Generate, LoadOptions, Monitor},
        sampling::SamplingConfig,
    };

    fn bundled() -> InferencePipeline {
        let options = LoadOptions {
            source: ModelSource::Bundled,
            device: DeviceChoice::Cpu,
            dtype: DtypeChoice::F32,
            ..LoadOptions::default()
        };
        InferencePipeline::load(&options, &mut |_| {}).unwrap()
    }

    /// Peak signal-to-noise ratio in dB.
    fn psnr(found: &RgbImage, wanted: &RgbImage) -> f64 {
        assert_eq!(found.dimensions(), wanted.dimensions());
        let squares = found.iter().zip(wanted.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        10.0 * (255.0 * 255.0 * found.len() as f64 / squares.sum::<f64>()).log10()
    }

    #[derive(Default)]
    struct Last(Option<RgbImage>);

    impl Monitor for Last {
        fn should_stop(&self) -> bool {
            false
        }

        fn progress(&mut self, _: usize, _: usize) {}

        fn preview(&mut self, _: usize, image: DynamicImage) {
            self.0 = Some(image.to_rgb8());
        }
    }

    #[test]
    fn a_projection_finds_what_made_its_colours() {
        let (latents, cells) = (smooth_latents(4), FITTED_SIDE * FITTED_SIDE);
        let weights = [[0.5, -0.25, 0.0, 0.125, 0.1], [0.0, 0.3, -0.2, 0.0, -0.4], [-0.1, 0.0, 0.6, 0.2, 0.0]];
        let made = Projection { weights: weights.map(|weights| weights.to_vec()) };
        let colour = |colour: usize, cell: usize| {
            (0..4).map(|channel| weights[colour][channel] as f32 * latents[channel * cells + cell]).sum::<f32>()
                + weights[colour][4] as f32
        };
        let colours: Vec<f32> = (0..COLOURS)
            .flat_map(|number| (0..cells).map(move |cell| (number, cell)))
            .map(|(a, b)| colour(a, b))
            .collect();
        let found = Projection::fit(&latents, &colours, cells);
        for (found, wanted) in found.weights.iter().flatten().zip(made.weights.iter().flatten()) {
            assert!((found - wanted).abs() < 1e-3, "{found} for {wanted}");
        }
    }

    #[test]
    fn what_is_fitted_on_has_variance_one() {
        let latents = smooth_latents(64);
        let square = latents.iter().map(|value| f64::from(value * value)).sum::<f64>() / latents.len() as f64;
        assert!((0.8..1.2).contains(&square), "{square}");
    }

    #[test]
    fn the_bundled_models_previews_look_like_its_pictures() {
        let pipeline = bundled();
        let mut all = Vec::new();
        for prompt in ["a red fox in the snow", "a blue boat on a yellow background", "a green tree", "a cat"] {
            // The preview before the last step shows what the network takes the picture to be at next to no noise.
            let config =
                SamplingConfig { prompt: prompt.into(), steps: 12, preview_every: 11, ..SamplingConfig::default() };
            let mut last = Last::default();
            let picture = pipeline.generate(&config, &mut last).unwrap().images.remove(0).to_rgb8();
            let preview = last.0.unwrap();
            assert_eq!(preview.dimensions(), picture.dimensions());
            // Cell by cell.
            let cells = |picture: &RgbImage| imageops::thumbnail(picture, picture.width() / 8, picture.height() / 8);
            all.push(psnr(&cells(&preview), &cells(&picture)));
        }
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!(mean > 18.0 && all.iter().all(|one| *one > 16.0), "{all:?}");
    }

    #[test]
    fn what_is_enlarged_runs_between_its_pixels() {
        let small = RgbImage::from_raw(2, 1, vec![0, 100, 200, 200, 100, 0]).unwrap();
        let large = enlarged(&small, 4, 2);
        let row = [[0, 100, 200], [50, 100, 150], [150, 100, 50], [200, 100, 0]];
        assert_eq!(large.as_raw(), &[row, row].concat().concat());
    }

    #[test]
    fn a_preview_is_at_most_256_pixels_long() {
        let pipeline = bundled();
        for ((height, width), size) in [((64, 32), (128, 256)), ((5, 90), (256, 15)), ((8, 16), (128, 64))] {
            let latents = Tensor::zeros((1, 8, height, width), candle_core::DType::F32, &Device::Cpu).unwrap();
            let preview = pipeline.preview(&latents).unwrap();
            assert_eq!((preview.width(), preview.height()), size);
        }
    }

    #[test]
    fn a_preview_of_what_is_not_finite_is_a_picture_too() {
        let pipeline = bundled();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let latents = Tensor::full(value, (1, 8, 4, 4), &Device::Cpu).unwrap();
            assert_eq!(pipeline.preview(&latents).unwrap().width(), 32);
        }
    }
}
