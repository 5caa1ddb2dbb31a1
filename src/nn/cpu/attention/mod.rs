//! Attention without the matrix of all scores: keys go by in blocks, and each query keeps a running maximum, sum and
//! result (Milakov and Gimelshein 2018; Dao et al. 2022).

mod attend;
mod heads;

use attend::attend_body;
use half::bf16;
use heads::PackedHead;
use rayon::prelude::*;

use super::{
    element::Element,
    isa::Isa,
    lanes::LANES,
    shared::{Shared, filled},
    tile::{ROWS, WIDE_PANEL, tile_versions},
};

/// Queries of a task: whole tiles of either height.
const QUERIES: usize = 8 * ROWS;
/// Numbers of a block of keys, which stay in the second-level cache with as many of the values.
const BLOCK_NUMBERS: usize = 96 << 10;
/// The most keys of a block: a tile's scores for them stay in the first-level cache.
const MOST_KEYS: usize = 512;

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

    /// Whether a head's last vector of channels has room for one more, in which shares are summed as if it were a channel
    /// whose values are 1.
    fn has_spare_channel(&self) -> bool {
        !self.width.is_multiple_of(LANES)
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

tile_versions! {
    /// A task in f32.
    pub fn attend_f32(task: &Attending<'_, f32>) = attend_body::<f32, M, V, L, P, T>(task), f32
}

tile_versions! {
    /// A task in bf16.
    pub fn attend_bf16(task: &Attending<'_, bf16>) = attend_body::<bf16, M, V, L, P, T>(task), bf16
}
