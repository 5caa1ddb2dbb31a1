//! Attention without the matrix of all scores: keys go by in blocks, and each query keeps a running maximum, sum and
//! result (Milakov and Gimelshein 2018; Dao et al. 2022).

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, PORTABLE_FMA},
    lanes::{LANES, Lanes, Plain, read, write},
    shared::{Shared, filled},
    tile::{Fused, Multiply, PANEL, ROWS, Rows, WIDE_PANEL, Widened},
};

/// Queries of a task: whole tiles of either height.
const QUERIES: usize = 8 * ROWS;
/// Numbers of a block of keys, which stay in the second-level cache with as many of the values.
const BLOCK_NUMBERS: usize = 96 << 10;
/// The most keys of a block: a tile's scores for them stay in the first-level cache.
const MOST_KEYS: usize = 512;
/// Below any score that is one.
const LOWEST: f32 = -1e30;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// Independent attentions.
    pub batch: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys and values of each.
    pub keys: usize,
    /// Heads of each.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
}

impl AttentionSizes {
    fn channels(&self) -> usize {
        self.heads * self.width
    }

    /// Keys of a block: whole panels of any width.
    fn block(&self) -> usize {
        let most = MOST_KEYS.min(self.keys.next_multiple_of(WIDE_PANEL));
        (BLOCK_NUMBERS / self.width / WIDE_PANEL * WIDE_PANEL).clamp(WIDE_PANEL, most)
    }
}

/// Queries, keys and values, each `[batch][token][head][channel]`, and what is added to scores, `[query][key]`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a, E> {
    /// As many as there are queries.
    pub queries: &'a [E],
    /// As many as there are keys.
    pub keys: &'a [E],
    /// As many as there are keys.
    pub values: &'a [E],
    /// Added to scores.
    pub mask: Option<&'a [f32]>,
}

/// Attention, `[batch][query][head][channel]`.
pub fn attention<E: Element>(inputs: AttentionInputs<'_, E>, sizes: AttentionSizes) -> Vec<E> {
    attention_with(Isa::detected(), inputs, sizes)
}

/// As [`attention`], with the instructions of `isa`.
pub(super) fn attention_with<E: Element>(isa: Isa, inputs: AttentionInputs<'_, E>, sizes: AttentionSizes) -> Vec<E> {
    let channels = sizes.channels();
    let (queries, keys) = (sizes.batch * sizes.queries * channels, sizes.batch * sizes.keys * channels);
    assert!(inputs.queries.len() == queries && sizes.width > 0, "queries are whole");
    assert!(inputs.keys.len() == keys && inputs.values.len() == keys, "keys and values are whole");
    assert!(inputs.mask.is_none_or(|mask| mask.len() == sizes.queries * sizes.keys), "the mask is whole");
    let panels = E::attention_panels(isa);
    let heads: Vec<PackedHead<E>> = (0..sizes.batch * sizes.heads)
        .into_par_iter()
        .map(|head| PackedHead::new(&inputs, sizes, panels, head))
        .collect();
    let blocks = sizes.queries.div_ceil(QUERIES);
    filled(queries, |result| {
        (0..sizes.batch * sizes.heads * blocks).into_par_iter().with_max_len(1).for_each(|task| {
            let (head, block) = (task / blocks, task % blocks);
            let first = block * QUERIES;
            let count = QUERIES.min(sizes.queries - first);
            E::attend(isa, &Attending { inputs, sizes, packed: &heads[head], head, first, count, result });
        });
    })
}

/// One head's keys and values as products read them: see [`tile`](super::tile).
struct PackedHead<E> {
    /// Panels of keys.
    keys: Vec<E>,
    /// Panels of channels.
    values: Vec<E>,
}

