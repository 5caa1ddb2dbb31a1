//! The board on which every job can be looked up: its latest state, its events, its pictures.
//!
//! Owns the jobs' states, their numbered logs and their results, for a bounded time, in bounded number and size. What
//! falls off is remembered by its id for a while, so that a client is told "expired" and not "never heard of". It must
//! not know HTTP: `http` writes on it what the engine says, and reads it for any number of clients. The file is a little
//! long so that everything that happens under the board's one lock is read in one place.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    CancelReason, ErrorCode,
    job::{Job, Subscription},
    pace::{Left, Pace},
    record::{Fetched, JobEvent, JobSnapshot, JobStatus, JobTicket, Outcome, PreviewImage, StepDone},
};

/// How much the board keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoardLimits {
    /// How long an ended job is kept.
    pub result_ttl: Duration,
    /// How many ended jobs are kept; past it the one that ended first goes.
    pub max_ended_jobs: usize,
    /// How many bytes of pictures are kept; past it the job that ended first goes. The newest result stays, whatever
    /// its size.
    pub max_result_bytes: usize,
    /// How many ids of jobs that are gone are remembered.
    pub max_expired_ids: usize,
}

impl Default for BoardLimits {
    fn default() -> Self {
        Self {
            result_ttl: Duration::from_secs(600),
            max_ended_jobs: 1000,
            max_result_bytes: 512 << 20,
            max_expired_ids: 10_000,
        }
    }
}

/// Why a job is not on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Its time was up, or newer ones needed the room.
    Expired,
    /// No job with this id was ever accepted, or it is too long ago to be remembered.
    Unknown,
}

/// What became of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// The job ends now, or within one step.
    Stopping,
    /// The job had ended before.
    EndedBefore,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Only jobs that stand so.
    pub status: Option<JobStatus>,
    /// Only jobs older than the one with this id.
    pub after: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// The board.
#[derive(Debug)]
pub struct JobBoard {
    limits: BoardLimits,
    state: Mutex<State>,
    /// Something was fetched, or let go of.
    fetched: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By id, which is by time.
    jobs: BTreeMap<String, Arc<Job>>,
    /// Those that have not ended, in the order in which they will be drawn.
    active: Vec<Arc<Job>>,
    /// Those that have ended, in the order in which they did.
    ended: VecDeque<Arc<Job>>,
    result_bytes: usize,
    expired: ExpiredIds,
    pace: Pace,
}

impl JobBoard {
    /// An empty board.
    #[must_use]
    pub fn new(limits: BoardLimits) -> Self {
        Self { limits, state: Mutex::default(), fetched: Notify::new() }
    }

    /// Puts up a job that the queue has accepted. Jobs have to be put up in the order in which they were accepted.
    pub fn add(&self, ticket: JobTicket) -> Arc<Job> {
        let mut state = self.lock();
        let index = state.active.len();
        let job = Arc::new(Job::new(ticket, index));
        state.active.push(Arc::clone(&job));
        state.jobs.insert(job.id().to_owned(), Arc::clone(&job));
        state.announce_position(index);
        job
    }

    /// The job's drawing begins.
    pub fn started(&self, job: &Job) {
        job.start();
    }

    /// A step of the job is done.
    pub fn progress(&self, job: &Job, done: StepDone) {
        let StepDone { step, total, step_time, images_together } = done;
        let mut board = self.lock();
        board.pace.observe_step(step_time, images_together, &job.ticket.work);
        if !job.step_done(step, total) {
            return;
        }
        let eta = board.eta(job);
        job.push(&mut job.state(), JobEvent::Progress { step, total, step_time, eta });
    }

    /// What the job's picture looks like so far.
    pub fn preview(&self, job: &Job, preview: PreviewImage) {
        let mut state = job.state();
        if state.status == JobStatus::Running {
            job.push(&mut state, JobEvent::Preview(Arc::new(preview)));
        }
    }

