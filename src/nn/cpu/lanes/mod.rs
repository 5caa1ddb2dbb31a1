//! Sixteen numbers of f32 at a time: what kernels compute with around the innermost products.
//!
//! Kernels are written once over [`Lanes`]. With AVX-512 and AVX2 its operations are instructions named one by one, which
//! leaves nothing to the compiler's taste; elsewhere they are loops over sixteen numbers, which it vectorises.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::{Avx512, Avx512Bf16};

use half::{bf16, f16};

use super::{element::Element, isa::multiply_add};

/// Numbers of a [`Lanes`].
pub const LANES: usize = 16;

/// Sixteen f32.
///
/// # Safety
///
/// Of every operation: the processor has the instructions of the implementation, and pointers are to [`LANES`] numbers.
pub trait Lanes: Copy {
    /// The same number in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Reads f32.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes f32.
    unsafe fn store(self, to: *mut f32);
    /// Reads f16, wherever they lie, lower byte first.
    unsafe fn load_f16(from: *const [u8; 2]) -> Self;
    /// Reads bf16.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// Writes bf16, rounded to nearest, to even where two are as near.
    unsafe fn store_bf16(self, to: *mut bf16);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`.
    unsafe fn div(self, other: Self) -> Self;
    /// `1 / self` within 4e-4 of itself, a tenth of what bf16 rounds, for numbers of 2^-126 to 2^126.
    unsafe fn reciprocal_rough(self) -> Self;
    /// `self * factor + added`, rounded once where the processor can.
    unsafe fn mul_add(self, factor: Self, added: Self) -> Self;
    /// The larger of each two; `other` where one is no number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each two; `other` where one is no number.
    unsafe fn min(self, other: Self) -> Self;
    /// `self` without its sign.
    unsafe fn abs(self) -> Self;
    /// `negative` where `self` is below zero, else `otherwise`.
    unsafe fn if_negative(self, negative: Self, otherwise: Self) -> Self;
    /// What is left of numbers above the whole number below them, of -126 to 127; of smaller ones any number of 0 to 1.
    unsafe fn fraction(self) -> Self;
    /// `self`, of 1 to 2, times 2 to the whole number below `power`, of -126 to 127; of smaller ones at most 2^-125.
    unsafe fn times_power(self, power: Self) -> Self;
    /// `self` times 2 to the whole number that is in the lowest bits of `whole`: see [`math`](super::math).
    unsafe fn add_exponent(self, whole: Self) -> Self;

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has as many numbers; the rest is the caller's promise.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        let mut lanes = unsafe { self.to_array() };
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        let mut lanes = unsafe { self.to_array() };
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] = lanes[lane].max(lanes[lane + half]);
            }
        }
        lanes[0]
    }
}

/// Reads up to sixteen numbers; the lanes of those that are not there are zero.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn read<E: Element, L: Lanes>(from: &[E]) -> L {
    // SAFETY: the caller's promise, and the length that was asked for.
    unsafe { if from.len() == LANES { E::load(from.as_ptr()) } else { load_some(from) } }
}

/// Writes the first `count` lanes.
///
/// # Safety
///
/// `to` is to `count` numbers, and the processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn write<E: Element, L: Lanes>(value: L, to: *mut E, count: usize) {
    // SAFETY: the caller's promise, and the count that was asked for.
    unsafe { if count == LANES { E::store(value, to) } else { store_some(value, to, count) } };
}

/// Reads the first lanes from `from`; the others are zero.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn load_some<E: Element, L: Lanes>(from: &[E]) -> L {
    let mut all = [E::default(); LANES];
    all[..from.len()].copy_from_slice(from);
    // SAFETY: the array has as many numbers; the rest is the caller's promise.
    unsafe { E::load(all.as_ptr()) }
}

/// Writes the first `count` lanes to `to`.
///
/// # Safety
///
/// `to` is to `count` numbers, and the processor has the instructions of `L`.
#[inline(always)]
unsafe fn store_some<E: Element, L: Lanes>(value: L, to: *mut E, count: usize) {
    let mut all = [E::default(); LANES];
    assert!(count <= LANES, "there are no more lanes");
    // SAFETY: the array has as many numbers; the rest is the caller's promise.
    unsafe {
        E::store(value, all.as_mut_ptr());
        std::ptr::copy_nonoverlapping(all.as_ptr(), to, count);
    }
}

/// The least power of 2 that is a normal number.
const LEAST_POWER: f32 = -126.0;
/// 1.5 * 2^23, beside which there is no room for fractions.
const WHOLE: f32 = 12_582_912.0;

/// The whole number below `x`, of -126 to 127, and -126 of smaller ones. The library's own would be called for each number.
#[inline(always)]
fn floor(x: f32) -> f32 {
    // What is no number stays none.
    let x = if x < LEAST_POWER { LEAST_POWER } else { x };
    let nearest = (x + WHOLE) - WHOLE;
    if nearest > x { nearest - 1.0 } else { nearest }
}

/// Lanes in an array, `FMA` where the processor multiplies and adds in one instruction.
#[derive(Clone, Copy)]
pub struct Plain<const FMA: bool>([f32; LANES]);

impl<const FMA: bool> Plain<FMA> {
    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        lanes.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = of(*lane, other));
        Self(lanes)
    }
}

impl<const FMA: bool> Lanes for Plain<FMA> {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const [u8; 2]) -> Self {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[[u8; 2]; LANES]>().read() };
        Self(halves.map(|half| f16::from_le_bytes(half).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        let narrow = unsafe { from.cast::<[bf16; LANES]>().read_unaligned() };
        Self(narrow.map(Element::widen))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        let narrow: [bf16; LANES] = self.0.map(Element::narrow);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(narrow) };
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn reciprocal_rough(self) -> Self {
        Self(self.0.map(|x| 1.0 / x))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, added: Self) -> Self {
        let mut lanes = self.0;
        for (lane, (factor, added)) in lanes.iter_mut().zip(factor.0.iter().zip(added.0)) {
            *lane = multiply_add::<FMA>(*lane, *factor, added);
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    unsafe fn if_negative(self, negative: Self, otherwise: Self) -> Self {
        let mut lanes = self.0;
        for (lane, (negative, otherwise)) in lanes.iter_mut().zip(negative.0.into_iter().zip(otherwise.0)) {
            *lane = if *lane < 0.0 { negative } else { otherwise };
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn fraction(self) -> Self {
        self.zip(self, |x, _| if x < LEAST_POWER { 0.0 } else { x - floor(x) })
    }

    #[inline(always)]
    unsafe fn times_power(self, power: Self) -> Self {
        self.zip(power, |x, power| {
            // In the lowest bits of this sum is the whole number.
            let whole = (floor(power) + WHOLE).to_bits();
            f32::from_bits(x.to_bits().wrapping_add(whole << 23))
        })
    }

    #[inline(always)]
    unsafe fn add_exponent(self, whole: Self) -> Self {
        self.zip(whole, |x, whole| f32::from_bits(x.to_bits().wrapping_add(whole.to_bits() << 23)))
    }
}
