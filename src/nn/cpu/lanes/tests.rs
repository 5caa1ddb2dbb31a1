//! Every operation on lanes with each instruction set of this machine, against the same on one number.

use super::*;
use crate::nn::cpu::isa::{Isa, versions};

/// # Safety
///
/// The processor has the instructions of `L`.
unsafe fn round_body<L: Lanes>(from: &[f32; LANES], to: &mut [bf16; LANES], back: &mut [f32; LANES]) {
    // SAFETY: the caller's promise, and each has as many numbers.
    unsafe {
        L::load(from.as_ptr()).store_bf16(to.as_mut_ptr());
        L::load_bf16(to.as_ptr()).store(back.as_mut_ptr());
    }
}

versions! {
    fn round = round_body(from: &[f32; LANES], to: &mut [bf16; LANES], back: &mut [f32; LANES])
}

#[test]
fn bf16_is_rounded_to_even_and_what_is_no_number_stays_none() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000)];
    let values = (0..=u32::MAX).step_by(65_521).map(f32::from_bits).chain(odd);
    // Below f32's normal numbers the instruction for it has zeros.
    let values: Vec<f32> = values.filter(|value| *value == 0.0 || !value.is_subnormal()).collect();
    for isa in Isa::all() {
        for chunk in values.as_chunks::<LANES>().0 {
            let (mut narrow, mut back) = ([bf16::ZERO; LANES], [0.0; LANES]);
            round(isa, chunk, &mut narrow, &mut back);
            for ((value, narrow), back) in chunk.iter().zip(narrow).zip(back) {
                let same = if value.is_nan() { narrow.is_nan() } else { narrow == bf16::from_f32(*value) };
                assert!(same, "{isa:?}: {value} is {narrow}");
                assert!(back.to_bits() == narrow.to_f32().to_bits(), "{isa:?}: {narrow} is {back}");
            }
        }
    }
}

/// # Safety
///
/// The processor has the instructions of `L`.
unsafe fn operate_body<L: Lanes>(a: &[f32; LANES], b: &[f32; LANES], found: &mut Vec<[f32; LANES]>) {
    // SAFETY: the caller's promise, and each has as many numbers.
    unsafe {
        let (a, b) = (L::load(a.as_ptr()), L::load(b.as_ptr()));
        let one_at_a_time = [a.sum(), a.largest()].map(|value| L::splat(value));
        let lanes =
            [a.add(b), a.sub(b), a.mul(b), a.div(b), a.max(b), a.min(b), a.abs(), a.if_negative(b, a), a.mul_add(b, a)];
        found.extend(lanes.into_iter().chain(one_at_a_time).map(|lanes| lanes.to_array()));
    }
}

versions! {
    fn operate = operate_body(a: &[f32; LANES], b: &[f32; LANES], found: &mut Vec<[f32; LANES]>)
}

#[test]
fn each_lane_is_computed_as_one_number_is() {
    // Numbers whose sums and products are exact.
    let a: [f32; LANES] = std::array::from_fn(|lane| lane as f32 - 7.5);
    let b: [f32; LANES] = std::array::from_fn(|lane| 4.0 / (1 << (lane % 5)) as f32);
    let of = |one: fn(f32, f32) -> f32| -> [f32; LANES] { std::array::from_fn(|lane| one(a[lane], b[lane])) };
    let wanted = vec![
        of(|a, b| a + b),
        of(|a, b| a - b),
        of(|a, b| a * b),
        of(|a, b| a / b),
        of(f32::max),
        of(f32::min),
        of(|a, _| a.abs()),
        of(|a, b| if a < 0.0 { b } else { a }),
        of(|a, b| a * b + a),
        [0.0; LANES],
        [7.5; LANES],
    ];
    for isa in Isa::all() {
        let mut found = Vec::new();
        operate(isa, &a, &b, &mut found);
        assert_eq!(found, wanted, "{isa:?}");
    }
}

