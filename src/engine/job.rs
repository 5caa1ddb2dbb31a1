//! One job on the board: its latest state, its numbered events, and whoever listens to them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    CancelReason,
    record::{Fetched, JobEvent, JobSnapshot, JobStatus, JobTicket, NumberedEvent, Outcome},
};

/// How many `progress` events of a job are kept for a subscriber that comes late or reads slowly.
const PROGRESS_KEPT: usize = 64;
/// How many `preview` events are kept.
const PREVIEWS_KEPT: usize = 2;

/// A job on the board.
#[derive(Debug)]
pub struct Job {
    pub(super) ticket: JobTicket,
    created_at: jiff::Timestamp,
    state: Mutex<JobState>,
    /// The newest event's number; changes wake the subscribers.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct JobState {
    pub(super) status: JobStatus,
    pub(super) position: usize,
    pub(super) step: usize,
    pub(super) total: usize,
    started_at: Option<jiff::Timestamp>,
    finished_at: Option<jiff::Timestamp>,
    outcome: Option<Arc<Outcome>>,
    /// By the clock that tests can pause.
    pub(super) ended_at: Option<Instant>,
    log: Vec<NumberedEvent>,
    next_id: u64,
    /// The images that a client has, by index.
    images_fetched: BTreeSet<usize>,
    /// A client has everything that it asked for.
    end_fetched: bool,
}

impl Job {
    pub(super) fn new(ticket: JobTicket, position: usize) -> Self {
        let state = JobState {
            status: JobStatus::Queued,
            position,
            step: 0,
            total: ticket.work.all_steps(),
            started_at: None,
            finished_at: None,
            outcome: None,
            ended_at: None,
            log: Vec::new(),
            next_id: 1,
            images_fetched: BTreeSet::new(),
            end_fetched: false,
        };
        Self { ticket, created_at: jiff::Timestamp::now(), state: Mutex::new(state), newest: watch::Sender::new(0) }
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.ticket.job_id
    }

    /// The client's own mark.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.ticket.tag.as_deref()
    }

    /// The request as used.
    #[must_use]
    pub fn request(&self) -> &serde_json::Value {
        &self.ticket.request
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Arc<Outcome>> {
        self.state().outcome.clone()
    }

    /// Waits until the job has ended.
    pub async fn ended(&self) -> Arc<Outcome> {
        let mut newest = self.newest.subscribe();
        loop {
            newest.mark_unchanged();
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            // The sender is this job's own, so it cannot be gone.
            let _ = newest.changed().await;
        }
    }

    /// Listens from the event after number `after` on; 0 is from the beginning.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, after: u64) -> Subscription {
        // A number that was never given out must not hide the events to come.
        let after = after.min(self.state().next_id - 1);
        Subscription { job: Arc::clone(self), newest: self.newest.subscribe(), after }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, JobState> {
        // Every change under this lock is a few assignments that cannot panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an event into the log and wakes the subscribers.
    pub(super) fn push(&self, state: &mut JobState, event: JobEvent) {
        state.push(event);
        self.newest.send_replace(state.next_id - 1);
    }

    pub(super) fn start(&self) {
        let mut state = self.state();
        if state.status == JobStatus::Queued {
            state.status = JobStatus::Running;
            state.started_at = Some(jiff::Timestamp::now());
            self.push(&mut state, JobEvent::Started);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.state().status == JobStatus::Running
    }

    /// Takes in how far the job is; returns whether it is drawn.
    pub(super) fn step_done(&self, step: usize, total: usize) -> bool {
        let mut state = self.state();
        let is_running = state.status == JobStatus::Running;
        if is_running {
            (state.step, state.total) = (step, total);
        }
        is_running
    }

    /// Ends the job, unless it has ended already; returns whether this ended it.
    pub(super) fn end(&self, outcome: Outcome) -> bool {
        let mut state = self.state();
        if state.outcome.is_some() {
            return false;
        }
        let outcome = Arc::new(outcome);
        state.status = outcome.status();
        state.finished_at = Some(jiff::Timestamp::now());
        state.ended_at = Some(Instant::now());
        state.outcome = Some(Arc::clone(&outcome));
        self.push(&mut state, JobEvent::Ended(outcome));
        true
    }

    pub(super) fn snapshot(&self, eta: Option<Duration>) -> JobSnapshot {
        let state = self.state();
        JobSnapshot {
            job_id: self.ticket.job_id.clone(),
            tag: self.ticket.tag.clone(),
            request: Arc::clone(&self.ticket.request),
            status: state.status,
            queue_position: (state.status == JobStatus::Queued).then_some(state.position),
            eta,
            step: state.step,
            total: state.total,
            created_at: self.created_at,
            started_at: state.started_at,
            finished_at: state.finished_at,
            outcome: state.outcome.clone(),
        }
    }
}

impl JobState {
    /// A client has a part of what came of the job.
    pub(super) fn fetch(&mut self, what: Fetched) {
        match what {
            Fetched::Image(index) => drop(self.images_fetched.insert(index)),
            Fetched::End => self.end_fetched = true,
            Fetched::EndWithLinks => {
                self.end_fetched |= !matches!(self.outcome.as_deref(), Some(Outcome::Succeeded { .. }));
            }
        }
    }

    /// Whether nobody is expected to ask for what came of the job any more. A job that somebody stopped, or whose client
    /// left, is nobody's.
    pub(super) fn is_fetched(&self) -> bool {
        self.end_fetched
            || self.outcome.as_deref().is_some_and(|outcome| match outcome {
                Outcome::Succeeded { images, .. } => self.images_fetched.len() >= images.len(),
                Outcome::Failed { .. } => false,
                Outcome::Cancelled { reason } => {
                    matches!(reason, CancelReason::Requested | CancelReason::Disconnected)
                }
            })
    }

    fn push(&mut self, event: JobEvent) {
        let kept = match event {
            JobEvent::Progress { .. } => PROGRESS_KEPT,
            JobEvent::Preview(_) => PREVIEWS_KEPT,
            // A position only ever falls and a job starts and ends once, so these are bounded by the queue's capacity.
            JobEvent::Queued { .. } | JobEvent::Started | JobEvent::Ended(_) => usize::MAX,
        };
        let alike = |other: &NumberedEvent| std::mem::discriminant(&other.event) == std::mem::discriminant(&event);
        if self.log.iter().filter(|other| alike(other)).count() >= kept
            && let Some(oldest) = self.log.iter().position(alike)
        {
            self.log.remove(oldest);
        }
        self.log.push(NumberedEvent { id: self.next_id, event });
        self.next_id += 1;
    }
}

/// One listener. It holds its job, so that it can read to the end even when the board has let the job go.
#[derive(Debug)]
pub struct Subscription {
    job: Arc<Job>,
    newest: watch::Receiver<u64>,
    after: u64,
}

impl Subscription {
    /// The job that is listened to.
    #[must_use]
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Whether the job has ended and its last event was read already.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.job.state();
        state.outcome.is_some() && state.next_id - 1 <= self.after
    }

    /// The next event that survives in the log; `None` after the last one. Whoever reads slowly misses `progress` and
    /// `preview` events, never others. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<NumberedEvent> {
        loop {
            // Before the log is read, so that an event written after that wakes this listener.
            self.newest.mark_unchanged();
            if let Some(event) = self.read() {
                self.after = event.id;
                return Some(event);
            }
            if self.is_over() {
                return None;
            }
            // The sender lives in the job that is held here.
            let _ = self.newest.changed().await;
        }
    }

    fn read(&self) -> Option<NumberedEvent> {
        self.job.state().log.iter().find(|event| event.id > self.after).cloned()
    }
}
