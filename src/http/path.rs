//! The variable parts of a path.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A path's variable parts. What cannot be read as text names nothing, so it is 404, in the form of every error here.
pub(super) struct PathPart<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for PathPart<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(part)) => Ok(Self(part)),
            Err(_) => Err(Problem::not_found(parts.uri.path())),
        }
    }
}
