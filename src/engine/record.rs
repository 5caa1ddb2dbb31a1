//! What the board knows of a job: the ticket it came with, its events, how it ended, its latest state.

use std::{sync::Arc, time::Duration};

use super::{CancelReason, Cancellation, ErrorCode, JobTimings, Work};

/// What a job brings to the board.
#[derive(Debug, Clone)]
pub struct JobTicket {
    /// The job's id. Ids have to sort by time, as UUIDv7 do.
    pub job_id: String,
    /// Whatever the client wants to find again.
    pub tag: Option<String>,
    /// The request as used, in the form that clients are shown. The board does not read it.
    pub request: Arc<serde_json::Value>,
    /// What the job costs.
    pub work: Work,
    /// Stops the job.
    pub cancellation: Cancellation,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// It waits.
    Queued,
    /// It is drawn.
    Running,
    /// Its pictures are there.
    Succeeded,
    /// It failed.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl JobStatus {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One finished picture, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultImage {
    /// The seed that drew it.
    pub seed: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The format's name, such as `png`.
    pub format: &'static str,
    /// The format's media type, such as `image/png`.
    pub media_type: &'static str,
    /// The encoded picture.
    pub bytes: Vec<u8>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The pictures are there.
    Succeeded {
        /// Image `i` has seed `seed + i`.
        images: Vec<Arc<ResultImage>>,
        /// Where the time went.
        timings: JobTimings,
        /// What the caller should know.
        warnings: Vec<String>,
    },
    /// It failed.
    Failed {
        /// What kind of failure.
        code: ErrorCode,
        /// What happened, for a person.
        message: String,
        /// The parameter at fault, where one is.
        field: Option<&'static str>,
    },
    /// It was stopped.
    Cancelled {
        /// Why.
        reason: CancelReason,
    },
}

impl Outcome {
    /// The status of a job that ended so.
    #[must_use]
    pub const fn status(&self) -> JobStatus {
        match self {
            Self::Succeeded { .. } => JobStatus::Succeeded,
            Self::Failed { .. } => JobStatus::Failed,
            Self::Cancelled { .. } => JobStatus::Cancelled,
        }
    }

    /// The bytes of all its pictures.
    #[must_use]
    pub fn result_bytes(&self) -> usize {
        match self {
            Self::Succeeded { images, .. } => images.iter().map(|image| image.bytes.len()).sum(),
            Self::Failed { .. } | Self::Cancelled { .. } => 0,
        }
    }
}

/// What of an ended job a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The image at this index. A job that succeeded is fetched when all its images are.
    Image(usize),
    /// How it ended, with all its images.
    End,
    /// How it ended, with links to its images: all that there is of a job that has none.
    EndWithLinks,
}

/// A step of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepDone {
    /// Steps done, over all the images.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// How long the step took.
    pub step_time: Duration,
    /// Images that its network passes drew, of this job and of those that share them.
    pub images_together: usize,
}

/// What a picture looked like on its way, encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct PreviewImage {
    /// After this many steps.
    pub step: usize,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The format's name, such as `jpeg`.
    pub format: &'static str,
    /// The encoded picture in base64.
    pub base64: String,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// It waits.
    Queued {
        /// How many jobs that were accepted before it have not ended.
        position: usize,
        /// Until it is done; `None` before this worker has measured a step.
        eta: Option<Duration>,
    },
    /// It is drawn from now on.
    Started,
    /// A step is done.
    Progress {
        /// Steps done, over all the images.
        step: usize,
        /// Steps in all.
        total: usize,
        /// How long the step took.
        step_time: Duration,
        /// Until it is done.
        eta: Option<Duration>,
    },
    /// What the picture looks like so far.
    Preview(Arc<PreviewImage>),
    /// It ended; nothing follows.
    Ended(Arc<Outcome>),
}

/// An event with its number, which counts from 1 within the job.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberedEvent {
    /// The number.
    pub id: u64,
    /// The event.
    pub event: JobEvent,
}

/// A job's latest state, as one consistent picture.
#[derive(Debug, Clone)]
pub struct JobSnapshot {
    /// The job's id.
    pub job_id: String,
    /// The client's own mark.
    pub tag: Option<String>,
    /// The request as used.
    pub request: Arc<serde_json::Value>,
    /// Where it stands.
    pub status: JobStatus,
    /// How many jobs that were accepted before it have not ended, while it waits.
    pub queue_position: Option<usize>,
    /// Until it is done, as far as that can be told.
    pub eta: Option<Duration>,
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// When it was accepted.
    pub created_at: jiff::Timestamp,
    /// When its drawing began.
    pub started_at: Option<jiff::Timestamp>,
    /// When it ended.
    pub finished_at: Option<jiff::Timestamp>,
    /// How it ended.
    pub outcome: Option<Arc<Outcome>>,
}
