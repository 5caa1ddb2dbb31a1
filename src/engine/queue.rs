//! The bounded queue between whoever asks for pictures and the one task that draws them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{GenerationRequest, GenerationResponse};
use crate::{Error, Result};

/// A request in the queue, with the channel on which it is answered.
#[derive(Debug)]
pub struct QueueItem {
    /// What to draw.
    pub request: GenerationRequest,
    /// Where the answers go.
    pub response_tx: mpsc::Sender<GenerationResponse>,
    /// When the request was accepted.
    pub accepted_at: Instant,
    /// Its place among those that wait; none for what did not come through [`RequestQueue::submit`].
    place: Option<OwnedSemaphorePermit>,
}

impl QueueItem {
    /// An item accepted now.
    #[must_use]
    pub fn new(request: GenerationRequest, response_tx: mpsc::Sender<GenerationResponse>) -> Self {
        Self { request, response_tx, accepted_at: Instant::now(), place: None }
    }

    /// The item without its place, which is free from now on.
    pub(super) fn out_of_queue(mut self) -> Self {
        self.place = None;
        self
    }
}

/// A bounded queue of requests that refuses at once when it is full.
#[derive(Debug)]
pub struct RequestQueue {
    capacity: usize,
    /// Places that are free. They are counted beside the channel's, since whoever drains the channel may let a request go
    /// that is stopped before its turn.
    places: Arc<Semaphore>,
    sender: mpsc::Sender<QueueItem>,
    receiver: Option<mpsc::Receiver<QueueItem>>,
    running: Arc<AtomicUsize>,
}

impl RequestQueue {
    /// A queue in which at most `capacity` requests (at least one) wait.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let (sender, receiver) = mpsc::channel(capacity);
        let places = Arc::new(Semaphore::new(capacity));
        Self { capacity, places, sender, receiver: Some(receiver), running: Arc::new(AtomicUsize::new(0)) }
    }

    /// Puts a request in the queue, or refuses it at once. An accepted request is told its position first.
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] when there is no room, [`Error::NotAccepting`] when nobody takes from the queue any more.
    // Nothing is awaited today; the surface stays asynchronous for a queue that lives outside this process.
    #[expect(clippy::unused_async, reason = "the surface is asynchronous for queues outside the process")]
    pub async fn submit(
        &self,
        request: GenerationRequest,
        response_tx: mpsc::Sender<GenerationResponse>,
    ) -> Result<()> {
        let permit = match self.sender.try_reserve() {
            Ok(permit) => permit,
            Err(mpsc::error::TrySendError::Full(())) => return Err(Error::QueueFull { capacity: self.capacity }),
            Err(mpsc::error::TrySendError::Closed(())) => {
                return Err(Error::NotAccepting { reason: "its queue is closed" });
            }
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Error::QueueFull { capacity: self.capacity });
        };
        // The place in the queue is taken and counted in the depth, so the requests before this one are one fewer.
        let position = self.depth().saturating_sub(1) + self.running.load(Ordering::Acquire);
        // A receiver that is gone or full loses this message; the job goes on.
        let _ = response_tx.try_send(GenerationResponse::Queued { position });
        permit.send(QueueItem { place: Some(place), ..QueueItem::new(request, response_tx) });
        Ok(())
    }

    /// The receiving end; `None` once it was taken.
    pub fn take_receiver(&mut self) -> Option<mpsc::Receiver<QueueItem>> {
        self.receiver.take()
    }

    /// A sending end, for another source of requests. What is sent here waits in the channel, and is not counted.
    #[must_use]
    pub fn sender(&self) -> mpsc::Sender<QueueItem> {
        self.sender.clone()
    }

    /// How many requests may wait.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many requests wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.capacity - self.places.available_permits()
    }

    /// The count of running jobs, kept by whoever drains the queue.
    pub(super) fn running(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingConfig;

    fn request(job_id: &str) -> GenerationRequest {
        GenerationRequest::new(job_id, SamplingConfig::default())
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_takes_again_when_drained() {
        let mut queue = RequestQueue::new(2);
        let (tx, mut rx) = mpsc::channel(8);
        queue.submit(request("a"), tx.clone()).await.unwrap();
        queue.submit(request("b"), tx.clone()).await.unwrap();
        assert!(matches!(queue.submit(request("c"), tx.clone()).await, Err(Error::QueueFull { capacity: 2 })));
        assert_eq!(queue.depth(), 2);
        for expected in [0, 1] {
            assert!(matches!(rx.recv().await, Some(GenerationResponse::Queued { position }) if position == expected));
        }
        let mut receiver = queue.take_receiver().unwrap();
        assert!(queue.take_receiver().is_none());
        let first = receiver.recv().await.unwrap().out_of_queue();
        assert_eq!(first.request.job_id, "a");
        queue.submit(request("c"), tx.clone()).await.unwrap();
        drop(receiver);
        assert!(matches!(queue.submit(request("d"), tx).await, Err(Error::NotAccepting { .. })));
    }
}
