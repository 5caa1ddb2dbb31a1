//! 3×3 convolutions with two thirds of the products: F(2, 3) of Winograd (1980; Lavin and Gray 2016) along a map's rows.
//!
//! Two outputs side by side meet four inputs `d` through a kernel's row `g`. Four products give both, where there were six:
//! of `d0 - d2`, `d1 + d2`, `d2 - d1` and `d1 - d3` with `g0`, `(g0 + g1 + g2) / 2`, `(g0 - g1 + g2) / 2` and `g2`. Of those,
//! `m0 + m1 + m2` and `m1 - m2 - m3` are the outputs. The kernel's three rows stay three taps.
//!
//! In bf16 inputs come from a norm, are transformed in f32 and rounded once, as they would be for a plain product, and so are
//! weights. Sums and differences of numbers about zero that know nothing of each other leave 5 / 3 of the variance of that
//! rounding in the result; a whole network's pictures show nothing of it (`benches/README.md`). Doing the same along columns
//! would leave four ninths of the products and 25 / 9 of the variance, and take 16 / 9 of the weights' memory instead of
//! 4 / 3.

mod transform;

use std::ops::Range;

use transform::transform;

use super::{
    element::Element,
    isa::Isa,
    norm::{Factors, NormalMaps, group_factors},
    pack::{KERNEL_TAPS, LayerSizes, PackedWeights, read_kernels},
    product::{Finish, Part, Products, Source, Spread},
    shared::filled,
};

/// Products for two outputs.
pub const POINTS: usize = 4;
/// Outputs side by side.
pub const SIDE: usize = 2;
/// Rows of a kernel, and numbers in each.
const KERNEL: usize = 3;
/// Products with each input: `[point][row of the kernel]`.
pub const TAPS: usize = POINTS * KERNEL;
/// Bytes of transformed rows that there are at a time: they stay in the third-level cache.
const BAND_BYTES: usize = 4 << 20;
/// The fewest rows that there are at a time: the two around them are transformed twice.
const FEWEST_ROWS: usize = 16;

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
            read_kernels(start, into, &read, transformed);
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

/// What the transformed rows of a map take that there are at a time: `width` by `channels` numbers of `number_bytes` a row.
pub const fn band_bytes(width: usize, channels: usize, number_bytes: usize) -> usize {
    let row = width.div_ceil(SIDE) * POINTS * channels * number_bytes;
    let fewest = (FEWEST_ROWS + 2) * row;
    if fewest > BAND_BYTES { fewest } else { BAND_BYTES }
}

/// Maps that are normalised, with SiLU behind that, and convolved with zeros around them.
pub fn convolve_normal<X: Element, E: Element, O: Element>(
    maps: &NormalMaps<'_, X>,
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    convolve_normal_with(Isa::detected(), maps, weights, finish)
}

/// As [`convolve_normal`], with the instructions of `isa`.
pub(super) fn convolve_normal_with<X: Element, E: Element, O: Element>(
    isa: Isa,
    maps: &NormalMaps<'_, X>,
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    convolve(isa, maps, &group_factors(isa, maps), weights, finish)
}

/// As [`convolve_normal`], normalised by factors that are known: those of the maps that these are rows of.
pub fn convolve_normal_by<X: Element, E: Element, O: Element>(
    maps: &NormalMaps<'_, X>,
    factors: &[Factors],
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    convolve(Isa::detected(), maps, factors, weights, finish)
}

fn convolve<X: Element, E: Element, O: Element>(
    isa: Isa,
    maps: &NormalMaps<'_, X>,
    factors: &[Factors],
    weights: &WinogradWeights<E>,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    let ((height, width), channels) = (maps.size, maps.channels());
    assert!(channels == weights.inputs() && factors.len() == maps.images(), "channels and images fit");
    let (rows, pairs) = (maps.images() * height, width.div_ceil(SIDE));
    let spread = Spread::Paired { width };
    let (results, outputs) = (spread.results(1, rows * pairs), weights.outputs());
    finish.check(results, outputs);
    let of_band = (BAND_BYTES / (pairs * POINTS * channels * size_of::<E>())).max(FEWEST_ROWS);
    filled(results * outputs, |result| {
        let mut first = 0;
        while first < rows {
            let band = first..(first + of_band).min(rows);
            let there = around(&band, rows);
            let data: Vec<E> = transform(isa, maps, there.clone(), factors);
            let source = Pairs { data: &data, rows: there, heights: (rows, height), width: pairs, channels };
            let parts = [Part { source: Source::Pairs(&source), weights: &weights.0, spread }];
            Products { isa, parts: &parts, finish }.write(band.start * pairs..band.end * pairs, result);
            first = band.end;
        }
    })
}
