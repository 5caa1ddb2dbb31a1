//! What only moves numbers.

use std::mem::MaybeUninit;

use half::f16;
use rayon::prelude::*;

use super::{
    element::Element,
    isa::{Isa, versions},
    lanes::{LANES, Lanes},
    shared::{Shared, filled},
};

/// Rows whose copying is worth a task.
const ROWS: usize = 256;

/// Numbers whose conversion is worth a task.
const NUMBERS: usize = 1 << 16;

/// The same numbers in another type.
pub fn convert<F: Element, T: Element>(from: &[F]) -> Vec<T> {
    filled(from.len(), |result: Shared<T>| {
        from.par_chunks(NUMBERS).enumerate().for_each(|(part, from)| {
            // SAFETY: this task alone has these numbers, inside the result.
            let into: &mut [MaybeUninit<T>] =
                unsafe { std::slice::from_raw_parts_mut(result.at(part * NUMBERS).cast(), from.len()) };
            for (into, from) in into.iter_mut().zip(from) {
                into.write(T::narrow(from.widen()));
            }
        });
    })
}

/// The f16 of a file, which may lie anywhere, in f32.
pub fn widen_halves(from: &[[u8; 2]], into: &mut [f32]) {
    assert_eq!(from.len(), into.len(), "there is a place for each");
    widen(Isa::detected(), from, into);
}

versions! {
    fn widen = widen_body(from: &[[u8; 2]], into: &mut [f32])
}

/// # Safety
///
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn widen_body<L: Lanes>(from: &[[u8; 2]], into: &mut [f32]) {
    let (from, last) = from.as_chunks::<LANES>();
    let (into, last_into) = into.as_chunks_mut::<LANES>();
    for (from, into) in from.iter().zip(into) {
        // SAFETY: the caller's promise, and both are sixteen numbers.
        unsafe { L::load_f16(from.as_ptr()).store(into.as_mut_ptr()) };
    }
    for (from, into) in last.iter().zip(last_into) {
        *into = f16::from_le_bytes(*from).to_f32();
    }
}

/// Each row of `first` with the same row of `second` after it; their rows are of `widths` numbers.
pub fn concat_rows<E: Element>(first: &[E], second: &[E], widths: (usize, usize)) -> Vec<E> {
    let rows = first.len() / widths.0;
    let both = widths.0 + widths.1;
    assert!(first.len() == rows * widths.0 && second.len() == rows * widths.1, "both have as many whole rows");
    filled(rows * both, |result| {
        (0..rows.div_ceil(ROWS)).into_par_iter().for_each(|part| {
            for row in part * ROWS..((part + 1) * ROWS).min(rows) {
                let (first, second) = (&first[row * widths.0..][..widths.0], &second[row * widths.1..][..widths.1]);
                // SAFETY: this task alone has these rows, inside the result.
                unsafe {
                    std::ptr::copy_nonoverlapping(first.as_ptr(), result.at(row * both), widths.0);
                    std::ptr::copy_nonoverlapping(second.as_ptr(), result.at(row * both + widths.0), widths.1);
                }
            }
        });
    })
}