impl<E: Element> PackedHead<E> {
    fn new<'a>(inputs: &AttentionInputs<'a, E>, sizes: AttentionSizes, panels: (usize, usize), head: usize) -> Self {
        let (batch, head) = (head / sizes.heads, head % sizes.heads);
        let (channels, width, depth) = (sizes.channels(), sizes.width, E::DEPTH);
        let (key_panel, value_panel) = panels;
        let of_key_panel = width.next_multiple_of(depth) * key_panel;
        let of_value_panel = sizes.keys.next_multiple_of(depth) * value_panel;
        let mut keys = vec![E::default(); sizes.keys.div_ceil(key_panel) * of_key_panel];
        let mut values = vec![E::default(); width.div_ceil(value_panel) * of_value_panel];
        let token = |of: &'a [E], token: usize| &of[(batch * sizes.keys + token) * channels + head * width..][..width];
        for (panel, into) in keys.chunks_exact_mut(of_key_panel).enumerate() {
            let first = panel * key_panel;
            for slot in 0..key_panel.min(sizes.keys - first) {
                for (group, key) in token(inputs.keys, first + slot).chunks(depth).enumerate() {
                    into[(group * key_panel + slot) * depth..][..key.len()].copy_from_slice(key);
                }
            }
        }
        for (panel, into) in values.chunks_exact_mut(of_value_panel).enumerate() {
            let first = panel * value_panel;
            let lanes = value_panel.min(width - first);
            for (group, into) in into.chunks_exact_mut(value_panel * depth).enumerate() {
                for part in 0..depth.min(sizes.keys - group * depth) {
                    let value = &token(inputs.values, group * depth + part)[first..][..lanes];
                    for (into, value) in into.chunks_exact_mut(depth).zip(value) {
                        into[part] = *value;
                    }
                }
            }
        }
        Self { keys, values }
    }
}

/// One task: some queries of one head of one batch.
pub struct Attending<'a, E> {
    inputs: AttentionInputs<'a, E>,
    sizes: AttentionSizes,
    packed: &'a PackedHead<E>,
    /// The head, counted through the batch.
    head: usize,
    /// The first query, and how many.
    first: usize,
    count: usize,
    result: Shared<E>,
}

/// A task in f32.
pub fn attend_f32(isa: Isa, task: &Attending<'_, f32>) {
    type Portable = Fused<PORTABLE_FMA>;
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { x86::f32_avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::f32_avx2(task) },
        // SAFETY: these need no instructions.
        _ => unsafe { attend_body::<f32, Portable, Portable, Plain<PORTABLE_FMA>, PANEL, PANEL, ROWS>(task) },
    }
}

