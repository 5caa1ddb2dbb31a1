//! Lanes in one vector of AVX-512.

use std::arch::x86_64::*;

use half::bf16;

use super::Lanes;

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
            unsafe fn load_f16(from: *const [u8; 2]) -> Self {
                // SAFETY: as above.
                Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
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
            unsafe fn reciprocal_rough(self) -> Self {
                // SAFETY: as above.
                Self(unsafe { _mm512_rcp14_ps(self.0) })
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
            unsafe fn fraction(self) -> Self {
                // SAFETY: as above. The first two bits say to round down.
                Self(unsafe { _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(self.0) })
            }

            #[inline(always)]
            unsafe fn times_power(self, power: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { _mm512_scalef_ps(self.0, power.0) })
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
