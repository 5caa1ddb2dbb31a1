//! Products of rows with packed weights: linear layers and convolutions are both this.
//!
//! A row of the result belongs to a token or a pixel. It is the sum, over the layer's taps (one for a linear layer, nine
//! for a plain 3×3 convolution), of a vector of inputs times a matrix; a convolution's taps gather their vectors from the map,
//! so there is no copy of the map in columns. A tile of some rows by one panel of outputs stays in registers while its
//! inputs go by (see [`tile`](super::tile)); sums are in f32 whatever the number type is.
//!
//! Every number is summed in the same order whatever the threads, the batch or the other rows are.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    element::Element,
    gather::Gather,
    isa::Isa,
    multiply::Multiplying,
    pack::PackedWeights,
    shared::{Shared, filled},
    tile::{ROWS, WIDE_ROWS},
    winograd::{self, Pairs},
};
use crate::nn::Activation;

/// The most rows of a task.
const TASK_ROWS: usize = 192;
/// Rows that are whole tiles of either height.
const WHOLE_TILES: usize = 24;
const _: () = assert!(WHOLE_TILES.is_multiple_of(ROWS) && WHOLE_TILES.is_multiple_of(WIDE_ROWS), "tiles are whole");
const _: () = assert!(TASK_ROWS.is_multiple_of(WHOLE_TILES), "tiles are whole");
/// Bytes of weights that a task goes through for each tile: they stay in the second-level cache.
const BYTES_BY_TILE: usize = 200 << 10;
/// Rows from which on there are enough of them for that.
const FEWEST_ROWS_BY_TILE: usize = 256;
/// Tasks for each thread, so that none is idle for long at the end.
const TASKS_OF_THREAD: usize = 16;

/// Where the vectors of inputs are.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a, E> {
    /// One after another: a linear layer's.
    Rows(&'a [E]),
    /// Gathered from a map: a convolution's.
    Map(&'a Gather<'a, E>),
    /// Of a map whose rows are transformed: a row here is a pair of pixels.
    Pairs(&'a Pairs<'a, E>),
}

impl<E> Source<'_, E> {
    /// Rows of results that a row has, and the products that they are made of, each of as many taps.
    pub(super) fn results_and_points(self) -> (usize, usize) {
        match self {
            Self::Rows(_) | Self::Map(_) => (1, 1),
            Self::Pairs(_) => (winograd::SIDE, winograd::POINTS),
        }
    }
}

/// What happens to a row after its product and bias, before it becomes numbers of type `O`.
#[derive(Debug, Clone, Copy)]
pub struct Finish<'a, O> {
    /// Added to every row of an image: `[image][output]`, and the rows of an image.
    pub per_image: Option<(&'a [O], usize)>,
    /// Applied then.
    pub activation: Option<Activation>,
    /// Added last: as large as the result.
    pub residual: Option<&'a [O]>,
    /// Instead of the above, the first half of the outputs times GELU of the second half (Shazeer 2020). There may be no
    /// more inputs than make one block.
    pub gated: bool,
}

impl<O: Element> Finish<'_, O> {
    /// Numbers in a row of the result.
    fn outputs<E: Element>(&self, weights: &PackedWeights<E>) -> usize {
        if self.gated { weights.outputs / 2 } else { weights.outputs }
    }

    /// Makes sure that what is added to a result of `rows` rows fits it.
    pub(super) fn check(&self, rows: usize, outputs: usize) {
        if let Some((added, rows_of_image)) = self.per_image {
            assert_eq!(added.len() * rows_of_image, rows * outputs, "there is a row to add for each image");
        }
        assert!(self.residual.is_none_or(|residual| residual.len() == rows * outputs), "the residual fits");
    }
}

impl<E> Default for Finish<'_, E> {
    /// Nothing.
    fn default() -> Self {
        Self { per_image: None, activation: None, residual: None, gated: false }
    }
}

/// `rows` rows of products, `[row][output]`.
pub fn product<E: Element, O: Element>(
    source: Source<'_, E>,
    weights: &PackedWeights<E>,
    rows: usize,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    product_with(Isa::detected(), source, weights, rows, finish)
}

/// As [`product`], with the instructions of `isa`, whose panels the weights must have.
pub(super) fn product_with<E: Element, O: Element>(
    isa: Isa,
    source: Source<'_, E>,
    weights: &PackedWeights<E>,
    rows: usize,
    finish: &Finish<'_, O>,
) -> Vec<O> {
    Products { isa, parts: &[Part { source, weights, spread: Spread::InOrder }], finish }.all(rows)
}

/// A product whose rows are some of the result's.
pub(super) struct Part<'a, E> {
    pub source: Source<'a, E>,
    pub weights: &'a PackedWeights<E>,
    pub spread: Spread,
}

/// Where the rows of a part are in the result.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spread {
    /// As they come.
    InOrder,
    /// In a map of twice the height and width.
    Doubled {
        /// Pixels in a row of the part's map.
        width: usize,
        /// Which of each two rows of pixels, and which of each two pixels in it, are the part's.
        phase: (usize, usize),
    },
    /// Each row is two pixels of a map.
    Paired {
        /// Pixels in a row of the map; of the last pair there may be one.
        width: usize,
    },
}

