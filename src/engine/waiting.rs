//! The requests that wait, as the background task sees them.
//!
//! A channel gives up its first item alone, so a request that is stopped behind others would keep its place until its
//! turn came. Here requests are taken out of the channel as they come, and one that is stopped leaves at once.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tokio::sync::mpsc;

use super::{CancelReason, QueueItem};

/// The receiving end of the queue, and what was taken out of it and is not drawn yet.
#[derive(Debug)]
pub(super) struct Waiting {
    receiver: mpsc::Receiver<QueueItem>,
    held: VecDeque<Held>,
    /// How many are held at most; the others stay in the channel.
    most_held: usize,
}

/// A request that waits or is drawn, and what stops it when its client leaves or its deadline passes.
pub(super) struct Held {
    pub(super) item: QueueItem,
    /// Resolves once it is stopped, by whomever; `None` once it has.
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.item.fmt(f)
    }
}

impl Held {
    pub(super) fn new(item: QueueItem) -> Self {
        let (cancellation, response_tx) = (item.request.cancellation.clone(), item.response_tx.clone());
        let deadline = item.request.deadline;
        let stopped: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let reason = tokio::select! {
                reason = cancellation.cancelled() => reason,
                () = response_tx.closed() => CancelReason::Disconnected,
                () = until(deadline) => CancelReason::Deadline,
            };
            cancellation.cancel(reason);
        });
        Self { item, stopped: Some(stopped) }
    }

    pub(super) fn into_item(self) -> QueueItem {
        self.item.out_of_queue()
    }

    /// Whether it is stopped, or is to be.
    fn is_stopped(&self) -> bool {
        let QueueItem { request, response_tx, .. } = &self.item;
        let late = request.deadline.is_some_and(|deadline| deadline <= Instant::now());
        late || response_tx.is_closed() || request.cancellation.reason().is_some()
    }

    /// Whether it is stopped.
    fn poll_stopped(&mut self, context: &mut Context<'_>) -> bool {
        if self.stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(context).is_ready()) {
            self.stopped = None;
        }
        self.stopped.is_none()
    }
}

impl Waiting {
    /// What comes out of a queue's channel.
    pub(super) fn new(receiver: mpsc::Receiver<QueueItem>) -> Self {
        let most_held = receiver.max_capacity();
        Self { receiver, held: VecDeque::new(), most_held }
    }

    /// Takes the request whose turn it is; `None` when no more can come. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<QueueItem> {
        match self.held.pop_front() {
            Some(held) => Some(held.into_item()),
            None => self.receiver.recv().await.map(QueueItem::out_of_queue),
        }
    }

    /// Takes the next request that is stopped while it waits, for as long as somebody waits for that. Dropping the future
    /// loses nothing.
    pub(super) async fn next_stopped(&mut self) -> QueueItem {
        let mut open = true;
        loop {
            let room = open && self.held.len() < self.most_held;
            tokio::select! {
                biased;
                index = first_stopped(&mut self.held) => {
                    if let Some(held) = self.held.remove(index) {
                        return held.into_item();
                    }
                }
                item = self.receiver.recv(), if room => match item {
                    Some(item) => self.held.push_back(Held::new(item)),
                    None => open = false,
                },
            }
        }
    }

    /// Takes those requests out of all that wait now, in their order, that `joins` asks for. One that is stopped already is
    /// not asked about.
    pub(super) fn take_if(&mut self, mut joins: impl FnMut(&QueueItem) -> bool) -> Vec<QueueItem> {
        while self.held.len() < self.most_held
            && let Ok(item) = self.receiver.try_recv()
        {
            self.held.push_back(Held::new(item));
        }
        let (taken, left) = self.held.drain(..).partition(|held| !held.is_stopped() && joins(&held.item));
        self.held = left;
        let taken: VecDeque<Held> = taken;
        taken.into_iter().map(Held::into_item).collect()
    }

    /// Lets no more in; [`next`](Self::next) gives those who are in.
    pub(super) fn close(&mut self) {
        self.receiver.close();
    }
}

/// Resolves to the index of a request that is stopped.
async fn first_stopped(held: &mut VecDeque<Held>) -> usize {
    poll_fn(|context| {
        let stopped = held.iter_mut().position(|held| held.poll_stopped(context));
        stopped.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Lets the stops of all of `held` take effect, for as long as somebody waits for that.
pub(super) async fn watch_all<'a>(held: impl Iterator<Item = &'a mut Held>) -> Infallible {
    let mut held: Vec<&mut Held> = held.collect();
    poll_fn(|context| {
        for held in &mut held {
            held.poll_stopped(context);
        }
        Poll::Pending
    })
    .await
}

/// Resolves at `deadline`, or never.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
