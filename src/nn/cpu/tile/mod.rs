//! The innermost loops: a tile of sums that stays in registers while its inputs and weights go by.
//!
//! Weights come in panels of `P` outputs, `[tap][group of inputs][P][inputs of a group]`, in the order in which they are
//! read. A row is a token or a pixel; for each tap it has a vector of inputs somewhere.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod versions;

use std::marker::PhantomData;

use half::bf16;
pub(crate) use versions::tile_versions;

use super::{element::Element, isa::multiply_add, lanes::LANES};

/// Outputs of a panel where vectors are of 256 bits or less: two vectors for each of 6 rows fill 12 of 16 registers, and
/// leave room for weights and an input.
pub const PANEL: usize = 16;
/// Outputs of a panel where there are 32 registers, or numbers are in pairs.
pub const WIDE_PANEL: usize = 32;
/// Rows of a tile with 16 registers.
pub const ROWS: usize = 6;
/// Rows of a tile with 32 registers.
pub const WIDE_ROWS: usize = 8;

/// Where a tile's sums are: `T` rows, `stride` numbers apart, of `P` outputs each.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// The first row.
    pub at: *mut f32,
    /// From a row to the next.
    pub stride: usize,
    /// Whether sums begin at zero, whatever is there, instead of with what is there.
    pub fresh: bool,
}

impl Rows {
    #[inline(always)]
    fn row(self, row: usize) -> *mut f32 {
        self.at.wrapping_add(row * self.stride)
    }
}

/// A way to multiply and add for a tile.
pub trait Multiply<E: Element, const P: usize, const T: usize> {
    /// Adds to `sums`, for each tap, the products of each row's vector, from its number `skip` on, with the panel.
    ///
    /// # Safety
    ///
    /// `sums` are numbers that nothing else uses, and have been set unless they are fresh. Each of `vectors` is to
    /// `skip + inputs` numbers or more; `panel` is to as many groups of inputs for each tap, filled up with zeros to whole
    /// groups. The processor has the instructions of the implementation.
    unsafe fn add(sums: Rows, vectors: &[[*const E; T]], skip: usize, inputs: usize, panel: *const E);
}

/// Puts sums in an array, of which the compiler makes registers.
///
/// # Safety
///
/// As of [`Multiply::add`].
#[inline(always)]
unsafe fn kept<const P: usize, const T: usize>(sums: Rows, first: usize) -> [[f32; P]; T] {
    let mut kept = [[0.0; P]; T];
    if !sums.fresh {
        for (row, kept) in kept.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *kept = unsafe { sums.row(row).add(first).cast::<[f32; P]>().read_unaligned() };
        }
    }
    kept
}

/// Puts sums back.
///
/// # Safety
///
/// As of [`Multiply::add`].
#[inline(always)]
unsafe fn put<const P: usize, const T: usize>(kept: &[[f32; P]; T], sums: Rows, first: usize) {
    for (row, kept) in kept.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { sums.row(row).add(first).cast::<[f32; P]>().write_unaligned(*kept) };
    }
}

/// f32 by f32, as the compiler vectorises it for its caller's instruction set.
pub struct Fused<const FMA: bool>;

