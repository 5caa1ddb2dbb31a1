//! Where the worker stands between its start and its end.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where the worker stands. It only ever moves down this list.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// The socket is bound and nothing else has happened.
    Starting,
    /// The model's files are read.
    Loading {
        /// How much is done, 0 to 100.
        percent: u8,
    },
    /// The model draws for the first time, for nobody.
    Warming,
    /// It draws.
    Ready,
    /// The model could not be loaded; nothing will be drawn.
    Failed {
        /// Why.
        reason: String,
    },
    /// It takes no new work and ends what it has.
    Draining,
    /// It has ended.
    Stopped,
}

impl Phase {
    /// The name on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading { .. } => "loading",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Failed { .. } => "failed",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::Starting => 0,
            Self::Loading { .. } => 1,
            Self::Warming => 2,
            Self::Ready => 3,
            Self::Failed { .. } => 4,
            Self::Draining => 5,
            Self::Stopped => 6,
        }
    }
}

/// The current phase, shared.
#[derive(Debug)]
pub(super) struct Lifecycle(Mutex<Phase>);

impl Lifecycle {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Phase::Starting))
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().clone()
    }

    /// Moves on to `next`, unless the worker is past that: a model that is loaded while the worker shuts down does not
    /// make it ready.
    pub(super) fn advance(&self, next: Phase) {
        let mut phase = self.lock();
        if next.rank() < phase.rank() {
            return;
        }
        if next.rank() > phase.rank() {
            tracing::info!(state = next.name(), "state changed");
        }
        *phase = next;
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_never_moves_back() {
        let lifecycle = Lifecycle::new();
        lifecycle.advance(Phase::Loading { percent: 10 });
        lifecycle.advance(Phase::Loading { percent: 90 });
        assert_eq!(lifecycle.phase(), Phase::Loading { percent: 90 });
        lifecycle.advance(Phase::Draining);
        lifecycle.advance(Phase::Ready);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}
