//! The choice among the versions of a kernel that multiplies with tiles, as [`versions`](crate::nn::cpu::isa) is for others.

/// Defines `fn $name(isa, task)`, which runs the unsafe `$body` compiled for `isa`. In `$body` the type `M` is a
/// [`Multiply`](super::Multiply) of tiles of `T` rows and panels of `P` outputs, `V` are [`Panels`](super::Panels) and `L`
/// are [`Lanes`](crate::nn::cpu::lanes::Lanes), of the instructions that the processor then has, for numbers of the type
/// that is named last.
macro_rules! tile_versions {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$result:ident: $bound:path>)? ($task:ident: $type:ty) = $body:expr, f32
    ) => {
        $(#[$doc])*
        $vis fn $name $(<$result: $bound>)? (isa: $crate::nn::cpu::isa::Isa, $task: $type) {
            use $crate::nn::cpu::tile::versions::*;
            #[cfg(target_arch = "x86_64")]
            tile_versions!(
                @version avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", [$($result: $bound)?], $task: $type, $body,
                Fused512<2>, FusedPanels512, Avx512, WIDE_PANEL, WIDE_ROWS
            );
            #[cfg(target_arch = "x86_64")]
            tile_versions!(
                @version avx2, "avx2,fma", [$($result: $bound)?], $task: $type, $body,
                Fused<true>, Narrow<Fused<true>>, Avx2, PANEL, ROWS
            );
            tile_versions!(
                @portable [$($result: $bound)?], $task: $type, $body,
                Fused<PORTABLE_FMA>, Narrow<Fused<PORTABLE_FMA>>, PANEL
            );
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
                Isa::Avx512Bf16 | Isa::Avx512 => unsafe { avx512($task) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2($task) },
                _ => portable($task),
            }
        }
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$result:ident: $bound:path>)? ($task:ident: $type:ty) = $body:expr, bf16
    ) => {
        $(#[$doc])*
        $vis fn $name $(<$result: $bound>)? (isa: $crate::nn::cpu::isa::Isa, $task: $type) {
            use $crate::nn::cpu::tile::versions::*;
            #[cfg(target_arch = "x86_64")]
            tile_versions!(
                @version avx512_bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", [$($result: $bound)?],
                $task: $type, $body, Dot<2>, DotPanels, Avx512Bf16, WIDE_PANEL, WIDE_ROWS
            );
            #[cfg(target_arch = "x86_64")]
            tile_versions!(
                @version avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", [$($result: $bound)?], $task: $type, $body,
                Widened512<2>, Narrow<Widened512<1>>, Avx512, WIDE_PANEL, WIDE_ROWS
            );
            #[cfg(target_arch = "x86_64")]
            tile_versions!(
                @version avx2, "avx2,fma", [$($result: $bound)?], $task: $type, $body,
                Widened<true>, Narrow<Widened<true>>, Avx2, WIDE_PANEL, ROWS
            );
            tile_versions!(
                @portable [$($result: $bound)?], $task: $type, $body,
                Widened<PORTABLE_FMA>, Narrow<Widened<PORTABLE_FMA>>, WIDE_PANEL
            );
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these sets are only ever chosen by `Isa::detected`, on processors that have them.
                Isa::Avx512Bf16 => unsafe { avx512_bf16($task) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx512 => unsafe { avx512($task) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2($task) },
                _ => portable($task),
            }
        }
    };
    (
        @version $name:ident, $features:literal, [$($result:ident: $bound:path)?], $task:ident: $type:ty, $body:expr,
        $multiply:ty, $panels:ty, $lanes:ty, $outputs:expr, $rows:expr
    ) => {
        #[target_feature(enable = $features)]
        fn $name $(<$result: $bound>)? ($task: $type) {
            tile_versions!(@types $multiply, $panels, $lanes, $outputs, $rows);
            // SAFETY: this function has the instructions.
            unsafe { $body }
        }
    };
    (
        @portable [$($result:ident: $bound:path)?], $task:ident: $type:ty, $body:expr,
        $multiply:ty, $panels:ty, $outputs:expr
    ) => {
        fn portable $(<$result: $bound>)? ($task: $type) {
            tile_versions!(@types $multiply, $panels, Plain<PORTABLE_FMA>, $outputs, ROWS);
            // SAFETY: these need no instructions.
            unsafe { $body }
        }
    };
    (@types $multiply:ty, $panels:ty, $lanes:ty, $outputs:expr, $rows:expr) => {
        type M = $multiply;
        #[allow(dead_code, reason = "not every kernel has panels of several widths")]
        type V = $panels;
        type L = $lanes;
        const P: usize = $outputs;
        const T: usize = $rows;
    };
}

pub(crate) use tile_versions;

#[cfg(target_arch = "x86_64")]
pub use super::avx512::{Dot, DotPanels, Fused512, FusedPanels512, Widened512};
pub use super::{Fused, Narrow, PANEL, ROWS, WIDE_PANEL, WIDE_ROWS, Widened};
#[cfg(target_arch = "x86_64")]
pub use crate::nn::cpu::lanes::{Avx2, Avx512, Avx512Bf16};
pub use crate::nn::cpu::{
    isa::{Isa, PORTABLE_FMA},
    lanes::Plain,
};