    /// The job has ended. Only the first end counts. The jobs behind it move up, and are told.
    pub fn end(&self, job: &Job, outcome: Outcome) {
        self.lock().end(job, outcome, &self.limits);
    }

    /// Stops a job. One that still waits ends at once; one that is drawn ends within a step.
    ///
    /// # Errors
    ///
    /// [`Missing`] when it is not on the board.
    pub fn cancel(&self, job_id: &str, reason: CancelReason) -> Result<(Cancelling, JobSnapshot), Missing> {
        let mut state = self.lock();
        let job = state.find(job_id, &self.limits)?;
        let cancelling = if job.outcome().is_some() {
            Cancelling::EndedBefore
        } else {
            job.ticket.cancellation.cancel(reason);
            let waits = job.state().status == JobStatus::Queued;
            if waits {
                // Somebody else's earlier reason may have won.
                let reason = job.ticket.cancellation.reason().unwrap_or(reason);
                state.end(&job, stopped_while_waiting(reason), &self.limits);
            }
            Cancelling::Stopping
        };
        Ok((cancelling, state.snapshot(&job)))
    }

    /// The job with this id.
    ///
    /// # Errors
    ///
    /// [`Missing`] when it is not on the board.
    pub fn find(&self, job_id: &str) -> Result<Arc<Job>, Missing> {
        self.lock().find(job_id, &self.limits)
    }

    /// The job's latest state.
    #[must_use]
    pub fn snapshot(&self, job: &Job) -> JobSnapshot {
        self.lock().snapshot(job)
    }

    /// Listens to a job, from the event after number `after` on.
    ///
    /// # Errors
    ///
    /// [`Missing`] when it is not on the board.
    pub fn subscribe(&self, job_id: &str, after: u64) -> Result<Subscription, Missing> {
        Ok(self.find(job_id)?.subscribe(after))
    }

    /// Jobs, the newest first, and whether there are more.
    #[must_use]
    pub fn list(&self, listing: &Listing) -> (Vec<JobSnapshot>, bool) {
        let mut state = self.lock();
        state.expire(&self.limits);
        let older = |id: &str| listing.after.as_deref().is_none_or(|after| id < after);
        let mut found = state
            .jobs
            .iter()
            .rev()
            .filter(|(id, job)| older(id) && listing.status.is_none_or(|status| job.state().status == status))
            .map(|(_, job)| job);
        let page: Vec<_> = found.by_ref().take(listing.limit).map(|job| state.snapshot(job)).collect();
        let more = found.next().is_some();
        (page, more)
    }

    /// Until what is drawn now is expected to end, which gives up a place in the queue; `None` before the first measured
    /// step.
    #[must_use]
    pub fn next_place_in(&self) -> Option<Duration> {
        let state = self.lock();
        state.eta(state.active.first()?)
    }

    /// Lets go of what has been kept for long enough. Every look-up does this, too; a worker that nobody asks needs it.
    pub fn sweep(&self) {
        self.lock().expire(&self.limits);
        self.fetched.notify_waiters();
    }

    /// A client has what came of the job, or a part of it.
    pub fn fetched(&self, job: &Job, what: Fetched) {
        job.state().fetch(what);
        self.fetched.notify_waiters();
    }

    /// How many ended jobs are kept for somebody who has not fetched what came of them.
    #[must_use]
    pub fn unfetched(&self) -> usize {
        let mut state = self.lock();
        state.expire(&self.limits);
        state.ended.iter().filter(|job| !job.state().is_fetched()).count()
    }

