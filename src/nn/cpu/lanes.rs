//! Sixteen numbers of f32 at a time: what kernels compute with around the innermost products.
//!
//! Kernels are written once over [`Lanes`]. With AVX-512 and AVX2 its operations are instructions named one by one, which
//! leaves nothing to the compiler's taste; elsewhere they are loops over sixteen numbers, which it vectorises.

use half::bf16;

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
    unsafe fn add_exponent(self, whole: Self) -> Self {
        self.zip(whole, |x, whole| f32::from_bits(x.to_bits().wrapping_add(whole.to_bits() << 23)))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{LANES, Lanes};

    /// The operations of both kinds of AVX-512, which differ in how bf16 is rounded.
    macro_rules! avx512 {
        ($name:ident, $narrow:ident) => {
            impl Lanes for $name {
                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    // SAFETY: the caller's promise, as in all of these.
                    Self(unsafe { _mm512_set1_ps(value) })
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_loadu_ps(from) })
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_ps(to, self.0) };
                }

                #[inline(always)]
                unsafe fn load_bf16(from: *const bf16) -> Self {
                    // SAFETY: as above.
                    Self(unsafe {
                        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
                    })
                }

                #[inline(always)]
                unsafe fn store_bf16(self, to: *mut bf16) {
                    // SAFETY: as above.
                    unsafe { _mm256_storeu_si256(to.cast(), $narrow(self.0)) };
                }

                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_add_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn sub(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_sub_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_mul_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn div(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_div_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn mul_add(self, factor: Self, added: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, added.0) })
                }

                #[inline(always)]
                unsafe fn max(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_max_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn min(self, other: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_min_ps(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn abs(self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe { _mm512_abs_ps(self.0) })
                }

                #[inline(always)]
                unsafe fn if_negative(self, negative: Self, otherwise: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe {
                        let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, _mm512_setzero_ps());
                        _mm512_mask_blend_ps(below, otherwise.0, negative.0)
                    })
                }

                #[inline(always)]
                unsafe fn add_exponent(self, whole: Self) -> Self {
                    // SAFETY: as above.
                    Self(unsafe {
                        let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(whole.0));
                        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent))
                    })
                }

                #[inline(always)]
                unsafe fn sum(self) -> f32 {
                    // SAFETY: as above.
                    unsafe { _mm512_reduce_add_ps(self.0) }
                }

                #[inline(always)]
                unsafe fn largest(self) -> f32 {
                    // SAFETY: as above.
                    unsafe { _mm512_reduce_max_ps(self.0) }
                }
            }
        };
    }

    /// Lanes in a vector of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    avx512!(Avx512, narrow_avx512);

    /// As [`Avx512`], with the instruction that rounds to bf16; numbers below f32's normal ones are zero to it.
    #[derive(Clone, Copy)]
    pub struct Avx512Bf16(__m512);

    avx512!(Avx512Bf16, narrow_avx512_bf16);

    /// # Safety
    ///
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn narrow_avx512(wide: __m512) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_castps_si512(wide);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            // What is no number stays none, whatever its bits are.
            let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(wide, wide);
            let kept = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(0x40_0000));
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
        }
    }

    /// # Safety
    ///
    /// The processor has AVX-512 with bf16.
    #[inline(always)]
    unsafe fn narrow_avx512_bf16(wide: __m512) -> __m256i {
        // SAFETY: the caller's promise, and both types are 256 bits that mean the same.
        unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(wide)) }
    }

    /// Lanes in two vectors of AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    /// Lanes of one of the vectors.
    const HALF: usize = LANES / 2;

    impl Avx2 {
        /// # Safety
        ///
        /// The processor has AVX2.
        #[inline(always)]
        unsafe fn widen(from: *const bf16) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
        }

        /// bf16's bits in the lower half of each lane.
        ///
        /// # Safety
        ///
        /// The processor has AVX2.
        #[inline(always)]
        unsafe fn narrow(wide: __m256) -> __m256i {
            // SAFETY: the caller's promise.
            unsafe {
                let bits = _mm256_castps_si256(wide);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                // What is no number stays none, whatever its bits are.
                let none = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(wide, wide));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, none))
            }
        }

        /// # Safety
        ///
        /// The processor has AVX2.
        #[inline(always)]
        unsafe fn choose(test: __m256, negative: __m256, otherwise: __m256) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe {
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(test, _mm256_setzero_ps());
                _mm256_blendv_ps(otherwise, negative, below)
            }
        }

        /// # Safety
        ///
        /// The processor has AVX2.
        #[inline(always)]
        unsafe fn shift(value: __m256, whole: __m256) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(whole));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent))
            }
        }
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's promise, as in all of these.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(HALF), self.1);
            }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: as above.
            unsafe { Self(Self::widen(from), Self::widen(from.add(HALF))) }
        }

        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut bf16) {
            // SAFETY: as above.
            unsafe {
                // Packing takes the vectors' quarters in turn.
                let packed = _mm256_packus_epi32(Self::narrow(self.0), Self::narrow(self.1));
                _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
            }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, added: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, added.0), _mm256_fmadd_ps(self.1, factor.1, added.1)) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
        }

        #[inline(always)]
        unsafe fn abs(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
            }
        }

        #[inline(always)]
        unsafe fn if_negative(self, negative: Self, otherwise: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Self(Self::choose(self.0, negative.0, otherwise.0), Self::choose(self.1, negative.1, otherwise.1))
            }
        }

        #[inline(always)]
        unsafe fn add_exponent(self, whole: Self) -> Self {
            // SAFETY: as above.
            unsafe { Self(Self::shift(self.0, whole.0), Self::shift(self.1, whole.1)) }
        }
    }
}
