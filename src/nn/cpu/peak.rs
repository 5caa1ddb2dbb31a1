//! What the processor could do if it did nothing but multiply and add: the limit that kernels are measured against.
//!
//! Every thread of the pool runs fused multiply-adds on registers, in as many independent chains as hide an addition's
//! latency, with the best instructions that the kernels of a number type have.

use std::{hint::black_box, time::Instant};

use super::isa::{Isa, PORTABLE_FMA, multiply_add};

/// Independent chains: at least any processor's latency times its multipliers, and few enough for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in a round, each waiting for the one before: some milliseconds.
const STEPS: u32 = 1 << 22;
/// Rounds, of which the best counts: the others may have been disturbed.
const ROUNDS: usize = 20;

/// What is multiplied and added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeakOf {
    /// f32.
    F32,
    /// bf16 in pairs, summed in f32, where the processor has an instruction for that; else f32.
    Bf16,
}

/// Multiplications and additions a second, of all threads together.
pub fn multiply_peak(of: PeakOf) -> f64 {
    let (chains, operations_of_step) = chains_of(of);
    let round = || {
        let began = Instant::now();
        // SAFETY: `chains_of` gives what this processor can run.
        rayon::broadcast(|_| unsafe { chains(black_box(STEPS)) });
        began.elapsed().as_secs_f64()
    };
    let best = (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "a count of threads or of lanes is small")]
    let operations = (rayon::current_num_threads() * operations_of_step) as f64 * f64::from(STEPS);
    operations / best
}

/// The loop for this processor, and the operations in one step of all its chains.
fn chains_of(of: PeakOf) -> (unsafe fn(u32), usize) {
    #[cfg(target_arch = "x86_64")]
    if of == PeakOf::Bf16 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        // Each of 16 lanes adds two products.
        return (x86::avx512_bf16, CHAINS * 16 * 2 * 2);
    }
    let _ = of;
    match Isa::detected() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Avx512 => (x86::avx512, CHAINS * 16 * 2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (x86::avx2, CHAINS * 8 * 2),
        _ => (f32_body::<PORTABLE_FMA, 4>, CHAINS * 4 * 2),
    }
}

/// Chains of vectors of f32, compiled for the instruction set of whoever calls it.
#[inline(always)]
fn f32_body<const FMA: bool, const LANES: usize>(steps: u32) {
    // Hidden from the compiler, which else would see that all chains are the same.
    let mut sums = black_box([[0.0_f32; LANES]; CHAINS]);
    let (first, second) = (black_box([0.5_f32; LANES]), black_box([1e-6_f32; LANES]));
    for _ in 0..steps {
        for sum in &mut sums {
            for lane in 0..LANES {
                sum[lane] = multiply_add::<FMA>(first[lane], second[lane], sum[lane]);
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps},
        hint::black_box,
    };

    use super::{CHAINS, f32_body};

    /// Named one by one, as in the kernels: left to itself the compiler gathers the chains into other vectors.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub fn avx512(steps: u32) {
        let mut sums = black_box([_mm512_setzero_ps(); CHAINS]);
        let (first, second) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(1e-6)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(first, second, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(steps: u32) {
        f32_body::<true, 8>(steps);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn avx512_bf16(steps: u32) {
        let mut sums = black_box([_mm512_setzero_ps(); CHAINS]);
        // SAFETY: both are 64 bytes of plain numbers: 32 halves of bf16 that are 1.
        let ones: __m512bh = black_box(unsafe { std::mem::transmute::<[u16; 32], __m512bh>([0x3f80; 32]) });
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_a_limit() {
        for of in [PeakOf::F32, PeakOf::Bf16] {
            assert!(multiply_peak(of) > 1e8);
        }
    }
}
