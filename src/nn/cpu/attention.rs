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
    tile::{Fused, Multiply, Narrow, PANEL, Panels, ROWS, Rows, WIDE_PANEL, Widened, panel_vectors},
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
    /// Panels of channels, of the widths that [`panel_vectors`] gives.
    values: Vec<E>,
}

impl<E: Element> PackedHead<E> {
    fn new(inputs: &AttentionInputs<'_, E>, sizes: AttentionSizes, panels: (usize, usize), head: usize) -> Self {
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
                continue;
            }
            for part in 0..depth {
                for (into, value) in into.chunks_exact_mut(depth).zip(value(part).unwrap_or_default()) {
                    into[part] = *value;
                }
            }
        }
        first += panel;
    }
    packed
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
        _ => unsafe { attend_body::<f32, Portable, Narrow<Portable>, Plain<PORTABLE_FMA>, PANEL, ROWS>(task) },
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
        _ => unsafe { attend_body::<bf16, Portable, Narrow<Portable>, Plain<PORTABLE_FMA>, WIDE_PANEL, ROWS>(task) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Attending, attend_body, bf16};
    use crate::nn::cpu::{
        lanes::{Avx2, Avx512, Avx512Bf16},
        tile::{
            Dot, DotPanels, Fused, Fused512, FusedPanels512, Narrow, PANEL, ROWS, WIDE_PANEL, WIDE_ROWS, Widened,
            Widened512,
        },
    };

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn f32_avx512(task: &Attending<'_, f32>) {
        // SAFETY: this function has the instructions, and so have the others.
        unsafe { attend_body::<f32, Fused512<2>, FusedPanels512, Avx512, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2(task: &Attending<'_, f32>) {
        // SAFETY: as above.
        unsafe { attend_body::<f32, Fused<true>, Narrow<Fused<true>>, Avx2, PANEL, ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn bf16_dot(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Dot<2>, DotPanels, Avx512Bf16, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn bf16_avx512(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Widened512<2>, Narrow<Widened512<1>>, Avx512, WIDE_PANEL, WIDE_ROWS>(task) };
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn bf16_avx2(task: &Attending<'_, bf16>) {
        // SAFETY: as above.
        unsafe { attend_body::<bf16, Widened<true>, Narrow<Widened<true>>, Avx2, WIDE_PANEL, ROWS>(task) };
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

/// `K` multiplies queries with panels of `P` keys, `V` shares with panels of channels.
///
/// # Safety
///
/// The processor has the instructions of `K`, `V` and `L`.
#[inline(always)]
unsafe fn attend_body<E, K, V, L, const P: usize, const T: usize>(task: &Attending<'_, E>)
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
        // Of the first block there is nothing to keep.
        let kept = if state.total > 0.0 { E::exp2(L::splat(state.largest - largest)).to_array()[0] } else { 0.0 };
        *state = State { largest, total: state.total * kept + total.sum() };
        kept
    }
}
