//! The one background task that drains the queue.
//!
//! Each generation runs on a blocking thread and is awaited before the next is taken, so that one job has the device at
//! a time. Its answers go to the request's own channel.

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use image::DynamicImage;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    CancelReason, Cancellation, ErrorCode, GenerationRequest, GenerationResponse, JobTimings, QueueItem, RequestQueue,
    waiting::{Waiting, until},
};
use crate::{
    Error, Result,
    pipeline::{Generate, Generated, Monitor},
};

/// How long the last word of a job waits for a receiver that does not take what it was sent. The worker does not wait
/// with it.
const LAST_WORD_WAIT: Duration = Duration::from_secs(10);
/// How long [`GenerationEngine::shutdown`] lets the running job go on, unless told otherwise.
const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// How long a job that is stopped at shutdown may take to notice, at most: a network call cannot be interrupted.
const MOST_STOP_WAIT: Duration = Duration::from_secs(5);

/// Takes requests, draws them one after another, and answers each on its own channel.
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

    /// Stops taking requests, reports the waiting ones as cancelled, lets the running one finish within the grace, and
    /// stops it past that; one that does not notice within as long again, 5 seconds at most, is left to itself. Returns when
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

    /// How many jobs are drawn now: 0 or 1.
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

/// The state of the background task.
struct Worker {
    pipeline: Arc<dyn Generate>,
    running: Arc<AtomicUsize>,
    draining: CancellationToken,
    stopping: CancellationToken,
    /// How long a job may take to notice that.
    stop_wait: Duration,
    /// Last words on their way to receivers whose channel is full.
    last_words: TaskTracker,
}

impl Worker {
    async fn drain(&self, mut waiting: Waiting) {
        loop {
            tokio::select! {
                biased;
                () = self.draining.cancelled() => break,
                item = waiting.next() => match item {
                    Some(item) => self.work(item, &mut waiting).await,
                    None => break,
                },
            }
        }
        refuse_waiting(waiting, &self.last_words).await;
    }

    /// Draws one request and sends its last word. Never panics, never waits without a bound on the receiver.
    async fn work(&self, item: QueueItem, waiting: &mut Waiting) {
        if item.response_tx.is_closed() {
            item.request.cancellation.cancel(CancelReason::Disconnected);
        }
        if item.request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            item.request.cancellation.cancel(CancelReason::Deadline);
        }
        if item.request.cancellation.reason().is_some() {
            let last = stopped(&item.request.cancellation);
            return tell_last(item, last, &self.last_words);
        }
        self.running.store(1, Ordering::Release);
        let last = tokio::select! {
            last = self.draw(&item) => last,
            never = self.let_go_of_stopped(waiting) => match never {},
        };
        self.running.store(0, Ordering::Release);
        tell_last(item, last, &self.last_words);
    }

    /// Sends their last word to the requests that are stopped while they wait.
    async fn let_go_of_stopped(&self, waiting: &mut Waiting) -> Infallible {
        loop {
            let item = waiting.next_stopped().await;
            let last = stopped(&item.request.cancellation);
            tell_last(item, last, &self.last_words);
        }
    }

    /// Resolves when a drawing that was stopped for the shutdown has had its time to notice.
    async fn given_up(&self) {
        self.stopping.cancelled().await;
        tokio::time::sleep(self.stop_wait).await;
    }

    async fn draw(&self, item: &QueueItem) -> GenerationResponse {
        let queue_wait = item.accepted_at.elapsed();
        let _ = item.response_tx.try_send(GenerationResponse::Started { queue_wait });
        let monitor = ChannelMonitor::new(item);
        let pipeline = Arc::clone(&self.pipeline);
        let request = item.request.clone();
        let mut drawing = tokio::task::spawn_blocking(move || {
            let _entered = request.span.enter();
            draw_caught(&*pipeline, &request, monitor)
        });
        let cancellation = &item.request.cancellation;
        let stop = async {
            tokio::select! {
                () = self.stopping.cancelled() => CancelReason::Shutdown,
                () = item.response_tx.closed() => CancelReason::Disconnected,
                () = until(item.request.deadline) => CancelReason::Deadline,
            }
        };
        let drawn = tokio::select! {
            drawn = &mut drawing => drawn,
            reason = stop => {
                cancellation.cancel(reason);
                tokio::select! {
                    drawn = &mut drawing => drawn,
                    () = self.given_up() => {
                        tracing::warn!(parent: &item.request.span, "the running job does not stop; leaving it");
                        return stopped(cancellation);
                    }
                }
            }
        };
        match drawn {
            Ok(Ok(generated)) => complete(generated, item.accepted_at, queue_wait),
            Ok(Err(Error::Interrupted)) => stopped(cancellation),
            Ok(Err(error)) => {
                tracing::error!(parent: &item.request.span, job_id = %item.request.job_id, %error, "generation failed");
                GenerationResponse::from(&error)
            }
            // Only a runtime that shuts down under the engine ends a blocking task without running it.
            Err(_) => GenerationResponse::Cancelled { reason: CancelReason::Shutdown },
        }
    }
}

