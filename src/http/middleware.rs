//! What happens to every request before and after its handler.
//!
//! From the outside in, and why in this order:
//!
//! 1. **Request id**: first, so that everything after it can name the request. A client's own `X-Request-Id` is kept.
//! 2. **Access log**: one line a request, outside of all that can answer, so that it sees the answer that is sent, that
//!    of a caught panic and of a refused origin included.
//! 3. **Panic catch**: a handler's panic becomes a 500; inside of the log, so that it is logged like any other.
//! 4. **CORS**: outside of the body limit, so that a browser can read a refusal, too. Without a named origin it adds
//!    nothing, and browsers refuse the answer to pages of other origins.
//! 5. **Hosts**: a request that names a host which is not this worker's is 421. Inside of CORS, so that a page of a named
//!    origin can read why; CORS itself answers nothing but preflights, and tells them no more than it tells everybody.
//! 6. **Body limit**: it takes effect where the handler reads the body, as a 413.
//! 7. **Probes only**: innermost, on the endpoints themselves, so that it sees their paths without the base path. A
//!    connection that came when all places were taken is answered about the worker, and not given work.

use std::{any::Any, net::IpAddr, time::Instant};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, AllowPrivateNetwork, CorsLayer},
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
};
use tracing::Instrument;

use super::{
    hosts::{self, Hosts},
    problem::Problem,
    view::millis,
};
use crate::{config::ListenConfig, connections::ProbesOnly};

/// What is answered when every connection is in use.
const PROBES: [&str; 3] = ["/health", "/ready", "/model"];

/// Puts everything around `router`, whose listener is bound to the address `bound`, if it has one.
pub(super) fn wrap(router: Router, config: &ListenConfig, bound: Option<IpAddr>) -> Router {
    // Each layer goes around those before it, so this is read from the bottom up.
    let mut router = router.layer(DefaultBodyLimit::max(config.max_body_bytes));
    if let Some(bound) = bound {
        router = router.layer(from_fn_with_state(Hosts::new(bound, &config.allowed_host), hosts::check));
    }
    if !config.cors_allow_origin.is_empty() {
        router = router.layer(cors(&config.cors_allow_origin));
    }
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(log_access))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(NewId))
}

#[derive(Clone)]
struct NewId;

impl MakeRequestId for NewId {
    fn make_request_id<B>(&mut self, _request: &axum::http::Request<B>) -> Option<RequestId> {
        HeaderValue::try_from(uuid::Uuid::now_v7().to_string()).ok().map(RequestId::new)
    }
}

/// One line a request. A stream's line is written when it begins.
async fn log_access(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let span = tracing::info_span!("request", request_id = id);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let job_id = response.headers().get("x-job-id").and_then(|id| id.to_str().ok());
    let duration_ms = millis(began.elapsed());
    tracing::info!(parent: &span, %method, path, status, duration_ms, job_id, "answered");
    response
}

/// Refuses what is no probe on a connection that is there for probes.
pub(super) async fn only_probes(request: Request, next: Next) -> Result<Response, Problem> {
    let is_limited = request.extensions().get::<ProbesOnly>().is_some();
    if is_limited && !PROBES.contains(&request.uri().path()) {
        return Err(Problem::too_many_connections());
    }
    Ok(next.run(request).await)
}

/// The panic's own message has been printed by the panic hook, and is not the client's to read.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    drop(panic);
    tracing::error!("a handler panicked");
    Problem::internal().into_response()
}

fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    // A page of the open web that reaches into a private network has to be named: `*` alone does not say that.
    let named = origins.to_vec();
    let private_network = AllowPrivateNetwork::predicate(move |origin, _| {
        named.iter().any(|named| named != "*" && origin == named.as_str())
    });
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_private_network(private_network)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            header::ACCEPT,
            header::CONTENT_ENCODING,
            header::CONTENT_TYPE,
            name("last-event-id"),
            name("prefer"),
            name("x-request-id"),
        ])
        .expose_headers([
            header::LOCATION,
            header::RETRY_AFTER,
            name("preference-applied"),
            name("x-job-id"),
            name("x-request-id"),
            name("x-seed"),
        ])
}
