//! The threads that draw: one pool for every kernel, apart from the threads that answer requests.
//!
//! Owns the pool's size. It is rayon's global pool, which the kernels and the tensor library both use; it is started once,
//! before anything draws. As a library darkroom starts no pool: there rayon's own defaults hold.

use crate::{Error, Result};

/// The most drawing threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// As many threads as there are physical cores, since two on one core share its multipliers; no more than this process
/// may use at once.
#[must_use]
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    num_cpus::get_physical().clamp(1, allowed)
}

/// Starts the pool.
///
/// # Errors
///
/// [`Error::Device`] when the system does not give as many threads, or the pool runs already.
pub fn start(threads: usize) -> Result<()> {
    build(threads, || {})
}

/// As [`start`], where other threads of this process have requests to answer while these draw: a core that draws is then
/// theirs as soon as they need it.
///
/// # Errors
///
/// As [`start`].
pub fn start_beside_answers(threads: usize) -> Result<()> {
    build(threads, yield_to_answers)
}

fn build(threads: usize, at_start: impl Fn() + Send + Sync + 'static) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|number| format!("draw-{number}"));
    pool.start_handler(move |_| at_start()).build_global().map_err(|error| Error::Device {
        device: "cpu".to_owned(),
        message: format!("cannot start {threads} drawing threads: {error}"),
    })
}

/// How much less than others a drawing thread presses for a core, on the scale of nice(1).
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// Lowers the priority of the calling thread alone. With equal ones, and as many drawing threads as cores, an answer waits
/// until a drawing thread's time slice is over, which takes milliseconds.
#[cfg(target_os = "linux")]
fn yield_to_answers() {
    // Where that is not allowed, drawing goes on as it is.
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

/// Elsewhere the priority would be the whole process's.
#[cfg(not(target_os = "linux"))]
fn yield_to_answers() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_no_more_threads_draw_than_this_process_may_use() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&default_threads()));
    }
}
