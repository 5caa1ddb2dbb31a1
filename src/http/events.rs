//! A job's events as they happen: `GET /jobs/{id}/events`, and `POST /generate` for `text/event-stream`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::Serialize;
use serde_json::Value;

use super::{
    app::App,
    path::{PathPart, query},
    problem::Problem,
    submit::Leaving,
    values::excerpt,
    view::{ImageView, Pictures, TimingsView, millis, percent},
};
use crate::{
    connections::Filler,
    engine::{Job, JobEvent, NumberedEvent, Outcome, Subscription},
};

/// How often a silent line is kept alive with a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn get(
    State(app): State<Arc<App>>,
    PathPart(id): PathPart<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?;
    let inline = inline(&uri)?;
    let subscription = app.board.subscribe(&id, after).map_err(|missing| Problem::missing_job(missing, &id))?;
    if after > 0 && subscription.is_over() {
        // To a browser that comes back after the last event this says: do not come again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let pictures = inline.map(|inline| Pictures::new(&app, inline));
    let pictures = pictures.unwrap_or_else(|| Pictures::as_requested(&app, subscription.job()));
    Ok(stream(&app, subscription, pictures, None))
}

/// Whether `complete` is to carry the pictures themselves: `?inline=`, if it is given.
fn inline(uri: &Uri) -> Result<Option<bool>, Problem> {
    let mut inline = None;
    for (name, value) in query(uri)? {
        if name != "inline" {
            return Err(Problem::invalid(name, "is no parameter of a job's events; inline is"));
        }
        inline =
            Some(value.parse().map_err(|_| {
                Problem::invalid("inline", format!("is {}; true or false is allowed", excerpt(&value)))
            })?);
    }
    Ok(inline)
}

/// The events of a subscription, to their end. `leaving` is dropped with the stream.
pub(super) fn stream(
    app: &Arc<App>,
    subscription: Subscription,
    pictures: Pictures,
    leaving: Option<Leaving>,
) -> Response {
    let receipt = app.receipt(subscription.job(), pictures.fetched());
    let state = (subscription, pictures, leaving);
    let events = stream::unfold(state, |(mut subscription, pictures, leaving)| async move {
        let event = subscription.next().await?;
        let event = render(subscription.job(), event, &pictures).await;
        Some((Ok::<_, Infallible>(event), (subscription, pictures, leaving)))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // A proxy that gathers the answer before it passes it on would defeat it, to send it as it is or to compress it.
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(receipt);
    response.extensions_mut().insert(Filler(b": still here\n\n"));
    response
}

fn last_event_id(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(0) };
    let number = value.to_str().ok().and_then(|value| value.trim().parse().ok());
    number.ok_or_else(|| Problem::invalid("Last-Event-ID", format!("is {value:?}; the number of an event is needed")))
}

/// The data of every event.
#[derive(Serialize)]
struct Data<'a> {
    job_id: &'a str,
    tag: Option<&'a str>,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Queued {
        queue_position: usize,
        eta_ms: Option<u64>,
    },
    Started {
        request: &'a Value,
    },
    Progress {
        step: usize,
        total: usize,
        percent: usize,
        step_ms: u64,
        eta_ms: Option<u64>,
    },
    Preview {
        step: usize,
        image: &'a str,
        format: &'static str,
        width: u32,
        height: u32,
    },
    Complete {
        images: Vec<ImageView>,
        timings: TimingsView,
        warnings: &'a [String],
    },
    Error {
        code: &'static str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'static str>,
    },
    Cancelled {
        reason: &'static str,
    },
}

/// An event on the wire. One that carries pictures is written off the asynchronous threads.
async fn render(job: &Arc<Job>, event: NumberedEvent, pictures: &Pictures) -> Event {
    let NumberedEvent { id, event } = event;
    let name = name(&event);
    let carries_pictures = matches!(event, JobEvent::Ended(_) | JobEvent::Preview(_));
    let json = if carries_pictures {
        let (job, pictures) = (Arc::clone(job), pictures.clone());
        tokio::task::spawn_blocking(move || data(&job, &event, &pictures)).await.ok()
    } else {
        Some(data(job, &event, pictures))
    };
    // A rendering that panicked is a fault of this program; the client learns that something was to be here.
    Event::default().event(name).id(id.to_string()).data(json.unwrap_or_default())
}

fn name(event: &JobEvent) -> &'static str {
    match event {
        JobEvent::Queued { .. } => "queued",
        JobEvent::Started => "started",
        JobEvent::Progress { .. } => "progress",
        JobEvent::Preview(_) => "preview",
        JobEvent::Ended(outcome) => match **outcome {
            Outcome::Succeeded { .. } => "complete",
            Outcome::Failed { .. } => "error",
            Outcome::Cancelled { .. } => "cancelled",
        },
    }
}

fn data(job: &Job, event: &JobEvent, pictures: &Pictures) -> String {
    let what = match event {
        JobEvent::Queued { position, eta } => What::Queued { queue_position: *position, eta_ms: eta.map(millis) },
        JobEvent::Started => What::Started { request: job.request() },
        JobEvent::Progress { step, total, step_time, eta } => What::Progress {
            step: *step,
            total: *total,
            percent: percent(*step, *total),
            step_ms: millis(*step_time),
            eta_ms: eta.map(millis),
        },
        JobEvent::Preview(preview) => What::Preview {
            step: preview.step,
            image: &preview.base64,
            format: preview.format,
            width: preview.width,
            height: preview.height,
        },
        JobEvent::Ended(outcome) => match &**outcome {
            Outcome::Succeeded { images, timings, warnings } => {
                What::Complete { images: pictures.views(job.id(), images), timings: timings.into(), warnings }
            }
            Outcome::Failed { code, message, field } => What::Error { code: code.name(), message, field: *field },
            Outcome::Cancelled { reason } => What::Cancelled { reason: reason.name() },
        },
    };
    let data = Data { job_id: job.id(), tag: job.tag(), what };
    serde_json::to_string(&data).expect("strings and numbers are always JSON")
}