impl Spread {
    /// Rows of the result that `parts` parts of `rows` rows make.
    pub(super) fn results(self, parts: usize, rows: usize) -> usize {
        match self {
            Self::InOrder | Self::Doubled { .. } => parts * rows,
            Self::Paired { width } => parts * rows / width.div_ceil(winograd::SIDE) * width,
        }
    }

    /// The row of the result of a row's result number `number`; `None` where a map has ended.
    #[inline(always)]
    pub(super) fn place(self, row: usize, number: usize) -> Option<usize> {
        match self {
            Self::InOrder => Some(row),
            Self::Doubled { width, phase } => {
                let (line, column) = (row / width, row % width);
                Some((2 * line + phase.0) * 2 * width + 2 * column + phase.1)
            }
            Self::Paired { width } => {
                let pairs = width.div_ceil(winograd::SIDE);
                let column = row % pairs * winograd::SIDE + number;
                (column < width).then_some(row / pairs * width + column)
            }
        }
    }
}

/// Several products, of weights of one size, whose rows are spread over one result.
pub(super) struct Products<'a, E, O> {
    /// Its panels are the weights'.
    pub isa: Isa,
    pub parts: &'a [Part<'a, E>],
    pub finish: &'a Finish<'a, O>,
}

impl<E: Element, O: Element> Products<'_, E, O> {
    /// The result of `rows` rows of each.
    pub fn all(&self, rows: usize) -> Vec<O> {
        let results = self.parts[0].spread.results(self.parts.len(), rows);
        let outputs = self.finish.outputs(self.parts[0].weights);
        self.finish.check(results, outputs);
        filled(results * outputs, |result| self.write(0..rows, result))
    }

    /// Writes into the result what rows `range` of each make of it.
    pub fn write(&self, range: Range<usize>, result: Shared<O>) {
        let Self { isa, parts, finish } = *self;
        let weights = parts[0].weights;
        let outputs = finish.outputs(weights);
        for part in parts {
            check_source(part.source, part.weights, &range);
            assert!(part.weights.panel == E::panel(isa), "weights are packed for the instructions");
            assert!(part.weights.outputs == weights.outputs, "parts have the same outputs");
        }
        assert!(!finish.gated || weights.can_gate(), "gates fill panels");
        let panels = if finish.gated { outputs / weights.panel } else { weights.panels() };
        let Tasks { rows: task_rows, groups, by_tile } = Tasks::of(weights, range.len(), parts.len(), panels);
        let chunks = range.len().div_ceil(task_rows) * parts.len();
        let zeros = vec![E::default(); weights.inputs];
        let groups_of = |group: usize| group * panels / groups;
        (0..chunks * groups).into_par_iter().with_max_len(1).for_each(|number| {
            let (group, chunk) = (number / chunks, number % chunks);
            let (part, chunk) = (&parts[chunk % parts.len()], chunk / parts.len());
            let first = range.start + chunk * task_rows;
            let rows = first..(first + task_rows).min(range.end);
            let panels = groups_of(group)..groups_of(group + 1);
            E::multiply(isa, &Multiplying { part, finish, zeros: &zeros, panels, rows, outputs, result, by_tile });
        });
    }
}

/// How a product is divided in tasks.
struct Tasks {
    /// Rows of a task.
    rows: usize,
    /// Groups that panels are divided in, of which a task has one.
    groups: usize,
    /// Whether a task goes through all of its panels with a tile before the next tile, instead of through all of its tiles
    /// with a panel: a tile's rows then stay near, as its panels do if they are few and short.
    by_tile: bool,
}

impl Tasks {
    fn of<E: Element>(weights: &PackedWeights<E>, rows: usize, parts: usize, panels: usize) -> Self {
        let tasks = TASKS_OF_THREAD * rayon::current_num_threads();
        if weights.taps == 1 && weights.block >= weights.inputs && rows >= FEWEST_ROWS_BY_TILE {
            let groups = size_of_val(weights.data.as_slice()).div_ceil(BYTES_BY_TILE).min(panels);
            let rows = (rows * groups / tasks).next_multiple_of(WHOLE_TILES).clamp(WHOLE_TILES, TASK_ROWS);
            return Self { rows, groups, by_tile: true };
        }
        let chunks = rows.div_ceil(TASK_ROWS) * parts;
        Self { rows: TASK_ROWS, groups: tasks.div_ceil(chunks.max(1)).min(panels), by_tile: false }
    }
}

/// Makes sure that rows `range` of a product have their inputs.
fn check_source<E: Element>(source: Source<'_, E>, weights: &PackedWeights<E>, range: &Range<usize>) {
    let rows = range.end;
    match source {
        Source::Rows(data) => {
            assert!(weights.taps == 1 && data.len() == rows * weights.inputs, "a row has the layer's inputs");
        }
        Source::Map(gather) => {
            let (height, width) = gather.output_size();
            let images = rows / (height * width);
            assert!(gather.channels == weights.inputs, "channels fit");
            assert!(gather.kernel * gather.kernel == weights.taps && images * height * width == rows, "the map fits");
            assert_eq!(gather.data.len(), images * gather.size.0 * gather.size.1 * gather.channels, "the map is whole");
        }
        Source::Pairs(pairs) => {
            assert!(pairs.channels == weights.inputs && weights.taps == winograd::TAPS, "channels and taps fit");
            assert!(pairs.holds(range), "every pair is there");
        }
    }
}
