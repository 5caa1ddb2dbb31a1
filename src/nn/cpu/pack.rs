//! A layer's weights in the order in which products read them.

use rayon::prelude::*;

use super::{element::Element, isa::Isa};

/// Bytes of a panel that are gone through for many tiles before the next: they stay in the second-level cache.
const BLOCK_BYTES: usize = 160 << 10;
/// Inputs that are read of every output of a panel before the next: they stay in the first-level cache.
const READ_INPUTS: usize = 64;
/// The most taps of a layer.
pub const MOST_TAPS: usize = 9;

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
    pub(super) fn for_isa(
        isa: Isa,
        sizes: LayerSizes,
        bias: &[f32],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let LayerSizes { outputs, inputs, taps } = sizes;
        assert!(taps <= MOST_TAPS && inputs > 0, "a layer has inputs and few taps");
        let panel = E::panel(isa);
        let block = BLOCK_BYTES / (size_of::<E>() * panel * taps);
        let block = if block < inputs { block / E::DEPTH * E::DEPTH } else { inputs };
        let panels = outputs.div_ceil(panel);
        let of_panel = inputs.div_ceil(E::DEPTH) * E::DEPTH * taps * panel;
        let mut packed = Self {
            data: Vec::with_capacity(panels * of_panel),
            bias: bias.to_vec(),
            taps,
            inputs,
            outputs,
            block: block.max(E::DEPTH),
            panel,
        };
        packed.bias.resize(panels * panel, 0.0);
        let mut data = std::mem::take(&mut packed.data);
        data.spare_capacity_mut()[..panels * of_panel].par_chunks_mut(of_panel).enumerate().for_each(|(number, into)| {
            // Zeros first, also where no input is: then every number is there.
            into.iter_mut().for_each(|place| _ = place.write(E::default()));
            // SAFETY: all were just written, and a written number is a number.
            let into = unsafe { &mut *(std::ptr::from_mut(into) as *mut [E]) };
            packed.fill_panel(number, into, &read);
        });
        // SAFETY: the tasks have written all of it.
        unsafe { data.set_len(panels * of_panel) };
        packed.data = data;
        packed
    }

    fn fill_panel(&self, number: usize, into: &mut [E], read: &(impl Fn(usize, &mut [f32]) + Sync)) {
        let (taps, panel) = (self.taps, self.panel);
        let lanes = panel.min(self.outputs - number * panel);
        let of_lane = READ_INPUTS * taps;
        let mut rows = vec![0.0_f32; lanes * of_lane];
        for first in (0..self.inputs).step_by(self.block) {
            let inputs = self.block.min(self.inputs - first);
            let groups = inputs.div_ceil(E::DEPTH);
            let into = &mut into[first * taps * panel..][..groups * E::DEPTH * taps * panel];
            for start in (0..inputs).step_by(READ_INPUTS) {
                let count = READ_INPUTS.min(inputs - start);
                for (lane, row) in rows.chunks_exact_mut(of_lane).enumerate() {
                    let output = number * panel + lane;
                    read((output * self.inputs + first + start) * taps, &mut row[..count * taps]);
                }
                for tap in 0..taps {
                    let into = &mut into[(tap * groups + start / E::DEPTH) * panel * E::DEPTH..];
                    for input in 0..count {
                        let into = &mut into[input / E::DEPTH * panel * E::DEPTH + input % E::DEPTH..];
                        for lane in 0..lanes {
                            into[lane * E::DEPTH] = E::narrow(rows[lane * of_lane + input * taps + tap]);
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
