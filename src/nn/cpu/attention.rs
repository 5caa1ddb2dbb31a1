//! Attention without the matrix of all scores: keys go by in blocks, and each query keeps a running maximum, sum and
//! result (Milakov and Gimelshein 2018; Dao et al. 2022).

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, PORTABLE_FMA, multiply_add},
    math,
    shared::{Shared, filled},
    tile::{Fused, Multiply, PANEL, ROWS, Sums, WIDE_PANEL, Widened},
};

/// Queries of a task: whole tiles of either height.
const QUERIES: usize = 8 * ROWS;
/// Numbers of a block of keys, which stay in the second-level cache with as many of the values.
const BLOCK_NUMBERS: usize = 24 << 10;
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
        (BLOCK_NUMBERS / self.width / WIDE_PANEL * WIDE_PANEL).clamp(2 * WIDE_PANEL, 32 * WIDE_PANEL)
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
    fn new(inputs: &AttentionInputs<'_, E>, sizes: AttentionSizes, panels: (usize, usize), head: usize) -> Self {
        let (batch, head) = (head / sizes.heads, head % sizes.heads);
        let (channels, width, depth) = (sizes.channels(), sizes.width, E::DEPTH);
        let (key_panel, value_panel) = panels;
        let of_key_panel = width.next_multiple_of(depth) * key_panel;
        let of_value_panel = sizes.keys.next_multiple_of(depth) * value_panel;
        let mut keys = vec![E::default(); sizes.keys.div_ceil(key_panel) * of_key_panel];
        let mut values = vec![E::default(); width.div_ceil(value_panel) * of_value_panel];
        for token in 0..sizes.keys {
            let at = (batch * sizes.keys + token) * channels + head * width;
            let panel = &mut keys[token / key_panel * of_key_panel..];
            for (channel, key) in inputs.keys[at..at + width].iter().enumerate() {
                panel[(channel / depth * key_panel + token % key_panel) * depth + channel % depth] = *key;
            }
            for (panel, part) in inputs.values[at..at + width].chunks(value_panel).enumerate() {
                let into = &mut values[panel * of_value_panel + token / depth * value_panel * depth + token % depth..];
                for (value, place) in part.iter().zip(into.iter_mut().step_by(depth)) {
                    *place = *value;
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
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
        Isa::Avx512Bf16 | Isa::Avx512 => unsafe { x86::f32_avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::f32_avx2(task) },
        _ => attend_body::<f32, Fused<PORTABLE_FMA>, Fused<PORTABLE_FMA>, PORTABLE_FMA, PANEL, PANEL, ROWS>(task),
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
        _ => attend_body::<bf16, Portable, Portable, PORTABLE_FMA, WIDE_PANEL, PANEL, ROWS>(task),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Attending, attend_body, bf16};
    use crate::nn::cpu::tile::{Dot, Fused, Fused512, PANEL, ROWS, WIDE_PANEL, WIDE_ROWS, Widened, Widened512};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn f32_avx512(task: &Attending<'_, f32>) {
        attend_body::<f32, Fused512<1>, Fused512<1>, true, PANEL, PANEL, WIDE_ROWS>(task);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2(task: &Attending<'_, f32>) {
        attend_body::<f32, Fused<true>, Fused<true>, true, PANEL, PANEL, ROWS>(task);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub fn bf16_dot(task: &Attending<'_, bf16>) {
        attend_body::<bf16, Dot<2>, Dot<1>, true, WIDE_PANEL, PANEL, WIDE_ROWS>(task);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn bf16_avx512(task: &Attending<'_, bf16>) {
        attend_body::<bf16, Widened512<2>, Widened512<1>, true, WIDE_PANEL, PANEL, WIDE_ROWS>(task);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn bf16_avx2(task: &Attending<'_, bf16>) {
        attend_body::<bf16, Widened<true>, Widened<true>, true, WIDE_PANEL, PANEL, ROWS>(task);
    }
}

/// `K` multiplies queries with panels of `PK` keys, `V` shares with panels of `PV` channels.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
fn attend_body<E, K, V, const FMA: bool, const PK: usize, const PV: usize, const T: usize>(task: &Attending<'_, E>)
where
    E: Element,
    K: Multiply<E, PK, T>,
    V: Multiply<E, PV, T>,
{
    let sizes = task.sizes;
    let (width, block) = (sizes.width, sizes.block());
    let scale = 1.0 / (width as f32).sqrt();
    let panels = width.div_ceil(PV);
    // Filled up to whole tiles; what is past the last query repeats it and is not written.
    let mut scores = vec![0.0_f32; QUERIES * block];
    let mut shares = vec![E::default(); QUERIES * block];
    let mut sums = vec![[[0.0_f32; PV]; T]; QUERIES / T * panels];
    let mut states = [(LOWEST, 0.0_f32); QUERIES];
    for first in (0..sizes.keys).step_by(block) {
        let keys = first..(first + block).min(sizes.keys);
        score::<E, K, PK, T>(task, keys.clone(), block, &mut scores);
        for (query, state) in states.iter_mut().enumerate().take(task.count) {
            let row = &mut scores[query * block..][..keys.len()];
            let mask = task.inputs.mask.map(|mask| &mask[(task.first + query) * sizes.keys..][keys.clone()]);
            let kept = soften::<E, FMA>(row, scale, mask, state, &mut shares[query * block..][..keys.len()]);
            if first > 0 {
                for sums in &mut sums[query / T * panels..][..panels] {
                    // SAFETY: whoever chose `V` knows the processor.
                    unsafe { V::scale(&mut sums[query % T], kept) };
                }
            }
        }
        add_values::<E, V, PV, T>(task, keys, block, &shares, &mut sums);
    }
    store::<E, PV, T>(task, &sums, &states);
}

/// Where the first of a task's queries is.
fn origin<E>(task: &Attending<'_, E>) -> usize {
    let sizes = task.sizes;
    (task.head / sizes.heads * sizes.queries + task.first) * sizes.channels() + task.head % sizes.heads * sizes.width
}

/// Multiplies queries with a block of keys, into rows of `block` scores.
#[inline(always)]
fn score<E: Element, K: Multiply<E, PK, T>, const PK: usize, const T: usize>(
    task: &Attending<'_, E>,
    keys: Range<usize>,
    block: usize,
    scores: &mut [f32],
) {
    let (sizes, width, origin) = (task.sizes, task.sizes.width, origin(task));
    let of_panel = width.next_multiple_of(E::DEPTH) * PK;
    for tile in (0..task.count).step_by(T) {
        let mut vectors = [[std::ptr::null(); T]];
        for (slot, vector) in vectors[0].iter_mut().enumerate() {
            let query = (tile + slot).min(task.count - 1);
            *vector = task.inputs.queries[origin + query * sizes.channels()..][..width].as_ptr();
        }
        for panel in 0..keys.len().div_ceil(PK) {
            let packed = &task.packed.keys[(keys.start / PK + panel) * of_panel..][..of_panel];
            let mut found = [[0.0_f32; PK]; T];
            // SAFETY: each query has `width` channels, and so has the panel; whoever chose `K` knows the processor.
            unsafe { K::add(&mut found, &vectors, 0, width, packed.as_ptr()) };
            for (slot, row) in found.iter().enumerate() {
                scores[(tile + slot) * block + panel * PK..][..PK].copy_from_slice(row);
            }
        }
    }
}

/// Adds to each query's sums the values of a block of keys, by rows of `block` shares.
#[inline(always)]
fn add_values<E: Element, V: Multiply<E, PV, T>, const PV: usize, const T: usize>(
    task: &Attending<'_, E>,
    keys: Range<usize>,
    block: usize,
    shares: &[E],
    sums: &mut [Sums<PV, T>],
) {
    let panels = task.sizes.width.div_ceil(PV);
    let of_panel = task.sizes.keys.next_multiple_of(E::DEPTH) * PV;
    for tile in (0..task.count).step_by(T) {
        let mut vectors = [[std::ptr::null(); T]];
        for (slot, vector) in vectors[0].iter_mut().enumerate() {
            let query = (tile + slot).min(task.count - 1);
            *vector = shares[query * block..][..keys.len()].as_ptr();
        }
        for panel in 0..panels {
            let packed = &task.packed.values[panel * of_panel + keys.start * PV..];
            assert!(packed.len() >= keys.len().next_multiple_of(E::DEPTH) * PV, "a panel has a block's keys");
            // SAFETY: each row of shares has as many numbers as there are keys, and so has the panel; whoever chose `V` knows
            // the processor.
            unsafe { V::add(&mut sums[tile / T * panels + panel], &vectors, 0, keys.len(), packed.as_ptr()) };
        }
    }
}

/// Divides each query's sums by its shares' sum, into the result.
#[inline(always)]
fn store<E: Element, const PV: usize, const T: usize>(
    task: &Attending<'_, E>,
    sums: &[Sums<PV, T>],
    states: &[(f32, f32); QUERIES],
) {
    let (width, origin) = (task.sizes.width, origin(task));
    let panels = width.div_ceil(PV);
    for (query, (_, total)) in states.iter().enumerate().take(task.count) {
        let place = origin + query * task.sizes.channels();
        let share = 1.0 / total;
        for (panel, sums) in sums[query / T * panels..][..panels].iter().enumerate() {
            let (sums, mut row) = (&sums[query % T], [E::default(); PV]);
            for lane in 0..PV {
                row[lane] = E::narrow(sums[lane] * share);
            }
            let lanes = PV.min(width - panel * PV);
            // SAFETY: this task alone has this query of this head, inside the result.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), task.result.at(place + panel * PV), lanes) };
        }
    }
}

/// Turns a row of scores into shares relative to the largest score so far, and returns what earlier shares are to be
/// multiplied with.
#[inline(always)]
fn soften<E: Element, const FMA: bool>(
    row: &mut [f32],
    scale: f32,
    mask: Option<&[f32]>,
    state: &mut (f32, f32),
    shares: &mut [E],
) -> f32 {
    match mask {
        Some(mask) => row.iter_mut().zip(mask).for_each(|(x, mask)| *x = multiply_add::<FMA>(*x, scale, *mask)),
        None => row.iter_mut().for_each(|x| *x *= scale),
    }
    let (largest, total) = *state;
    let mut lanes = [largest; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let newest = lanes.iter().chain(rest).copied().fold(largest, f32::max);
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    let (into, into_rest) = shares.as_chunks_mut::<16>();
    for (chunk, into) in chunks.iter().zip(into) {
        for lane in 0..16 {
            // What is multiplied with values is what is summed, rounded or not: shares then add up to 1.
            into[lane] = E::narrow(math::exp::<FMA>(chunk[lane] - newest));
            lanes[lane] += into[lane].widen();
        }
    }
    for ((lane, x), into) in lanes.iter_mut().zip(rest).zip(into_rest) {
        *into = E::narrow(math::exp::<FMA>(*x - newest));
        *lane += into.widen();
    }
    let kept = math::exp::<FMA>(largest - newest);
    *state = (newest, multiply_add::<FMA>(total, kept, lanes.iter().sum()));
    kept
}
