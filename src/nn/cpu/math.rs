//! Elementary functions that the compiler can vectorise, in f32.

use super::isa::multiply_add;

/// `e^x`, within 2 units in the last place; 0 below -87, and e^88 above 88.
///
/// `x = n ln 2 + r` with a whole `n` and `|r| <= ln 2 / 2`; `e^r` by a polynomial (Cephes' `expf`), `2^n` by the exponent's
/// bits.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let kept = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 * 2^23 rounds to a whole number, ties to even.
    const ROUNDER: f32 = 12_582_912.0;
    let n = multiply_add::<FMA>(kept, std::f32::consts::LOG2_E, ROUNDER) - ROUNDER;
    let r = multiply_add::<FMA>(n, -LN_2_LOW, multiply_add::<FMA>(n, -LN_2_HIGH, kept));
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = multiply_add::<FMA>(p, r, coefficient);
    }
    let e_r = multiply_add::<FMA>(p, r * r, r) + 1.0;
    #[expect(clippy::cast_possible_truncation, reason = "n is whole and between -126 and 127")]
    let power = f32::from_bits(((n as i32 + 127) << 23).cast_unsigned());
    let value = e_r * power;
    if x < -87.0 { 0.0 } else { value }
}

/// `x σ(x)`.
#[inline(always)]
pub fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// `x σ(1.702 x)`.
#[inline(always)]
pub fn quick_gelu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-1.702 * x))
}

/// `x Φ(x)`, with the error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    let z = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / multiply_add::<FMA>(0.327_591_1, z, 1.0);
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = multiply_add::<FMA>(p, t, coefficient);
    }
    // The complement of the error function of |x|/√2, which keeps its digits where it is small.
    let complement = p * t * exp::<FMA>(-z * z);
    let share = if x < 0.0 { 0.5 * complement } else { 1.0 - 0.5 * complement };
    x * share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn furthest(of: impl Fn(f32) -> f32, wanted: impl Fn(f64) -> f64, scale: impl Fn(f64) -> f64) -> f64 {
        let points = (-9000..=8800).map(|i| i as f32 / 100.0);
        points.map(|x| (f64::from(of(x)) - wanted(f64::from(x))).abs() / scale(f64::from(x))).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_those_of_f64_within_their_error() {
        let relative = |x: f64| x.exp().max(1e-30);
        assert!(furthest(exp::<true>, f64::exp, relative) < 3e-7);
        assert!(furthest(exp::<false>, f64::exp, relative) < 3e-7);
        let size = |x: f64| x.abs().max(1.0);
        assert!(furthest(silu::<true>, |x| x / (1.0 + (-x).exp()), size) < 3e-7);
        assert!(furthest(quick_gelu::<true>, |x| x / (1.0 + (-1.702 * x).exp()), size) < 3e-7);
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
            let error = (f64::from(gelu::<true>(x)) - f64::from(x) * normal(f64::from(x))).abs();
            assert!(error < 6e-7, "{x}: {error}");
        }
        assert_eq!((exp::<true>(-100.0), silu::<true>(f32::MIN)), (0.0, f32::MIN / (1.0 + exp::<true>(f32::MAX))));
    }
}
