//! The instruction set, detected once, and the choice among a kernel's versions.
//!
//! A kernel is one source that the compiler vectorises for each set: an `inline(always)` body, compiled once in a
//! function with the set's `target_feature`s. Only what runs inside that function gets them, so it is called by each
//! thread for its own part of the work, never around a parallel loop.

use std::sync::OnceLock;

/// What this machine's processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// As [`Avx512`](Self::Avx512), with products of pairs of bf16.
    Avx512Bf16,
    /// 512-bit vectors with fused multiply and add.
    Avx512,
    /// 256-bit vectors with fused multiply and add, and conversions of f16.
    Avx2,
    /// Whatever every processor of this architecture has.
    Portable,
}

impl Isa {
    /// The best set of this processor.
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(detect)
    }

    /// Every set of this processor, the best first.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        let order = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];
        order.into_iter().skip_while(|isa| *isa != Self::detected()).collect()
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")) {
        return Isa::Portable;
    }
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (wide, is_x86_feature_detected!("avx512bf16")) {
        (true, true) => Isa::Avx512Bf16,
        (true, false) => Isa::Avx512,
        (false, _) => Isa::Avx2,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// Whether every processor of this architecture multiplies and adds in one instruction; where not, asking for that
/// would call a function for each number.
pub const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

/// `a * b + c`, fused where `FMA` says that there is an instruction for it.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines `fn $name(isa, args)`, which runs the unsafe `$body::<L>(args)` compiled for `isa`, with its
/// [`Lanes`](super::lanes::Lanes); of a generic function, the number types come before `L`. The body may rely on the
/// processor having the instructions of `L`, and on nothing else that is not checked.
macro_rules! versions {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$($number:ident: $bound:path),+>)? =
            $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        $vis fn $name $(<$($number: $bound),+>)? (isa: $crate::nn::cpu::isa::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            use $crate::nn::cpu::{isa::Isa, lanes::{Avx2, Avx512, Avx512Bf16}};
            use $crate::nn::cpu::{isa::PORTABLE_FMA, lanes::Plain};

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
            fn avx512_bf16 $(<$($number: $bound),+>)? ($($arg: $type),*) {
                // SAFETY: this function has the instructions.
                unsafe { $body::<$($($number,)+)? Avx512Bf16>($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$($number: $bound),+>)? ($($arg: $type),*) {
                // SAFETY: this function has the instructions.
                unsafe { $body::<$($($number,)+)? Avx512>($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($number: $bound),+>)? ($($arg: $type),*) {
                // SAFETY: this function has the instructions.
                unsafe { $body::<$($($number,)+)? Avx2>($($arg),*) };
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
                Isa::Avx512Bf16 => unsafe { avx512_bf16($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: these lanes need no instructions.
                _ => unsafe { $body::<$($($number,)+)? Plain<PORTABLE_FMA>>($($arg),*) },
            }
        }
    };
}

pub(crate) use versions;
