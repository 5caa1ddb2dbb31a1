//! 3×3 convolutions with two thirds of the products: F(2, 3) of Winograd (1980; Lavin and Gray 2016) along a map's rows.
//!
//! Two outputs side by side meet four inputs `d` through a kernel's row `g`. Four products give both, where there were six:
//! of `d0 - d2`, `d1 + d2`, `d2 - d1` and `d1 - d3` with `g0`, `(g0 + g1 + g2) / 2`, `(g0 - g1 + g2) / 2` and `g2`. Of those,
//! `m0 + m1 + m2` and `m1 - m2 - m3` are the outputs. The kernel's three rows stay three taps.
//!
//! In bf16 a product rounds its inputs by more than a plain one does, but the inputs here come from a norm, whose results
//! would be rounded before a plain one, too: they are transformed in f32 and rounded once. Doing the same along columns would
//! leave four ninths of the products, but would round more, and take 16 / 9 of the weights' memory instead of 4 / 3.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes, read, write},
    math,
    norm::{Affine, Factors, group_factors},
    pack::{LayerSizes, PackedWeights},
    product::{Finish, Part, Source, Spread, multiply_rows},
    shared::{Shared, filled},
};

/// Products for two outputs.
pub const POINTS: usize = 4;
/// Outputs side by side.
pub const SIDE: usize = 2;
/// Rows of a kernel, and numbers in each.
const KERNEL: usize = 3;
const KERNEL_TAPS: usize = KERNEL * KERNEL;
/// Products with each input: `[point][row of the kernel]`.
pub const TAPS: usize = POINTS * KERNEL;
/// Kernels that are read at a time.
const AT_ONCE: usize = 16;
/// Bytes of transformed rows that there are at a time: they stay in the third-level cache.
const BAND_BYTES: usize = 4 << 20;
/// The fewest rows that there are at a time: the two around them are transformed twice.
const FEWEST_ROWS: usize = 16;
/// Pixels whose transform is worth a task.
const PIXELS: usize = 64;

/// The weights of a 3×3 convolution, transformed and packed.
#[derive(Debug)]
pub struct WinogradWeights<E>(PackedWeights<E>);

impl<E: Element> WinogradWeights<E> {
    /// Transforms and packs weights of `[output][input][3][3]` and a bias. `read` copies some of the weights, from a place on.
    pub fn new((inputs, outputs): (usize, usize), bias: &[f32], read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        Self::for_isa(Isa::detected(), (inputs, outputs), bias, read)
    }

    /// As [`new`](Self::new), for the instructions of `isa`.
    pub(super) fn for_isa(
        isa: Isa,
        (inputs, outputs): (usize, usize),
        bias: &[f32],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let sizes = LayerSizes { outputs, inputs, taps: TAPS };
        Self(PackedWeights::for_isa(isa, sizes, bias, |start, into| {
            let mut kernels = [0.0; AT_ONCE * KERNEL_TAPS];
            for (part, into) in into.chunks_mut(AT_ONCE * TAPS).enumerate() {
                let kernels = &mut kernels[..into.len() / TAPS * KERNEL_TAPS];
                read((start / TAPS + part * AT_ONCE) * KERNEL_TAPS, kernels);
                let (into, kernels) = (into.as_chunks_mut().0, kernels.as_chunks().0);
                into.iter_mut().zip(kernels).for_each(|(into, kernel)| *into = transformed(kernel));
            }
        }))
    }

    /// Channels of the map.
    pub fn inputs(&self) -> usize {
        self.0.inputs()
    }

    /// Channels of the result.
    pub fn outputs(&self) -> usize {
        self.0.outputs()
    }
}

/// A kernel's rows at every point.
fn transformed(kernel: &[f32; KERNEL_TAPS]) -> [f32; TAPS] {
    std::array::from_fn(|tap| {
        let (point, row) = (tap / KERNEL, tap % KERNEL);
        let row = &kernel[row * KERNEL..][..KERNEL];
        match point {
            0 => row[0],
            1 => 0.5 * (row[0] + row[2] + row[1]),
            2 => 0.5 * (row[0] + row[2] - row[1]),
            _ => row[2],
        }
    })
}

