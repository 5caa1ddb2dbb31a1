//! The engine, its queue and its ends, drawn with a fake pipeline that stands still until a test lets it go on.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Order, fake};

use darkroom::{
    Error,
    engine::{CancelReason, ErrorCode, GenerationEngine, GenerationRequest, GenerationResponse},
    sampling::SamplingConfig,
};
use tokio::sync::mpsc;

/// What nothing here takes, so that what hangs fails.
const LONG: Duration = Duration::from_secs(20);

fn request(prompt: &str, steps: usize) -> GenerationRequest {
    GenerationRequest::new(prompt, SamplingConfig { prompt: prompt.into(), steps, ..SamplingConfig::default() })
}

async fn last(mut responses: mpsc::Receiver<GenerationResponse>) -> GenerationResponse {
    while let Some(response) = responses.recv().await {
        if response.is_last() {
            assert!(responses.recv().await.is_none(), "something followed the last word");
            return response;
        }
    }
    panic!("the channel closed without a last word");
}

async fn submit(engine: &GenerationEngine, request: GenerationRequest) -> mpsc::Receiver<GenerationResponse> {
    let (tx, rx) = mpsc::channel(64);
    engine.submit(request, tx).await.unwrap();
    rx
}

#[tokio::test]
async fn a_job_is_told_its_place_its_start_each_step_and_its_picture() {
    let (pipeline, hands) = fake();
    drop(hands.orders);
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let mut responses = submit(&engine, request("fox", 3)).await;
    let mut told = Vec::new();
    while let Some(response) = responses.recv().await {
        told.push(match response {
            GenerationResponse::Queued { position } => format!("queued {position}"),
            GenerationResponse::Started { .. } => "started".into(),
            GenerationResponse::Progress { step, total, .. } => format!("{step}/{total}"),
            GenerationResponse::Complete { images, .. } => format!("complete {}", images.len()),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(told, ["queued 0", "started", "1/3", "2/3", "3/3", "complete 1"]);
}

#[tokio::test]
async fn jobs_are_drawn_one_at_a_time_in_order() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let first = submit(&engine, request("first", 1)).await;
    assert_eq!(hands.begun.recv().await.unwrap(), "first");
    let second = submit(&engine, request("second", 1)).await;
    assert_eq!((engine.running(), engine.queue_depth()), (1, 1));
    assert!(hands.begun.try_recv().is_err(), "the second began while the first was drawn");
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(first).await, GenerationResponse::Complete { .. }));
    assert_eq!(hands.begun.recv().await.unwrap(), "second");
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(second).await, GenerationResponse::Complete { .. }));
}

#[tokio::test]
async fn a_panic_and_an_error_cost_one_job_each() {
    let (pipeline, hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    for (order, said) in [(Order::Panic("lens cap on"), "lens cap on"), (Order::Fail("no film"), "no film")] {
        hands.orders.send(order).unwrap();
        match last(submit(&engine, request("fox", 1)).await).await {
            GenerationResponse::Error { code: ErrorCode::GenerationFailed, message, .. } => {
                assert!(message.contains(said), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(submit(&engine, request("fox", 1)).await).await, GenerationResponse::Complete { .. }));
    assert!(engine.is_alive());
}

#[tokio::test]
async fn a_slow_consumer_loses_progress_and_never_the_result() {
    let (pipeline, hands) = fake();
    drop(hands.orders);
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let (tx, mut rx) = mpsc::channel(1);
    engine.submit(request("fox", 50), tx).await.unwrap();
    // Nothing is taken until the next job is done, so the drawing cannot have waited for this receiver.
    let mut seen = Vec::new();
    let other = submit(&engine, request("owl", 1)).await;
    assert!(matches!(last(other).await, GenerationResponse::Complete { .. }));
    while let Some(response) = rx.recv().await {
        seen.push(response);
    }
    assert!(seen.len() < 50, "{} were queued in a channel of one", seen.len());
    assert!(matches!(seen.last(), Some(GenerationResponse::Complete { .. })));
}

#[tokio::test]
async fn cancelling_a_running_job_frees_the_worker_within_one_step() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let running = request("running", 100);
    let switch = running.cancellation.clone();
    let responses = submit(&engine, running).await;
    hands.begun.recv().await.unwrap();
    switch.cancel(CancelReason::Requested);
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(responses).await, GenerationResponse::Cancelled { reason: CancelReason::Requested }));
    let next = submit(&engine, request("next", 1)).await;
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(next).await, GenerationResponse::Complete { .. }));
}

