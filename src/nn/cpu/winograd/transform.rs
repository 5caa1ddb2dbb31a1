//! The transform of a map's rows, with the norm and the activation that come first.

use std::ops::Range;

use rayon::prelude::*;

use super::{POINTS, SIDE};
use crate::nn::cpu::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes, read, write},
    math,
    norm::{Factors, NormalMaps},
    shared::{Shared, filled},
};

/// Pixels whose transform is worth a task.
const PIXELS: usize = 64;

/// Some rows of maps, counted through all maps, normalised by each image's factors and activated, and transformed.
pub fn transform<X: Element, E: Element>(
    isa: Isa,
    maps: &NormalMaps<'_, X>,
    rows: Range<usize>,
    factors: &[Factors],
) -> Vec<E> {
    let (height, width) = maps.size;
    let channels = factors[0].scale.len();
    let row = width * channels;
    let transformed_row = width.div_ceil(SIDE) * POINTS * channels;
    let of_task = (PIXELS / width).max(1);
    filled(rows.len() * transformed_row, |result| {
        (0..rows.len().div_ceil(of_task)).into_par_iter().for_each(|task| {
            for number in task * of_task..((task + 1) * of_task).min(rows.len()) {
                let pixels = &maps.data[(rows.start + number) * row..][..row];
                let factors = &factors[(rows.start + number) / height];
                transform_row(isa, pixels, factors, result, number * transformed_row);
            }
        });
    })
}

versions! {
    fn transform_row<X: Element, E: Element> =
        transform_row_body(pixels: &[X], factors: &Factors, result: Shared<E>, first: usize)
}

/// Vectors of channels that are transformed together: a line of the cache of bf16.
const VECTORS: usize = 2;

/// Writes a row's transform to number `first` of the result, and on.
///
/// # Safety
///
/// The processor has the instructions of `L`, and this task alone has the row's place, inside the result.
#[inline(always)]
unsafe fn transform_row_body<X: Element, E: Element, L: Lanes>(
    pixels: &[X],
    factors: &Factors,
    result: Shared<E>,
    first: usize,
) {
    let channels = factors.scale.len();
    let whole = channels / (VECTORS * LANES) * VECTORS * LANES;
    // SAFETY: the caller's promise; the columns are channels.
    unsafe {
        for column in (0..whole).step_by(VECTORS * LANES) {
            transform_columns::<X, E, L, VECTORS>(pixels, factors, column..column + VECTORS * LANES, result.at(first));
        }
        for column in (whole..channels).step_by(LANES) {
            let columns = column..(column + LANES).min(channels);
            transform_columns::<X, E, L, 1>(pixels, factors, columns, result.at(first));
        }
    }
}

/// The channels `columns` of a row, which fit `V` vectors.
///
/// # Safety
///
/// As of [`transform_row_body`]; the columns are channels.
#[inline(always)]
unsafe fn transform_columns<X: Element, E: Element, L: Lanes, const V: usize>(
    pixels: &[X],
    factors: &Factors,
    columns: Range<usize>,
    into: *mut E,
) {
    let channels = factors.scale.len();
    let width = pixels.len() / channels;
    // SAFETY: the caller's promise; every pixel has these channels, and every pair has room for them at each point.
    unsafe {
        let zero = [L::splat(0.0); V];
        let (mut scale, mut shift) = (zero, zero);
        for part in 0..V {
            let places = part_of(&columns, part);
            scale[part] = read(&factors.scale[places.clone()]);
            shift[part] = read(&factors.shift[places]);
        }
        let mut before = zero;
        let mut current = activated::<X, E, L, V>(&pixels[..channels], &columns, &scale, &shift);
        for pair in 0..width.div_ceil(SIDE) {
            let (mut next, mut after) = (zero, zero);
            if SIDE * pair + 1 < width {
                let pixel = &pixels[(SIDE * pair + 1) * channels..][..channels];
                next = activated::<X, E, L, V>(pixel, &columns, &scale, &shift);
            }
            if SIDE * pair + 2 < width {
                let pixel = &pixels[(SIDE * pair + 2) * channels..][..channels];
                after = activated::<X, E, L, V>(pixel, &columns, &scale, &shift);
            }
            for part in 0..V {
                let places = part_of(&columns, part);
                let into = into.wrapping_add(pair * POINTS * channels + places.start);
                let (d0, d1, d2, d3) = (before[part], current[part], next[part], after[part]);
                write(d0.sub(d2), into, places.len());
                write(d1.add(d2), into.wrapping_add(channels), places.len());
                write(d2.sub(d1), into.wrapping_add(2 * channels), places.len());
                write(d1.sub(d3), into.wrapping_add(3 * channels), places.len());
            }
            (before, current) = (next, after);
        }
    }
}

/// The columns of one vector.
#[inline(always)]
fn part_of(columns: &Range<usize>, part: usize) -> Range<usize> {
    let start = columns.start + part * LANES;
    start..(start + LANES).min(columns.end)
}

/// Some of a pixel's channels, normalised and activated.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn activated<X: Element, E: Element, L: Lanes, const V: usize>(
    pixel: &[X],
    columns: &Range<usize>,
    scale: &[L; V],
    shift: &[L; V],
) -> [L; V] {
    let mut values = *scale;
    for part in 0..V {
        // SAFETY: the caller's promise.
        unsafe {
            let x: L = read(&pixel[part_of(columns, part)]);
            values[part] = math::silu::<E, L>(x.mul_add(scale[part], shift[part]));
        }
    }
    values
}
