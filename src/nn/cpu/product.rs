//! Products of rows with packed weights: linear layers and convolutions are both this.
//!
//! A row of the result belongs to a token or a pixel. It is the sum, over the layer's taps (one for a linear layer, nine
//! for a 3×3 convolution), of a vector of inputs times a matrix; a convolution's taps gather their vectors from the map,
//! so there is no copy of the map in columns. Weights are packed in panels of [`PANEL`] outputs, in the order in which
//! they are read. A tile of [`TILE`] rows by one panel stays in registers while its inputs go by.
//!
//! Every number is summed in the same order whatever the threads, the batch or the other rows are.

use rayon::prelude::*;

use super::{
    isa::{Isa, multiply_add, versions},
    math,
};
use crate::nn::Activation;

/// Outputs side by side in a panel: two vectors of 256 bits.
pub const PANEL: usize = 16;
/// Rows of a tile: with two vectors each they fill 12 of 16 registers, and leave room for weights and an input.
pub const TILE: usize = 6;
/// Bytes of a panel that are gone through for many tiles before the next: they stay in the second-level cache.
const BLOCK_BYTES: usize = 160 << 10;
/// Rows that one task goes through with one panel.
const TASK_ROWS: usize = 32 * TILE;
/// The most taps of a layer.
pub const MOST_TAPS: usize = 9;

/// A layer's weights and bias as the kernel reads them.
#[derive(Debug)]
pub struct PackedWeights {
    /// `[panel][block of inputs][tap][input][PANEL]`, filled up with zeros.
    data: Vec<f32>,
    /// Filled up with zeros to whole panels.
    bias: Vec<f32>,
    taps: usize,
    inputs: usize,
    outputs: usize,
    /// Inputs of a block.
    block: usize,
}

impl PackedWeights {
    /// Packs weights of `[output][input][tap]`, and a bias of `outputs` or nothing.
    pub fn new(weights: &[f32], bias: &[f32], outputs: usize, inputs: usize, taps: usize) -> Self {
        assert!(weights.len() == outputs * inputs * taps && taps <= MOST_TAPS, "weights have their layer's size");
        let panels = outputs.div_ceil(PANEL);
        let block = (BLOCK_BYTES / (size_of::<f32>() * PANEL * taps)).clamp(1, inputs);
        let mut data = vec![0.0; panels * inputs * taps * PANEL];
        data.par_chunks_mut(inputs * taps * PANEL).enumerate().for_each(|(panel, packed)| {
            let mut at = packed.chunks_exact_mut(PANEL);
            for first in (0..inputs).step_by(block) {
                for tap in 0..taps {
                    for input in first..(first + block).min(inputs) {
                        let lanes = at.next().expect("a panel has a row for each input of each tap");
                        for (lane, value) in lanes.iter_mut().enumerate() {
                            let output = panel * PANEL + lane;
                            if output < outputs {
                                *value = weights[(output * inputs + input) * taps + tap];
                            }
                        }
                    }
                }
            }
        });
        let mut padded = bias.to_vec();
        padded.resize(panels * PANEL, 0.0);
        Self { data, bias: padded, taps, inputs, outputs, block }
    }

    /// Numbers in a row of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers in each tap's vector of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether [`Finish::gated`] is possible.
    pub fn can_gate(&self) -> bool {
        self.taps == 1 && self.block >= self.inputs && self.outputs.is_multiple_of(2 * PANEL)
    }

    fn panels(&self) -> usize {
        self.bias.len() / PANEL
    }
}

/// Where the vectors of inputs are.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// One after another: a linear layer's.
    Rows(&'a [f32]),
    /// Gathered from a map: a convolution's.
    Map(&'a Gather<'a>),
}

