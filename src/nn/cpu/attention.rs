//! Attention without the matrix of all scores: keys go by in blocks, and each query keeps a running maximum, sum and
//! result (Milakov and Gimelshein 2018; Dao et al. 2022).

use rayon::prelude::*;

use super::{
    isa::{Isa, multiply_add, versions},
    math,
    product::{Accumulator, PANEL, TILE},
};

/// Queries of a task.
const QUERIES: usize = 8 * TILE;
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

    /// Keys of a block: whole panels.
    fn block(&self) -> usize {
        (BLOCK_NUMBERS / self.width / PANEL * PANEL).clamp(4 * PANEL, 64 * PANEL)
    }
}

/// Queries, keys and values, each `[batch][token][head][channel]`, and what is added to scores, `[query][key]`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// As many as there are queries.
    pub queries: &'a [f32],
    /// As many as there are keys.
    pub keys: &'a [f32],
    /// As many as there are keys.
    pub values: &'a [f32],
    /// Added to scores.
    pub mask: Option<&'a [f32]>,
}

/// Attention into `result`, `[batch][query][head][channel]`.
pub fn attention(inputs: AttentionInputs<'_>, sizes: AttentionSizes, result: &mut [f32]) {
    let channels = sizes.channels();
    let (queries, keys) = (sizes.batch * sizes.queries * channels, sizes.batch * sizes.keys * channels);
    assert!(inputs.queries.len() == queries && result.len() == queries, "queries are whole");
    assert!(inputs.keys.len() == keys && inputs.values.len() == keys, "keys and values are whole");
    assert!(inputs.mask.is_none_or(|mask| mask.len() == sizes.queries * sizes.keys), "the mask is whole");
    let heads: Vec<PackedHead> =
        (0..sizes.batch * sizes.heads).into_par_iter().map(|head| PackedHead::new(&inputs, sizes, head)).collect();
    let isa = Isa::detected();
    let blocks = sizes.queries.div_ceil(QUERIES);
    let result = Shared(result.as_mut_ptr());
    (0..sizes.batch * sizes.heads * blocks).into_par_iter().for_each(|task| {
        let (head, block) = (task / blocks, task % blocks);
        let first = block * QUERIES;
        let part = Part { head, first, count: QUERIES.min(sizes.queries - first), result };
        attend(isa, &inputs, sizes, &heads[head], &part);
    });
}

/// One head's keys and values as products read them.
struct PackedHead {
    /// `[panel of keys][channel][PANEL]`.
    keys: Vec<f32>,
    /// `[panel of channels][key][PANEL]`.
    values: Vec<f32>,
}

