//! Results that threads write parts of.

/// Where a result is, for threads that each write their own part of it.
pub struct Shared<E>(*mut E);

impl<E> Clone for Shared<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Shared<E> {}

// SAFETY: whoever writes through it promises to write a part that is its own, and nobody reads before all are done.
unsafe impl<E: Send> Send for Shared<E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    /// The place of number `index`.
    #[inline(always)]
    pub fn at(self, index: usize) -> *mut E {
        self.0.wrapping_add(index)
    }
}

/// `length` numbers, all of which `fill` writes: they are not set before, which for results of megabytes costs as much as
/// the writing.
pub fn filled<E: Copy>(length: usize, fill: impl FnOnce(Shared<E>)) -> Vec<E> {
    let mut values = Vec::with_capacity(length);
    fill(Shared(values.as_mut_ptr()));
    // SAFETY: there is room for them, and `fill`, which is one of this folder's kernels, has written every one.
    unsafe { values.set_len(length) };
    values
}
