//! The number types that kernels read and write. All arithmetic is in f32.

use half::bf16;

use super::{
    attention::{self, Attending},
    isa::Isa,
    lanes::Lanes,
    math,
    multiply::{self, Multiplying},
    tile,
};

/// A number type of the kernels.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Inputs that lie side by side in packed weights.
    const DEPTH: usize;

    /// The number in f32, exactly.
    fn widen(self) -> f32;

    /// The nearest number, to even where two are as near.
    fn narrow(value: f32) -> Self;

    /// Reads sixteen numbers.
    ///
    /// # Safety
    ///
    /// `from` is to as many, and the processor has the instructions of `L`.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;

    /// Writes sixteen numbers.
    ///
    /// # Safety
    ///
    /// `to` is to as many, and the processor has the instructions of `L`.
    unsafe fn store<L: Lanes>(value: L, to: *mut Self);

    /// `2^x` of numbers up to 127, as exactly as this type can tell.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `L`.
    unsafe fn exp2<L: Lanes>(x: L) -> L;

    /// `e^x`, as exactly as this type can tell.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `L`.
    unsafe fn exp<L: Lanes>(x: L) -> L;

    /// `1 / x` of numbers from 1 on, as exactly as this type can tell.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `L`.
    unsafe fn reciprocal<L: Lanes>(x: L) -> L;

    /// Outputs side by side in a panel of packed weights.
    fn panel(isa: Isa) -> usize;

    /// The part of a product that one task makes, with results of another type or of this.
    fn multiply<O: Element>(isa: Isa, task: &Multiplying<'_, Self, O>);

    /// The part of an attention that one task makes.
    fn attend(isa: Isa, task: &Attending<'_, Self>);

    /// Outputs side by side in a panel of an attention's keys, and the most vectors in a panel of its values.
    fn attention_panels(isa: Isa) -> (usize, usize);
}

impl Element for f32 {
    const DEPTH: usize = 1;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(value: L, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { value.store(to) };
    }

    #[inline(always)]
    unsafe fn exp2<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp2(x) }
    }

    #[inline(always)]
    unsafe fn exp<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp(x) }
    }

    #[inline(always)]
    unsafe fn reciprocal<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::splat(1.0).div(x) }
    }

    fn panel(isa: Isa) -> usize {
        match isa {
            Isa::Avx512Bf16 | Isa::Avx512 => tile::WIDE_PANEL,
            Isa::Avx2 | Isa::Portable => tile::PANEL,
        }
    }

    fn multiply<O: Element>(isa: Isa, task: &Multiplying<'_, Self, O>) {
        multiply::multiply_f32(isa, task);
    }

    fn attend(isa: Isa, task: &Attending<'_, Self>) {
        attention::attend_f32(isa, task);
    }

    fn attention_panels(isa: Isa) -> (usize, usize) {
        match isa {
            Isa::Avx512Bf16 | Isa::Avx512 => (tile::WIDE_PANEL, 3),
            Isa::Avx2 | Isa::Portable => (tile::PANEL, 1),
        }
    }
}

impl Element for bf16 {
    const DEPTH: usize = 2;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// In a form without branches, which vectorises.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // What is no number stays none, whatever its bits are.
        let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { bits >> 16 | 0x40 } else { rounded };
        #[expect(clippy::cast_possible_truncation, reason = "the upper half was moved down")]
        Self::from_bits(kept as u16)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(value: L, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { value.store_bf16(to) };
    }

    #[inline(always)]
    unsafe fn exp2<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp2_rough(x) }
    }

    #[inline(always)]
    unsafe fn exp<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp_rough(x) }
    }

    #[inline(always)]
    unsafe fn reciprocal<L: Lanes>(x: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { x.reciprocal_rough() }
    }

    fn panel(_isa: Isa) -> usize {
        tile::WIDE_PANEL
    }

    fn multiply<O: Element>(isa: Isa, task: &Multiplying<'_, Self, O>) {
        multiply::multiply_bf16(isa, task);
    }

    fn attend(isa: Isa, task: &Attending<'_, Self>) {
        attention::attend_bf16(isa, task);
    }

    fn attention_panels(isa: Isa) -> (usize, usize) {
        (tile::WIDE_PANEL, if isa == Isa::Avx512Bf16 { 3 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_the_library_rounds() {
        for bits in
            (0..=u32::MAX).step_by(4093).chain([0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x3f80_8000, 0x3f81_8000])
        {
            let value = f32::from_bits(bits);
            let (found, wanted) = (<bf16 as Element>::narrow(value), bf16::from_f32(value));
            assert!(found.to_bits() == wanted.to_bits() || value.is_nan() && found.is_nan(), "{bits:x}");
            assert!(found.widen().to_bits() == wanted.to_f32().to_bits() || value.is_nan(), "{bits:x}");
        }
    }
}
