//! `POST /inspect`: what a picture's file says of how it was drawn.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    app::App,
    body,
    malformed::malformed,
    problem::Problem,
    values::{Object, Text},
};
use crate::{Error, image_utils::payload, imaging::inspect};

/// The body as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InspectBody {
    image: Option<Text>,
}

/// What a file says.
#[derive(Debug, Serialize)]
struct View {
    format: &'static str,
    width: u32,
    height: u32,
    /// The text that galleries read.
    parameters: Option<String>,
    /// The request that draws it again, where darkroom wrote the file.
    request: Option<Value>,
}

/// Takes a picture as the body itself, or as base64 in JSON.
pub(super) async fn post(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let is_json = is_json(&headers)?;
    let body = body::read(request, &headers, app.config.listen.max_body_bytes).await?;
    // A file is large, and base64 larger.
    let view = tokio::task::spawn_blocking(move || if is_json { of_json(&body) } else { of_file(&body) });
    let view = view.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a picture broke its reader");
        Err(Problem::internal())
    })?;
    Ok(Json(view).into_response())
}

/// Whether the body is JSON; else it is a picture.
fn is_json(headers: &HeaderMap) -> Result<bool, Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = given.as_deref().and_then(|given| given.split(';').next()).unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" => Ok(true),
        "image/png" | "image/jpeg" | "image/webp" | "application/octet-stream" => Ok(false),
        _ => Err(Problem::unsupported_picture_type(given.as_deref())),
    }
}

fn of_json(bytes: &[u8]) -> Result<View, Problem> {
    let text = body::text(bytes)?;
    let json = &mut serde_json::Deserializer::from_str(text);
    let Object::<InspectBody>(body) = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
        let path = error.path().to_string();
        malformed(text, &path, &error.into_inner())
    })?;
    json.end().map_err(|error| malformed(text, "", &error))?;
    let Text(image) = body.image.ok_or_else(|| Problem::invalid("image", "is missing; it is the picture as base64"))?;
    of_file(&decoded("image", &image)?)
}

/// The bytes of a field that is base64, or a `data:` URL.
pub(super) fn decoded(field: &'static str, text: &str) -> Result<Vec<u8>, Problem> {
    let invalid = |error: Error| match error {
        Error::Image(message) => Problem::invalid(field, message),
        error => Problem::from(&error),
    };
    let base64 = payload(text).map_err(invalid)?.trim();
    STANDARD.decode(base64).map_err(|error| Problem::invalid(field, format!("is not standard base64: {error}")))
}

fn of_file(bytes: &[u8]) -> Result<View, Problem> {
    let inspected = inspect(bytes).map_err(|error| match error {
        Error::Image(message) => Problem::invalid("image", message),
        error => Problem::from(&error),
    })?;
    Ok(View {
        format: inspected.format.name(),
        width: inspected.width,
        height: inspected.height,
        parameters: inspected.texts.parameters,
        request: inspected.texts.request.and_then(|json| serde_json::from_str(&json).ok()),
    })
}
