//! One task of a product, with each instruction set.

use std::ops::Range;

use half::bf16;

use super::{
    element::Element,
    lanes::{LANES, Lanes, read, write},
    math,
    product::{Finish, Part, Source},
    shared::Shared,
    tile::{Multiply, Rows, tile_versions},
};
use crate::nn::Activation;

/// One task: some rows of some panels.
pub struct Multiplying<'a, E, O> {
    pub(super) part: &'a Part<'a, E>,
    pub(super) finish: &'a Finish<'a, O>,
    /// As many as a vector has.
    pub(super) zeros: &'a [E],
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    /// Of a row of the result.
    pub(super) outputs: usize,
    pub(super) result: Shared<O>,
    /// Whether tiles go by one after another, each with all panels, instead of panels, each with all tiles.
    pub(super) by_tile: bool,
}

tile_versions! {
    /// A task in f32.
    pub fn multiply_f32<O: Element>(task: &Multiplying<'_, f32, O>) = run::<f32, O, M, L, P, T>(task), f32
}

tile_versions! {
    /// A task in bf16.
    pub fn multiply_bf16<O: Element>(task: &Multiplying<'_, bf16, O>) = run::<bf16, O, M, L, P, T>(task), bf16
}

/// # Safety
///
/// The processor has the instructions of `M` and `L`.
#[inline(always)]
unsafe fn run<E: Element, O: Element, M: Multiply<E, P, T>, L: Lanes, const P: usize, const T: usize>(
    task: &Multiplying<'_, E, O>,
) {
    let weights = task.part.weights;
    let taps = weights.taps;
    let (_, points) = task.part.source.results_and_points();
    let of_point = taps / points;
    let tiles = task.rows.len().div_ceil(T);
    // Found once for all panels and blocks.
    let vectors = vectors_of::<E, O, T>(task);
    let blocks = weights.inputs.div_ceil(weights.block);
    // Of every tile where there are blocks to come, else of one after another.
    let mut sums = vec![[[0.0_f32; P]; T]; points * if blocks > 1 { tiles } else { 1 }];
    let mut gates = [[0.0_f32; P]; T];
    let panels = task.panels.len();
    assert!(blocks == 1 || !task.by_tile, "sums of blocks are added up panel by panel");
    for step in 0..panels * blocks * tiles {
        let (panel, block, tile) = if task.by_tile {
            (task.panels.start + step % panels, 0, step / panels)
        } else {
            (task.panels.start + step / (blocks * tiles), step / tiles % blocks, step % tiles)
        };
        let vectors = &vectors[tile * taps..][..taps];
        let first = block * weights.block;
        let inputs = weights.block.min(weights.inputs - first);
        let data = &weights.panel_data(panel)[first * taps * P..];
        let of_block = inputs.div_ceil(E::DEPTH) * E::DEPTH * of_point * P;
        assert!(data.len() >= points * of_block, "a panel has its block");
        let sums = &mut sums[points * if blocks > 1 { tile } else { 0 }..][..points];
        for (point, sums) in sums.iter_mut().enumerate() {
            let into = Rows { at: sums.as_flattened_mut().as_mut_ptr(), stride: P, fresh: block == 0 };
            let (vectors, data) = (&vectors[point * of_point..][..of_point], &data[point * of_block..]);
            // SAFETY: every vector is of `weights.inputs` numbers, checked where its pointer was made; the block has its
            // weights; the processor is as the caller promises.
            unsafe { M::add(into, vectors, first, inputs, data.as_ptr()) };
        }
        if block + 1 < blocks {
            continue;
        }
        if task.finish.gated {
            let packed = weights.panel_data(panel + task.outputs / P);
            let into = Rows { at: gates.as_flattened_mut().as_mut_ptr(), stride: P, fresh: true };
            // SAFETY: as above; a gated layer has one tap and one block.
            unsafe { M::add(into, vectors, 0, inputs, packed.as_ptr()) };
        }
        let rows = task.rows.start + tile * T..(task.rows.start + (tile + 1) * T).min(task.rows.end);
        // SAFETY: the processor is as the caller promises.
        unsafe {
            if let [first, second, third, fourth] = sums {
                join::<L, P, T>([first, second], [third, fourth]);
                finish::<E, O, L, P, T>(task, second, &gates, &Done { panel, rows: rows.clone(), number: 1 });
            }
            finish::<E, O, L, P, T>(task, &sums[0], &gates, &Done { panel, rows, number: 0 });
        }
    }
}

/// Where every tile's vectors are, tap by tap.
#[inline(always)]
fn vectors_of<E: Element, O: Element, const T: usize>(task: &Multiplying<'_, E, O>) -> Vec<[*const E; T]> {
    let weights = task.part.weights;
    let mut vectors = vec![[std::ptr::null(); T]; task.rows.len().div_ceil(T) * weights.taps];
    for (tile, vectors) in vectors.chunks_exact_mut(weights.taps).enumerate() {
        for slot in 0..T {
            // Rows past the end repeat the last one, whose result is written once.
            let row = (task.rows.start + tile * T + slot).min(task.rows.end - 1);
            match task.part.source {
                Source::Rows(data) => vectors[0][slot] = data[row * weights.inputs..][..weights.inputs].as_ptr(),
                Source::Map(gather) => gather.point(row, task.zeros, slot, vectors),
                Source::Pairs(pairs) => pairs.point(row, task.zeros, slot, vectors),
            }
        }
    }
    vectors
}

/// Makes of the sums at four points those of two outputs, in place of the first two: see [`winograd`](super::winograd).
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn join<L: Lanes, const P: usize, const T: usize>(
    [first, second]: [&mut [[f32; P]; T]; 2],
    [third, fourth]: [&[[f32; P]; T]; 2],
) {
    let (first, second) = (first.as_flattened_mut(), second.as_flattened_mut());
    let (third, fourth) = (third.as_flattened(), fourth.as_flattened());
    for place in (0..P * T).step_by(LANES) {
        // SAFETY: the caller's promise; there are whole vectors.
        unsafe {
            let (m0, m1) = (L::load(first[place..][..LANES].as_ptr()), L::load(second[place..][..LANES].as_ptr()));
            let (m2, m3) = (L::load(third[place..][..LANES].as_ptr()), L::load(fourth[place..][..LANES].as_ptr()));
            m0.add(m1).add(m2).store(first[place..][..LANES].as_mut_ptr());
            m1.sub(m2).sub(m3).store(second[place..][..LANES].as_mut_ptr());
        }
    }
}

/// What of a tile has its sums.
struct Done {
    panel: usize,
    rows: Range<usize>,
    /// Which of a row's results.
    number: usize,
}

/// Makes results of a tile's sums.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn finish<E: Element, O: Element, L: Lanes, const P: usize, const T: usize>(
    task: &Multiplying<'_, E, O>,
    sums: &[[f32; P]; T],
    gates: &[[f32; P]; T],
    done: &Done,
) {
    let (finish, outputs, bias) = (task.finish, task.outputs, &task.part.weights.bias);
    for (slot, row) in done.rows.clone().enumerate() {
        let Some(row) = task.part.spread.place(row, done.number) else { continue };
        for part in 0..P / LANES {
            let column = done.panel * P + part * LANES;
            if column >= outputs {
                break;
            }
            let count = LANES.min(outputs - column);
            let place = row * outputs + column;
            // SAFETY: the processor is as the caller promises; sums and bias have whole panels; this task alone has this place,
            // which is inside the result.
            unsafe {
                let value = L::load(sums[slot][part * LANES..][..LANES].as_ptr());
                let mut value = value.add(L::load(bias[column..][..LANES].as_ptr()));
                if finish.gated {
                    let gate = L::load(gates[slot][part * LANES..][..LANES].as_ptr());
                    value =
                        value.mul(math::gelu::<E, L>(gate.add(L::load(bias[outputs + column..][..LANES].as_ptr()))));
                }
                if let Some((added, rows_of_image)) = finish.per_image {
                    value = value.add(read(&added[row / rows_of_image * outputs + column..][..count]));
                }
                value = match finish.activation {
                    None => value,
                    Some(Activation::Silu) => math::silu::<E, L>(value),
                    Some(Activation::Gelu) => math::gelu::<E, L>(value),
                    Some(Activation::QuickGelu) => math::quick_gelu::<E, L>(value),
                };
                if let Some(residual) = finish.residual {
                    value = value.add(read(&residual[place..][..count]));
                }
                write(value, task.result.at(place), count);
            }
        }
    }
}
