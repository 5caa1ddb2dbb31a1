//! A request on its way to the router, and its answer on the way back.
//!
//! Tells the connection's [`State`] when a request begins and when its answer is over.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderValue, Method, header},
    response::Response,
};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::Sleep;
use tower::Service;

use super::{
    places::Admission,
    state::{Evicted, State},
};

/// How often a peer that may have left is sent something in an answer that has begun and stands still.
const FILL_EVERY: Duration = Duration::from_secs(1);

/// Says, in an answer's extensions, what may be sent between any two pieces of its body without changing what it means.
/// It is sent to a peer that may have left, so that one that has is found out.
#[derive(Debug, Clone, Copy)]
pub struct Filler(pub &'static [u8]);

/// Says, in an answer's extensions, what is to be done once the whole answer is with the peer's connection. An answer
/// that broke off does nothing.
#[derive(Clone)]
pub struct Receipt(Arc<dyn Fn() + Send + Sync>);

impl Receipt {
    /// Does `act` when the answer is sent.
    pub fn new(act: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(act))
    }

    pub(super) fn tell(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipt")
    }
}

/// Stands in the extensions of a request that came when all places were taken: only probes are answered.
#[derive(Debug, Clone, Copy)]
pub struct ProbesOnly;

/// Has `request` answered by `router`.
///
/// # Errors
///
/// When the connection was given up before the request began.
pub(super) async fn answer(
    state: Arc<State>,
    mut router: Router,
    admission: Admission,
    request: Request<Incoming>,
    is_draining: impl Fn() -> bool,
) -> Result<Response<Answer>, Evicted> {
    state.begin_request()?;
    let handling = Handling(&state);
    let mut request = request.map(Body::new);
    if admission == Admission::ProbesOnly {
        request.extensions_mut().insert(ProbesOnly);
    }
    let has_body = request.method() != Method::HEAD;
    let Ok(mut response) = router.call(request).await;
    drop(handling);
    if is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let receipt = response.extensions_mut().remove::<Receipt>().filter(|_| has_body);
    let filler = response.extensions_mut().remove::<Filler>();
    Ok(response.map(|body| Answer { body, receipt, filler, next_filler: None, over: false, state }))
}

/// Ends with the handler, however that ends.
struct Handling<'a>(&'a State);

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.0.end_handler();
    }
}

/// An answer's body.
pub(super) struct Answer {
    body: Body,
    receipt: Option<Receipt>,
    filler: Option<Filler>,
    next_filler: Option<Pin<Box<Sleep>>>,
    over: bool,
    state: Arc<State>,
}

impl Answer {
    /// A piece that says nothing, if it is time for one.
    fn poll_filler(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let Some(Filler(filler)) = self.filler.filter(|_| self.state.is_in_doubt()) else { return Poll::Pending };
        if let Some(sleep) = &mut self.next_filler
            && sleep.as_mut().poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        self.next_filler = Some(Box::pin(tokio::time::sleep(FILL_EVERY)));
        Poll::Ready(Bytes::from_static(filler))
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.over = true,
            Poll::Ready(Some(_)) => {}
            Poll::Pending => return self.poll_filler(cx).map(|filler| Some(Ok(Frame::data(filler)))),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let sent = self.over || self.body.is_end_stream();
        self.state.end_answer(self.receipt.take().filter(|_| sent));
    }
}
