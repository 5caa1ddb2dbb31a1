//! Jobs that are drawn together, until each has its last word.
//!
//! Owns what each job is told while it is drawn, and what stops it. A job's last word goes out when its own drawing ends,
//! whatever the others do.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use image::DynamicImage;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::task::TaskTracker;

use super::{
    CancelReason, Cancellation, ErrorCode, GenerationRequest, GenerationResponse, JobTimings, QueueItem,
    waiting::{Held, watch_all},
};
use crate::{
    Error, Result,
    pipeline::{Generated, Monitor},
};

/// How long the last word of a job waits for a receiver that does not take what it was sent. The worker does not wait
/// with it.
const LAST_WORD_WAIT: Duration = Duration::from_secs(10);

/// Jobs that are drawn now.
pub(super) struct Group {
    /// By place; `None` for those who have their last word.
    members: Vec<Option<Member>>,
    /// How many have not.
    running: Arc<AtomicUsize>,
    last_words: TaskTracker,
}

struct Member {
    held: Held,
    queue_wait: Duration,
}

impl Group {
    /// Tells each job that its drawing begins.
    pub(super) fn start(items: Vec<QueueItem>, running: Arc<AtomicUsize>, last_words: TaskTracker) -> Self {
        running.store(items.len(), Ordering::Release);
        let member = |item: QueueItem| {
            let queue_wait = item.accepted_at.elapsed();
            let _ = item.response_tx.try_send(GenerationResponse::Started { queue_wait });
            Some(Member { held: Held::new(item), queue_wait })
        };
        Self { members: items.into_iter().map(member).collect(), running, last_words }
    }

    /// The places of those who have no last word yet.
    pub(super) fn left(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|job| self.members[*job].is_some()).collect()
    }

    /// What the jobs at these places ask for, with their monitors.
    pub(super) fn parts(&self, jobs: &[usize]) -> Vec<(usize, GenerationRequest, ChannelMonitor)> {
        let members = jobs.iter().filter_map(|job| Some((*job, self.members[*job].as_ref()?)));
        members
            .map(|(job, member)| (job, member.held.item.request.clone(), ChannelMonitor::new(&member.held.item)))
            .collect()
    }

    /// Stops each job whose client leaves or whose deadline passes, for as long as somebody waits for that.
    pub(super) async fn watch(&mut self) -> Infallible {
        watch_all(self.members.iter_mut().flatten().map(|member| &mut member.held)).await
    }

    /// Asks all that are left to stop.
    pub(super) fn cancel(&self, reason: CancelReason) {
        for member in self.members.iter().flatten() {
            member.held.item.request.cancellation.cancel(reason);
        }
    }

    /// Sends all that are left the last word of a job that was stopped, whatever is still drawn.
    pub(super) fn stop(&mut self) {
        for job in self.left() {
            self.end(job, Err(Error::Interrupted));
        }
    }

    /// Sends a job its last word. Only the first counts.
    pub(super) fn end(&mut self, job: usize, result: Result<Generated>) {
        let Some(Member { held, queue_wait }) = self.members[job].take() else { return };
        let item = held.into_item();
        let last = match result {
            Ok(generated) => complete(generated, item.accepted_at, queue_wait),
            Err(Error::Interrupted) => stopped(&item.request.cancellation),
            Err(error) => {
                tracing::error!(parent: &item.request.span, job_id = %item.request.job_id, %error, "generation failed");
                GenerationResponse::from(&error)
            }
        };
        self.running.fetch_sub(1, Ordering::AcqRel);
        tell_last(item, last, &self.last_words);
    }
}

fn complete(generated: Generated, accepted_at: Instant, queue_wait: Duration) -> GenerationResponse {
    let timings =
        JobTimings { queue_ms: millis(queue_wait), stages: generated.timings, total_ms: millis(accepted_at.elapsed()) };
    GenerationResponse::Complete { images: generated.images, timings, warnings: generated.warnings }
}

/// The last word of a job that was stopped.
pub(super) fn stopped(cancellation: &Cancellation) -> GenerationResponse {
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
pub(super) fn tell_last(item: QueueItem, last: GenerationResponse, last_words: &TaskTracker) {
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
pub(super) struct ChannelMonitor {
    /// Gone once the job has its last word, though its company is still drawn: then its channel closes.
    response_tx: mpsc::WeakSender<GenerationResponse>,
    cancellation: Cancellation,
    last_step_at: Instant,
    /// Images that a network pass draws, of this job and others.
    images_together: usize,
}

impl ChannelMonitor {
    fn new(item: &QueueItem) -> Self {
        Self {
            response_tx: item.response_tx.downgrade(),
            cancellation: item.request.cancellation.clone(),
            last_step_at: Instant::now(),
            images_together: 1,
        }
    }

    fn tell(&self, response: GenerationResponse) {
        if let Some(response_tx) = self.response_tx.upgrade() {
            let _ = response_tx.try_send(response);
        }
    }
}

impl Monitor for ChannelMonitor {
    fn should_stop(&self) -> bool {
        self.cancellation.reason().is_some()
    }

    fn drawn_together(&mut self, images: usize) {
        self.images_together = images;
        self.last_step_at = Instant::now();
    }

    fn progress(&mut self, step: usize, total: usize) {
        let now = Instant::now();
        let step_time = now - std::mem::replace(&mut self.last_step_at, now);
        let images_together = self.images_together;
        self.tell(GenerationResponse::Progress { step, total, step_time, images_together });
    }

    fn preview(&mut self, step: usize, image: DynamicImage) {
        self.tell(GenerationResponse::Preview { step, image });
    }
}
