//! A head's keys and values, packed as products read them.

use super::{AttentionInputs, AttentionSizes};
use crate::nn::cpu::{element::Element, lanes::LANES, tile::panel_vectors};

/// One head's keys and values as products read them: see [`tile`](crate::nn::cpu::tile).
pub struct PackedHead<E> {
    /// Panels of keys.
    pub keys: Vec<E>,
    /// Panels of channels, and of the spare one if there is one, of the widths that [`panel_vectors`] gives.
    pub values: Vec<E>,
}

impl<E: Element> PackedHead<E> {
    /// Packs head number `head`, counted through the batch, in `panels` of as many keys and of at most as many vectors.
    pub fn new(inputs: &AttentionInputs<'_, E>, sizes: AttentionSizes, panels: (usize, usize), head: usize) -> Self {
        let (key_panel, most_vectors) = panels;
        let (batch, head) = (head / sizes.heads, head % sizes.heads);
        let place = batch * sizes.keys * sizes.channels() + head * sizes.width;
        Self {
            keys: pack_keys(&inputs.keys[place..], sizes, key_panel),
            values: pack_values(&inputs.values[place..], sizes, most_vectors),
        }
    }
}

/// Packs the keys of one head, of which `tokens` has the first at its start.
fn pack_keys<E: Element>(tokens: &[E], sizes: AttentionSizes, panel: usize) -> Vec<E> {
    let (width, depth) = (sizes.width, E::DEPTH);
    let of_panel = width.next_multiple_of(depth) * panel;
    let mut packed = vec![E::default(); sizes.keys.div_ceil(panel) * of_panel];
    for (number, into) in packed.chunks_exact_mut(of_panel).enumerate() {
        let first = number * panel;
        for slot in 0..panel.min(sizes.keys - first) {
            let key = &tokens[(first + slot) * sizes.channels()..][..width];
            let groups = width / depth;
            for group in 0..groups {
                // SAFETY: the key has whole groups up to here, and a panel has as many for each of its keys. Copies of a fixed
                // length are one instruction, others a call.
                unsafe {
                    let to = into.as_mut_ptr().add((group * panel + slot) * depth);
                    std::ptr::copy_nonoverlapping(key.as_ptr().add(group * depth), to, E::DEPTH);
                }
            }
            for (part, last) in key[groups * depth..].iter().enumerate() {
                into[(groups * panel + slot) * depth + part] = *last;
            }
        }
    }
    packed
}

/// Packs the values of one head, of which `tokens` has the first at its start.
fn pack_values<E: Element>(tokens: &[E], sizes: AttentionSizes, most_vectors: usize) -> Vec<E> {
    let (keys, depth) = (sizes.keys.next_multiple_of(E::DEPTH), E::DEPTH);
    let mut packed = vec![E::default(); sizes.width.next_multiple_of(LANES) * keys];
    let mut first = 0;
    for vectors in panel_vectors(sizes.width, most_vectors) {
        let panel = vectors * LANES;
        let lanes = panel.min(sizes.width - first);
        let of_panel = &mut packed[first * keys..][..panel * keys];
        for (group, into) in of_panel.chunks_exact_mut(panel * depth).enumerate() {
            let value = |part: usize| {
                let token = group * depth + part;
                (token < sizes.keys).then(|| &tokens[token * sizes.channels() + first..][..lanes])
            };
            if let (2, Some(one), Some(other)) = (depth, value(0), value(1)) {
                // As the loop below, which is slower.
                for (into, (one, other)) in into.as_chunks_mut::<2>().0.iter_mut().zip(one.iter().zip(other)) {
                    *into = [*one, *other];
                }
            } else {
                for part in 0..depth {
                    for (into, value) in into.chunks_exact_mut(depth).zip(value(part).unwrap_or_default()) {
                        into[part] = *value;
                    }
                }
            }
            // The spare channel.
            if lanes < panel {
                let there = depth.min(sizes.keys - group * depth);
                into[lanes * depth..][..there].fill(E::narrow(1.0));
            }
        }
        first += panel;
    }
    packed
}
