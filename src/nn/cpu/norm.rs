//! Group and layer normalisation, with the activation behind it.

use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes, read, write},
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

/// Normalises maps `[image][pixel][channel]` over each image's groups of channels, into another type or the same.
pub fn group_norm<X: Element, E: Element>(
    x: &[X],
    images: usize,
    groups: usize,
    affine: Affine<'_>,
    then: Then,
) -> Vec<E> {
    group_norm_with(Isa::detected(), x, images, groups, affine, then)
}

/// As [`group_norm`], with the instructions of `isa`.
pub(super) fn group_norm_with<X: Element, E: Element>(
    isa: Isa,
    x: &[X],
    images: usize,
    groups: usize,
    affine: Affine<'_>,
    then: Then,
) -> Vec<E> {
    let channels = affine.weight.len();
    let pixels = x.len() / (images * channels);
    let factors = group_factors(isa, x, images, groups, affine);
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

/// What each channel of an image is multiplied with and then has added, in f32.
pub(super) struct Factors {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

/// The factors that normalise each image's groups of channels.
pub(super) fn group_factors<E: Element>(
    isa: Isa,
    x: &[E],
    images: usize,
    groups: usize,
    affine: Affine<'_>,
) -> Vec<Factors> {
    let channels = affine.weight.len();
    let pixels = x.len() / (images * channels);
    assert!(x.len() == images * pixels * channels, "maps are whole");
    assert!(channels.is_multiple_of(groups) && affine.bias.len() == channels, "groups divide channels");
    let of_image = |image: &[E]| {
        let origin: Vec<f32> = image[..channels].iter().map(|x| x.widen()).collect();
        let parts: Vec<Sums> = image.par_chunks(ROWS * channels).map(|rows| sums(isa, rows, &origin)).collect();
        factors(&parts, &origin, pixels, groups, affine)
    };
    x.par_chunks(pixels * channels).map(of_image).collect()
}

/// Where a task's rows go.
#[derive(Clone, Copy)]
struct Part<E: Copy> {
    result: Shared<E>,
    /// The number of the first.
    first: usize,
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

/// Vectors of channels whose sums stay in registers while rows go by.
const VECTORS: usize = 2;

/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn add_rows_body<E: Element, L: Lanes>(rows: &[E], origin: &[f32], sums: &mut Sums) {
    let channels = origin.len();
    let mut column = 0;
    while column + VECTORS * LANES <= channels {
        // SAFETY: every row, the origin and the sums have as many numbers from this column on.
        unsafe { add_columns::<E, L, VECTORS>(rows, origin, sums, column) };
        column += VECTORS * LANES;
    }
    while column + LANES <= channels {
        // SAFETY: as above.
        unsafe { add_columns::<E, L, 1>(rows, origin, sums, column) };
        column += LANES;
    }
    if column == channels {
        return;
    }
    for row in rows.chunks_exact(channels) {
        let sums = sums.first.iter_mut().zip(&mut sums.second).skip(column);
        for ((x, origin), (first, second)) in row.iter().zip(origin).skip(column).zip(sums) {
            let x = x.widen() - origin;
            *first += x;
            *second += x * x;
        }
    }
}

/// The sums of `V` vectors of channels.
///
/// # Safety
///
/// There are as many channels from `column` on, and the processor has the instructions of `L`.
#[inline(always)]
unsafe fn add_columns<E: Element, L: Lanes, const V: usize>(
    rows: &[E],
    origin: &[f32],
    sums: &mut Sums,
    column: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut first, mut second, mut base) = ([L::splat(0.0); V], [L::splat(0.0); V], [L::splat(0.0); V]);
        for (part, base) in base.iter_mut().enumerate() {
            *base = L::load(origin.as_ptr().add(column + part * LANES));
        }
        for row in rows.chunks_exact(origin.len()) {
            for part in 0..V {
                let x: L = E::load(row.as_ptr().add(column + part * LANES));
                let x = x.sub(base[part]);
                first[part] = first[part].add(x);
                second[part] = x.mul_add(x, second[part]);
            }
        }
        for part in 0..V {
            first[part].store(sums.first.as_mut_ptr().add(column + part * LANES));
            second[part].store(sums.second.as_mut_ptr().add(column + part * LANES));
        }
    }
}

/// What each channel is multiplied with and has added. The variance is found about each channel's first value and then
/// moved to the mean (Chan et al. 1983), so that a mean far from zero costs no digits.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what maps are in")]
fn factors(parts: &[Sums], origin: &[f32], pixels: usize, groups: usize, affine: Affine<'_>) -> Factors {
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
    Factors { scale, shift }
}

versions! {
    fn apply<X: Element, E: Element> = apply_body(rows: &[X], factors: &Factors, then: Then, part: Part<E>)
}

/// # Safety
///
/// The processor has the instructions of `L`, and the rows are the task's, inside the result.
#[inline(always)]
unsafe fn apply_body<X: Element, E: Element, L: Lanes>(rows: &[X], factors: &Factors, then: Then, part: Part<E>) {
    let Factors { scale, shift } = factors;
    let channels = scale.len();
    for (number, row) in rows.chunks_exact(channels).enumerate() {
        let into = part.result.at(part.first + number * channels);
        for column in (0..channels).step_by(LANES) {
            let count = LANES.min(channels - column);
            let places = column..column + count;
            // SAFETY: the caller's promise; there are `count` numbers from this column on.
            unsafe {
                let x: L = read(&row[places.clone()]);
                let y = x.mul_add(read(&scale[places.clone()]), read(&shift[places]));
                let y = if then == Then::Silu { math::silu::<E, L>(y) } else { y };
                write(y, into.wrapping_add(column), count);
            }
        }
    }
}

/// Normalises each row of `[row][channel]`, into another type or the same.
pub fn layer_norm<X: Element, E: Element>(x: &[X], affine: Affine<'_>) -> Vec<E> {
    layer_norm_with(Isa::detected(), x, affine)
}

/// As [`layer_norm`], with the instructions of `isa`.
pub(super) fn layer_norm_with<X: Element, E: Element>(isa: Isa, x: &[X], affine: Affine<'_>) -> Vec<E> {
    let channels = affine.weight.len();
    assert!(x.len().is_multiple_of(channels) && affine.bias.len() == channels, "rows are whole");
    filled(x.len(), |result| {
        x.par_chunks(ROWS * channels).enumerate().for_each(|(number, rows)| {
            normalise_rows(isa, rows, affine, Part { result, first: number * ROWS * channels });
        });
    })
}

versions! {
    fn normalise_rows<X: Element, E: Element> = normalise_rows_body(rows: &[X], affine: Affine<'_>, part: Part<E>)
}

/// # Safety
///
/// The processor has the instructions of `L`, and the rows are the task's, inside the result.
#[inline(always)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "f32 is what sums are in")]
unsafe fn normalise_rows_body<X: Element, E: Element, L: Lanes>(rows: &[X], affine: Affine<'_>, part: Part<E>) {
    let channels = affine.weight.len();
    let share = 1.0 / channels as f32;
    for (number, row) in rows.chunks_exact(channels).enumerate() {
        let into = part.result.at(part.first + number * channels);
        // SAFETY: the caller's promise; there are `count` numbers from each column on.
        unsafe {
            let mean = sum::<X, L>(row, 0.0, false) * share;
            let variance = sum::<X, L>(row, mean, true) * share;
            let factor = L::splat(1.0 / (variance + affine.epsilon as f32).sqrt());
            let mean = L::splat(mean);
            for column in (0..channels).step_by(LANES) {
                let count = LANES.min(channels - column);
                let places = column..column + count;
                let x: L = read(&row[places.clone()]);
                let normal = x.sub(mean).mul(factor);
                let y = normal.mul_add(read(&affine.weight[places.clone()]), read(&affine.bias[places]));
                write(y, into.wrapping_add(column), count);
            }
        }
    }
}

/// The sum of a row's numbers less `mean`, or of their squares, in 16 lanes, which is both faster and more exact than one
/// after another.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn sum<E: Element, L: Lanes>(row: &[E], mean: f32, squared: bool) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    // SAFETY: the caller's promise; a chunk has 16 numbers.
    let mut total = unsafe {
        let (mean, mut lanes) = (L::splat(mean), L::splat(0.0));
        for chunk in chunks {
            let x: L = E::load(chunk.as_ptr());
            let x = x.sub(mean);
            lanes = if squared { x.mul_add(x, lanes) } else { lanes.add(x) };
        }
        lanes.sum()
    };
    for x in rest {
        let x = x.widen() - mean;
        total += if squared { x * x } else { x };
    }
    total
}
