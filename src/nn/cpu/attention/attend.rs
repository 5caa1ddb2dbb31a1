//! One task of an attention: what some queries of one head find, as the module above says.

use std::ops::Range;

use super::{Attending, AttentionSizes, QUERIES};
use crate::nn::cpu::{
    element::Element,
    lanes::{LANES, Lanes, read, write},
    tile::{Multiply, Panels, Rows, panel_vectors},
};

/// Below any score that is one.
const LOWEST: f32 = -1e30;

/// What one query has seen so far.
#[derive(Clone, Copy)]
struct State {
    /// The largest score, as a power of 2.
    largest: f32,
    /// The sum of its shares, unless there is a spare channel for that.
    total: f32,
}

/// `K` multiplies queries with panels of `P` keys, `V` shares with panels of channels.
///
/// # Safety
///
/// The processor has the instructions of `K`, `V` and `L`.
#[inline(always)]
pub unsafe fn attend_body<E, K, V, L, const P: usize, const T: usize>(task: &Attending<'_, E>)
where
    E: Element,
    K: Multiply<E, P, T>,
    V: Panels<E, T>,
    L: Lanes,
{
    let sizes = task.sizes;
    let block = sizes.block();
    let width = sizes.width.next_multiple_of(LANES);
    let mut scores = vec![0.0_f32; T * block];
    let mut shares = vec![E::default(); T * block];
    // Filled up to whole tiles; what is past the last query is not written.
    let mut sums = vec![0.0_f32; QUERIES * width];
    let mut states = [State { largest: LOWEST, total: 0.0 }; QUERIES];
    for first in (0..sizes.keys).step_by(block) {
        let keys = first..(first + block).min(sizes.keys);
        for tile in (0..task.count).step_by(T) {
            let sums = &mut sums[tile * width..][..T * width];
            // SAFETY: the processor is as the caller promises.
            unsafe {
                score::<E, K, P, T>(task, tile, keys.clone(), block, &mut scores);
                for (slot, state) in states[tile..task.count].iter_mut().take(T).enumerate() {
                    let row = &mut scores[slot * block..][..keys.len().next_multiple_of(LANES)];
                    let mask =
                        task.inputs.mask.map(|mask| &mask[(task.first + tile + slot) * sizes.keys..][keys.clone()]);
                    let kept = soften::<E, L>(row, sizes, mask, state, &mut shares[slot * block..], keys.len());
                    if first > 0 && kept < 1.0 {
                        for part in sums[slot * width..][..width].chunks_exact_mut(LANES) {
                            L::load(part.as_ptr()).mul(L::splat(kept)).store(part.as_mut_ptr());
                        }
                    }
                }
                add_values::<E, V, T>(task, tile, keys.clone(), &shares, sums);
            }
        }
    }
    // SAFETY: the processor is as the caller promises.
    unsafe { store::<E, L>(task, &sums, width, &states) };
}

/// Where the first of a task's queries is.
fn origin<E>(task: &Attending<'_, E>) -> usize {
    let sizes = task.sizes;
    (task.head / sizes.heads * sizes.queries + task.first) * sizes.channels() + task.head % sizes.heads * sizes.width
}

/// Multiplies a tile of queries with a block of keys, into rows of `block` scores.
///
/// # Safety
///
/// The processor has the instructions of `K`.
#[inline(always)]
unsafe fn score<E: Element, K: Multiply<E, P, T>, const P: usize, const T: usize>(
    task: &Attending<'_, E>,
    tile: usize,
    keys: Range<usize>,
    block: usize,
    scores: &mut [f32],
) {
    let (sizes, width, origin) = (task.sizes, task.sizes.width, origin(task));
    let of_panel = width.next_multiple_of(E::DEPTH) * P;
    let mut vectors = [[std::ptr::null(); T]];
    for (slot, vector) in vectors[0].iter_mut().enumerate() {
        let query = (tile + slot).min(task.count - 1);
        *vector = task.inputs.queries[origin + query * sizes.channels()..][..width].as_ptr();
    }
    let panels = keys.len().div_ceil(P);
    assert!(panels * P <= block && scores.len() >= T * block, "there is room for scores");
    for panel in 0..panels {
        let packed = &task.packed.keys[(keys.start / P + panel) * of_panel..][..of_panel];
        let into = Rows { at: scores[panel * P..].as_mut_ptr(), stride: block, fresh: true };
        // SAFETY: each query has `width` channels, and so has the panel; the processor is as the caller promises.
        unsafe { K::add(into, &vectors, 0, width, packed.as_ptr()) };
    }
}

/// Adds to a tile's sums the values of a block of keys, by rows of shares as long as the block may be.
///
/// # Safety
///
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn add_values<E: Element, V: Panels<E, T>, const T: usize>(
    task: &Attending<'_, E>,
    tile: usize,
    keys: Range<usize>,
    shares: &[E],
    sums: &mut [f32],
) {
    let (block, width) = (shares.len() / T, sums.len() / T);
    let all_keys = task.sizes.keys.next_multiple_of(E::DEPTH);
    let mut vectors = [[std::ptr::null(); T]];
    for (slot, vector) in vectors[0].iter_mut().enumerate() {
        let query = slot.min(task.count - 1 - tile);
        *vector = shares[query * block..][..keys.len()].as_ptr();
    }
    let mut first = 0;
    for count in panel_vectors(width, V::MOST_VECTORS) {
        let panel = count * LANES;
        let packed = &task.packed.values[first * all_keys + keys.start * panel..];
        assert!(packed.len() >= keys.len().next_multiple_of(E::DEPTH) * panel, "a panel has a block's keys");
        let into = Rows { at: sums[first..].as_mut_ptr(), stride: width, fresh: keys.start == 0 };
        // SAFETY: each row of shares has as many numbers as there are keys, and so has the panel; the processor is as the
        // caller promises.
        unsafe { V::add(count, into, &vectors, 0, keys.len(), packed.as_ptr()) };
        first += panel;
    }
}

/// Divides each query's sums, of `width`, by its shares' sum, into the result.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn store<E: Element, L: Lanes>(task: &Attending<'_, E>, sums: &[f32], width: usize, states: &[State]) {
    let origin = origin(task);
    for (query, state) in states.iter().enumerate().take(task.count) {
        let place = origin + query * task.sizes.channels();
        let spare = task.sizes.has_spare_channel();
        let total = if spare { sums[query * width + task.sizes.width] } else { state.total };
        for channel in (0..task.sizes.width).step_by(LANES) {
            let count = LANES.min(task.sizes.width - channel);
            // SAFETY: this task alone has this query of this head, inside the result; the processor is as the caller promises.
            unsafe {
                let sums = L::load(sums[query * width + channel..][..LANES].as_ptr());
                write(sums.mul(L::splat(1.0 / total)), task.result.at(place + channel), count);
            }
        }
    }
}

