//! The requests that wait, as the background task sees them.
//!
//! A channel gives up its first item alone, so a request that is stopped behind others would keep its place until its
//! turn came. Here requests are taken out of the channel as they come, and one that is stopped leaves at once.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
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

/// A request that waits, and what tells when it is stopped.
struct Held {
    item: QueueItem,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.item.fmt(f)
    }
}

impl Held {
    fn new(item: QueueItem) -> Self {
        let (cancellation, response_tx) = (item.request.cancellation.clone(), item.response_tx.clone());
        let deadline = item.request.deadline;
        let stopped = Box::pin(async move {
            let reason = tokio::select! {
                reason = cancellation.cancelled() => reason,
                () = response_tx.closed() => CancelReason::Disconnected,
                () = until(deadline) => CancelReason::Deadline,
            };
            cancellation.cancel(reason);
        });
        Self { item, stopped }
    }

    fn into_item(self) -> QueueItem {
        self.item.out_of_queue()
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

    /// Lets no more in; [`next`](Self::next) gives those who are in.
    pub(super) fn close(&mut self) {
        self.receiver.close();
    }
}

/// Resolves to the index of a request that is stopped.
async fn first_stopped(held: &mut VecDeque<Held>) -> usize {
    poll_fn(|context| {
        let stopped = held.iter_mut().position(|held| held.stopped.as_mut().poll(context).is_ready());
        stopped.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Resolves at `deadline`, or never.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
