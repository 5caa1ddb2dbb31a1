//! Jobs, pictures and errors of jobs as clients see them.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    app::App,
    wire::{OnDisconnect, Wish},
};
use crate::{
    drawing::DrawingParameters,
    engine::{Fetched, Job, JobSnapshot, JobTimings, Outcome, ResultImage},
    naming::BasePath,
    output::{OutputFormat, OutputOptions},
};

/// How a job's pictures are shown in an answer: all with where they are to be found, some with their bytes, too.
#[derive(Debug, Clone)]
pub(super) struct Pictures {
    base_path: BasePath,
    pub(super) inline: bool,
}

impl Pictures {
    /// Only where they are.
    pub(super) fn linked(app: &App) -> Self {
        Self::new(app, false)
    }

    /// As the job's own request wants them.
    pub(super) fn as_requested(app: &App, job: &Job) -> Self {
        Self::new(app, job.request().pointer(INLINE_AS_USED) != Some(&Value::Bool(false)))
    }

    /// With their bytes if `inline` says so.
    pub(super) fn new(app: &App, inline: bool) -> Self {
        Self { base_path: app.config.listen.base_path.clone(), inline }
    }

    /// What a client has of a job that was shown to it with these.
    pub(super) fn fetched(&self) -> Fetched {
        if self.inline { Fetched::End } else { Fetched::EndWithLinks }
    }

    /// The pictures of a job.
    pub(super) fn views(&self, job_id: &str, images: &[Arc<ResultImage>]) -> Vec<ImageView> {
        let view = |(index, image): (usize, &Arc<ResultImage>)| ImageView {
            index,
            seed: image.seed,
            width: image.width,
            height: image.height,
            format: image.format,
            url: format!("{}/images/{index}", job_url(&self.base_path, job_id)),
            base64: self.inline.then(|| STANDARD.encode(&image.bytes)),
        };
        images.iter().enumerate().map(view).collect()
    }
}

/// Where clients find a job: a path from the root of the host by which they see this worker.
pub(super) fn job_url(base_path: &BasePath, job_id: &str) -> String {
    format!("{base_path}/jobs/{job_id}")
}

/// A job.
#[derive(Debug, Serialize)]
pub(super) struct JobView {
    job_id: String,
    status: &'static str,
    tag: Option<String>,
    queue_position: Option<usize>,
    eta_ms: Option<u64>,
    progress: ProgressView,
    created_at: jiff::Timestamp,
    started_at: Option<jiff::Timestamp>,
    finished_at: Option<jiff::Timestamp>,
    timings: Option<TimingsView>,
    #[serde(serialize_with = "shared")]
    request: Arc<Value>,
    images: Vec<ImageView>,
    warnings: Vec<String>,
    error: Option<JobErrorView>,
}

#[derive(Debug, Serialize)]
struct ProgressView {
    step: usize,
    total: usize,
    percent: usize,
}

/// Where a job's time went.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TimingsView {
    queue_ms: u64,
    encode_ms: u64,
    denoise_ms: u64,
    decode_ms: u64,
    total_ms: u64,
}

/// A finished picture.
#[derive(Debug, Serialize)]
pub(super) struct ImageView {
    index: usize,
    seed: u64,
    width: u32,
    height: u32,
    format: &'static str,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Debug, Serialize)]
struct JobErrorView {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl JobView {
    /// With the bytes of large pictures this takes a while: call it off the asynchronous threads.
    pub(super) fn new(job: JobSnapshot, pictures: &Pictures) -> Self {
        let (mut images, mut timings, mut warnings, mut error) = (Vec::new(), None, Vec::new(), None);
        match job.outcome.as_deref() {
            None => {}
            Some(Outcome::Succeeded { images: drawn, timings: taken, warnings: said }) => {
                images = pictures.views(&job.job_id, drawn);
                timings = Some(TimingsView::from(taken));
                warnings.clone_from(said);
            }
            Some(Outcome::Failed { code, message, field }) => {
                error = Some(JobErrorView { code: code.name(), message: message.clone(), field: *field, reason: None });
            }
            Some(Outcome::Cancelled { reason }) => {
                let reason = reason.name();
                let message = format!("the job was cancelled: {reason}");
                error = Some(JobErrorView { code: "cancelled", message, field: None, reason: Some(reason) });
            }
        }
        Self {
            job_id: job.job_id,
            status: job.status.name(),
            tag: job.tag,
            queue_position: job.queue_position,
            eta_ms: job.eta.map(millis),
            progress: ProgressView { step: job.step, total: job.total, percent: percent(job.step, job.total) },
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            timings,
            request: job.request,
            images,
            warnings,
            error,
        }
    }
}

impl From<&JobTimings> for TimingsView {
    fn from(timings: &JobTimings) -> Self {
        Self {
            queue_ms: timings.queue_ms,
            encode_ms: timings.stages.encode_ms,
            denoise_ms: timings.stages.denoise_ms,
            decode_ms: timings.stages.decode_ms,
            total_ms: timings.total_ms,
        }
    }
}

#[derive(Serialize)]
struct RequestView<'a> {
    #[serde(flatten)]
    drawing: DrawingParameters<'a>,
    preview_every: usize,
    output: OutputView,
    deadline_ms: Option<u64>,
    on_disconnect: OnDisconnect,
    tag: Option<&'a str>,
}

#[derive(Serialize)]
struct OutputView {
    format: &'static str,
    /// Only where it means something.
    #[serde(skip_serializing_if = "Option::is_none")]
    quality: Option<u8>,
    /// Whether the file holds the request.
    metadata: bool,
    inline: bool,
}

/// Where [`request_as_used`] says whether the client wants the pictures' bytes.
const INLINE_AS_USED: &str = "/output/inline";

/// The request as used, every default filled in.
pub(super) fn request_as_used(wish: &Wish, on_disconnect: OnDisconnect) -> Value {
    let OutputOptions { format, quality, metadata } = wish.output;
    let view = RequestView {
        drawing: DrawingParameters::of_request(&wish.config),
        preview_every: wish.config.preview_every,
        output: OutputView {
            format: format.name(),
            quality: (format == OutputFormat::Jpeg).then_some(quality),
            metadata,
            inline: wish.inline,
        },
        deadline_ms: wish.deadline.map(millis),
        on_disconnect,
        tag: wish.tag.as_deref(),
    };
    serde_json::to_value(view).expect("strings, numbers and booleans are always JSON")
}

fn shared<S: Serializer>(value: &Arc<Value>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().serialize(serializer)
}

/// Whole percent, rounded down, so that 100 means done.
pub(super) fn percent(step: usize, total: usize) -> usize {
    step * 100 / total.max(1)
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
