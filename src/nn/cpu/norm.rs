//! Group and layer normalisation, with the activation behind it.

use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, multiply_add, versions},
    math,
    shared::{Shared, filled},
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
pub fn group_norm<E: Element>(x: &[E], images: usize, groups: usize, affine: Affine<'_>, then: Then) -> Vec<E> {
    let channels = affine.weight.len();
    let pixels = x.len() / (images * channels);
    assert!(x.len() == images * pixels * channels, "maps are whole");
    assert!(channels.is_multiple_of(groups) && affine.bias.len() == channels, "groups divide channels");
    let isa = Isa::detected();
    let factors: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(pixels * channels)
        .map(|image| {
            let origin: Vec<f32> = image[..channels].iter().map(|x| x.widen()).collect();
            let parts: Vec<Sums> = image.par_chunks(ROWS * channels).map(|rows| sums(isa, rows, &origin)).collect();
            factors(&parts, &origin, pixels, groups, affine)
        })
        .collect();
    filled(x.len(), |result| {
        let parts = pixels.div_ceil(ROWS);
        (0..images * parts).into_par_iter().for_each(|task| {
            let (image, part) = (task / parts, task % parts);
            let first = (image * pixels + part * ROWS) * channels;
            let rows = &x[first..(first + ROWS * channels).min((image + 1) * pixels * channels)];
            apply(isa, rows, &factors[image], then, Part { result, first });
        });
    })
}

/// Where a task's rows go.
#[derive(Clone, Copy)]
struct Part<E: Copy> {
    result: Shared<E>,
    /// The number of the first.
    first: usize,
}

impl<E: Copy> Part<E> {
    /// The row of `width` numbers, `row` after the first.
    ///
    /// # Safety
    ///
    /// The row is this task's, and inside the result.
    #[inline(always)]
    unsafe fn row<'a>(self, row: usize, width: usize) -> &'a mut [std::mem::MaybeUninit<E>] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.result.at(self.first + row * width).cast(), width) }
    }
}

/// Each channel's sum, and its sum of squares, of values less the channel's first.
struct Sums {
    first: Vec<f32>,
    second: Vec<f32>,
}

fn sums<E: Element>(isa: Isa, rows: &[E], origin: &[f32]) -> Sums {
    let mut sums = Sums { first: vec![0.0; origin.len()], second: vec![0.0; origin.len()] };
    add_rows(isa, rows, origin, &mut sums);
    sums
}

versions! {
    fn add_rows<E: Element> = add_rows_body(rows: &[E], origin: &[f32], sums: &mut Sums)
}

/// Channels whose sums stay in registers while rows go by.
const COLUMNS: usize = 32;

#[inline(always)]
fn add_rows_body<E: Element, const FMA: bool>(rows: &[E], origin: &[f32], sums: &mut Sums) {
    let channels = origin.len();
    let whole = channels / COLUMNS * COLUMNS;
    for column in (0..whole).step_by(COLUMNS) {
        let (mut first, mut second, mut base) = ([0.0_f32; COLUMNS], [0.0_f32; COLUMNS], [0.0_f32; COLUMNS]);
        base.copy_from_slice(&origin[column..column + COLUMNS]);
        for row in rows.chunks_exact(channels) {
            let row = &row[column..column + COLUMNS];
            for lane in 0..COLUMNS {
                let x = row[lane].widen() - base[lane];
                first[lane] += x;
                second[lane] = multiply_add::<FMA>(x, x, second[lane]);
            }
        }
        sums.first[column..column + COLUMNS].copy_from_slice(&first);
        sums.second[column..column + COLUMNS].copy_from_slice(&second);
    }
    if whole == channels {
        return;
    }
    for row in rows.chunks_exact(channels) {
        let sums = sums.first.iter_mut().zip(&mut sums.second).skip(whole);
        for ((x, origin), (first, second)) in row.iter().zip(origin).skip(whole).zip(sums) {
            let x = x.widen() - origin;
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
    fn apply<E: Element> = apply_body(rows: &[E], factors: &(Vec<f32>, Vec<f32>), then: Then, part: Part<E>)
}

#[inline(always)]
fn apply_body<E: Element, const FMA: bool>(rows: &[E], factors: &(Vec<f32>, Vec<f32>), then: Then, part: Part<E>) {
    let (scale, shift) = factors;
    for (number, row) in rows.chunks_exact(scale.len()).enumerate() {
        // SAFETY: the row is this task's, and inside the result.
        let result = unsafe { part.row(number, scale.len()) };
        let values = result.iter_mut().zip(row).zip(scale.iter().zip(shift));
        match then {
            Then::Nothing => values.for_each(|((y, x), (a, b))| {
                y.write(E::narrow(multiply_add::<FMA>(x.widen(), *a, *b)));
            }),
            Then::Silu => values.for_each(|((y, x), (a, b))| {
                y.write(E::narrow(math::silu::<FMA>(multiply_add::<FMA>(x.widen(), *a, *b))));
            }),
        }
    }
}

/// Normalises each row of `[row][channel]`.
pub fn layer_norm<E: Element>(x: &[E], affine: Affine<'_>) -> Vec<E> {
    let channels = affine.weight.len();
    assert!(x.len().is_multiple_of(channels) && affine.bias.len() == channels, "rows are whole");
    let isa = Isa::detected();
    filled(x.len(), |result| {
        x.par_chunks(ROWS * channels).enumerate().for_each(|(number, rows)| {
            normalise_rows(isa, rows, affine, Part { result, first: number * ROWS * channels });
        });
    })
}

versions! {
    fn normalise_rows<E: Element> = normalise_rows_body(rows: &[E], affine: Affine<'_>, part: Part<E>)
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what sums are in")]
fn normalise_rows_body<E: Element, const FMA: bool>(rows: &[E], affine: Affine<'_>, part: Part<E>) {
    let channels = affine.weight.len();
    let share = 1.0 / channels as f32;
    for (number, row) in rows.chunks_exact(channels).enumerate() {
        let mean = sum(row, |x| x) * share;
        let variance = sum(row, |x| (x - mean) * (x - mean)) * share;
        let factor = 1.0 / (variance + affine.epsilon as f32).sqrt();
        // SAFETY: the row is this task's, and inside the result.
        let result = unsafe { part.row(number, channels) };
        let values = result.iter_mut().zip(row).zip(affine.weight.iter().zip(affine.bias));
        values.for_each(|((y, x), (weight, bias))| {
            y.write(E::narrow(multiply_add::<FMA>((x.widen() - mean) * factor, *weight, *bias)));
        });
    }
}

/// A sum in 16 lanes, which is both faster and more exact than one after another.
#[inline(always)]
fn sum<E: Element>(row: &[E], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(x.widen());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += of(x.widen());
    }
    lanes.iter().sum()
}
