//! Elementary functions in f32, sixteen numbers at a time.

use super::{element::Element, lanes::Lanes};

/// Adding and taking away 1.5 * 2^23 rounds to a whole number, ties to even; in between, the whole number is in the
/// lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// `2^x` by a polynomial of the highest power first, times 2 to a whole number. Numbers below -126 give 2^-126, which is
/// nothing beside 1; `x` is at most 127.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn power_of_two<L: Lanes>(x: L, coefficients: &[f32]) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        // In this order what is no number stays none.
        let x = L::splat(-126.0).max(x);
        let shifted = x.add(L::splat(ROUNDER));
        let r = x.sub(shifted.sub(L::splat(ROUNDER)));
        let (first, rest) = coefficients.split_first().expect("a polynomial has coefficients");
        let mut p = L::splat(*first);
        for coefficient in rest {
            p = p.mul_add(r, L::splat(*coefficient));
        }
        p.mul_add(r, L::splat(1.0)).add_exponent(shifted)
    }
}

/// `2^x` within 2e-7 of itself, for `x` of -126 to 127; smaller numbers give 2^-126.
///
/// The coefficients make the largest relative error for `|r| <= 1/2` smallest, with 1 for `r = 0`.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "the best coefficient is not quite ln 2")]
pub unsafe fn exp2<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { power_of_two(x, &[1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147]) }
}

/// As [`exp2`], within 9e-5, a twentieth of what bf16 rounds; smaller numbers give at most 2^-125.
///
/// The coefficients make the largest relative error for `r` of 0 to 1 smallest, with 1 for `r = 0`.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn exp2_rough<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let r = x.fraction();
        let p = L::splat(7.706_717_4e-2).mul_add(r, L::splat(0.227_644_85)).mul_add(r, L::splat(0.695_116_8));
        p.mul_add(r, L::splat(1.0)).times_power(x)
    }
}

/// `e^x`, within 2 units in the last place, for `x` of -87 to 88; what is beyond gives e^-87 or e^88.
///
/// `x = n ln 2 + r` with a whole `n` and `|r| <= ln 2 / 2`; `e^r` by a polynomial (Cephes' `expf`), `2^n` by the exponent's
/// bits.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's promise.
    unsafe {
        let x = L::splat(88.0).min(L::splat(-87.0).max(x));
        let shifted = x.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUNDER));
        let n = shifted.sub(L::splat(ROUNDER));
        let r = n.mul_add(L::splat(-LN_2_LOW), n.mul_add(L::splat(-LN_2_HIGH), x));
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_add(r, L::splat(coefficient));
        }
        p.mul_add(r.mul(r), r).add(L::splat(1.0)).add_exponent(shifted)
    }
}

/// As [`exp`], within 1e-4 for `x` of -87 to 87.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn exp_rough<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { exp2_rough(L::splat(126.0).min(x.mul(L::splat(std::f32::consts::LOG2_E)))) }
}

/// `x σ(x)`, as exactly as `E` can tell.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn silu<E: Element, L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { x.mul(E::reciprocal(E::exp(L::splat(0.0).sub(x)).add(L::splat(1.0)))) }
}

/// `x σ(1.702 x)`, as exactly as `E` can tell.
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn quick_gelu<E: Element, L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { x.mul(E::reciprocal(E::exp(x.mul(L::splat(-1.702))).add(L::splat(1.0)))) }
}

