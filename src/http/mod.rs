//! The HTTP side: what a client says becomes a job, and what becomes of the job is told to any number of clients.
//!
//! Owns the router, the wire's types, one file per family of endpoints, and the one place where errors become HTTP
//! (`problem`). It must not know candle: it draws through the [`Generate`](crate::pipeline::Generate) trait. A request
//! travels `generate` → `wire` (parsed, valid) → `submit` (the queue and the [board](crate::engine::JobBoard)) and is
//! read back through `jobs`, `images` and `events`.

mod app;
mod events;
mod generate;
mod images;
mod jobs;
mod lifecycle;
mod middleware;
mod negotiate;
mod path;
mod probes;
mod problem;
mod submit;
mod view;
mod wire;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    routing::{get, post},
};

pub use app::App;
pub use lifecycle::Phase;
pub use problem::Problem;

/// Every endpoint, with everything that goes around it.
pub fn router(app: Arc<App>) -> Router {
    let listen = app.config.listen.clone();
    let router = Router::new()
        .route("/generate", post(generate::generate))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::get).delete(jobs::cancel))
        .route("/jobs/{id}/events", get(events::get))
        .route("/jobs/{id}/images/{index}", get(images::get))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/model", get(probes::model))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app);
    middleware::wrap(router, &listen)
}

async fn nothing_here(request: Request) -> Problem {
    Problem::not_found(request.uri().path())
}

async fn wrong_method(request: Request) -> Problem {
    Problem::method_not_allowed(request.method().as_str(), request.uri().path())
}
