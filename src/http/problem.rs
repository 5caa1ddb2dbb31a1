//! Errors as clients see them: RFC 9457 `application/problem+json`. Every error of the domain becomes HTTP here.

use std::{borrow::Cow, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::values::excerpt;
use crate::{
    Error,
    engine::{CancelReason, ErrorCode, Missing, Outcome},
};

/// How long a client should wait before it asks a worker that is not ready again.
const NOT_READY_RETRY: Duration = Duration::from_secs(5);

/// The content codings that a request's body may have.
const ACCEPT_ENCODING: &str = "gzip, deflate, br, zstd";
/// How long a message or a field's name in an answer may be: some repeat what the client sent.
const LONGEST_TEXT: usize = 1000;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    /// Whether the answer says which content codings a request may have.
    accept_encoding: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), field: None, retry_after: None, accept_encoding: false }
    }

    /// What was wrong, for a person.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// A body that is not the JSON it should be.
    pub(super) fn malformed_json(detail: impl Into<String>, field: Option<String>) -> Self {
        Self { field, ..Self::new(StatusCode::BAD_REQUEST, "malformed_json", detail) }
    }

    /// A value outside what is allowed.
    pub(super) fn invalid(field: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let field = field.into();
        let detail = format!("{field}: {message}");
        Self { field: Some(field), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_parameter", detail) }
    }

    /// A part of the contract that this worker cannot do.
    pub(super) fn unsupported(field: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self { code: "unsupported_parameter", ..Self::invalid(field, message) }
    }

    /// A path that means nothing.
    pub(super) fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{path}: there is nothing here; see POST /generate"))
    }

    /// A job whose picture at that index does not exist.
    pub(super) fn image_not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "image_not_found", detail)
    }

    /// A path that does not take the method.
    pub(super) fn method_not_allowed(method: &str, path: &str) -> Self {
        let detail = format!("{path} does not take {method}; the header Allow names what it takes");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    }

    /// A job that is not on the board.
    pub(super) fn missing_job(missing: Missing, job_id: &str) -> Self {
        match missing {
            Missing::Expired => {
                let detail = format!("job {job_id} has ended and its time to be fetched is over");
                Self::new(StatusCode::GONE, "job_expired", detail)
            }
            Missing::Unknown => {
                Self::new(StatusCode::NOT_FOUND, "job_not_found", format!("there is no job {job_id:?}"))
            }
        }
    }

    /// No form of answer that the client accepts.
    pub(super) fn not_acceptable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail)
    }

    /// A body over the limit.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("the body is larger than the {limit} bytes that this worker takes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    /// A body that broke off.
    pub(super) fn broken_body(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_json", detail)
    }

    /// A body that is not in the content coding that it claims.
    pub(super) fn malformed_encoding(coding: &str, error: &std::io::Error) -> Self {
        let detail = format!("the body is not valid {coding}, which its Content-Encoding names: {error}");
        Self::new(StatusCode::BAD_REQUEST, "malformed_encoding", detail)
    }

    /// A body that is over the limit once its content codings are undone.
    pub(super) fn decoded_body_too_large(limit: usize) -> Self {
        let detail = format!("the body is larger, once decoded, than the {limit} bytes that this worker takes");
        Self { detail, ..Self::body_too_large(limit) }
    }

    /// A body in a content coding that is not undone here; `detail` says which.
    pub(super) fn unsupported_content_encoding(detail: impl std::fmt::Display) -> Self {
        let detail = format!("{detail}; it may be {ACCEPT_ENCODING}, or nothing");
        let code = "unsupported_content_encoding";
        Self { accept_encoding: true, ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, detail) }
    }

    /// A body of a type that is neither a picture nor JSON.
    pub(super) fn unsupported_picture_type(given: Option<&str>) -> Self {
        let given = given.map_or_else(|| "nothing".to_owned(), |given| format!("{given:?}"));
        let detail = format!(
            "the body is {given}; image/png, image/jpeg, image/webp, application/octet-stream and application/json are taken"
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// A request that does not name a host as it has to.
    pub(super) fn broken_host(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_host", detail)
    }

    /// A request whose host is none.
    pub(super) fn invalid_host(given: &str) -> Self {
        Self::broken_host(format!("the request's host is {}; a name or an IP address is needed", excerpt(given)))
    }

    /// A request that names a host which is not this worker's.
    pub(super) fn misdirected(host: &str) -> Self {
        let detail = format!(
            "{} is no name of this worker; ask for localhost or an IP address, or start it with --allowed-host {}",
            excerpt(host),
            host.chars().take(LONGEST_TEXT / 4).collect::<String>()
        );
        Self::new(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", detail)
    }

    /// A body that did not come.
    pub(super) fn body_too_slow(waited: Duration) -> Self {
        let detail = format!("the body did not come within {} s", waited.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail)
    }

    /// A body of another kind.
    pub(super) fn unsupported_media_type(given: Option<&str>) -> Self {
        let given =
            given.map_or_else(|| "no Content-Type was given".to_owned(), |given| format!("was given {given:?}"));
        let detail = format!("{given}; the body has to be application/json");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// No room in the queue; `wait` is until there should be.
    pub(super) fn queue_full(capacity: usize, wait: Option<Duration>) -> Self {
        let detail = Error::QueueFull { capacity }.to_string();
        let retry_after = Some(wait.unwrap_or(Duration::ZERO));
        Self { retry_after, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", detail) }
    }

    /// A worker that cannot draw yet.
    pub(super) fn not_ready(reason: &str) -> Self {
        Self { retry_after: Some(NOT_READY_RETRY), ..Self::failed(reason) }
    }

    /// A worker that cannot draw until it is started again. No wait is worth while.
    pub(super) fn failed(reason: &str) -> Self {
        let detail = format!("the worker is not ready: {reason}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail)
    }

    /// A worker that is about to end. Behind the same address there are others, or will be the next.
    pub(super) fn draining() -> Self {
        let detail = "the worker is shutting down and takes no new work";
        Self { code: "draining", detail: detail.to_owned(), ..Self::not_ready("") }
    }

    /// A worker that has no place left for this connection.
    pub(super) fn too_many_connections() -> Self {
        let detail = "every connection that this worker takes is in use; only /health, /ready and /model are answered";
        Self { code: "too_many_connections", detail: detail.to_owned(), ..Self::not_ready("") }
    }

    /// A fault of this program outside any job. What it was is in the log and not in the answer.
    pub(super) fn internal() -> Self {
        let detail = "this worker has a fault; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    /// Why a client that waited for a picture gets none; `None` for a job that has pictures.
    pub(super) fn of_outcome(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Succeeded { .. } => None,
            Outcome::Failed { code, message, field } => {
                let status = match code {
                    ErrorCode::InvalidParameter | ErrorCode::UnsupportedParameter => StatusCode::UNPROCESSABLE_ENTITY,
                    ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
                    ErrorCode::GenerationFailed => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let field = field.map(str::to_owned);
                Some(Self { field, ..Self::new(status, code.name(), message.clone()) })
            }
            Outcome::Cancelled { reason: CancelReason::Shutdown } => Some(Self::draining()),
            Outcome::Cancelled { reason } => {
                let detail = format!("the job was cancelled: {}", reason.name());
                Some(Self::new(StatusCode::CONFLICT, "cancelled", detail))
            }
        }
    }

    fn title(&self) -> &'static str {
        match self.code {
            "malformed_json" => "The body is not the JSON it should be",
            "job_not_found" => "No such job",
            "job_expired" => "The job is gone",
            "image_not_found" => "No such image",
            "not_found" => "Nothing is here",
            "invalid_host" => "The host is not as it should be",
            "malformed_encoding" => "The body is not in the coding it claims",
            "misdirected_request" => "The host is not this worker's",
            "unsupported_content_encoding" => "The body is in a coding that is not known",
            "method_not_allowed" => "The method does not apply",
            "not_acceptable" => "No acceptable form of answer",
            "body_too_large" => "The body is too large",
            "body_too_slow" => "The body did not come",
            "unsupported_media_type" => "The body is of the wrong kind",
            "invalid_parameter" => "A parameter is not allowed",
            "unsupported_parameter" => "A parameter cannot be honoured",
            "queue_full" => "The queue is full",
            "not_ready" => "Not ready",
            "draining" => "Shutting down",
            "too_many_connections" => "Too many connections",
            "deadline_exceeded" => "The deadline passed",
            "cancelled" => "The job was cancelled",
            "generation_failed" => "The drawing failed",
            _ => "Internal error",
        }
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidParameter { field, message } => Self::invalid(*field, message),
            Error::UnsupportedParameter { field, message } => Self::unsupported(*field, message),
            Error::QueueFull { capacity } => Self::queue_full(*capacity, None),
            Error::NotAccepting { .. } => Self::draining(),
            error => {
                tracing::error!(%error, "a request failed");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (detail, field) = (shortened(&self.detail), self.field.as_deref().map(shortened));
        let body = Body {
            kind: format!("urn:darkroom:problem:{}", self.code),
            title: self.title(),
            status: self.status.as_u16(),
            detail: &detail,
            code: self.code,
            field: field.as_deref(),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.accept_encoding {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(ACCEPT_ENCODING));
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up, so that a client that obeys does not come too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

/// The text, with its middle left out if it is too long.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_TEXT {
        return Cow::Borrowed(text);
    }
    let start = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST_TEXT / 2).last().unwrap_or(0);
    let end = text.char_indices().rev().map(|(at, _)| at).take_while(|at| text.len() - at <= LONGEST_TEXT / 2).last();
    Cow::Owned(format!("{} .. {}", &text[..start], &text[end.unwrap_or(text.len())..]))
}