/// How a convolution finds its inputs in a map `[batch][height][width][channels]`.
#[derive(Debug)]
pub struct Gather<'a> {
    /// The map.
    pub data: &'a [f32],
    /// Its channels.
    pub channels: usize,
    /// Its height and width.
    pub size: (usize, usize),
    /// Its height and width after it is scaled up to the nearest value; as `size` where it is not.
    pub scaled: (usize, usize),
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros above the scaled map and to its left, and below it and to its right.
    pub padding: (usize, usize),
    /// As many zeros as there are channels.
    pub zeros: &'a [f32],
}

impl Gather<'_> {
    /// The output's height and width.
    pub fn output_size(&self) -> (usize, usize) {
        let side = |side: usize| (side + self.padding.0 + self.padding.1 - self.kernel) / self.stride + 1;
        (side(self.scaled.0), side(self.scaled.1))
    }

    /// The vectors of every tap for output `row`, `[tap][TILE]` from `slot` on.
    #[inline(always)]
    fn point(&self, row: usize, slot: usize, pointers: &mut [*const f32; MOST_TAPS * TILE]) {
        let (height, width) = self.output_size();
        let (image, pixel) = (row / (height * width), row % (height * width));
        let (top, left) = (pixel / width * self.stride, pixel % width * self.stride);
        let image = &self.data[image * self.size.0 * self.size.1 * self.channels..];
        let scaled = |at: usize, padding: usize, from: usize, to: usize| {
            let inside = at.checked_sub(padding).filter(|at| *at < to)?;
            Some(if from == to { inside } else { inside * from / to })
        };
        for down in 0..self.kernel {
            let y = scaled(top + down, self.padding.0, self.size.0, self.scaled.0);
            for right in 0..self.kernel {
                let x = scaled(left + right, self.padding.0, self.size.1, self.scaled.1);
                let vector = match (y, x) {
                    (Some(y), Some(x)) => &image[(y * self.size.1 + x) * self.channels..][..self.channels],
                    _ => self.zeros,
                };
                pointers[(down * self.kernel + right) * TILE + slot] = vector.as_ptr();
            }
        }
    }
}

/// What happens to a row after its product and bias.
#[derive(Debug, Clone, Copy, Default)]
pub struct Finish<'a> {
    /// Added to every row of an image: `[image][output]`, and the rows of an image.
    pub per_image: Option<(&'a [f32], usize)>,
    /// Applied then.
    pub activation: Option<Activation>,
    /// Added last: as large as the result.
    pub residual: Option<&'a [f32]>,
    /// Instead of the above, the first half of the outputs times GELU of the second half (Shazeer 2020). There may be no
    /// more inputs than make one block.
    pub gated: bool,
}

/// `rows` rows of products into `result`, `[row][output]`.
pub fn product(source: Source<'_>, weights: &PackedWeights, rows: usize, finish: &Finish<'_>, result: &mut [f32]) {
    let outputs = if finish.gated { weights.outputs / 2 } else { weights.outputs };
    assert_eq!(result.len(), rows * outputs, "the result has its layer's size");
    match source {
        Source::Rows(data) => {
            assert!(weights.taps == 1 && data.len() == rows * weights.inputs, "a row has the layer's inputs");
        }
        Source::Map(gather) => {
            let (height, width) = gather.output_size();
            let images = rows / (height * width);
            assert!(gather.channels == weights.inputs && gather.zeros.len() >= gather.channels, "channels fit");
            assert!(gather.kernel * gather.kernel == weights.taps && images * height * width == rows, "the map fits");
            assert_eq!(gather.data.len(), images * gather.size.0 * gather.size.1 * gather.channels, "the map is whole");
        }
    }
    if let Some((added, rows_of_image)) = finish.per_image {
        assert_eq!(added.len() * rows_of_image, rows * outputs, "there is a row to add for each image");
    }
    assert!(finish.residual.is_none_or(|residual| residual.len() == result.len()), "the residual fits");
    assert!(!finish.gated || weights.can_gate(), "gates fill panels");
    let panels = if finish.gated { outputs / PANEL } else { weights.panels() };
    let row_tasks = rows.div_ceil(TASK_ROWS);
    let result = Shared(result.as_mut_ptr());
    let isa = Isa::detected();
    // Tasks next to each other share a panel, which is then in their core's cache.
    (0..panels * row_tasks).into_par_iter().for_each(|task| {
        let first = task % row_tasks * TASK_ROWS;
        let part = Part { panel: task / row_tasks, first, end: (first + TASK_ROWS).min(rows), outputs, result };
        compute_part(isa, &source, weights, finish, &part);
    });
}

