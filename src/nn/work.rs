//! How much arithmetic the layers were asked for, counted from their sizes.
//!
//! Products alone count: what linear layers, convolutions and the two products of attention multiply and add. Norms,
//! activations and sums are left out, as is usual. The count is of the whole process and never goes back: whoever measures
//! takes it before and after, while nothing else draws.

use std::sync::atomic::{AtomicU64, Ordering};

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// Multiplications and additions in products since the program began.
#[must_use]
pub fn operations_done() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Counts `rows` rows of `outputs` numbers, each a sum of `inputs` products.
pub(super) fn count_product(rows: usize, inputs: usize, outputs: usize) {
    let operations = 2 * rows as u64 * inputs as u64 * outputs as u64;
    OPERATIONS.fetch_add(operations, Ordering::Relaxed);
}
