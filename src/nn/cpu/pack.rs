//! A layer's weights in the order in which products read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes, read, write},
    shared::{Shared, filled},
};

/// Bytes of a panel that are gone through for many tiles before the next: they stay in the second-level cache.
const BLOCK_BYTES: usize = 160 << 10;
/// Numbers that are read of every output of a panel before the next: they stay in the first-level cache.
const READ_NUMBERS: usize = 512;
/// Numbers between what is read of one output and of the next, so that they do not all fall on the same places of the cache.
const APART: usize = 32;
/// The most taps of a layer.
pub const MOST_TAPS: usize = 12;

/// A layer's weights and bias as the kernel reads them.
#[derive(Debug)]
pub struct PackedWeights<E> {
    /// `[panel][block of inputs][tap][group of inputs][output of the panel][input of the group]`, filled up with zeros.
    pub(super) data: Vec<E>,
    /// Filled up with zeros to whole panels.
    pub(super) bias: Vec<f32>,
    pub(super) taps: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Inputs of a block: whole groups, but for the last.
    pub(super) block: usize,
    /// Outputs of a panel.
    pub(super) panel: usize,
}

/// The sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerSizes {
    /// Numbers in a row of the result.
    pub outputs: usize,
    /// Numbers in each tap's vector.
    pub inputs: usize,
    /// Vectors of a row.
    pub taps: usize,
}

impl<E: Element> PackedWeights<E> {
    /// Packs weights of `[output][input][tap]`, and a bias of `outputs` or nothing, on all threads. `read` copies some of
    /// the weights, from a place on, so that they are never all there twice.
    pub fn new(sizes: LayerSizes, bias: &[f32], read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        Self::for_isa(Isa::detected(), sizes, bias, read)
    }

    /// As [`new`](Self::new), for the instructions of `isa`.
    pub(super) fn for_isa(isa: Isa, sizes: LayerSizes, bias: &[f32], read: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let LayerSizes { outputs, inputs, taps } = sizes;
        assert!(taps <= MOST_TAPS && inputs > 0, "a layer has inputs and few taps");
        let panel = E::panel(isa);
        let block = BLOCK_BYTES / (size_of::<E>() * panel * taps);
        let block = if block < inputs { block / E::DEPTH * E::DEPTH } else { inputs };
        let panels = outputs.div_ceil(panel);
        let of_panel = inputs.div_ceil(E::DEPTH) * E::DEPTH * taps * panel;
        let mut padded_bias = bias.to_vec();
        padded_bias.resize(panels * panel, 0.0);
        let block = block.max(E::DEPTH);
        let mut packed = Self { data: Vec::new(), bias: padded_bias, taps, inputs, outputs, block, panel };
        packed.data = filled(panels * of_panel, |data: Shared<E>| {
            (0..panels).into_par_iter().for_each(|number| {
                // SAFETY: each task has its own panel, inside the room that there is.
                let into = unsafe { std::slice::from_raw_parts_mut(data.at(number * of_panel).cast(), of_panel) };
                packed.fill_panel(number, into, &read);
            });
        });
        packed
    }

    /// Writes all of a panel.
    fn fill_panel(&self, number: usize, into: &mut [MaybeUninit<E>], read: &(impl Fn(usize, &mut [f32]) + Sync)) {
        let (taps, panel) = (self.taps, self.panel);
        let lanes = panel.min(self.outputs - number * panel);
        if lanes < panel || !self.inputs.is_multiple_of(E::DEPTH) {
            into.iter_mut().for_each(|place| _ = place.write(E::default()));
        }
        let isa = Isa::detected();
        let at_once = (READ_NUMBERS / taps).next_multiple_of(E::DEPTH);
        let of_lane = at_once * taps;
        let stride = of_lane + APART;
        let mut row = vec![0.0_f32; of_lane];
        let mut rows = vec![E::default(); lanes * stride];
        for first in (0..self.inputs).step_by(self.block) {
            let inputs = self.block.min(self.inputs - first);
            let groups = inputs.div_ceil(E::DEPTH);
            let into = &mut into[first * taps * panel..][..groups * E::DEPTH * taps * panel];
            for start in (0..inputs).step_by(at_once) {
                let count = at_once.min(inputs - start);
                for (lane, narrow) in rows.chunks_exact_mut(stride).enumerate() {
                    let output = number * panel + lane;
                    let row = &mut row[..count * taps];
                    read((output * self.inputs + first + start) * taps, row);
                    narrow_numbers(isa, row, narrow);
                }
                for tap in 0..taps {
                    let into = &mut into[(tap * groups + start / E::DEPTH) * panel * E::DEPTH..];
                    for (group, into) in into.chunks_mut(panel * E::DEPTH).take(count.div_ceil(E::DEPTH)).enumerate() {
                        let column = &rows[group * E::DEPTH * taps + tap..];
                        let depth = E::DEPTH.min(count - group * E::DEPTH);
                        interleave(column, (stride, taps), (lanes, depth), into);
                    }
                }
            }
        }
    }