/// A task in bf16.
pub fn attend_bf16(isa: Isa, task: &Attending<'_, bf16>) {
    type Portable = Widened<PORTABLE_FMA>;
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
        _ => unsafe { attend_body::<bf16, Portable, Portable, Plain<PORTABLE_FMA>, WIDE_PANEL, PANEL, ROWS>(task) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Attending, attend_body, bf16};
    use crate::nn::cpu::{
        lanes::{Avx2, Avx512, Avx512Bf16},
        tile::{Dot, Fused, Fused512, PANEL, ROWS, WIDE_PANEL, WIDE_ROWS, Widened, Widened512},
    };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn f32_avx512(task: &Attending<'_, f32>) {
        // SAFETY: this function has the instructions, and so have the others.
        unsafe { attend_body::<f32, Fused512<1>, Fused512<1>, Avx512, PANEL, PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2(task: &Attending<'_, f32>) {
        // SAFETY: as above.
        unsafe { attend_body::<f32, Fused<true>, Fused<true>, Avx2, PANEL, PANEL, ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn bf16_dot(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Dot<2>, Dot<1>, Avx512Bf16, WIDE_PANEL, PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn bf16_avx512(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Widened512<2>, Widened512<1>, Avx512, WIDE_PANEL, PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn bf16_avx2(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Widened<true>, Widened<true>, Avx2, WIDE_PANEL, PANEL, ROWS>(task) };
    }
}

/// What one query has seen so far.
#[derive(Clone, Copy)]
struct State {
    /// The largest score, as a power of 2.
    largest: f32,
    /// The sum of its shares.
    total: f32,
}

/// `K` multiplies queries with panels of `PK` keys, `V` shares with panels of `PV` channels.
///
/// # Safety
///
/// The processor has the instructions of `K`, `V` and `L`.
#[inline(always)]
unsafe fn attend_body<E, K, V, L, const PK: usize, const PV: usize, const T: usize>(task: &Attending<'_, E>)
where
    E: Element,
    K: Multiply<E, PK, T>,
    V: Multiply<E, PV, T>,
    L: Lanes,
{
    let sizes = task.sizes;
    let block = sizes.block();
    let width = sizes.width.next_multiple_of(PV);
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
                score::<E, K, PK, T>(task, tile, keys.clone(), block, &mut scores);
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
                add_values::<E, V, PV, T>(task, tile, keys.clone(), &shares, sums);
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
unsafe fn score<E: Element, K: Multiply<E, PK, T>, const PK: usize, const T: usize>(
    task: &Attending<'_, E>,
    tile: usize,
    keys: Range<usize>,
    block: usize,
    scores: &mut [f32],
) {
    let (sizes, width, origin) = (task.sizes, task.sizes.width, origin(task));
    let of_panel = width.next_multiple_of(E::DEPTH) * PK;
    let mut vectors = [[std::ptr::null(); T]];
    for (slot, vector) in vectors[0].iter_mut().enumerate() {
        let query = (tile + slot).min(task.count - 1);
        *vector = task.inputs.queries[origin + query * sizes.channels()..][..width].as_ptr();
    }
    let panels = keys.len().div_ceil(PK);
    assert!(panels * PK <= block && scores.len() >= T * block, "there is room for scores");
    for panel in 0..panels {
        let packed = &task.packed.keys[(keys.start / PK + panel) * of_panel..][..of_panel];
        let into = Rows { at: scores[panel * PK..].as_mut_ptr(), stride: block, fresh: true };
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
unsafe fn add_values<E: Element, V: Multiply<E, PV, T>, const PV: usize, const T: usize>(
    task: &Attending<'_, E>,
    tile: usize,
    keys: Range<usize>,
    shares: &[E],
    sums: &mut [f32],
) {
    let (block, width) = (shares.len() / T, sums.len() / T);
    let of_panel = task.sizes.keys.next_multiple_of(E::DEPTH) * PV;
    let mut vectors = [[std::ptr::null(); T]];
    for (slot, vector) in vectors[0].iter_mut().enumerate() {
        let query = slot.min(task.count - 1 - tile);
        *vector = shares[query * block..][..keys.len()].as_ptr();
    }
    for panel in 0..width / PV {
        let packed = &task.packed.values[panel * of_panel + keys.start * PV..];
        assert!(packed.len() >= keys.len().next_multiple_of(E::DEPTH) * PV, "a panel has a block's keys");
        let into = Rows { at: sums[panel * PV..].as_mut_ptr(), stride: width, fresh: keys.start == 0 };
        // SAFETY: each row of shares has as many numbers as there are keys, and so has the panel; the processor is as the
        // caller promises.
        unsafe { V::add(into, &vectors, 0, keys.len(), packed.as_ptr()) };
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
        for channel in (0..task.sizes.width).step_by(LANES) {
            let count = LANES.min(task.sizes.width - channel);
            // SAFETY: this task alone has this query of this head, inside the result; the processor is as the caller promises.
            unsafe {
                let sums = L::load(sums[query * width + channel..][..LANES].as_ptr());
                write(sums.mul(L::splat(1.0 / state.total)), task.result.at(place + channel), count);
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
            total = total.add(E::load(into.as_ptr()));
        }
        let kept = E::exp2(L::splat(state.largest - largest)).to_array()[0];
        *state = State { largest, total: state.total * kept + total.sum() };
        kept
    }
}
