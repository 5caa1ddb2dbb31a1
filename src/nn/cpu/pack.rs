//! A layer's weights in the order in which products read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{
    element::Element,
    isa::Isa,
    shared::{Shared, filled},
};

/// Bytes of a panel that are gone through for many tiles before the next: they stay in the second-level cache.
const BLOCK_BYTES: usize = 160 << 10;
/// Numbers that are read of every output of a panel before the next: they stay in the first-level cache.
const READ_NUMBERS: usize = 512;
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
        let at_once = (READ_NUMBERS / taps).next_multiple_of(E::DEPTH);
        let of_lane = at_once * taps;
        let mut row = vec![0.0_f32; of_lane];
        let mut rows = vec![E::default(); lanes * of_lane];
        for first in (0..self.inputs).step_by(self.block) {
            let inputs = self.block.min(self.inputs - first);
            let groups = inputs.div_ceil(E::DEPTH);
            let into = &mut into[first * taps * panel..][..groups * E::DEPTH * taps * panel];
            for start in (0..inputs).step_by(at_once) {
                let count = at_once.min(inputs - start);
                for (lane, narrow) in rows.chunks_exact_mut(of_lane).enumerate() {
                    let output = number * panel + lane;
                    let row = &mut row[..count * taps];
                    read((output * self.inputs + first + start) * taps, row);
                    narrow.iter_mut().zip(row).for_each(|(narrow, wide)| *narrow = E::narrow(*wide));
                }
                for tap in 0..taps {
                    let into = &mut into[(tap * groups + start / E::DEPTH) * panel * E::DEPTH..];
                    for input in 0..count {
                        let into = &mut into[input / E::DEPTH * panel * E::DEPTH + input % E::DEPTH..];
                        let column = &rows[input * taps + tap..];
                        assert!(into.len() > (lanes - 1) * E::DEPTH && column.len() > (lanes - 1) * of_lane);
                        for lane in 0..lanes {
                            // SAFETY: the last lane's places are inside, as was just checked.
                            unsafe {
                                into.get_unchecked_mut(lane * E::DEPTH).write(*column.get_unchecked(lane * of_lane))
                            };
                        }
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