/// Some rows of maps, transformed: `[row][pair of columns][point][channel]`.
#[derive(Debug)]
pub struct Pairs<'a, E> {
    data: &'a [E],
    /// The rows that are there, counted through all maps.
    rows: Range<usize>,
    /// Rows of all maps, and of each.
    heights: (usize, usize),
    /// Pairs of a row.
    width: usize,
    pub(super) channels: usize,
}

impl<E: Element> Pairs<'_, E> {
    /// The vectors of every tap for pair number `pair` of all maps, into place `slot` of each tap.
    #[inline(always)]
    pub(super) fn point<const T: usize>(&self, pair: usize, zeros: &[E], slot: usize, vectors: &mut [[*const E; T]]) {
        let (row, column) = (pair / self.width, pair % self.width);
        let y = row % self.heights.1;
        for down in 0..KERNEL {
            let inside = y + down >= 1 && y + down <= self.heights.1;
            for point in 0..POINTS {
                let vector = if inside {
                    let row = row + down - 1 - self.rows.start;
                    &self.data[((row * self.width + column) * POINTS + point) * self.channels..][..self.channels]
                } else {
                    zeros
                };
                vectors[point * KERNEL + down][slot] = vector.as_ptr();
            }
        }
    }

    /// Whether these are whole rows, and all that their convolution meets is here.
    pub(super) fn holds(&self, pairs: &Range<usize>) -> bool {
        let rows = pairs.start / self.width..pairs.end.div_ceil(self.width);
        rows.len() * self.width == pairs.len()
            && self.rows == around(&rows, self.heights.0)
            && self.data.len() == self.rows.len() * self.width * POINTS * self.channels
    }
}

/// Rows, and those above and below them, of `all`.
fn around(rows: &Range<usize>, all: usize) -> Range<usize> {
    rows.start.saturating_sub(1)..(rows.end + 1).min(all)
}

/// Maps `[image][pixel][channel]` of `size` (height and width), normalised over each image's groups of channels, with SiLU
/// behind that, and convolved with zeros around them.
pub fn convolve_normal<X: Element, E: Element, O: Element>(
    x: &[X],
    size: (usize, usize),
    (groups, affine): (usize, Affine<'_>),
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    convolve_normal_with(Isa::detected(), x, size, (groups, affine), weights, finish)
}

/// As [`convolve_normal`], with the instructions of `isa`.
pub(super) fn convolve_normal_with<X: Element, E: Element, O: Element>(
    isa: Isa,
    x: &[X],
    (height, width): (usize, usize),
    (groups, affine): (usize, Affine<'_>),
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    let channels = weights.inputs();
    let images = x.len() / (height * width * channels);
    assert!(x.len() == images * height * width * channels, "maps are whole");
    let factors = group_factors(isa, x, images, groups, affine);
    let (rows, pairs) = (images * height, width.div_ceil(SIDE));
    let spread = Spread::Paired { width };
    let (results, outputs) = (spread.results(1, rows * pairs), weights.outputs());
    finish.check(results, outputs);
    let of_band = (BAND_BYTES / (pairs * POINTS * channels * size_of::<E>())).max(FEWEST_ROWS);
    filled(results * outputs, |result| {
        let mut first = 0;
        while first < rows {
            let band = first..(first + of_band).min(rows);
            let there = around(&band, rows);
            let data: Vec<E> = transform(isa, x, there.clone(), (height, width), &factors);
            let source = Pairs { data: &data, rows: there, heights: (rows, height), width: pairs, channels };
            let part = Part { source: Source::Pairs(&source), weights: &weights.0, spread };
            multiply_rows(isa, &[part], band.start * pairs..band.end * pairs, finish, result);
            first = band.end;
        }
    })
}

/// Some rows of maps, counted through all maps, normalised by each image's factors and activated, and transformed.
fn transform<X: Element, E: Element>(
    isa: Isa,
    x: &[X],
    rows: Range<usize>,
    (height, width): (usize, usize),
    factors: &[Factors],
) -> Vec<E> {
    let channels = factors[0].scale.len();
    let row = width * channels;
    let transformed_row = width.div_ceil(SIDE) * POINTS * channels;
    let of_task = (PIXELS / width).max(1);
    filled(rows.len() * transformed_row, |result| {
        (0..rows.len().div_ceil(of_task)).into_par_iter().for_each(|task| {
            for number in task * of_task..((task + 1) * of_task).min(rows.len()) {
                let pixels = &x[(rows.start + number) * row..][..row];
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