/// A result that threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every task writes its own rows of its own panel, and nobody reads before all are done.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// One task: rows of one panel.
struct Part {
    panel: usize,
    first: usize,
    end: usize,
    outputs: usize,
    result: Shared,
}

versions! {
    fn compute_part = part_body(source: &Source<'_>, weights: &PackedWeights, finish: &Finish<'_>, part: &Part)
}

/// A tile of sums: [`TILE`] rows of one panel.
#[derive(Debug, Clone, Copy)]
pub struct Accumulator(pub [[f32; PANEL]; TILE]);

impl Accumulator {
    /// Nothing added yet.
    pub const ZERO: Self = Self([[0.0; PANEL]; TILE]);

    /// Adds the products of each row's vector of `inputs` numbers with a panel's rows.
    ///
    /// # Safety
    ///
    /// Each of `vectors` is to `inputs` numbers or more; `panel` has `inputs` rows or more.
    #[inline(always)]
    pub unsafe fn add_products<const FMA: bool>(&mut self, vectors: &[*const f32; TILE], inputs: usize, panel: &[f32]) {
        let mut sums = self.0;
        let mut weights = panel.as_ptr();
        for input in 0..inputs {
            // SAFETY: the panel has this row, by the caller's promise.
            let lanes: [f32; PANEL] = unsafe { weights.cast::<[f32; PANEL]>().read_unaligned() };
            weights = weights.wrapping_add(PANEL);
            for row in 0..TILE {
                // SAFETY: the vector has this input, by the caller's promise.
                let value = unsafe { *vectors[row].add(input) };
                for lane in 0..PANEL {
                    sums[row][lane] = multiply_add::<FMA>(value, lanes[lane], sums[row][lane]);
                }
            }
        }
        self.0 = sums;
    }
}

#[inline(always)]
fn part_body<const FMA: bool>(source: &Source<'_>, weights: &PackedWeights, finish: &Finish<'_>, part: &Part) {
    let panel = &weights.data[part.panel * weights.taps * weights.inputs * PANEL..];
    let mut pointers = [std::ptr::null(); MOST_TAPS * TILE];
    for first_input in (0..weights.inputs).step_by(weights.block) {
        let inputs = weights.block.min(weights.inputs - first_input);
        let block = &panel[first_input * weights.taps * PANEL..][..inputs * weights.taps * PANEL];
        for row in (part.first..part.end).step_by(TILE) {
            let count = TILE.min(part.end - row);
            // Rows past the end repeat the last one, whose result is written once.
            for slot in 0..TILE {
                let row = row + slot.min(count - 1);
                match source {
                    Source::Rows(data) => pointers[slot] = data[row * weights.inputs..][..weights.inputs].as_ptr(),
                    Source::Map(gather) => gather.point(row, slot, &mut pointers),
                }
            }
            let mut tile = Accumulator::ZERO;
            if first_input > 0 {
                part.load(row, count, &mut tile);
            }
            for tap in 0..weights.taps {
                let vectors = std::array::from_fn(|slot| pointers[tap * TILE + slot].wrapping_add(first_input));
                // SAFETY: every pointer is to a whole vector of `weights.inputs` numbers, checked where it was made, and
                // the block has a panel's row for each input of each tap.
                unsafe { tile.add_products::<FMA>(&vectors, inputs, &block[tap * inputs * PANEL..]) };
            }
            if first_input + inputs < weights.inputs {
                part.store(row, count, &tile);
                continue;
            }
            if finish.gated {
                let gates = &weights.data[(part.panel + part.outputs / PANEL) * weights.inputs * PANEL..];
                let mut gate = Accumulator::ZERO;
                let vectors = std::array::from_fn(|slot| pointers[slot]);
                // SAFETY: as above; a gated layer has one tap and one block.
                unsafe { gate.add_products::<FMA>(&vectors, inputs, &gates[..inputs * PANEL]) };
                finish_gated::<FMA>(&mut tile, &gate, weights, part);
            } else {
                finish_rows::<FMA>(&mut tile, row, count, weights, finish, part);
            }
            part.store(row, count, &tile);
        }
    }
}

