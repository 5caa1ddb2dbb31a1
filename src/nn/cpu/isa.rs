//! The instruction set, detected once, and the choice among a kernel's versions.
//!
//! A kernel is one source that the compiler vectorises for each set: an `inline(always)` body, compiled once in a
//! function with the set's `target_feature`s. Only what runs inside that function gets them, so it is called by each
//! thread for its own part of the work, never around a parallel loop.

use std::sync::OnceLock;

/// What this machine's processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors with fused multiply and add.
    Avx512,
    /// 256-bit vectors with fused multiply and add.
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
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx2
    } else {
        Isa::Portable
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

/// Defines `fn $name(isa, args)`, which runs `$body::<FMA>(args)` compiled for `isa`.
macro_rules! versions {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::nn::cpu::isa::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512($($arg: $type),*) {
                $body::<true>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) {
                $body::<true>($($arg),*);
            }
            match isa {
                // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
                #[cfg(target_arch = "x86_64")]
                $crate::nn::cpu::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::nn::cpu::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<{ $crate::nn::cpu::isa::PORTABLE_FMA }>($($arg),*),
            }
        }
    };
}

pub(crate) use versions;
