//! The variable parts of a path, and the parameters behind it.

use std::collections::HashSet;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{Uri, request::Parts},
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

/// The parameters of a query, each at most once.
pub(super) fn query(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let Query(query) = query.map_err(|error| Problem::invalid("query", error.body_text().to_lowercase()))?;
    let mut seen = HashSet::new();
    match query.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        Some((name, _)) => Err(Problem::invalid(name.as_str(), "is given more than once")),
        None => Ok(query),
    }
}
