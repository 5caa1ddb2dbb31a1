//! From a valid wish to a job in the queue, and from what the engine says of it to the board.

use std::{sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::DynamicImage;
use tokio::sync::mpsc;

use super::{
    app::App,
    problem::Problem,
    view::request_as_used,
    wire::{OnDisconnect, Wish},
};
use crate::{
    Error,
    drawing::DrawingParameters,
    engine::{
        CancelReason, Cancellation, ErrorCode, GenerationRequest, GenerationResponse, Job, JobTicket, JobTimings,
        Outcome, PreviewImage, ResultImage, StepDone, Work,
    },
    imaging::PictureTexts,
    output::{self, OutputFormat, OutputOptions},
    pipeline::{Generate, ModelInfo},
    sampling::SamplingConfig,
};

/// How many messages of a job wait for its follower. Past it the engine leaves out progress and previews.
const RESPONSES_WAITING: usize = 32;
/// Previews are looked at for a second and sent often, so they are small.
const PREVIEW_OPTIONS: OutputOptions = OutputOptions { format: OutputFormat::Jpeg, quality: 75, metadata: false };

/// Puts the job in the queue and on the board.
///
/// # Errors
///
/// The problem to answer with: not ready, draining, the queue full.
pub(super) async fn submit(app: &Arc<App>, wish: Wish, on_disconnect: OnDisconnect) -> Result<Arc<Job>, Problem> {
    let loaded = app.accepting()?;
    let job_id = uuid::Uuid::now_v7().to_string();
    let deadline = wish.deadline.map(|after| Instant::now() + after);
    let cancellation = Cancellation::new();
    let request = GenerationRequest {
        cancellation: cancellation.clone(),
        deadline,
        span: tracing::info_span!("job", job_id),
        ..GenerationRequest::new(job_id.clone(), wish.config.clone())
    };
    let ticket = JobTicket {
        job_id,
        tag: wish.tag.clone(),
        request: Arc::new(request_as_used(&wish, on_disconnect)),
        work: work(&wish.config),
        cancellation,
    };
    let span = request.span.clone();
    let (response_tx, responses) = mpsc::channel(RESPONSES_WAITING);

    let order = app.submission.lock().await;
    // Once more, now that nobody can begin to drain in between.
    app.accepting()?;
    loaded.engine.submit(request, response_tx).await.map_err(|error| match error {
        Error::QueueFull { capacity } => Problem::queue_full(capacity, app.board.next_place_in()),
        // An engine that has closed its queue has died, or is told to stop: the two are different news.
        Error::NotAccepting { .. } => app.accepting().err().unwrap_or_else(Problem::draining),
        error => Problem::from(&error),
    })?;
    let job = app.board.add(ticket);
    let follower = Follower {
        app: Arc::clone(app),
        job: Arc::clone(&job),
        config: wish.config,
        output: wish.output,
        pipeline: Arc::clone(&loaded.pipeline),
        warnings: wish.warnings,
    };
    let followed = tracing::Instrument::instrument(follower.follow(responses), span);
    app.followers.spawn(followed);
    drop(order);
    Ok(job)
}

fn work(config: &SamplingConfig) -> Work {
    Work {
        images: config.n,
        steps: config.steps_drawn(),
        passes: match (config.guidance_scale > 1.0, config.image_guidance_scale) {
            (false, _) => 1,
            (true, None) => 2,
            (true, Some(_)) => 3,
        },
        pixels: config.width.unwrap_or(0) * config.height.unwrap_or(0),
    }
}

/// Writes on the board what the engine says of one job.
struct Follower {
    app: Arc<App>,
    job: Arc<Job>,
    config: SamplingConfig,
    output: OutputOptions,
    /// The model, which the picture's file names.
    pipeline: Arc<dyn Generate>,
    /// What the caller is told besides what the engine has to say.
    warnings: Vec<String>,
}

impl Follower {
    async fn follow(self, mut responses: mpsc::Receiver<GenerationResponse>) {
        loop {
            let response = tokio::select! {
                response = responses.recv() => response,
                // A job that is cancelled while it waits ends on the board at once; the engine lets go of it then.
                _ = self.job.ended() => break,
            };
            if let Some(outcome) = self.take(response).await {
                self.app.board.end(&self.job, outcome);
                break;
            }
        }
        log_end(&self.job);
    }

    /// Takes in one message; gives the outcome if it was the last.
    async fn take(&self, response: Option<GenerationResponse>) -> Option<Outcome> {
        let board = &self.app.board;
        match response {
            // Places are the board's to tell: it tells them again whenever they change.
            Some(GenerationResponse::Queued { .. }) => {}
            Some(GenerationResponse::Started { .. }) => board.started(&self.job),
            Some(GenerationResponse::Progress { step, total, step_time, images_together }) => {
                board.progress(&self.job, StepDone { step, total, step_time, images_together });
            }
            Some(GenerationResponse::Preview { step, image }) => self.preview(step, image).await,
            Some(GenerationResponse::Complete { images, timings, warnings }) => {
                return Some(self.finish(images, timings, warnings).await);
            }
            Some(GenerationResponse::Error { code, message, field }) => {
                return Some(Outcome::Failed { code, message, field });
            }
            Some(GenerationResponse::Cancelled { reason }) => return Some(Outcome::Cancelled { reason }),
            None => return Some(failed("the engine ended without a word about this job")),
        }
        None
    }

    async fn preview(&self, step: usize, image: DynamicImage) {
        let encoded = tokio::task::spawn_blocking(move || {
            let base64 = STANDARD.encode(output::encode(&image, &PREVIEW_OPTIONS, &PictureTexts::default())?);
            let (width, height, format) = (image.width(), image.height(), PREVIEW_OPTIONS.format.name());
            Ok::<_, Error>(PreviewImage { step, width, height, format, base64 })
        });
        match encoded.await {
            Ok(Ok(preview)) => self.app.board.preview(&self.job, preview),
            Ok(Err(error)) => tracing::warn!(%error, step, "a preview could not be encoded"),
            Err(error) => tracing::warn!(%error, step, "a preview could not be encoded"),
        }
    }

    async fn finish(&self, images: Vec<DynamicImage>, timings: JobTimings, warnings: Vec<String>) -> Outcome {
        let (config, output, pipeline) = (self.config.clone(), self.output, Arc::clone(&self.pipeline));
        let warnings = self.warnings.iter().cloned().chain(warnings).collect();
        match tokio::task::spawn_blocking(move || encode_all(&images, &config, &output, pipeline.model())).await {
            Ok(Ok(images)) => Outcome::Succeeded { images, timings, warnings },
            Ok(Err(error)) => failed(&error.to_string()),
            Err(error) => failed(&error.to_string()),
        }
    }
}

fn encode_all(
    images: &[DynamicImage],
    config: &SamplingConfig,
    output: &OutputOptions,
    model: &ModelInfo,
) -> crate::Result<Vec<Arc<ResultImage>>> {
    let encode = |(index, image): (usize, &DynamicImage)| {
        let texts = DrawingParameters::of_image(config, index).texts(model, output);
        Ok(Arc::new(ResultImage {
            seed: config.seed + index as u64,
            width: image.width(),
            height: image.height(),
            format: output.format.name(),
            media_type: output.format.media_type(),
            bytes: output::encode(image, output, &texts)?,
        }))
    };
    images.iter().enumerate().map(encode).collect()
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed { code: ErrorCode::GenerationFailed, message: message.to_owned(), field: None }
}

fn log_end(job: &Job) {
    let Some(outcome) = job.outcome() else { return };
    let (job_id, status) = (job.id(), outcome.status().name());
    match &*outcome {
        Outcome::Succeeded { images, timings, .. } => {
            let JobTimings { queue_ms, stages, total_ms } = timings;
            let (denoise_ms, images) = (stages.denoise_ms, images.len());
            tracing::info!(job_id, status, images, queue_ms, denoise_ms, total_ms, "job ended");
        }
        Outcome::Failed { code, .. } => tracing::info!(job_id, status, code = code.name(), "job ended"),
        Outcome::Cancelled { reason } => tracing::info!(job_id, status, reason = reason.name(), "job ended"),
    }
}

/// Cancels a job when the client that waits for it leaves, which shows in this being dropped.
pub(super) struct Leaving {
    app: Arc<App>,
    job: Arc<Job>,
    then: OnDisconnect,
}

impl Leaving {
    /// Watches over a client's wait for `job`.
    pub(super) fn new(app: &Arc<App>, job: &Arc<Job>, then: OnDisconnect) -> Self {
        Self { app: Arc::clone(app), job: Arc::clone(job), then }
    }

    /// The client has its answer.
    pub(super) fn answered(mut self) {
        self.then = OnDisconnect::Continue;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if self.then == OnDisconnect::Cancel {
            // A job that has ended, or is gone, needs no cancelling.
            let _ = self.app.board.cancel(self.job.id(), CancelReason::Disconnected);
        }
    }
}
