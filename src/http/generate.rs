//! `POST /generate`: a job, its events, or its picture.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use tokio::sync::Semaphore;

use super::{
    app::App,
    body, events, images,
    inspect::decoded,
    jobs::job_response,
    negotiate::{AnswerForm, answer_form, preferred_wait},
    problem::Problem,
    submit::{Leaving, submit},
    view::{Pictures, job_url},
    wire::{GenerateBody, OnDisconnect, Wish},
};
use crate::{
    engine::{Fetched, Job, Outcome},
    models::WeightsDigest,
    pictures::GivenPictures,
    pipeline::ModelInfo,
    redraw::Source,
    sampling::SamplingConfig,
};

/// How many requests' pictures are decoded at a time; the others wait. A picture that is decoded takes many times the
/// memory of its file.
static DECODING: Semaphore = Semaphore::const_new(4);

/// How a client is answered.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// At once, with the job.
    Accepted,
    /// With the finished job, if it is finished in this time.
    Awaited(Duration),
    /// With the job's events.
    Events,
    /// With the first picture.
    Image,
}

pub(super) async fn generate(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    require_json(&headers)?;
    let body = body::read(request, &headers, app.config.listen.max_body_bytes).await?;
    let (wish, answer) = parse(&app, &headers, &body).await?;
    drop(body);
    let by_default = match answer {
        Answer::Accepted => OnDisconnect::Continue,
        Answer::Awaited(_) | Answer::Events | Answer::Image => OnDisconnect::Cancel,
    };
    let on_disconnect = wish.on_disconnect.unwrap_or(by_default);
    let job = submit(&app, wish, on_disconnect).await?;
    let leaving = Leaving::new(&app, &job, on_disconnect);
    match answer {
        Answer::Accepted => {
            leaving.answered();
            Ok(accepted(&app, &job).await)
        }
        Answer::Awaited(wait) => Ok(awaited(&app, &job, wait, leaving).await),
        Answer::Events => {
            let pictures = Pictures::as_requested(&app, &job);
            let mut response = events::stream(&app, job.subscribe(0), pictures, Some(leaving));
            response.headers_mut().extend(links(&app, &job));
            Ok(response)
        }
        Answer::Image => {
            let outcome = job.ended().await;
            leaving.answered();
            let mut response = first_image(&app, &job, &outcome).into_response();
            response.extensions_mut().insert(app.receipt(&job, Fetched::End));
            Ok(response)
        }
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.as_deref().and_then(|given| given.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::unsupported_media_type(given.as_deref()))
}

/// Everything that can be wrong with a request is found here, before it takes a place in the queue.
async fn parse(app: &App, headers: &HeaderMap, bytes: &[u8]) -> Result<(Wish, Answer), Problem> {
    let mut body = GenerateBody::parse(bytes)?;
    let asked = body.format()?;
    let mut warnings = Vec::new();
    if let Some(picture) = body.take_from() {
        let model = app.accepting()?.pipeline.model().digest.clone();
        let (source, warning) = source(picture, model).await?;
        warnings.extend(warning);
        body.draw_again(&source)?;
    }
    // The format of a picture that is drawn again is taken where the client leaves it open.
    let like_source = body.format()?;
    let form = answer_form(headers, like_source).or_else(|| answer_form(headers, asked)).ok_or_else(|| {
        let images = asked.map_or("image/png, image/jpeg, image/webp", |format| format.media_type());
        Problem::not_acceptable(format!("this can be answered as application/json, text/event-stream, {images}"))
    })?;
    let (answer, format) = match form {
        AnswerForm::Json => {
            (preferred_wait(headers).map_or(Answer::Accepted, Answer::Awaited), like_source.unwrap_or_default())
        }
        AnswerForm::Events => (Answer::Events, like_source.unwrap_or_default()),
        AnswerForm::Image(format) => (Answer::Image, format),
    };
    let loaded = app.accepting()?;
    let model = loaded.pipeline.model();
    let pictures = decode(body.take_pictures()?, model).await?;
    let wish = Wish { warnings, ..body.into_wish(format, model, pictures)? };
    loaded.pipeline.check(&wish.config).map_err(|error| Problem::from(&error))?;
    Ok((wish, answer))
}

/// Reads the picture that is to be drawn again, and what there is to say of the weights that drew it.
async fn source(picture: String, digest: WeightsDigest) -> Result<(Source, Option<String>), Problem> {
    let read = move || {
        let source = Source::read(&decoded("from", &picture)?).map_err(|error| Problem::from(&error))?;
        let warning = source.warning(digest.wait());
        Ok((source, warning))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a picture to draw again broke its reader");
        Err(Problem::internal())
    })
}

/// Decodes the pictures that came along, off the asynchronous threads.
async fn decode(pictures: GivenPictures, model: &ModelInfo) -> Result<SamplingConfig, Problem> {
    let (limits, used) = (model.limits, model.pictures);
    if pictures.is_empty() {
        return pictures.decode(&limits, used).map_err(|error| Problem::from(&error));
    }
    // The semaphore is never closed.
    let _turn = DECODING.acquire().await.map_err(|_| Problem::internal())?;
    match tokio::task::spawn_blocking(move || pictures.decode(&limits, used)).await {
        Ok(decoded) => decoded.map_err(|error| Problem::from(&error)),
        Err(error) => {
            tracing::error!(%error, "an input image broke its decoder");
            Err(Problem::internal())
        }
    }
}

async fn accepted(app: &App, job: &Job) -> Response {
    let mut response = job_response(StatusCode::ACCEPTED, app.board.snapshot(job), Pictures::linked(app)).await;
    response.headers_mut().extend(links(app, job));
    response
}

async fn awaited(app: &Arc<App>, job: &Arc<Job>, wait: Duration, leaving: Leaving) -> Response {
    let ended = tokio::time::timeout(wait, job.ended()).await.is_ok();
    leaving.answered();
    let mut response = if ended {
        let pictures = Pictures::as_requested(app, job);
        let receipt = app.receipt(job, pictures.fetched());
        let mut response = job_response(StatusCode::OK, app.board.snapshot(job), pictures).await;
        response.headers_mut().extend(links(app, job));
        response.extensions_mut().insert(receipt);
        response
    } else {
        accepted(app, job).await
    };
    if let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs())) {
        response.headers_mut().insert("preference-applied", applied);
    }
    response
}

fn first_image(app: &App, job: &Job, outcome: &Outcome) -> Result<Response, Problem> {
    if let Some(problem) = Problem::of_outcome(outcome) {
        return Err(problem);
    }
    let Outcome::Succeeded { images, .. } = outcome else { return Err(Problem::internal()) };
    let image = images.first().ok_or_else(Problem::internal)?;
    let mut response = images::image_response(image);
    response.headers_mut().extend(links(app, job));
    Ok(response.into_response())
}

/// Where the job is found.
fn links(app: &App, job: &Job) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // An id is a UUID and a base path is plain, so these are always header values.
    let location = job_url(&app.config.listen.base_path, job.id());
    for (name, value) in [("x-job-id", job.id().to_owned()), ("location", location)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}
