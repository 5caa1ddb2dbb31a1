//! `GET /jobs`, `GET /jobs/{id}`, `DELETE /jobs/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    app::App,
    path::{PathPart, query},
    problem::Problem,
    view::{JobView, Pictures},
};
use crate::engine::{CancelReason, Cancelling, Fetched, JobSnapshot, JobStatus, Listing};

const DEFAULT_PAGE: usize = 20;
const LARGEST_PAGE: usize = 100;

#[derive(Serialize)]
struct Page {
    jobs: Vec<JobView>,
    next: Option<String>,
}

pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let (jobs, more) = app.board.list(&listing(query(&uri)?)?);
    let next = jobs.last().filter(|_| more).map(|job| job.job_id.clone());
    let linked = Pictures::linked(&app);
    let jobs = jobs.into_iter().map(|job| JobView::new(job, &linked)).collect();
    Ok(Json(Page { jobs, next }).into_response())
}

pub(super) async fn get(State(app): State<Arc<App>>, PathPart(id): PathPart<String>) -> Result<Response, Problem> {
    let job = app.board.find(&id).map_err(|missing| Problem::missing_job(missing, &id))?;
    let snapshot = app.board.snapshot(&job);
    // Whoever reads that there are pictures has yet to fetch them, and whoever reads that there are none yet comes back.
    let receipt = snapshot.outcome.is_some().then(|| app.receipt(&job, Fetched::EndWithLinks));
    let mut response = job_response(StatusCode::OK, snapshot, Pictures::linked(&app)).await;
    if let Some(receipt) = receipt {
        response.extensions_mut().insert(receipt);
    }
    Ok(response)
}

pub(super) async fn cancel(State(app): State<Arc<App>>, PathPart(id): PathPart<String>) -> Result<Response, Problem> {
    let cancelled = app.board.cancel(&id, CancelReason::Requested);
    let (cancelling, job) = cancelled.map_err(|missing| Problem::missing_job(missing, &id))?;
    let status = match cancelling {
        Cancelling::Stopping => StatusCode::ACCEPTED,
        Cancelling::EndedBefore => StatusCode::OK,
    };
    let mut response = job_response(status, job, Pictures::linked(&app)).await;
    if let Ok(job) = app.board.find(&id) {
        // Nobody comes back for a job that was to be stopped.
        response.extensions_mut().insert(app.receipt(&job, Fetched::End));
    }
    Ok(response)
}

/// A job as the body of an answer. Pictures are put into base64 off the asynchronous threads.
pub(super) async fn job_response(status: StatusCode, job: JobSnapshot, pictures: Pictures) -> Response {
    let inline = pictures.inline;
    let render = move || (status, Json(JobView::new(job, &pictures))).into_response();
    if !inline {
        return render();
    }
    tokio::task::spawn_blocking(render).await.unwrap_or_else(|_| Problem::internal().into_response())
}

fn listing(query: Vec<(String, String)>) -> Result<Listing, Problem> {
    let mut listing = Listing { limit: DEFAULT_PAGE, ..Listing::default() };
    for (name, value) in query {
        match name.as_str() {
            "status" => listing.status = Some(status(&value)?),
            "after" => listing.after = Some(value),
            "limit" => listing.limit = limit(&value)?,
            _ => {
                return Err(Problem::invalid(name, "is no parameter of this list; status, limit and after are"));
            }
        }
    }
    Ok(listing)
}

fn status(value: &str) -> Result<JobStatus, Problem> {
    JobStatus::ALL.into_iter().find(|status| status.name() == value).ok_or_else(|| {
        let allowed = JobStatus::ALL.map(JobStatus::name).join(", ");
        Problem::invalid("status", format!("is {value:?}; one of {allowed} is allowed"))
    })
}

fn limit(value: &str) -> Result<usize, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit));
    limit.ok_or_else(|| Problem::invalid("limit", format!("is {value:?}; 1 to {LARGEST_PAGE} is allowed")))
}
