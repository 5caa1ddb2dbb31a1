//! The HTTP side: what a client says becomes a job, and what becomes of the job is told to any number of clients.
//!
//! Owns the router, the wire's types, one file per family of endpoints, and the one place where errors become HTTP
//! (`problem`). It must not know candle: it draws through the [`Generate`](crate::pipeline::Generate) trait. A request
//! travels `generate` → `wire` (parsed, valid) → `submit` (the queue and the [board](crate::engine::JobBoard)) and is
//! read back through `jobs`, `images` and `events`.

mod app;
mod body;
mod coding;
mod events;
mod generate;
mod hosts;
mod images;
mod inspect;
mod jobs;
mod lifecycle;
mod malformed;
mod middleware;
mod negotiate;
mod path;
mod probes;
mod problem;
mod submit;
mod told;
mod values;
mod view;
mod wire;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::OriginalUri,
    http::Method,
    middleware::from_fn,
    routing::{get, post},
};

pub use app::App;
pub use lifecycle::Phase;
pub use problem::Problem;

/// Every endpoint, with everything that goes around it, for requests that come from no socket.
pub fn router(app: Arc<App>) -> Router {
    let config = app.config.listen.clone();
    middleware::wrap(endpoints(app), &config, None)
}

/// What [`router`] gives, for a listener on the address `bound`: requests have to name a host that is this worker's.
pub fn router_on(app: Arc<App>, bound: IpAddr) -> Router {
    let config = app.config.listen.clone();
    middleware::wrap(endpoints(app), &config, Some(bound))
}

/// The endpoints, at the root, and under the base path, too: some proxies take it off and some leave it.
fn endpoints(app: Arc<App>) -> Router {
    let base = app.config.listen.base_path.clone();
    let endpoints = Router::new()
        .route("/generate", post(generate::generate))
        .route("/inspect", post(inspect::post))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::get).delete(jobs::cancel))
        .route("/jobs/{id}/events", get(events::get))
        .route("/jobs/{id}/images/{index}", get(images::get))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/model", get(probes::model))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(middleware::only_probes))
        .with_state(app);
    match base.as_str() {
        "" => endpoints,
        base => endpoints.clone().nest(base, endpoints),
    }
}

async fn nothing_here(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::not_found(uri.path())
}

async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    Problem::method_not_allowed(method.as_str(), uri.path())
}