#[inline(always)]
fn finish_gated<const FMA: bool>(tile: &mut Accumulator, gate: &Accumulator, weights: &PackedWeights, part: &Part) {
    let bias = &weights.bias[part.panel * PANEL..][..PANEL];
    let gate_bias = &weights.bias[part.outputs + part.panel * PANEL..][..PANEL];
    for (row, gates) in tile.0.iter_mut().zip(&gate.0) {
        for lane in 0..PANEL {
            row[lane] = (row[lane] + bias[lane]) * math::gelu::<FMA>(gates[lane] + gate_bias[lane]);
        }
    }
}

#[inline(always)]
fn finish_rows<const FMA: bool>(
    tile: &mut Accumulator,
    first: usize,
    count: usize,
    weights: &PackedWeights,
    finish: &Finish<'_>,
    part: &Part,
) {
    let column = part.panel * PANEL;
    let lanes = PANEL.min(part.outputs - column);
    let bias = &weights.bias[column..][..PANEL];
    for (slot, row) in tile.0.iter_mut().enumerate().take(count) {
        for lane in 0..PANEL {
            row[lane] += bias[lane];
        }
        if let Some((added, rows_of_image)) = finish.per_image {
            let added = &added[(first + slot) / rows_of_image * part.outputs + column..][..lanes];
            for (value, added) in row.iter_mut().zip(added) {
                *value += added;
            }
        }
        match finish.activation {
            None => {}
            Some(Activation::Silu) => row.iter_mut().for_each(|x| *x = math::silu::<FMA>(*x)),
            Some(Activation::Gelu) => row.iter_mut().for_each(|x| *x = math::gelu::<FMA>(*x)),
            Some(Activation::QuickGelu) => row.iter_mut().for_each(|x| *x = math::quick_gelu::<FMA>(*x)),
        }
        if let Some(residual) = finish.residual {
            let residual = &residual[(first + slot) * part.outputs + column..][..lanes];
            for (value, added) in row.iter_mut().zip(residual) {
                *value += added;
            }
        }
    }
}

impl Part {
    /// The places of this panel in the result's row `row`.
    #[inline(always)]
    fn row(&self, row: usize) -> (*mut f32, usize) {
        let column = self.panel * PANEL;
        (self.result.0.wrapping_add(row * self.outputs + column), PANEL.min(self.outputs - column))
    }

    #[inline(always)]
    fn load(&self, first: usize, count: usize, tile: &mut Accumulator) {
        for (slot, values) in tile.0.iter_mut().enumerate().take(count) {
            let (place, lanes) = self.row(first + slot);
            // SAFETY: this task alone has these rows of this panel, inside the result.
            unsafe { std::ptr::copy_nonoverlapping(place, values.as_mut_ptr(), lanes) };
        }
    }

    #[inline(always)]
    fn store(&self, first: usize, count: usize, tile: &Accumulator) {
        for (slot, values) in tile.0.iter().enumerate().take(count) {
            let (place, lanes) = self.row(first + slot);
            if lanes == PANEL {
                // SAFETY: this task alone has these rows of this panel, inside the result.
                unsafe { place.cast::<[f32; PANEL]>().write_unaligned(*values) };
            } else {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place, lanes) };
            }
        }
    }
}