/// Tells every waiting request that the worker is shutting down, and waits until all last words are taken.
async fn refuse_waiting(mut waiting: Waiting, last_words: &TaskTracker) {
    waiting.close();
    while let Some(item) = waiting.next().await {
        item.request.cancellation.cancel(CancelReason::Shutdown);
        let last = stopped(&item.request.cancellation);
        tell_last(item, last, last_words);
    }
    last_words.close();
    last_words.wait().await;
}

/// Draws, turning a panic into an error, so that it costs this job and not the worker.
fn draw_caught(pipeline: &dyn Generate, request: &GenerationRequest, mut monitor: ChannelMonitor) -> Result<Generated> {
    // A pipeline keeps no state between drawings, and the monitor dies here, so nothing broken is seen again.
    std::panic::catch_unwind(AssertUnwindSafe(|| pipeline.generate(&request.config, &mut monitor)))
        .unwrap_or_else(|panic| Err(Error::Panicked { message: panic_message(&*panic) }))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "no message".to_owned()
    }
}

fn complete(generated: Generated, accepted_at: Instant, queue_wait: Duration) -> GenerationResponse {
    let timings =
        JobTimings { queue_ms: millis(queue_wait), stages: generated.timings, total_ms: millis(accepted_at.elapsed()) };
    GenerationResponse::Complete { images: generated.images, timings, warnings: generated.warnings }
}

/// The last word of a job that was stopped.
fn stopped(cancellation: &Cancellation) -> GenerationResponse {
    match cancellation.reason() {
        Some(CancelReason::Deadline) => GenerationResponse::Error {
            code: ErrorCode::DeadlineExceeded,
            message: "the deadline passed before the picture was finished".to_owned(),
            field: None,
        },
        Some(reason) => GenerationResponse::Cancelled { reason },
        None => GenerationResponse::Error {
            code: ErrorCode::GenerationFailed,
            message: "the pipeline stopped without being asked to".to_owned(),
            field: None,
        },
    }
}

/// Sends a job's last word. A receiver whose channel is full is waited for beside the worker, and not for ever.
fn tell_last(item: QueueItem, last: GenerationResponse, last_words: &TaskTracker) {
    let Err(TrySendError::Full(last)) = item.response_tx.try_send(last) else { return };
    last_words.spawn(async move {
        if tokio::time::timeout(LAST_WORD_WAIT, item.response_tx.send(last)).await.is_err() {
            let job_id = &item.request.job_id;
            tracing::warn!(parent: &item.request.span, %job_id, "the receiver took nothing; the result is dropped");
        }
    });
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Passes a drawing's progress to the request's channel, never waiting for it.
struct ChannelMonitor {
    response_tx: mpsc::Sender<GenerationResponse>,
    cancellation: Cancellation,
    last_step_at: Instant,
}

impl ChannelMonitor {
    fn new(item: &QueueItem) -> Self {
        Self {
            response_tx: item.response_tx.clone(),
            cancellation: item.request.cancellation.clone(),
            last_step_at: Instant::now(),
        }
    }
}

impl Monitor for ChannelMonitor {
    fn should_stop(&self) -> bool {
        self.cancellation.reason().is_some()
    }

    fn progress(&mut self, step: usize, total: usize) {
        let now = Instant::now();
        let step_time = now - std::mem::replace(&mut self.last_step_at, now);
        let _ = self.response_tx.try_send(GenerationResponse::Progress { step, total, step_time });
    }

    fn preview(&mut self, step: usize, image: DynamicImage) {
        let _ = self.response_tx.try_send(GenerationResponse::Preview { step, image });
    }
}
