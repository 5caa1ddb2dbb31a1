//! Results that threads write parts of.

#[cfg(target_os = "linux")]
use rustix::mm::{Advice, madvise};

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
    let mut values: Vec<E> = Vec::with_capacity(length);
    use_huge_pages(&mut values);
    fill(Shared(values.as_mut_ptr()));
    // SAFETY: there is room for them, and `fill`, which is one of this folder's kernels, has written every one.
    unsafe { values.set_len(length) };
    values
}

/// Bytes from which on memory is worth a call to the system.
const MANY_BYTES: usize = 4 << 20;

/// Asks for large pages, of which there are 512 times fewer to set up and to look up.
fn use_huge_pages<E>(values: &mut Vec<E>) {
    let bytes = values.capacity() * size_of::<E>();
    #[cfg(target_os = "linux")]
    if bytes >= MANY_BYTES {
        let start = values.as_mut_ptr().cast::<std::ffi::c_void>();
        let before_page = start.addr().next_multiple_of(PAGE_BYTES) - start.addr();
        // SAFETY: the range begins at a page and ends inside the vector's memory; the advice changes nothing that is in it. A
        // refusal costs time and nothing else.
        _ = unsafe { madvise(start.byte_add(before_page), bytes - before_page, Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// What advice's addresses are multiples of: every page size of Linux divides it.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 64 << 10;
