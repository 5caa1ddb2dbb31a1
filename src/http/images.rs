//! `GET /jobs/{id}/images/{index}`: a finished picture's bytes.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::{app::App, path::PathPart, problem::Problem};
use crate::engine::{Fetched, Outcome, ResultImage};

pub(super) async fn get(
    State(app): State<Arc<App>>,
    PathPart((id, index)): PathPart<(String, String)>,
) -> Result<Response, Problem> {
    let job = app.board.find(&id).map_err(|missing| Problem::missing_job(missing, &id))?;
    let outcome = job.outcome();
    let Some(Outcome::Succeeded { images, .. }) = outcome.as_deref() else {
        let stands = app.board.snapshot(&job).status.name();
        return Err(Problem::image_not_found(format!("job {id} is {stands} and has no images")));
    };
    let found = index.parse().ok().and_then(|index: usize| Some((index, images.get(index)?)));
    let (index, image) = found.ok_or_else(|| {
        Problem::image_not_found(format!("job {id} has images 0 to {}, not {index:?}", images.len().saturating_sub(1)))
    })?;
    let mut response = image_response(image);
    response.extensions_mut().insert(app.receipt(&job, Fetched::Image(index)));
    Ok(response)
}

/// A picture as the body of an answer.
pub(super) fn image_response(image: &Arc<ResultImage>) -> Response {
    // The bytes stay where they are, however many clients read them.
    let body = Body::from(Bytes::from_owner(SharedImage(Arc::clone(image))));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(image.media_type)),
        (HeaderName::from_static("x-seed"), HeaderValue::from(image.seed)),
    ];
    (headers, body).into_response()
}

struct SharedImage(Arc<ResultImage>);

impl AsRef<[u8]> for SharedImage {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}