/// Turns a row of scores, with room to fill up whole vectors, into shares relative to the largest score so far, and
/// returns what earlier shares are to be multiplied with.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
unsafe fn soften<E: Element, L: Lanes>(
    row: &mut [f32],
    sizes: AttentionSizes,
    mask: Option<&[f32]>,
    state: &mut State,
    shares: &mut [E],
    keys: usize,
) -> f32 {
    // Shares are powers of 2 here, which cost one step less than powers of e.
    let root = (sizes.width as f32).sqrt();
    let scale = std::f32::consts::LOG2_E / root;
    let shares = &mut shares[..row.len()];
    // SAFETY: the processor is as the caller promises, and every chunk has 16 numbers.
    unsafe {
        let scales = L::splat(scale);
        let mut lanes = L::splat(LOWEST);
        for (number, chunk) in row.chunks_exact_mut(LANES).enumerate() {
            if let Some(mask) = mask {
                let mask = &mask[number * LANES..];
                let mask: L = read(&mask[..LANES.min(mask.len())]);
                L::load(chunk.as_ptr()).add(mask.mul(L::splat(root))).store(chunk.as_mut_ptr());
            }
            if number * LANES + LANES > keys {
                chunk[keys - number * LANES..].fill(LOWEST);
            }
            lanes = L::load(chunk.as_ptr()).max(lanes);
        }
        let largest = state.largest.max(lanes.largest() * scale);
        let (less, mut total) = (L::splat(-largest), L::splat(0.0));
        for (chunk, into) in row.chunks_exact(LANES).zip(shares.chunks_exact_mut(LANES)) {
            let share = E::exp2(L::load(chunk.as_ptr()).mul_add(scales, less));
            E::store(share, into.as_mut_ptr());
            // What is multiplied with values is what is summed, rounded or not: shares then add up to 1.
            if !sizes.has_spare_channel() {
                total = total.add(E::load(into.as_ptr()));
            }
        }
        // Of the first block there is nothing to keep.
        let kept = if state.largest > LOWEST { E::exp2(L::splat(state.largest - largest)).to_array()[0] } else { 0.0 };
        *state = State { largest, total: state.total * kept + total.sum() };
        kept
    }
}