impl<const FMA: bool, const P: usize, const T: usize> Multiply<f32, P, T> for Fused<FMA> {
    #[inline(always)]
    unsafe fn add(sums: Rows, vectors: &[[*const f32; T]], skip: usize, inputs: usize, panel: *const f32) {
        // SAFETY: the caller's promise.
        let mut kept = unsafe { kept::<P, T>(sums, 0) };
        let mut weights = panel;
        for vectors in vectors {
            let rows: [*const f32; T] = std::array::from_fn(|row| vectors[row].wrapping_add(skip));
            for input in 0..inputs {
                // SAFETY: the panel has this row, by the caller's promise.
                let lanes: [f32; P] = unsafe { weights.cast::<[f32; P]>().read_unaligned() };
                weights = weights.wrapping_add(P);
                for row in 0..T {
                    // SAFETY: the vector has this input, by the caller's promise.
                    let value = unsafe { *rows[row].add(input) };
                    for lane in 0..P {
                        kept[row][lane] = multiply_add::<FMA>(value, lanes[lane], kept[row][lane]);
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { put(&kept, sums, 0) };
    }
}

/// bf16 by bf16 without an instruction for it: both are widened to f32. The second of a pair is added first, as
/// `vdpbf16ps` does.
pub struct Widened<const FMA: bool>;

impl<const FMA: bool, const P: usize, const T: usize> Multiply<bf16, P, T> for Widened<FMA> {
    #[inline(always)]
    unsafe fn add(sums: Rows, vectors: &[[*const bf16; T]], skip: usize, inputs: usize, panel: *const bf16) {
        const { assert!(P.is_multiple_of(LANES), "a panel is whole vectors") };
        let pairs = inputs / 2;
        for first in (0..P).step_by(LANES) {
            // SAFETY: the caller's promise.
            let mut kept = unsafe { kept::<LANES, T>(sums, first) };
            let mut weights = panel.cast::<u32>().wrapping_add(first);
            for vectors in vectors {
                let rows: [*const u16; T] = std::array::from_fn(|row| vectors[row].wrapping_add(skip).cast::<u16>());
                for pair in 0..pairs {
                    // SAFETY: the vectors have this pair and the panel its weights, by the caller's promise.
                    let words =
                        std::array::from_fn(|row| unsafe { rows[row].cast::<u32>().add(pair).read_unaligned() });
                    // SAFETY: as above.
                    unsafe { add_pair::<FMA, T>(&mut kept, &words, weights) };
                    weights = weights.wrapping_add(P);
                }
                if inputs % 2 == 1 {
                    // SAFETY: as above; the last input has no second, whose weight is zero.
                    let words = std::array::from_fn(|row| u32::from(unsafe { *rows[row].add(inputs - 1) }));
                    // SAFETY: as above.
                    unsafe { add_pair::<FMA, T>(&mut kept, &words, weights) };
                    weights = weights.wrapping_add(P);
                }
            }
            // SAFETY: the caller's promise.
            unsafe { put(&kept, sums, first) };
        }
    }
}

/// Adds to rows of sums the products of a pair of each with pairs of weights.
///
/// # Safety
///
/// `weights` is to [`LANES`] pairs.
#[inline(always)]
unsafe fn add_pair<const FMA: bool, const T: usize>(
    kept: &mut [[f32; LANES]; T],
    words: &[u32; T],
    weights: *const u32,
) {
    // SAFETY: the caller's promise.
    let pairs: [u32; LANES] = unsafe { weights.cast::<[u32; LANES]>().read_unaligned() };
    for second in [true, false] {
        let widen = |pair: u32| f32::from_bits(if second { pair & 0xffff_0000 } else { pair << 16 });
        let mut lanes = [0.0; LANES];
        for lane in 0..LANES {
            lanes[lane] = widen(pairs[lane]);
        }
        for row in 0..T {
            let value = widen(words[row]);
            for lane in 0..LANES {
                kept[row][lane] = multiply_add::<FMA>(value, lanes[lane], kept[row][lane]);
            }
        }
    }
}

/// A way to multiply and add for panels of several widths.
pub trait Panels<E: Element, const T: usize> {
    /// The most vectors of [`LANES`] outputs in a panel.
    const MOST_VECTORS: usize;

    /// As [`Multiply::add`], with a panel of `vectors` vectors of outputs.
    ///
    /// # Safety
    ///
    /// As of [`Multiply::add`]; there are no more vectors than the most.
    unsafe fn add(vectors: usize, sums: Rows, rows: &[[*const E; T]], skip: usize, inputs: usize, panel: *const E);
}

/// The vectors of each panel that `outputs` outputs are divided in: pairs, and three for an odd count.
pub fn panel_vectors(outputs: usize, most: usize) -> impl Iterator<Item = usize> {
    let vectors = outputs.div_ceil(LANES);
    let (first, others) = match most {
        1 => (None, 1),
        _ if vectors % 2 == 1 => (Some(most.min(3).min(vectors)), 2),
        _ => (None, 2),
    };
    let rest = (vectors - first.unwrap_or(0)) / others;
    first.into_iter().chain(std::iter::repeat_n(others, rest))
}

/// Panels of one vector.
pub struct Narrow<M>(PhantomData<M>);

impl<E: Element, M: Multiply<E, LANES, T>, const T: usize> Panels<E, T> for Narrow<M> {
    const MOST_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn add(_vectors: usize, sums: Rows, rows: &[[*const E; T]], skip: usize, inputs: usize, panel: *const E) {
        // SAFETY: the caller's promise.
        unsafe { M::add(sums, rows, skip, inputs, panel) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_every_output_and_no_panel_is_wider_than_may_be() {
        for most in [1, 3] {
            for outputs in 1..700 {
                let vectors: Vec<usize> = panel_vectors(outputs, most).collect();
                assert!(vectors.iter().all(|vectors| (1..=most).contains(vectors)), "{outputs}: {vectors:?}");
                assert_eq!(vectors.iter().sum::<usize>(), outputs.div_ceil(LANES), "{outputs}: {vectors:?}");
            }
        }
    }
}