    /// Numbers in a row of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers in each tap's vector of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether [`Finish::gated`](super::Finish::gated) is possible.
    pub fn can_gate(&self) -> bool {
        self.taps == 1 && self.block >= self.inputs && self.outputs.is_multiple_of(2 * self.panel)
    }

    pub(super) fn panels(&self) -> usize {
        self.bias.len() / self.panel
    }

    /// One panel.
    pub(super) fn panel_data(&self, number: usize) -> &[E] {
        let of_panel = self.data.len() / self.panels();
        &self.data[number * of_panel..][..of_panel]
    }
}

/// Numbers of a 3×3 kernel.
pub const KERNEL_TAPS: usize = 9;
/// Kernels that are read at a time.
const KERNELS: usize = 16;

/// Fills `into`, from its place `start` on, with what `make` makes of 3×3 kernels, `T` numbers of each. `read` copies some of
/// the kernels' numbers, from a place on.
pub fn read_kernels<const T: usize>(
    start: usize,
    into: &mut [f32],
    read: &impl Fn(usize, &mut [f32]),
    make: impl Fn(&[f32; KERNEL_TAPS]) -> [f32; T],
) {
    let mut kernels = [0.0; KERNELS * KERNEL_TAPS];
    for (part, into) in into.chunks_mut(KERNELS * T).enumerate() {
        let kernels = &mut kernels[..into.len() / T * KERNEL_TAPS];
        read((start / T + part * KERNELS) * KERNEL_TAPS, kernels);
        let (into, kernels) = (into.as_chunks_mut().0, kernels.as_chunks().0);
        into.iter_mut().zip(kernels).for_each(|(into, kernel)| *into = make(kernel));
    }
}

/// Writes numbers of `lanes` rows side by side, `depth` of each; rows are `stride` apart, and their numbers `step`.
fn interleave<E: Element>(
    from: &[E],
    (stride, step): (usize, usize),
    (lanes, depth): (usize, usize),
    into: &mut [MaybeUninit<E>],
) {
    assert!(from.len() > (lanes - 1) * stride + (depth - 1) * step && into.len() >= lanes * E::DEPTH);
    // SAFETY: the last number of the last row is inside, as was just checked, and so is its place.
    unsafe {
        // With a fixed length a copy is one instruction, and a loop none.
        if depth == E::DEPTH && step == 1 {
            for lane in 0..lanes {
                let to = into.as_mut_ptr().add(lane * E::DEPTH).cast();
                std::ptr::copy_nonoverlapping(from.as_ptr().add(lane * stride), to, E::DEPTH);
            }
            return;
        }
        if depth == E::DEPTH {
            for lane in 0..lanes {
                for part in 0..E::DEPTH {
                    let number = *from.get_unchecked(lane * stride + part * step);
                    into.get_unchecked_mut(lane * E::DEPTH + part).write(number);
                }
            }
            return;
        }
        for lane in 0..lanes {
            for part in 0..depth {
                into.get_unchecked_mut(lane * E::DEPTH + part).write(*from.get_unchecked(lane * stride + part * step));
            }
        }
    }
}

versions! {
    fn narrow_numbers<E: Element> = narrow_numbers_body(from: &[f32], into: &mut [E])
}

/// Rounds numbers to `E`.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn narrow_numbers_body<E: Element, L: Lanes>(from: &[f32], into: &mut [E]) {
    let into = &mut into[..from.len()];
    for (from, into) in from.chunks(LANES).zip(into.chunks_mut(LANES)) {
        // SAFETY: the caller's promise; there are as many numbers in both.
        unsafe { write(read::<f32, L>(from), into.as_mut_ptr(), from.len()) };
    }
}