/// `x Φ(x)`, as exactly as `E` can tell: in f32 with the error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
///
/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
pub unsafe fn gelu<E: Element, L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let z = x.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2)).abs();
        let one = L::splat(1.0);
        let t = E::reciprocal(z.mul_add(L::splat(0.327_591_1), one));
        let mut p = L::splat(1.061_405_4);
        for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = p.mul_add(t, L::splat(coefficient));
        }
        // Half of the complement of the error function of |x|/√2, which keeps its digits where it is small.
        let half = p.mul(t).mul(E::exp(L::splat(0.0).sub(z.mul(z)))).mul(L::splat(0.5));
        x.mul(x.if_negative(half, one.sub(half)))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::nn::cpu::lanes::{LANES, Plain};

    /// What a function of lanes makes of one number.
    macro_rules! one {
        ($function:ident of $number:ty) => {
            |x: f32| {
                // SAFETY: these lanes need no instructions.
                unsafe { $function::<$number, Plain<false>>(Plain::<false>::splat(x)).to_array()[0] }
            }
        };
        ($function:ident) => {
            |x: f32| {
                // SAFETY: these lanes need no instructions.
                let lanes = unsafe { $function(Plain::<false>::splat(x)).to_array() };
                assert_eq!(lanes.map(f32::to_bits), [lanes[0].to_bits(); LANES]);
                lanes[0]
            }
        };
    }

    fn furthest(
        (low, high): (i32, i32),
        of: impl Fn(f32) -> f32,
        wanted: impl Fn(f64) -> f64,
        scale: impl Fn(f64) -> f64,
    ) -> f64 {
        let points = (low * 100..=high * 100).map(|i| i as f32 / 100.0);
        points.map(|x| (f64::from(of(x)) - wanted(f64::from(x))).abs() / scale(f64::from(x))).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_those_of_f64_within_their_error() {
        assert!(furthest((-87, 88), one!(exp), f64::exp, f64::exp) < 3e-7);
        assert!(furthest((-126, 127), one!(exp2), f64::exp2, f64::exp2) < 2e-7);
        assert!(furthest((-126, 127), one!(exp2_rough), f64::exp2, f64::exp2) < 9e-5);
        assert!(furthest((-87, 87), one!(exp_rough), f64::exp, f64::exp) < 1e-4);
        let size = |x: f64| x.abs().max(1.0);
        assert!(furthest((-90, 88), one!(silu of f32), |x| x / (1.0 + (-x).exp()), size) < 3e-7);
        assert!(furthest((-90, 88), one!(quick_gelu of f32), |x| x / (1.0 + (-1.702 * x).exp()), size) < 3e-7);
        // A tenth of what bf16 rounds.
        let of_bf16 = |x: f64| x.abs().max(0.1);
        assert!(furthest((-80, 88), one!(silu of bf16), |x| x / (1.0 + (-x).exp()), of_bf16) < 4e-4);
        assert!(furthest((-50, 88), one!(quick_gelu of bf16), |x| x / (1.0 + (-1.702 * x).exp()), of_bf16) < 4e-4);
        // The normal distribution's function by Simpson's rule from far below.
        let normal = |x: f64| {
            let (low, parts) = (-12.0_f64, 4000);
            let h = (x.max(low) - low) / f64::from(parts);
            let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let weight = |i: i32| {
                if i == 0 || i == parts {
                    1.0
                } else if i % 2 == 1 {
                    4.0
                } else {
                    2.0
                }
            };
            (0..=parts).map(|i| weight(i) * density(low + h * f64::from(i))).sum::<f64>() * h / 3.0
        };
        let points = (-600..=600).map(|i| i as f32 / 100.0);
        for x in points {
            let error = (f64::from(one!(gelu of f32)(x)) - f64::from(x) * normal(f64::from(x))).abs();
            assert!(error < 6e-7, "{x}: {error}");
            let error = (f64::from(one!(gelu of bf16)(x)) - f64::from(x) * normal(f64::from(x))).abs();
            assert!(error <= 2e-4 * f64::from(x.abs()), "{x} in bf16: {error}");
        }
    }

    #[test]
    fn what_is_too_large_or_no_number_is_so_afterwards() {
        for x in [-1e30, f32::NEG_INFINITY] {
            assert!((one!(exp2)(x), one!(exp2_rough)(x)) == (f32::MIN_POSITIVE, f32::MIN_POSITIVE));
        }
        assert!(one!(silu of f32)(-1000.0).abs() < 1e-30 && one!(silu of f32)(1000.0) == 1000.0);
        assert!(one!(gelu of f32)(-1000.0).abs() < 1e-30 && one!(gelu of f32)(1000.0) == 1000.0);
        for found in [one!(exp2), one!(exp2_rough), one!(silu of f32), one!(gelu of f32), one!(quick_gelu of f32)]
            .map(|of| of(f32::NAN))
        {
            assert!(found.is_nan(), "{found}");
        }
    }
}