#[tokio::test]
async fn a_job_cancelled_while_it_waits_is_never_drawn() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let first = submit(&engine, request("first", 1)).await;
    hands.begun.recv().await.unwrap();
    let waiting = request("waiting", 1);
    waiting.cancellation.cancel(CancelReason::Requested);
    let waiting = submit(&engine, waiting).await;
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(first).await, GenerationResponse::Complete { .. }));
    assert!(matches!(last(waiting).await, GenerationResponse::Cancelled { reason: CancelReason::Requested }));
    assert!(hands.begun.try_recv().is_err());
}

#[tokio::test]
async fn a_job_stopped_while_it_waits_leaves_its_place_at_once() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(3);
    engine.start(pipeline);
    let running = submit(&engine, request("running", 1)).await;
    hands.begun.recv().await.unwrap();
    let asked = request("asked", 1);
    let switch = asked.cancellation.clone();
    let asked = submit(&engine, asked).await;
    let stays = submit(&engine, request("stays", 1)).await;
    let left = submit(&engine, request("left", 1)).await;
    let (tx, _rx) = mpsc::channel(8);
    assert!(matches!(engine.submit(request("refused", 1), tx).await, Err(Error::QueueFull { capacity: 3 })));

    // Nothing of the running job is drawn meanwhile.
    switch.cancel(CancelReason::Requested);
    assert!(matches!(last(asked).await, GenerationResponse::Cancelled { reason: CancelReason::Requested }));
    assert_eq!(engine.queue_depth(), 2);
    drop(left);
    let left_its_place = async {
        while engine.queue_depth() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, left_its_place).await.unwrap();
    let late = GenerationRequest { deadline: Some(Instant::now() + Duration::from_millis(10)), ..request("late", 1) };
    let late = last(submit(&engine, late).await).await;
    assert!(matches!(late, GenerationResponse::Error { code: ErrorCode::DeadlineExceeded, .. }), "{late:?}");
    let next = submit(&engine, request("next", 1)).await;
    assert_eq!(engine.queue_depth(), 2);

    for _ in 0..3 {
        hands.orders.send(Order::Step).unwrap();
    }
    for responses in [running, stays, next] {
        assert!(matches!(last(responses).await, GenerationResponse::Complete { .. }));
    }
    assert_eq!((hands.begun.recv().await.unwrap(), hands.begun.recv().await.unwrap()), ("stays".into(), "next".into()));
    assert!(hands.begun.try_recv().is_err());
}

#[tokio::test]
async fn a_job_whose_receiver_has_gone_is_stopped() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let running = request("running", 100);
    let switch = running.cancellation.clone();
    let responses = submit(&engine, running).await;
    hands.begun.recv().await.unwrap();
    drop(responses);
    assert_eq!(switch.cancelled().await, CancelReason::Disconnected);
    hands.orders.send(Order::Step).unwrap();
    let next = submit(&engine, request("next", 1)).await;
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(next).await, GenerationResponse::Complete { .. }));
}

