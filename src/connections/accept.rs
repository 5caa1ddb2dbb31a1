//! The accept loop: connections in, as many as may be, whatever the system says.

use std::{
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    connection, open_files,
    places::{PROBE_PLACES, Places},
    state::{State, Timeouts},
};

/// How long a write may wait for its peer to read.
const WRITE_WAIT: Duration = Duration::from_secs(60);
/// The first and the longest pause after an accept that failed.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// How many connections there may be, and how long each may wait for its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most open connections, besides a few for probes.
    pub most: usize,
    /// From a request's first byte, or from the accept, to its whole head.
    pub head: Duration,
    /// From an answer to the next request on the same connection.
    pub idle: Duration,
}

/// The connections of one listener.
#[derive(Debug, Clone)]
pub struct Connections {
    most: usize,
    shared: Arc<Shared>,
}

/// What every connection has to know.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) timeouts: Timeouts,
    /// From now on no request may begin.
    pub(super) close: CancellationToken,
    draining: AtomicBool,
}

impl Shared {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

impl Connections {
    /// Connections within `limits`, and within what files this process may open.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Self {
        let timeouts = Timeouts { head: limits.head, idle: limits.idle, write: WRITE_WAIT };
        let shared = Shared { timeouts, close: CancellationToken::new(), draining: AtomicBool::new(false) };
        Self { most: open_files::connections_within(limits.most, PROBE_PLACES), shared: Arc::new(shared) }
    }

    /// From now on every answer closes its connection.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Takes no more connections, closes the idle ones, and the others with their answers.
    pub fn close(&self) {
        self.shared.close.cancel();
    }

    /// Serves whoever connects, until [`close`](Self::close) is called and every connection has ended. Dropping the future
    /// ends them at once.
    pub async fn serve(self, listener: TcpListener, router: Router) {
        let mut tasks = JoinSet::new();
        let places = Arc::new(Places::new(self.most));
        let mut pauses = Pauses::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                () = self.shared.close.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pauses.over();
                    let state = Arc::new(State::new());
                    let Some(place) = places.admit(&state) else {
                        tracing::debug!(%peer, "connection closed: every place is taken");
                        continue;
                    };
                    tasks.spawn(connection::serve(stream, state, place, router.clone(), Arc::clone(&self.shared)));
                }
                Err(error) => {
                    let Some(pause) = pauses.after(&error) else { continue };
                    // A connection that waits for its peer gives its file to one that may have something to ask.
                    let evicted = places.evict_one();
                    tracing::debug!(%error, evicted, pause_ms = pause.as_millis(), "accept failed");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = places.freed() => {}
                        () = self.shared.close.cancelled() => break,
                    }
                }
            }
        }
        drop(listener);
        while tasks.join_next().await.is_some() {}
    }
}

/// How long to wait after an accept that failed.
#[derive(Debug, Default)]
struct Pauses {
    last: Option<Duration>,
}

impl Pauses {
    /// `None` where the next accept has nothing to do with this error, which was that of one connection.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        if matches!(
            error.kind(),
            ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionRefused
                | ErrorKind::Interrupted
        ) {
            return None;
        }
        let (first, longest) = ACCEPT_PAUSES;
        if self.last.is_none() {
            tracing::warn!(%error, "no connection can be accepted; trying again");
        }
        let pause = self.last.map_or(first, |last| (last * 2).min(longest));
        self.last = Some(pause);
        Some(pause)
    }

    /// An accept went well.
    fn over(&mut self) {
        if self.last.take().is_some() {
            tracing::info!("connections are accepted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ails_the_listener_is_waited_for_ever_longer_and_what_ails_one_connection_is_not() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.after(&ErrorKind::ConnectionAborted.into()), None);
        // EMFILE, ENFILE, ENOBUFS, ENOMEM on Linux.
        let errors = [24, 23, 105, 12].into_iter().cycle().map(io::Error::from_raw_os_error);
        let waited: Vec<_> = errors.take(9).filter_map(|error| pauses.after(&error)).collect();
        assert_eq!(waited.iter().map(Duration::as_millis).collect::<Vec<_>>(), [5, 10, 20, 40, 80, 160, 320, 500, 500]);
        pauses.over();
        assert_eq!(pauses.after(&io::Error::from_raw_os_error(24)), Some(Duration::from_millis(5)));
    }
}
