//! The loops with instructions of AVX-512 named one by one: left to itself the compiler gathers a tile's rows into vectors,
//! many times as slowly. There are loops where closures would be shorter: a closure would not have the caller's
//! instructions.

#![expect(clippy::needless_range_loop, reason = "an iterator's closures would not have the caller's instructions")]

use std::{
    arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_and_si512, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps,
    },
    marker::PhantomData,
};

use half::bf16;

use super::{LANES, Multiply, Panels, Rows};

/// A tile's sums in registers: `V` vectors of 16 lanes for each row.
type Registers<const V: usize, const T: usize> = [[__m512; V]; T];

/// Puts sums in registers.
///
/// # Safety
///
/// As of [`Multiply::add`], and the processor has AVX-512.
#[inline(always)]
unsafe fn load<const P: usize, const V: usize, const T: usize>(sums: Rows) -> Registers<V, T> {
    const { assert!(P == V * LANES, "a panel is whole vectors") };
    // SAFETY: a row of sums is `V` vectors; the rest is the caller's promise.
    unsafe {
        let mut kept = [[_mm512_setzero_ps(); V]; T];
        if !sums.fresh {
            for row in 0..T {
                for part in 0..V {
                    kept[row][part] = _mm512_loadu_ps(sums.row(row).add(part * LANES));
                }
            }
        }
        kept
    }
}

/// Puts sums back.
///
/// # Safety
///
/// As of [`Multiply::add`], and the processor has AVX-512.
#[inline(always)]
unsafe fn store<const V: usize, const T: usize>(kept: &Registers<V, T>, sums: Rows) {
    // SAFETY: a row of sums is `V` vectors; the rest is the caller's promise.
    unsafe {
        for row in 0..T {
            for part in 0..V {
                _mm512_storeu_ps(sums.row(row).add(part * LANES), kept[row][part]);
            }
        }
    }
}

/// f32 by f32 with AVX-512.
pub struct Fused512<const V: usize>;

impl<const V: usize, const P: usize, const T: usize> Multiply<f32, P, T> for Fused512<V> {
    #[inline(always)]
    unsafe fn add(sums: Rows, vectors: &[[*const f32; T]], skip: usize, inputs: usize, panel: *const f32) {
        // SAFETY: the processor has the instructions, the vectors have each input that is read and the panel its weights,
        // all by the caller's promise.
        unsafe {
            let mut kept: Registers<V, T> = load::<P, V, T>(sums);
            let mut weights = panel;
            for vectors in vectors {
                let rows: [*const f32; T] = std::array::from_fn(|row| vectors[row].wrapping_add(skip));
                for input in 0..inputs {
                    let mut lanes = [_mm512_setzero_ps(); V];
                    for part in 0..V {
                        lanes[part] = _mm512_loadu_ps(weights.add(part * 16));
                    }
                    weights = weights.add(P);
                    for row in 0..T {
                        let value = _mm512_set1_ps(*rows[row].add(input));
                        for part in 0..V {
                            kept[row][part] = _mm512_fmadd_ps(value, lanes[part], kept[row][part]);
                        }
                    }
                }
            }
            store(&kept, sums);
        }
    }
}

/// How pairs of bf16 are multiplied and added.
trait Pair {
    /// Adds to a row of sums the products of a pair with pairs of weights.
    ///
    /// # Safety
    ///
    /// The processor has the instructions.
    unsafe fn add<const V: usize>(row: &mut [__m512; V], pair: i32, weights: &[__m512i; V]);
}

/// bf16 by bf16, pair by pair as `W` does it, in `V` vectors of 16 lanes.
pub struct Paired<W, const V: usize>(PhantomData<W>);

/// With `vdpbf16ps`.
pub type Dot<const V: usize> = Paired<DotProduct, V>;
/// With AVX-512 that has no instruction for it: both are widened to f32, as by [`Widened`](super::Widened).
pub type Widened512<const V: usize> = Paired<Widening, V>;