#[tokio::test]
async fn a_deadline_ends_a_waiting_and_a_running_job_as_failed() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let expect_deadline = |response| {
        assert!(
            matches!(response, GenerationResponse::Error { code: ErrorCode::DeadlineExceeded, .. }),
            "{response:?}"
        );
    };
    let past = GenerationRequest { deadline: Some(Instant::now()), ..request("late", 1) };
    expect_deadline(last(submit(&engine, past).await).await);
    assert!(hands.begun.try_recv().is_err());

    let soon = GenerationRequest { deadline: Some(Instant::now() + Duration::from_millis(50)), ..request("soon", 100) };
    let switch = soon.cancellation.clone();
    let responses = submit(&engine, soon).await;
    hands.begun.recv().await.unwrap();
    assert_eq!(switch.cancelled().await, CancelReason::Deadline);
    hands.orders.send(Order::Step).unwrap();
    expect_deadline(last(responses).await);
}

#[tokio::test]
async fn shutdown_finishes_the_running_job_and_reports_the_waiting_ones() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    let running = submit(&engine, request("running", 1)).await;
    hands.begun.recv().await.unwrap();
    let waiting = submit(&engine, request("waiting", 1)).await;
    let engine = Arc::new(engine);
    let shutdown = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move { engine.shutdown().await }
    });
    // Refused from the moment the shutdown begins, which the refusal itself shows.
    let refusal = loop {
        let (tx, _rx) = mpsc::channel(8);
        match engine.submit(request("late", 1), tx).await {
            Err(error @ Error::NotAccepting { .. }) => break error,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(refusal.to_string(), "the engine takes no work: it is shutting down");
    hands.orders.send(Order::Step).unwrap();
    assert!(matches!(last(running).await, GenerationResponse::Complete { .. }));
    assert!(matches!(last(waiting).await, GenerationResponse::Cancelled { reason: CancelReason::Shutdown }));
    drop(hands.orders);
    shutdown.await.unwrap();
    engine.shutdown().await;
    assert!(!engine.is_alive());
}

#[tokio::test]
async fn shutdown_past_the_grace_stops_the_running_job() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10).with_shutdown_grace(Duration::from_millis(20));
    engine.start(pipeline);
    let running = request("running", 100);
    let switch = running.cancellation.clone();
    let responses = submit(&engine, running).await;
    hands.begun.recv().await.unwrap();
    let release = tokio::spawn(async move {
        assert_eq!(switch.cancelled().await, CancelReason::Shutdown);
        hands.orders.send(Order::Step).unwrap();
    });
    engine.shutdown().await;
    release.await.unwrap();
    assert!(matches!(last(responses).await, GenerationResponse::Cancelled { reason: CancelReason::Shutdown }));
}

#[tokio::test]
async fn a_drawing_that_does_not_notice_the_shutdown_is_left() {
    let (pipeline, mut hands) = fake();
    let mut engine = GenerationEngine::new(10).with_shutdown_grace(Duration::from_millis(20));
    engine.start(pipeline);
    let responses = submit(&engine, request("running", 100)).await;
    hands.begun.recv().await.unwrap();
    let (let_go, end) = std::sync::mpsc::channel();
    hands.orders.send(Order::Hang(end)).unwrap();
    tokio::time::timeout(LONG, engine.shutdown()).await.unwrap();
    assert!(!engine.is_alive());
    // The drawing itself has an end of the channel.
    drop(let_go);
    assert!(matches!(last(responses).await, GenerationResponse::Cancelled { reason: CancelReason::Shutdown }));
}

#[tokio::test]
async fn an_engine_that_was_never_started_tells_its_waiting_jobs_when_it_is_shut_down() {
    let engine = GenerationEngine::new(1);
    let waiting = submit(&engine, request("waiting", 1)).await;
    let (tx, _rx) = mpsc::channel(8);
    assert!(matches!(engine.submit(request("more", 1), tx).await, Err(Error::QueueFull { capacity: 1 })));
    engine.shutdown().await;
    assert!(matches!(last(waiting).await, GenerationResponse::Cancelled { reason: CancelReason::Shutdown }));
}
