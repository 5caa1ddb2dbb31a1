//! One token for every way in which a job can be stopped: a client that leaves, a DELETE, a deadline, a shutdown.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Why a job was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Somebody asked for it.
    Requested,
    /// Whoever waited for the result has left.
    Disconnected,
    /// The worker is shutting down.
    Shutdown,
    /// The job's own deadline has passed. Such a job ends as failed, not as cancelled.
    Deadline,
}

impl CancelReason {
    /// The name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Disconnected => "disconnected",
            Self::Shutdown => "shutdown",
            Self::Deadline => "deadline",
        }
    }
}

/// A shared switch that stops one job and remembers the first reason given.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl Cancellation {
    /// A switch that is off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the job. Only the first reason counts; returns whether this was it.
    pub fn cancel(&self, reason: CancelReason) -> bool {
        let first = self.reason.set(reason).is_ok();
        self.token.cancel();
        first
    }

    /// The reason, once the job is stopped.
    #[must_use]
    pub fn reason(&self) -> Option<CancelReason> {
        self.reason.get().copied()
    }

    /// Resolves once the job is stopped.
    pub async fn cancelled(&self) -> CancelReason {
        self.token.cancelled().await;
        // The reason is set before the token, so it is there.
        self.reason().unwrap_or(CancelReason::Requested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_is_kept() {
        let switch = Cancellation::new();
        let other = switch.clone();
        assert_eq!(switch.reason(), None);
        assert!(switch.cancel(CancelReason::Deadline));
        assert!(!other.cancel(CancelReason::Shutdown));
        assert_eq!(other.cancelled().await, CancelReason::Deadline);
    }
}
