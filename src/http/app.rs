//! What every handler shares: the board, the phase, and the engine once there is one.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio_util::task::TaskTracker;

use super::{
    lifecycle::{Lifecycle, Phase},
    problem::Problem,
};
use crate::{
    config::ServeConfig,
    connections::Receipt,
    engine::{Fetched, GenerationEngine, Job, JobBoard},
    pipeline::Generate,
};

/// The worker as its handlers see it.
#[derive(Debug)]
pub struct App {
    pub(super) config: ServeConfig,
    pub(super) board: JobBoard,
    pub(super) started_at: Instant,
    /// The tasks that write on the board what the engine says.
    pub(super) followers: TaskTracker,
    /// Held while a job is put in the queue and on the board, so that both have the same order.
    pub(super) submission: tokio::sync::Mutex<()>,
    lifecycle: Lifecycle,
    loaded: OnceLock<Loaded>,
}

/// What is there once the model is loaded.
pub(super) struct Loaded {
    pub(super) engine: GenerationEngine,
    pub(super) pipeline: Arc<dyn Generate>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("engine", &self.engine).field("model", self.pipeline.model()).finish()
    }
}

impl App {
    /// A worker that has not loaded its model yet.
    #[must_use]
    pub fn new(config: ServeConfig) -> Arc<Self> {
        let board = JobBoard::new(config.work.board_limits());
        Arc::new(Self {
            config,
            board,
            started_at: Instant::now(),
            followers: TaskTracker::new(),
            submission: tokio::sync::Mutex::default(),
            lifecycle: Lifecycle::new(),
            loaded: OnceLock::new(),
        })
    }

    /// Where the worker stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lifecycle.phase()
    }

    /// Moves on; never back.
    pub fn advance(&self, next: Phase) {
        self.lifecycle.advance(next);
    }

    /// Draws with `pipeline` from now on. A second call changes nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn make_ready(&self, pipeline: Arc<dyn Generate>) {
        self.loaded.get_or_init(|| {
            let mut engine = GenerationEngine::new(self.config.work.queue_capacity)
                .with_shutdown_grace(self.config.work.shutdown_grace());
            engine.start(Arc::clone(&pipeline));
            Loaded { engine, pipeline }
        });
        self.advance(Phase::Ready);
    }

    /// Lets go of the results whose time is over.
    pub fn sweep(&self) {
        self.board.sweep();
    }

    /// Takes no more work, ends what there is within the grace, and returns when every job has its last word.
    pub async fn drain(&self) {
        self.advance(Phase::Draining);
        // Behind whoever is submitting now, so that the tracker is closed after the last follower was spawned.
        drop(self.submission.lock().await);
        if let Some(loaded) = self.loaded.get() {
            loaded.engine.shutdown().await;
        }
        self.followers.close();
        self.followers.wait().await;
    }

    /// Waits until what came of every job was fetched, for at most `wait`. A job counts as fetched when all its images were
    /// sent, or its end was sent with the images that were asked for; one that failed or was cancelled, when that was sent.
    pub async fn hand_over(&self, wait: Duration) {
        let unfetched = self.board.unfetched();
        if unfetched == 0 {
            return;
        }
        let wait_ms = wait.as_millis();
        tracing::info!(jobs = unfetched, wait_ms, "waiting for results to be fetched; a second signal ends at once");
        if tokio::time::timeout(wait, self.board.all_fetched()).await.is_err() {
            tracing::warn!(jobs = self.board.unfetched(), "some results were not fetched in time and are lost");
        }
    }

    /// What makes an answer count as having fetched `what` of a job.
    pub(super) fn receipt(self: &Arc<Self>, job: &Arc<Job>, what: Fetched) -> Receipt {
        let (app, job) = (Arc::clone(self), Arc::clone(job));
        Receipt::new(move || app.board.fetched(&job, what))
    }

    pub(super) fn loaded(&self) -> Option<&Loaded> {
        self.loaded.get()
    }

    /// What draws, if a request may come in now.
    pub(super) fn accepting(&self) -> Result<&Loaded, Problem> {
        match (self.phase(), self.loaded.get()) {
            (Phase::Ready, Some(loaded)) if loaded.engine.is_alive() => Ok(loaded),
            (Phase::Draining | Phase::Stopped, _) => Err(Problem::draining()),
            _ => Err(self.not_ready()),
        }
    }

    /// The problem of a worker that does not draw.
    pub(super) fn not_ready(&self) -> Problem {
        let why = self.why_not_drawing();
        if self.has_failed() { Problem::failed(&why) } else { Problem::not_ready(&why) }
    }

    /// Whether nothing will be drawn here until the worker is started again.
    pub(super) fn has_failed(&self) -> bool {
        self.is_dead() || matches!(self.phase(), Phase::Failed { .. })
    }

    /// Whether the engine has ended though nobody told it to.
    fn is_dead(&self) -> bool {
        let running = matches!(self.phase(), Phase::Ready);
        running && self.loaded.get().is_some_and(|loaded| !loaded.engine.is_alive())
    }

    /// Why nothing is drawn, in the phases in which that is so.
    pub(super) fn why_not_drawing(&self) -> String {
        match self.phase() {
            Phase::Starting => "starting".to_owned(),
            Phase::Loading { percent } => format!("loading the model: {percent}%"),
            Phase::Warming => "warming up the model".to_owned(),
            Phase::Ready => "the engine has died".to_owned(),
            Phase::Failed { reason } => format!("the model could not be loaded: {reason}"),
            Phase::Draining => "shutting down".to_owned(),
            Phase::Stopped => "stopped".to_owned(),
        }
    }
}
