//! Lanes in two vectors of AVX2.

use std::arch::x86_64::*;

use half::bf16;

use super::{LANES, LEAST_POWER, Lanes, WHOLE};

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
    unsafe fn load_f16(from: *const [u8; 2]) -> Self {
        // SAFETY: as above.
        unsafe {
            Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(HALF).cast())))
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
    unsafe fn reciprocal_rough(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_rcp_ps(self.0) }, unsafe { _mm256_rcp_ps(self.1) })
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
        unsafe { Self(Self::choose(self.0, negative.0, otherwise.0), Self::choose(self.1, negative.1, otherwise.1)) }
    }

    #[inline(always)]
    unsafe fn fraction(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = Self::splat(LEAST_POWER).max(self);
            x.sub(Self(_mm256_floor_ps(x.0), _mm256_floor_ps(x.1)))
        }
    }

    #[inline(always)]
    unsafe fn times_power(self, power: Self) -> Self {
        // SAFETY: as above. The lowest bits of the sums are the whole numbers.
        unsafe {
            let power = Self::splat(LEAST_POWER).max(power);
            let whole = Self(_mm256_floor_ps(power.0), _mm256_floor_ps(power.1));
            self.add_exponent(whole.add(Self::splat(WHOLE)))
        }
    }

    #[inline(always)]
    unsafe fn add_exponent(self, whole: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(Self::shift(self.0, whole.0), Self::shift(self.1, whole.1)) }
    }
}
