//! `GET /health`, `GET /ready`, `GET /model`: what an orchestrator and a client ask before they send work.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{app::App, lifecycle::Phase, problem::Problem, view::millis};
use crate::{
    output::OutputFormat,
    pipeline::PromptSupport,
    sampling::{LongPrompt, PromptSyntax},
};

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    version: &'static str,
    uptime_ms: u64,
    device: Option<&'a str>,
    model: Option<&'a str>,
}

/// 200 while the process can do its work, or may be able to once it is loaded; 503 when it has to be started again.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let failed = app.has_failed();
    let model = app.loaded().map(|loaded| loaded.pipeline.model());
    let health = Health {
        status: if failed { "failed" } else { "ok" },
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: millis(app.started_at.elapsed()),
        device: model.map(|model| model.device.as_str()),
        model: model.map(|model| model.name.as_str()),
    };
    let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health)).into_response()
}

#[derive(Serialize)]
struct Ready {
    /// Whether this worker belongs to those that requests are sent to.
    ready: bool,
    /// Whether a request for a drawing that comes now is taken, and not refused with 429 or 503.
    accepting: bool,
    state: &'static str,
    reason: Option<String>,
    /// Only while the model is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    loading_percent: Option<u8>,
    queue: Queue,
    running: usize,
}

#[derive(Serialize)]
struct Queue {
    depth: usize,
    capacity: usize,
}

/// 200 when work that comes now is taken. While the queue is full it stays so, unless the worker was told otherwise: one
/// client's 429 is no reason to take the pictures of all the others out of reach.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let phase = app.phase();
    let engine = app.loaded().map(|loaded| &loaded.engine);
    let capacity = app.config.work.queue_capacity;
    let depth = engine.map_or(0, crate::engine::GenerationEngine::queue_depth);
    let (draws, full) = (app.accepting().is_ok(), depth >= capacity);
    let ready = Ready {
        ready: draws && (app.config.work.ready_when_full || !full),
        accepting: draws && !full,
        state: phase.name(),
        reason: match (draws, full) {
            (false, _) => Some(app.why_not_drawing()),
            (true, true) => Some(format!("the queue is full: {depth} of {capacity} requests wait")),
            (true, false) => None,
        },
        loading_percent: if let Phase::Loading { percent } = phase { Some(percent) } else { None },
        queue: Queue { depth, capacity },
        running: engine.map_or(0, crate::engine::GenerationEngine::running),
    };
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready)).into_response()
}

#[derive(Serialize)]
struct Model<'a> {
    name: &'a str,
    /// The SHA-256 of the weights, once it is known: large files take seconds.
    sha256: Option<&'a str>,
    family: &'a str,
    device: &'a str,
    dtype: &'a str,
    native_size: Size,
    defaults: Defaults,
    samplers: Vec<&'static str>,
    schedulers: Vec<&'static str>,
    formats: [&'static str; OutputFormat::ALL.len()],
    /// What a request may bring along besides its text.
    inputs: &'static [&'static str],
    limits: ModelLimits,
    prompts: Prompts,
    memory: ModelMemory,
}

/// How the model reads prompts.
#[derive(Serialize)]
struct Prompts {
    /// The texts and sizes that a request may have.
    fields: &'static [&'static str],
    syntaxes: [&'static str; PromptSyntax::ALL.len()],
    long_prompts: [&'static str; LongPrompt::ALL.len()],
    chunk_tokens: usize,
    max_prompt_chunks: usize,
}

impl Prompts {
    fn of(support: PromptSupport) -> Self {
        // The last five are Stable Diffusion XL's.
        const FIELDS: [&str; 7] =
            ["prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "original_size", "crop", "target_size"];
        Self {
            fields: if support.second { &FIELDS } else { &FIELDS[..2] },
            syntaxes: PromptSyntax::ALL.map(PromptSyntax::name),
            long_prompts: LongPrompt::ALL.map(LongPrompt::name),
            chunk_tokens: support.chunk_tokens,
            max_prompt_chunks: support.max_chunks,
        }
    }
}

#[derive(Serialize)]
struct ModelMemory {
    weights_bytes: usize,
    /// `null` where nothing is known.
    limit_bytes: Option<usize>,
}

#[derive(Serialize)]
struct Size {
    width: usize,
    height: usize,
}

#[derive(Serialize)]
struct Defaults {
    steps: usize,
    guidance_scale: f64,
    /// For models that edit pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_guidance_scale: Option<f64>,
    sampler: &'static str,
    scheduler: &'static str,
}

#[derive(Serialize)]
struct ModelLimits {
    max_pixels: usize,
    max_batch: usize,
    max_body_bytes: usize,
    queue_capacity: usize,
}

/// The loaded model and what it can be asked for.
pub(super) async fn model(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let loaded = app.loaded().ok_or_else(|| app.not_ready())?;
    let model = loaded.pipeline.model();
    Ok(Json(Model {
        name: &model.name,
        sha256: model.digest.known(),
        family: &model.family,
        device: &model.device,
        dtype: &model.dtype,
        native_size: Size { width: model.width, height: model.height },
        defaults: Defaults {
            steps: model.default_steps,
            guidance_scale: model.default_guidance_scale,
            image_guidance_scale: model.pictures.image_guidance_scale(),
            sampler: model.default_sampler.name(),
            scheduler: model.default_scheduler.name(),
        },
        samplers: model.samplers.iter().map(|sampler| sampler.name()).collect(),
        schedulers: model.schedulers.iter().map(|spacing| spacing.name()).collect(),
        formats: OutputFormat::ALL.map(OutputFormat::name),
        inputs: model.pictures.inputs(),
        limits: ModelLimits {
            max_pixels: model.limits.max_pixels,
            max_batch: model.limits.max_batch,
            max_body_bytes: app.config.listen.max_body_bytes,
            queue_capacity: app.config.work.queue_capacity,
        },
        prompts: Prompts::of(model.prompts),
        memory: ModelMemory { weights_bytes: model.memory.weights_bytes, limit_bytes: model.memory.limit_bytes },
    })
    .into_response())
}
