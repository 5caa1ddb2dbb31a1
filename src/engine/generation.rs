//! The engine: the queue, the one background task that drains it, and their end.
//!
//! What the task does is in `worker`: one group of jobs has the device at a time. A job's answers go to the request's own
//! channel.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    GenerationRequest, GenerationResponse, QueueItem, RequestQueue,
    waiting::Waiting,
    worker::{Worker, refuse_waiting},
};
use crate::{Error, Result, pipeline::Generate};

/// How long [`GenerationEngine::shutdown`] lets the running jobs go on, unless told otherwise.
const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// How long a job that is stopped at shutdown may take to notice, at most: a network call cannot be interrupted.
const MOST_STOP_WAIT: Duration = Duration::from_secs(5);

/// Takes requests, draws them one group after another, and answers each on its own channel.
#[derive(Debug)]
pub struct GenerationEngine {
    queue: RequestQueue,
    /// The queue's receiving end, until the background task has it.
    receiver: Mutex<Option<mpsc::Receiver<QueueItem>>>,
    running: Arc<AtomicUsize>,
    /// Stop taking requests; report the waiting ones as cancelled.
    draining: CancellationToken,
    /// Stop the running one, too.
    stopping: CancellationToken,
    shutdown_grace: Duration,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    alive: CancellationToken,
}

impl GenerationEngine {
    /// An engine in whose queue at most `queue_capacity` requests wait. It draws nothing before
    /// [`start`](Self::start); what is submitted before waits.
    #[must_use]
    pub fn new(queue_capacity: usize) -> Self {
        let mut queue = RequestQueue::new(queue_capacity);
        let receiver = Mutex::new(queue.take_receiver());
        let running = queue.running();
        Self {
            queue,
            receiver,
            running,
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            shutdown_grace: DEFAULT_SHUTDOWN_GRACE,
            task: tokio::sync::Mutex::new(None),
            alive: CancellationToken::new(),
        }
    }

    /// The same engine with another time for the running job to finish in at shutdown.
    #[must_use]
    pub fn with_shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// Starts the background task, which draws with `pipeline`. A second call changes nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(&mut self, pipeline: Arc<dyn Generate>) {
        let Some(receiver) = self.take_receiver() else { return };
        let worker = Worker {
            pipeline,
            running: Arc::clone(&self.running),
            draining: self.draining.clone(),
            stopping: self.stopping.clone(),
            stop_wait: self.shutdown_grace.min(MOST_STOP_WAIT),
            last_words: TaskTracker::new(),
        };
        // Dropped with the task, however that ends, so that `is_alive` cannot lie.
        let death = self.alive.clone().drop_guard();
        *self.task.get_mut() = Some(tokio::spawn(async move {
            let _death = death;
            worker.drain(Waiting::new(receiver)).await;
        }));
    }

    /// Puts a request in the queue, or refuses it at once.
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] when there is no room, [`Error::NotAccepting`] when the engine is shutting down or dead.
    pub async fn submit(
        &self,
        request: GenerationRequest,
        response_tx: mpsc::Sender<GenerationResponse>,
    ) -> Result<()> {
        if self.draining.is_cancelled() {
            return Err(Error::NotAccepting { reason: "it is shutting down" });
        }
        self.queue.submit(request, response_tx).await
    }

    /// Stops taking requests, reports the waiting ones as cancelled, lets the running ones finish within the grace, and
    /// stops them past that; one that does not notice within as long again, 5 seconds at most, is left to itself. Returns when
    /// the background task has ended; a second call waits for the same end.
    pub async fn shutdown(&self) {
        self.draining.cancel();
        if let Some(receiver) = self.take_receiver() {
            refuse_waiting(Waiting::new(receiver), &TaskTracker::new()).await;
        }
        let mut task = self.task.lock().await;
        let Some(handle) = task.as_mut() else { return };
        if tokio::time::timeout(self.shutdown_grace, &mut *handle).await.is_err() {
            tracing::warn!(
                grace_ms = self.shutdown_grace.as_millis(),
                "the running job outlasted the grace; stopping it"
            );
            self.stopping.cancel();
            // The worker gives a drawing up that does not notice.
            let _ = handle.await;
        }
        *task = None;
    }

    /// A sending end of the queue, for another source of requests. What is sent here is not told its position.
    #[must_use]
    pub fn queue_sender(&self) -> mpsc::Sender<QueueItem> {
        self.queue.sender()
    }

    /// How many requests wait.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// How many requests may wait.
    #[must_use]
    pub fn queue_capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// How many jobs are drawn now: none, one, or several that share their network passes.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Whether the background task can still take requests: true before it starts, false once it has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.alive.is_cancelled()
    }

    fn take_receiver(&self) -> Option<mpsc::Receiver<QueueItem>> {
        // Only an `Option` is moved under this lock, so a poisoned one is as good as any.
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