    /// Waits until what came of every ended job was fetched or let go of.
    pub async fn all_fetched(&self) {
        loop {
            let mut changed = std::pin::pin!(self.fetched.notified());
            changed.as_mut().enable();
            if self.unfetched() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The changes under this lock do not panic half-way; a reader's panic leaves the board as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a job ends that is stopped before its drawing begins.
fn stopped_while_waiting(reason: CancelReason) -> Outcome {
    match reason {
        CancelReason::Deadline => Outcome::Failed {
            code: ErrorCode::DeadlineExceeded,
            message: "the deadline passed while the job waited in the queue".to_owned(),
            field: None,
        },
        reason => Outcome::Cancelled { reason },
    }
}

impl State {
    fn end(&mut self, job: &Job, outcome: Outcome, limits: &BoardLimits) {
        let bytes = outcome.result_bytes();
        let timings = if let Outcome::Succeeded { timings, .. } = &outcome { Some(*timings) } else { None };
        if !job.end(outcome) {
            return;
        }
        if let Some(timings) = timings {
            self.pace.observe_end(&timings, &job.ticket.work);
        }
        if let Some(index) = self.active.iter().position(|other| other.id() == job.id()) {
            let job = self.active.remove(index);
            self.ended.push_back(job);
            self.result_bytes += bytes;
            for index in index..self.active.len() {
                self.announce_position(index);
            }
        }
        while self.ended.len() > limits.max_ended_jobs.max(1)
            || (self.result_bytes > limits.max_result_bytes && self.ended.len() > 1)
        {
            self.let_go_of_oldest();
        }
    }

    /// Tells the waiting job at `index` of the active ones its place.
    fn announce_position(&mut self, index: usize) {
        let job = &self.active[index];
        let eta = self.eta(job);
        let mut state = job.state();
        if state.status == JobStatus::Queued {
            state.position = index;
            job.push(&mut state, JobEvent::Queued { position: index, eta });
        }
    }

    fn find(&mut self, job_id: &str, limits: &BoardLimits) -> Result<Arc<Job>, Missing> {
        self.expire(limits);
        match self.jobs.get(job_id) {
            Some(job) => Ok(Arc::clone(job)),
            None if self.expired.contains(job_id) => Err(Missing::Expired),
            None => Err(Missing::Unknown),
        }
    }

    fn expire(&mut self, limits: &BoardLimits) {
        let now = Instant::now();
        let old = |job: &Arc<Job>| job.state().ended_at.is_some_and(|ended| now - ended >= limits.result_ttl);
        while self.ended.front().is_some_and(old) {
            self.let_go_of_oldest();
        }
        self.expired.trim(limits.max_expired_ids);
    }

    fn let_go_of_oldest(&mut self) {
        let Some(job) = self.ended.pop_front() else { return };
        self.jobs.remove(job.id());
        self.result_bytes -= job.outcome().map_or(0, |outcome| outcome.result_bytes());
        self.expired.insert(job.id().to_owned());
    }

    fn snapshot(&self, job: &Job) -> JobSnapshot {
        job.snapshot(self.eta(job))
    }

    /// Until `job` is done: what is left of all that is drawn now and, while it waits, of it and of those before it.
    fn eta(&self, job: &Job) -> Option<Duration> {
        let index = self.active.iter().position(|other| other.id() == job.id())?;
        let waits = !job.is_running();
        let goes_first = |(other, job): &(usize, &Arc<Job>)| job.is_running() || waits && *other <= index;
        let left = self.active.iter().enumerate().filter(goes_first).map(|(_, job)| left_of(job));
        self.pace.estimate(left.fold(Left::default(), Left::add))
    }
}

fn left_of(job: &Job) -> Left {
    job.ticket.work.left_after(job.state().step)
}

/// The ids of jobs that are gone, the oldest first.
#[derive(Debug, Default)]
struct ExpiredIds {
    order: VecDeque<String>,
    known: HashSet<String>,
}

impl ExpiredIds {
    fn insert(&mut self, id: String) {
        self.known.insert(id.clone());
        self.order.push_back(id);
    }

    fn contains(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    fn trim(&mut self, most: usize) {
        while self.order.len() > most {
            if let Some(id) = self.order.pop_front() {
                self.known.remove(&id);
            }
        }
    }
}
