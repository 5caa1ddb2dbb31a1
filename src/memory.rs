//! What becomes of memory that is freed.
//!
//! Every layer of a network writes a result of megabytes that the next one frees. By default the system's allocator hands
//! such blocks back at once, and the system clears them again, page by page, each time.

/// Keeps freed blocks for the next that are needed, from now on: the process stays as large as its largest drawing made
/// it. To be called before there are other threads, so that all share one heap. Elsewhere than with glibc it does nothing.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [
        // No block is a mapping of its own, which would end when it is freed.
        (libc::M_MMAP_MAX, 0),
        // The heap's end is not given back either.
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        // One heap: a block that one thread freed is there for the others.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: these change how later blocks are found, and nothing about those that there are. A refusal costs time alone.
        unsafe { libc::mallopt(option, value) };
    }
}
