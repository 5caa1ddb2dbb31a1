//! Group and layer normalisation, with the activation behind it.

mod groups;

use groups::group_moments;
pub use groups::{Factors, Moments, factors, group_factors};
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

/// Maps `[image][pixel][channel]` that are to be normalised over each image's groups of channels.
#[derive(Debug, Clone, Copy)]
pub struct NormalMaps<'a, X> {
    /// The maps.
    pub data: &'a [X],
    /// The height and width of each.
    pub size: (usize, usize),
    /// Groups of channels.
    pub groups: usize,
    /// What the norm multiplies and adds.
    pub affine: Affine<'a>,
}

impl<X> NormalMaps<'_, X> {
    pub(super) fn channels(&self) -> usize {
        self.affine.weight.len()
    }

    pub(super) fn images(&self) -> usize {
        self.data.len() / (self.pixels() * self.channels())
    }

    /// Of each image.
    fn pixels(&self) -> usize {
        self.size.0 * self.size.1
    }
}

/// Normalises maps, into another type or the same.
pub fn group_norm<X: Element, E: Element>(maps: &NormalMaps<'_, X>, then: Then) -> Vec<E> {
    group_norm_with(Isa::detected(), maps, then)
}

/// As [`group_norm`], with the instructions of `isa`.
pub(super) fn group_norm_with<X: Element, E: Element>(isa: Isa, maps: &NormalMaps<'_, X>, then: Then) -> Vec<E> {
    apply_all(isa, maps, &group_factors(isa, maps), then)
}

/// How the groups of each image are spread.
pub fn spread<X: Element>(maps: &NormalMaps<'_, X>) -> Vec<Vec<Moments>> {
    group_moments(Isa::detected(), maps)
}

/// As [`group_norm`], by factors that are known: those of the maps that these are rows of.
pub fn group_norm_by<X: Element, E: Element>(maps: &NormalMaps<'_, X>, factors: &[Factors], then: Then) -> Vec<E> {
    apply_all(Isa::detected(), maps, factors, then)
}

fn apply_all<X: Element, E: Element>(isa: Isa, maps: &NormalMaps<'_, X>, factors: &[Factors], then: Then) -> Vec<E> {
    let (x, pixels, channels) = (maps.data, maps.pixels(), maps.channels());
    assert!(factors.len() == maps.images(), "each image has factors");
    filled(x.len(), |result| {
        let parts = pixels.div_ceil(ROWS);
        (0..maps.images() * parts).into_par_iter().for_each(|task| {
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