impl<W: Pair, const V: usize, const P: usize, const T: usize> Multiply<bf16, P, T> for Paired<W, V> {
    #[inline(always)]
    unsafe fn add(sums: Rows, vectors: &[[*const bf16; T]], skip: usize, inputs: usize, panel: *const bf16) {
        // SAFETY: the processor has the instructions, the vectors have each pair that is read and the panel its weights, all
        // by the caller's promise; the last of an odd count of inputs has no second, whose weight is zero.
        unsafe {
            let mut kept: Registers<V, T> = load::<P, V, T>(sums);
            let mut weights = panel;
            for vectors in vectors {
                let rows: [*const bf16; T] = std::array::from_fn(|row| vectors[row].wrapping_add(skip));
                for pair in 0..inputs / 2 {
                    let lanes = load_pairs::<V>(weights);
                    weights = weights.add(2 * P);
                    for row in 0..T {
                        W::add(&mut kept[row], rows[row].add(2 * pair).cast::<i32>().read_unaligned(), &lanes);
                    }
                }
                if inputs % 2 == 1 {
                    let lanes = load_pairs::<V>(weights);
                    weights = weights.add(2 * P);
                    for row in 0..T {
                        W::add(&mut kept[row], i32::from((*rows[row].add(inputs - 1)).to_bits()), &lanes);
                    }
                }
            }
            store(&kept, sums);
        }
    }
}

/// Panels of up to three vectors, which for eight rows fill 24 of 32 registers.
macro_rules! panels {
    ($(#[$doc:meta])* $name:ident, $number:ty, $way:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl<const T: usize> Panels<$number, T> for $name {
            const MOST_VECTORS: usize = 3;

            #[inline(always)]
            unsafe fn add(
                vectors: usize,
                sums: Rows,
                rows: &[[*const $number; T]],
                skip: usize,
                inputs: usize,
                panel: *const $number,
            ) {
                // SAFETY: the caller's promise.
                unsafe {
                    match vectors {
                        1 => <$way<1> as Multiply<_, LANES, T>>::add(sums, rows, skip, inputs, panel),
                        2 => <$way<2> as Multiply<_, { 2 * LANES }, T>>::add(sums, rows, skip, inputs, panel),
                        _ => <$way<3> as Multiply<_, { 3 * LANES }, T>>::add(sums, rows, skip, inputs, panel),
                    }
                }
            }
        }
    };
}

panels! {
    /// bf16, with [`Dot`].
    DotPanels, bf16, Dot
}
panels! {
    /// f32, with [`Fused512`].
    FusedPanels512, f32, Fused512
}

/// Pairs of weights, in registers.
///
/// # Safety
///
/// `weights` is to `V` vectors of pairs, and the processor has AVX-512.
#[inline(always)]
unsafe fn load_pairs<const V: usize>(weights: *const bf16) -> [__m512i; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut lanes = [_mm512_setzero_si512(); V];
        for part in 0..V {
            lanes[part] = _mm512_loadu_si512(weights.add(part * 32).cast());
        }
        lanes
    }
}

/// `vdpbf16ps`.
pub struct DotProduct;

impl Pair for DotProduct {
    #[inline(always)]
    unsafe fn add<const N: usize>(row: &mut [__m512; N], pair: i32, weights: &[__m512i; N]) {
        // SAFETY: the processor is as the caller promises, and both types are 512 bits that mean the same.
        unsafe {
            let value = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair));
            for part in 0..N {
                let lanes = std::mem::transmute::<__m512i, __m512bh>(weights[part]);
                row[part] = _mm512_dpbf16_ps(row[part], value, lanes);
            }
        }
    }
}

/// Two multiplications in f32.
pub struct Widening;

impl Pair for Widening {
    #[inline(always)]
    unsafe fn add<const N: usize>(row: &mut [__m512; N], pair: i32, weights: &[__m512i; N]) {
        // SAFETY: the processor is as the caller promises.
        unsafe {
            let (pair, upper) = (_mm512_set1_epi32(pair), _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            let second_value = _mm512_castsi512_ps(_mm512_and_si512(pair, upper));
            let first_value = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
            for part in 0..N {
                let second = _mm512_castsi512_ps(_mm512_and_si512(weights[part], upper));
                let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights[part]));
                row[part] = _mm512_fmadd_ps(second_value, second, row[part]);
                row[part] = _mm512_fmadd_ps(first_value, first, row[part]);
            }
        }
    }
}