/// # Safety
///
/// The processor has the instructions of `L`.
unsafe fn reciprocal_body<L: Lanes>(x: &[f32; LANES], found: &mut [f32; LANES]) {
    // SAFETY: the caller's promise, and each has as many numbers.
    unsafe { L::load(x.as_ptr()).reciprocal_rough().store(found.as_mut_ptr()) };
}

versions! {
    fn reciprocal = reciprocal_body(x: &[f32; LANES], found: &mut [f32; LANES])
}

#[test]
fn a_rough_reciprocal_is_near_the_exact_one() {
    let numbers: Vec<f32> =
        (0..4000).map(|i| 1.003_f32.powi(i) * 1e-3).chain([1.0, f32::MIN_POSITIVE, 8.5e37]).collect();
    for isa in Isa::all() {
        for x in numbers.as_chunks::<LANES>().0 {
            let mut found = [0.0; LANES];
            reciprocal(isa, x, &mut found);
            for (x, found) in x.iter().zip(found) {
                assert!((f64::from(*x) * f64::from(found) - 1.0).abs() < 4e-4, "{isa:?}: 1 / {x} is {found}");
            }
        }
    }
}

/// # Safety
///
/// The processor has the instructions of `L`.
unsafe fn half_body<L: Lanes>(halves: &[[u8; 2]; LANES], found: &mut [f32; LANES]) {
    // SAFETY: the caller's promise, and each has as many numbers.
    unsafe { L::load_f16(halves.as_ptr()).store(found.as_mut_ptr()) };
}

versions! {
    fn half = half_body(halves: &[[u8; 2]; LANES], found: &mut [f32; LANES])
}

#[test]
fn every_f16_is_read_as_it_is() {
    let halves: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_le_bytes).collect();
    for isa in Isa::all() {
        for halves in halves.as_chunks::<LANES>().0 {
            let mut found = [0.0; LANES];
            half(isa, halves, &mut found);
            for (half, found) in halves.iter().zip(found) {
                let wanted = f16::from_le_bytes(*half).to_f32();
                assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{isa:?}: {half:?}");
            }
        }
    }
}

/// # Safety
///
/// The processor has the instructions of `L`.
unsafe fn power_body<L: Lanes>(x: &[f32; LANES], fractions: &mut [f32; LANES], powers: &mut [f32; LANES]) {
    // SAFETY: the caller's promise, and each has as many numbers.
    unsafe {
        let x = L::load(x.as_ptr());
        x.fraction().store(fractions.as_mut_ptr());
        L::splat(1.25).times_power(x).store(powers.as_mut_ptr());
    }
}

versions! {
    fn power = power_body(x: &[f32; LANES], fractions: &mut [f32; LANES], powers: &mut [f32; LANES])
}

#[test]
fn powers_of_two_are_those_of_the_whole_number_below() {
    let numbers: Vec<f32> = (-126 * 16..=127 * 16).map(|x| x as f32 / 16.0).collect();
    let low = [-126.5, -1e4, -1e30, f32::NEG_INFINITY];
    for isa in Isa::all() {
        let (mut fractions, mut powers) = ([0.0; LANES], [0.0; LANES]);
        for x in numbers.as_chunks::<LANES>().0 {
            power(isa, x, &mut fractions, &mut powers);
            for ((x, fraction), power) in x.iter().zip(fractions).zip(powers) {
                assert_eq!((fraction, power), (x - x.floor(), 1.25 * x.floor().exp2()), "{isa:?}: {x}");
            }
        }
        for x in low {
            power(isa, &[x; LANES], &mut fractions, &mut powers);
            assert!((0.0..1.0).contains(&fractions[0]) && powers[0] <= 2.0_f32.powi(-125), "{isa:?}: {x}");
        }
        power(isa, &[f32::NAN; LANES], &mut fractions, &mut powers);
        assert!(fractions[0].is_nan(), "{isa:?}");
    }
}
