//! The background task: it takes what waits, draws it, and lets nothing stop it.
//!
//! Each turn takes the request at the queue's head, and with it those that wait already and can share its network passes.
//! They are drawn on a blocking thread and awaited before the next turn, so that one group has the device at a time.

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    CancelReason, GenerationRequest, QueueItem,
    group::{ChannelMonitor, Group, stopped, tell_last},
    waiting::Waiting,
};
use crate::{
    Error, Result,
    pipeline::{Generate, Generated, GroupJob},
};

/// The state of the background task.
pub(super) struct Worker {
    pub(super) pipeline: Arc<dyn Generate>,
    /// How many jobs are drawn now.
    pub(super) running: Arc<AtomicUsize>,
    pub(super) draining: CancellationToken,
    pub(super) stopping: CancellationToken,
    /// How long a job may take to notice that.
    pub(super) stop_wait: Duration,
    /// Last words on their way to receivers whose channel is full.
    pub(super) last_words: TaskTracker,
}

impl Worker {
    pub(super) async fn drain(&self, mut waiting: Waiting) {
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

    /// Draws one request, and those that can join it, and sends their last words. Never panics, never waits without a bound
    /// on a receiver.
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
        let items = self.gather(item, waiting);
        tokio::select! {
            () = self.draw(items) => {}
            never = self.let_go_of_stopped(waiting) => match never {},
        }
    }

    /// A request and those behind it that can be drawn with it, as far as one network pass goes. Nobody is waited for, and
    /// whoever cannot join keeps its place, so that the head of the queue is never kept waiting by those behind it.
    fn gather(&self, first: QueueItem, waiting: &mut Waiting) -> Vec<QueueItem> {
        let config = first.request.config.clone();
        let mut room = self.pipeline.images_together(&config).saturating_sub(config.n);
        let mut items = vec![first];
        if room > 0 {
            items.extend(waiting.take_if(|other| {
                let other = &other.request.config;
                let joins = other.n <= room && self.pipeline.can_join(&config, other);
                if joins {
                    room -= other.n;
                }
                joins
            }));
        }
        items
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

    /// Draws a group to its end.
    async fn draw(&self, items: Vec<QueueItem>) {
        let mut group = Group::start(items, Arc::clone(&self.running), self.last_words.clone());
        let all = group.left();
        match self.draw_together(&mut group, &all).await {
            Ok(()) => {}
            Err(error) if all.len() == 1 => group.end(all[0], Err(error)),
            // One of them may be at fault, which must not cost the others. Each begins anew, and only once.
            Err(error) => {
                let jobs = group.left();
                tracing::warn!(%error, jobs = jobs.len(), "jobs could not be drawn together; drawing each alone");
                for job in jobs {
                    if let Err(error) = self.draw_together(&mut group, &[job]).await {
                        group.end(job, Err(error));
                    }
                }
            }
        }
        // A pipeline that says nothing of a job has stopped it without being asked to.
        group.stop();
    }

    /// Draws jobs of a group in the same network passes.
    ///
    /// # Errors
    ///
    /// What failed for all those of them that are still left.
    async fn draw_together(&self, group: &mut Group, jobs: &[usize]) -> Result<()> {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let (pipeline, parts) = (Arc::clone(&self.pipeline), group.parts(jobs));
        if parts.is_empty() {
            return Ok(());
        }
        let mut drawing = tokio::task::spawn_blocking(move || draw_caught(&*pipeline, parts, &ends));
        let (mut stop, mut give_up) = (pin!(self.stopping.cancelled()), pin!(self.given_up()));
        let mut stopping = false;
        let drawn = loop {
            tokio::select! {
                biased;
                Some((job, result)) = ended.recv() => group.end(job, result),
                drawn = &mut drawing => break drawn,
                () = &mut stop, if !stopping => {
                    stopping = true;
                    group.cancel(CancelReason::Shutdown);
                }
                () = &mut give_up => {
                    tracing::warn!(jobs = group.left().len(), "what is drawn does not stop; leaving it");
                    group.stop();
                    return Ok(());
                }
                never = group.watch() => match never {},
            }
        };
        while let Ok((job, result)) = ended.try_recv() {
            group.end(job, result);
        }
        match drawn {
            Ok(drawn) => drawn,
            // Only a runtime that shuts down under the engine ends a blocking task without running it.
            Err(_) => {
                group.cancel(CancelReason::Shutdown);
                group.stop();
                Ok(())
            }
        }
    }
}

/// Tells every waiting request that the worker is shutting down, and waits until all last words are taken.
pub(super) async fn refuse_waiting(mut waiting: Waiting, last_words: &TaskTracker) {
    waiting.close();
    while let Some(item) = waiting.next().await {
        item.request.cancellation.cancel(CancelReason::Shutdown);
        let last = stopped(&item.request.cancellation);
        tell_last(item, last, last_words);
    }
    last_words.close();
    last_words.wait().await;
}

/// Draws jobs, by their place in their group, turning a panic into an error, so that it costs these jobs and not the worker.
fn draw_caught(
    pipeline: &dyn Generate,
    mut parts: Vec<(usize, GenerationRequest, ChannelMonitor)>,
    ends: &mpsc::UnboundedSender<(usize, Result<Generated>)>,
) -> Result<()> {
    let span = match &parts[..] {
        [(_, request, _)] => request.span.clone(),
        parts => {
            let ids: Vec<&str> = parts.iter().map(|(_, request, _)| request.job_id.as_str()).collect();
            tracing::info_span!("group", job_ids = ids.join(","))
        }
    };
    let _entered = span.enter();
    let places: Vec<usize> = parts.iter().map(|(place, ..)| *place).collect();
    // A pipeline keeps no state between drawings, and the monitors die here, so nothing broken is seen again.
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut jobs: Vec<GroupJob<'_>> =
            parts.iter_mut().map(|(_, request, monitor)| GroupJob { config: &request.config, monitor }).collect();
        pipeline.generate_group(&mut jobs, &mut |job, result| {
            // Whoever has given the drawing up does not listen any more.
            let _ = ends.send((places[job], result));
        })
    }))
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
