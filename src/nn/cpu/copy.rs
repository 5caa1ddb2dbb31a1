//! What only moves numbers.

use rayon::prelude::*;

use super::{element::Element, shared::filled};

/// Rows whose copying is worth a task.
const ROWS: usize = 256;

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