impl PackedHead {
    fn new(inputs: &AttentionInputs<'_>, sizes: AttentionSizes, head: usize) -> Self {
        let (batch, head) = (head / sizes.heads, head % sizes.heads);
        let (channels, width) = (sizes.channels(), sizes.width);
        let row = |of: &[f32], token: usize| -> usize {
            debug_assert!(!of.is_empty());
            (batch * sizes.keys + token) * channels + head * width
        };
        let mut keys = vec![0.0; sizes.keys.div_ceil(PANEL) * width * PANEL];
        let mut values = vec![0.0; width.div_ceil(PANEL) * sizes.keys * PANEL];
        for token in 0..sizes.keys {
            let at = row(inputs.keys, token);
            let panel = &mut keys[token / PANEL * width * PANEL..];
            for (channel, key) in inputs.keys[at..at + width].iter().enumerate() {
                panel[channel * PANEL + token % PANEL] = *key;
            }
            for (panel, part) in inputs.values[at..at + width].chunks(PANEL).enumerate() {
                values[(panel * sizes.keys + token) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
        Self { keys, values }
    }
}

/// A result that threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every task writes its own queries of its own head, and nobody reads before all are done.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// One task: some queries of one head of one batch.
struct Part {
    head: usize,
    first: usize,
    count: usize,
    result: Shared,
}

versions! {
    fn attend = attend_body(inputs: &AttentionInputs<'_>, sizes: AttentionSizes, head: &PackedHead, part: &Part)
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a head has few channels")]
fn attend_body<const FMA: bool>(inputs: &AttentionInputs<'_>, sizes: AttentionSizes, head: &PackedHead, part: &Part) {
    let (width, block) = (sizes.width, sizes.block());
    let scale = 1.0 / (width as f32).sqrt();
    let panels = width.div_ceil(PANEL);
    let origin =
        (part.head / sizes.heads * sizes.queries + part.first) * sizes.channels() + part.head % sizes.heads * width;
    // Filled up to whole tiles; what is past the last query repeats it and is not written.
    let mut scores = vec![0.0_f32; QUERIES * block];
    let mut sums = vec![0.0_f32; QUERIES * panels * PANEL];
    let mut states = [(LOWEST, 0.0_f32); QUERIES];
    for first_key in (0..sizes.keys).step_by(block) {
        let keys = block.min(sizes.keys - first_key);
        for tile in (0..part.count).step_by(TILE) {
            let vectors = std::array::from_fn(|slot| {
                let query = (tile + slot).min(part.count - 1);
                inputs.queries[origin + query * sizes.channels()..][..width].as_ptr()
            });
            for panel in 0..keys.div_ceil(PANEL) {
                let packed = &head.keys[(first_key / PANEL + panel) * width * PANEL..][..width * PANEL];
                let mut found = Accumulator::ZERO;
                // SAFETY: each query has `width` channels, and so has the panel.
                unsafe { found.add_products::<FMA>(&vectors, width, packed) };
                for (slot, row) in found.0.iter().enumerate() {
                    scores[(tile + slot) * block + panel * PANEL..][..PANEL].copy_from_slice(row);
                }
            }
        }
        for (query, state) in states.iter_mut().enumerate().take(part.count) {
            let row = &mut scores[query * block..][..keys];
            let mask = inputs.mask.map(|mask| &mask[(part.first + query) * sizes.keys + first_key..][..keys]);
            let kept = soften::<FMA>(row, scale, mask, state);
            sums[query * panels * PANEL..][..panels * PANEL].iter_mut().for_each(|sum| *sum *= kept);
        }
        for tile in (0..part.count).step_by(TILE) {
            let vectors = std::array::from_fn(|slot| {
                let query = (tile + slot).min(part.count - 1);
                scores[query * block..][..keys].as_ptr()
            });
            for panel in 0..panels {
                let packed = &head.values[(panel * sizes.keys + first_key) * PANEL..][..keys * PANEL];
                let place = |slot: usize| ((tile + slot) * panels + panel) * PANEL;
                let mut found = Accumulator::ZERO;
                for (slot, row) in found.0.iter_mut().enumerate() {
                    row.copy_from_slice(&sums[place(slot)..][..PANEL]);
                }
                // SAFETY: each row of scores has `keys` numbers, and so has the panel.
                unsafe { found.add_products::<FMA>(&vectors, keys, packed) };
                for (slot, row) in found.0.iter().enumerate() {
                    sums[place(slot)..][..PANEL].copy_from_slice(row);
                }
            }
        }
    }
    for (query, (_, total)) in states.iter().enumerate().take(part.count) {
        let row = &sums[query * panels * PANEL..][..width];
        let place = part.result.0.wrapping_add(origin + query * sizes.channels());
        for (channel, sum) in row.iter().enumerate() {
            // SAFETY: this task alone has this query of this head, inside the result.
            unsafe { *place.add(channel) = sum / total };
        }
    }
}

/// Turns a row of scores into shares relative to the largest score so far, and returns what earlier shares are to be
/// multiplied with.
#[inline(always)]
fn soften<const FMA: bool>(row: &mut [f32], scale: f32, mask: Option<&[f32]>, state: &mut (f32, f32)) -> f32 {
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
    let (chunks, rest) = row.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = math::exp::<FMA>(*x - newest);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = math::exp::<FMA>(*x - newest);
        *lane += *x;
    }
    let kept = math::exp::<FMA>(largest - newest);
    *state = (newest, multiply_add::<FMA>(total, kept, lanes.iter().sum()));
    kept
}
