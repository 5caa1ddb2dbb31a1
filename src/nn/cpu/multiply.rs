//! One task of a product, with each instruction set.

use std::ops::Range;

use half::bf16;

use super::{
    element::Element,
    isa::{Isa, PORTABLE_FMA},
    lanes::{LANES, Lanes, Plain, read, write},
    math,
    product::{Finish, Part, Source},
    shared::Shared,
    tile::{Fused, Multiply, PANEL, ROWS, Rows, WIDE_PANEL, Widened},
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

/// A task in f32.
pub fn multiply_f32<O: Element>(isa: Isa, task: &Multiplying<'_, f32, O>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { x86::f32_avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::f32_avx2(task) },
        // SAFETY: these need no instructions.
        _ => unsafe { run::<f32, O, Fused<PORTABLE_FMA>, Plain<PORTABLE_FMA>, PANEL, ROWS>(task) },
    }
}

/// A task in bf16.
pub fn multiply_bf16<O: Element>(isa: Isa, task: &Multiplying<'_, bf16, O>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
        Isa::Avx512Bf16 => unsafe { x86::bf16_dot(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::bf16_avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::bf16_avx2(task) },
        // SAFETY: these need no instructions.
        _ => unsafe { run::<bf16, O, Widened<PORTABLE_FMA>, Plain<PORTABLE_FMA>, WIDE_PANEL, ROWS>(task) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Element, Multiplying, bf16, run};
    use crate::nn::cpu::{
        lanes::{Avx2, Avx512, Avx512Bf16},
        tile::{Dot, Fused, Fused512, PANEL, ROWS, WIDE_PANEL, WIDE_ROWS, Widened, Widened512},
    };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn f32_avx512<O: Element>(task: &Multiplying<'_, f32, O>) {
        // SAFETY: this function has the instructions, and so have the others.
        unsafe { run::<f32, O, Fused512<2>, Avx512, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2<O: Element>(task: &Multiplying<'_, f32, O>) {
        // SAFETY: as above.
        unsafe { run::<f32, O, Fused<true>, Avx2, PANEL, ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn bf16_dot<O: Element>(task: &Multiplying<'_, bf16, O>) {
        // SAFETY: as above.
        unsafe { run::<bf16, O, Dot<2>, Avx512Bf16, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn bf16_avx512<O: Element>(task: &Multiplying<'_, bf16, O>) {
        // SAFETY: as above.
        unsafe { run::<bf16, O, Widened512<2>, Avx512, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn bf16_avx2<O: Element>(task: &Multiplying<'_, bf16, O>) {
        // SAFETY: as above.
        unsafe { run::<bf16, O, Widened<true>, Avx2, WIDE_PANEL, ROWS>(task) };
    }
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
    // Where every tile's vectors are, found once for all panels and blocks.
    let mut vectors = vec![[std::ptr::null(); T]; tiles * taps];
    for (tile, vectors) in vectors.chunks_exact_mut(taps).enumerate() {
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
                join::<L, P, T>(first, second, third, fourth);
                finish::<E, O, L, P, T>(task, second, &gates, panel, rows.clone(), 1);
            }
            finish::<E, O, L, P, T>(task, &sums[0], &gates, panel, rows, 0);
        }
    }
}

/// Makes of the sums at four points those of two outputs, in place of the first two: see [`winograd`](super::winograd).
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn join<L: Lanes, const P: usize, const T: usize>(
    first: &mut [[f32; P]; T],
    second: &mut [[f32; P]; T],
    third: &[[f32; P]; T],
    fourth: &[[f32; P]; T],
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

/// Makes of a tile's sums the results of number `number` of its rows.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn finish<E: Element, O: Element, L: Lanes, const P: usize, const T: usize>(
    task: &Multiplying<'_, E, O>,
    sums: &[[f32; P]; T],
    gates: &[[f32; P]; T],
    panel: usize,
    rows: Range<usize>,
    number: usize,
) {
    let (finish, outputs, bias) = (task.finish, task.outputs, &task.part.weights.bias);
    for (slot, row) in rows.enumerate() {
        let Some(row) = task.part.spread.place(row, number) else { continue };
        for part in 0..P / LANES {
            let column = panel * P + part * LANES;
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
