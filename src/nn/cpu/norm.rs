//! Group and layer normalisation, with the activation behind it.

use rayon::prelude::*;

use super::{
    isa::{Isa, multiply_add, versions},
    math,
};

/// Rows whose sums are taken together in f32 before they are added up in f64.
const ROWS: usize = 64;

/// What a norm multiplies and adds, one value a channel, and what it adds to the variance.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// Multiplied.
    pub weight: &'a [f32],
    /// Added.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub epsilon: f64,
}

/// What follows a group norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// SiLU.
    Silu,
}

/// Normalises maps `[image][pixel][channel]` over each image's groups of channels.
pub fn group_norm(x: &[f32], images: usize, groups: usize, affine: Affine<'_>, then: Then, result: &mut [f32]) {
    let channels = affine.weight.len();
    let pixels = x.len() / (images * channels);
    assert!(x.len() == images * pixels * channels && result.len() == x.len(), "maps are whole");
    assert!(channels.is_multiple_of(groups) && affine.bias.len() == channels, "groups divide channels");
    let isa = Isa::detected();
    let factors: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(pixels * channels)
        .map(|image| {
            let parts: Vec<Sums> =
                image.par_chunks(ROWS * channels).map(|rows| sums(isa, rows, &image[..channels])).collect();
            factors(&parts, &image[..channels], pixels, groups, affine)
        })
        .collect();
    let chunks = result.par_chunks_mut(pixels * channels).zip(x.par_chunks(pixels * channels)).zip(&factors);
    chunks.for_each(|((result, image), (scale, shift))| {
        let rows = result.par_chunks_mut(ROWS * channels).zip(image.par_chunks(ROWS * channels));
        rows.for_each(|(result, rows)| apply(isa, rows, scale, shift, then, result));
    });
}

/// Each channel's sum, and its sum of squares, of values less the channel's first.
struct Sums {
    first: Vec<f32>,
    second: Vec<f32>,
}

fn sums(isa: Isa, rows: &[f32], origin: &[f32]) -> Sums {
    let mut sums = Sums { first: vec![0.0; origin.len()], second: vec![0.0; origin.len()] };
    add_rows(isa, rows, origin, &mut sums);
    sums
}

versions! {
    fn add_rows = add_rows_body(rows: &[f32], origin: &[f32], sums: &mut Sums)
}

#[inline(always)]
fn add_rows_body<const FMA: bool>(rows: &[f32], origin: &[f32], sums: &mut Sums) {
    for row in rows.chunks_exact(origin.len()) {
        let sums = sums.first.iter_mut().zip(&mut sums.second);
        for ((x, origin), (first, second)) in row.iter().zip(origin).zip(sums) {
            let x = x - origin;
            *first += x;
            *second = multiply_add::<FMA>(x, x, *second);
        }
    }
}

/// What each channel is multiplied with and has added. The variance is found about each channel's first value and then
/// moved to the mean (Chan et al. 1983), so that a mean far from zero costs no digits.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what maps are in")]
fn factors(parts: &[Sums], origin: &[f32], pixels: usize, groups: usize, affine: Affine<'_>) -> (Vec<f32>, Vec<f32>) {
    let channels = origin.len();
    let width = channels / groups;
    let count = pixels as f64;
    let sum =
        |of: fn(&Sums) -> &Vec<f32>, channel: usize| parts.iter().map(|part| f64::from(of(part)[channel])).sum::<f64>();
    let mut scale = vec![0.0; channels];
    let mut shift = vec![0.0; channels];
    for group in 0..groups {
        let members = group * width..(group + 1) * width;
        let moments = members.clone().map(|channel| {
            let (first, second) = (sum(|sums| &sums.first, channel), sum(|sums| &sums.second, channel));
            (f64::from(origin[channel]) + first / count, second - first * first / count)
        });
        let moments: Vec<(f64, f64)> = moments.collect();
        let mean = moments.iter().map(|(mean, _)| mean).sum::<f64>() / width as f64;
        let squares = moments.iter().map(|(own, squares)| squares + count * (own - mean).powi(2)).sum::<f64>();
        let deviation = (squares / (count * width as f64) + affine.epsilon).sqrt();
        for channel in members {
            let factor = f64::from(affine.weight[channel]) / deviation;
            scale[channel] = factor as f32;
            shift[channel] = (f64::from(affine.bias[channel]) - mean * factor) as f32;
        }
    }
    (scale, shift)
}

versions! {
    fn apply = apply_body(rows: &[f32], scale: &[f32], shift: &[f32], then: Then, result: &mut [f32])
}

#[inline(always)]
fn apply_body<const FMA: bool>(rows: &[f32], scale: &[f32], shift: &[f32], then: Then, result: &mut [f32]) {
    let rows = result.chunks_exact_mut(scale.len()).zip(rows.chunks_exact(scale.len()));
    for (result, row) in rows {
        let values = result.iter_mut().zip(row).zip(scale.iter().zip(shift));
        match then {
            Then::Nothing => values.for_each(|((y, x), (a, b))| *y = multiply_add::<FMA>(*x, *a, *b)),
            Then::Silu => {
                values.for_each(|((y, x), (a, b))| *y = math::silu::<FMA>(multiply_add::<FMA>(*x, *a, *b)));
            }
        }
    }
}

/// Normalises each row of `[row][channel]`.
pub fn layer_norm(x: &[f32], affine: Affine<'_>, result: &mut [f32]) {
    let channels = affine.weight.len();
    assert!(
        x.len() == result.len() && x.len().is_multiple_of(channels) && affine.bias.len() == channels,
        "rows are whole"
    );
    let isa = Isa::detected();
    let parts = result.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels));
    parts.for_each(|(result, rows)| normalise_rows(isa, rows, affine, result));
}

versions! {
    fn normalise_rows = normalise_rows_body(rows: &[f32], affine: Affine<'_>, result: &mut [f32])
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what tokens are in")]
fn normalise_rows_body<const FMA: bool>(rows: &[f32], affine: Affine<'_>, result: &mut [f32]) {
    let channels = affine.weight.len();
    let share = 1.0 / channels as f32;
    for (result, row) in result.chunks_exact_mut(channels).zip(rows.chunks_exact(channels)) {
        let mean = sum::<FMA>(row, |x| x) * share;
        let variance = sum::<FMA>(row, |x| (x - mean) * (x - mean)) * share;
        let factor = 1.0 / (variance + affine.epsilon as f32).sqrt();
        let values = result.iter_mut().zip(row).zip(affine.weight.iter().zip(affine.bias));
        values.for_each(|((y, x), (weight, bias))| *y = multiply_add::<FMA>((x - mean) * factor, *weight, *bias));
    }
}

/// A sum in 16 lanes, which is both faster and more exact than one after another.
#[inline(always)]
fn sum<const FMA: bool>(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += of(*x);
    }
    lanes.iter().sum()
}
