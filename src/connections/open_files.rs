//! How many connections fit in the files that this process may open.

/// Files that are no connections: the log, the event loop, a model's weights, downloads.
#[cfg(target_os = "linux")]
const OTHER_FILES: u64 = 64;

/// `wanted` connections, or as many as there may be open files for besides `more` connections. The process's own limit is
/// raised as far as it may be and is needed.
#[cfg(target_os = "linux")]
pub(super) fn connections_within(wanted: usize, more: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let others = OTHER_FILES + more as u64;
    let needed = (wanted as u64).saturating_add(others);
    let limit = getrlimit(Resource::Nofile);
    let Some(mut files) = limit.current.filter(|files| *files < needed) else { return wanted };
    let raised = limit.maximum.map_or(needed, |most| most.min(needed));
    if raised > files && setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit }).is_ok() {
        files = raised;
    }
    let most = fitting(files, others).min(wanted);
    if most < wanted {
        tracing::info!(wanted, most, files, "fewer connections: this process may not open enough files");
    }
    most
}

/// Elsewhere an accept that fails is waited for, and connections that wait make room.
#[cfg(not(target_os = "linux"))]
pub(super) fn connections_within(wanted: usize, _more: usize) -> usize {
    wanted
}

/// The share of `files` that is left for connections: a quarter where the others would leave less.
#[cfg(target_os = "linux")]
fn fitting(files: u64, others: u64) -> usize {
    let most = files.saturating_sub(others).max(files / 4).max(1);
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(fitting(256, 80), 176);
        assert_eq!(fitting(64, 80), 16);
        assert_eq!(fitting(2, 80), 1);
    }
}
