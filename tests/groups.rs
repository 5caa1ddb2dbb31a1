//! Jobs that are drawn together: who joins whom, and that what becomes of one costs no other.

mod common;

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{
    client::{self, Sent, generate, generate_events, get, until_ready},
    fake, picture,
};
use darkroom::{
    Error, Result,
    config::ServeConfig,
    engine::{CancelReason, ErrorCode, GenerationEngine, GenerationRequest, GenerationResponse},
    models::{DeviceChoice, DtypeChoice, ModelSource},
    pipeline::{Generate, Generated, GroupJob, InferencePipeline, LoadOptions, ModelInfo, Monitor, Unwatched},
    sampling::SamplingConfig,
};
use serde_json::json;
use tokio::sync::mpsc;

/// What nothing here takes, so that what hangs fails.
const LONG: Duration = Duration::from_secs(20);
/// Images that a pass of the fake draws.
const TOGETHER: usize = 4;

/// What a test tells the fake to do with what it draws.
enum Order {
    /// One step of all.
    Step,
    /// End the job with this prompt with an error.
    FailOne(&'static str),
    /// Fail as a whole.
    FailAll(&'static str),
    /// Panic.
    Panic(&'static str),
    /// Stand still, even when all are stopped, for as long as the test keeps the other end.
    Hang(std_mpsc::Receiver<()>),
    /// End without a word of those that are left.
    Forget,
}

/// Draws jobs of as many steps together, each step when it is told to.
struct Fake {
    info: ModelInfo,
    orders: Mutex<std_mpsc::Receiver<Order>>,
    /// The prompts of each group that has begun.
    begun: mpsc::UnboundedSender<Vec<String>>,
}

/// A test's end of the fake.
struct Hands {
    orders: std_mpsc::Sender<Order>,
    begun: mpsc::UnboundedReceiver<Vec<String>>,
}

impl Hands {
    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    fn step(&self, steps: usize) {
        for _ in 0..steps {
            self.order(Order::Step);
        }
    }

    async fn begun(&mut self) -> Vec<String> {
        tokio::time::timeout(LONG, self.begun.recv()).await.unwrap().unwrap()
    }
}

impl Generate for Fake {
    fn generate(&self, config: &SamplingConfig, monitor: &mut dyn Monitor) -> Result<Generated> {
        let mut drawn = Err(Error::Interrupted);
        self.generate_group(&mut [GroupJob { config, monitor }], &mut |_, result| drawn = result)?;
        drawn
    }

    fn generate_group(&self, jobs: &mut [GroupJob<'_>], ended: &mut dyn FnMut(usize, Result<Generated>)) -> Result<()> {
        let _ = self.begun.send(jobs.iter().map(|job| job.config.prompt.clone()).collect());
        // A lock that a panicking drawing poisoned is as good as before: it guards a channel's end.
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let together = jobs.iter().map(|job| job.config.n).sum();
        jobs.iter_mut().for_each(|job| job.monitor.drawn_together(together));
        let mut left: Vec<usize> = (0..jobs.len()).collect();
        let mut step = 0;
        while !left.is_empty() {
            let order = orders.recv().unwrap_or(Order::Step);
            if let Order::Hang(end) = &order {
                let _ = end.recv();
            }
            left.retain(|job| {
                let stops = jobs[*job].monitor.should_stop();
                if stops {
                    ended(*job, Err(Error::Interrupted));
                }
                !stops
            });
            match order {
                Order::Step => {
                    step += 1;
                    left.retain(|job| {
                        let GroupJob { config, monitor } = &mut jobs[*job];
                        monitor.progress(step * config.n, config.steps * config.n);
                        let images = (0..config.n as u64).map(|index| picture(config.seed + index)).collect();
                        if step == config.steps {
                            ended(*job, Ok(Generated { images, ..Generated::default() }));
                        }
                        step < config.steps
                    });
                }
                Order::FailOne(prompt) => left.retain(|job| {
                    let fails = jobs[*job].config.prompt == prompt;
                    if fails {
                        ended(*job, Err(Error::Image(format!("{prompt} cannot be drawn"))));
                    }
                    !fails
                }),
                Order::FailAll(message) => return Err(Error::Image(message.into())),
                Order::Panic(message) => panic!("{message}"),
                Order::Hang(_) => {}
                Order::Forget => return Ok(()),
            }
        }
        Ok(())
    }

    fn images_together(&self, _config: &SamplingConfig) -> usize {
        TOGETHER
    }

    fn can_join(&self, first: &SamplingConfig, other: &SamplingConfig) -> bool {
        first.steps == other.steps
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn check(&self, _config: &SamplingConfig) -> Result<()> {
        Ok(())
    }
}

fn group_fake() -> (Arc<Fake>, Hands) {
    let (orders, orders_rx) = std_mpsc::channel();
    let (begun_tx, begun) = mpsc::unbounded_channel();
    let info = fake().0.model().clone();
    (Arc::new(Fake { info, orders: Mutex::new(orders_rx), begun: begun_tx }), Hands { orders, begun })
}

fn request(prompt: &str, steps: usize, n: usize) -> GenerationRequest {
    GenerationRequest::new(prompt, SamplingConfig { prompt: prompt.into(), steps, n, ..SamplingConfig::default() })
}

async fn submit(engine: &GenerationEngine, request: GenerationRequest) -> mpsc::Receiver<GenerationResponse> {
    let (tx, rx) = mpsc::channel(64);
    engine.submit(request, tx).await.unwrap();
    rx
}

async fn last(mut responses: mpsc::Receiver<GenerationResponse>) -> GenerationResponse {
    let last = async {
        while let Some(response) = responses.recv().await {
            if response.is_last() {
                assert!(responses.recv().await.is_none(), "something followed the last word");
                return response;
            }
        }
        panic!("the channel closed without a last word");
    };
    tokio::time::timeout(LONG, last).await.unwrap()
}

async fn completes(responses: mpsc::Receiver<GenerationResponse>) {
    let last = last(responses).await;
    assert!(matches!(last, GenerationResponse::Complete { .. }), "{last:?}");
}

async fn is_cancelled(responses: mpsc::Receiver<GenerationResponse>, reason: CancelReason) {
    let last = last(responses).await;
    assert!(matches!(last, GenerationResponse::Cancelled { reason: found } if found == reason), "{last:?}");
}

/// How a failed job says that it failed.
async fn failure(responses: mpsc::Receiver<GenerationResponse>) -> String {
    match last(responses).await {
        GenerationResponse::Error { code: ErrorCode::GenerationFailed, message, .. } => message,
        other => panic!("{other:?}"),
    }
}

/// An engine whose running job is called `plug`, so that what is submitted waits until that has taken its one step.
async fn plugged() -> (GenerationEngine, Hands) {
    let (pipeline, mut hands) = group_fake();
    let mut engine = GenerationEngine::new(10);
    engine.start(pipeline);
    // Nobody listens to the plug; that its channel is full or closed does not matter.
    let mut plug = submit(&engine, request("plug", 1, 1)).await;
    tokio::spawn(async move { while plug.recv().await.is_some() {} });
    assert_eq!(hands.begun().await, ["plug"], "nobody is waited for");
    (engine, hands)
}

/// An engine that draws these requests together.
async fn drawing<const N: usize>(
    requests: [GenerationRequest; N],
) -> (GenerationEngine, Hands, [mpsc::Receiver<GenerationResponse>; N]) {
    let (engine, mut hands) = plugged().await;
    let prompts: Vec<String> = requests.iter().map(|request| request.config.prompt.clone()).collect();
    let mut responses = Vec::new();
    for request in requests {
        responses.push(submit(&engine, request).await);
    }
    hands.step(1);
    assert_eq!(hands.begun().await, prompts);
    (engine, hands, responses.try_into().unwrap())
}

#[tokio::test]
async fn those_that_wait_and_agree_are_drawn_together_and_the_others_keep_their_places() {
    let (engine, mut hands) = plugged().await;
    let mut responses = Vec::new();
    for (prompt, steps, n) in [("a", 2, 1), ("b", 3, 1), ("c", 2, 2), ("d", 2, 2), ("e", 2, 1), ("f", 2, 1)] {
        responses.push(submit(&engine, request(prompt, steps, n)).await);
    }
    assert_eq!((engine.running(), engine.queue_depth()), (1, 6));
    hands.step(1);
    // d's two images are one too many.
    assert_eq!(hands.begun().await, ["a", "c", "e"]);
    assert_eq!((engine.running(), engine.queue_depth()), (3, 3));
    let late = submit(&engine, request("late", 2, 1)).await;
    hands.step(2);
    assert_eq!(hands.begun().await, ["b"], "whoever could not join is next");
    assert_eq!(engine.running(), 1);
    hands.step(3);
    assert_eq!(hands.begun().await, ["d", "f", "late"]);
    hands.step(2);
    for responses in responses.into_iter().chain([late]) {
        completes(responses).await;
    }
    assert_eq!((engine.running(), engine.queue_depth()), (0, 0));
}

#[tokio::test]
async fn each_hears_of_its_own_place_start_steps_and_pictures() {
    let (_engine, hands, responses) = drawing([request("a", 2, 1), request("b", 2, 2)]).await;
    hands.step(2);
    for (mut responses, n) in responses.into_iter().zip([1, 2]) {
        let mut told = Vec::new();
        while let Some(response) = responses.recv().await {
            told.push(match response {
                GenerationResponse::Queued { position } => format!("queued {position}"),
                GenerationResponse::Started { .. } => "started".into(),
                GenerationResponse::Progress { step, total, images_together, .. } => {
                    format!("{step}/{total} of {images_together}")
                }
                GenerationResponse::Complete { images, .. } => format!("complete {}", images.len()),
                other => panic!("{other:?}"),
            });
        }
        let step = |step: usize| format!("{}/{} of 3", step * n, 2 * n);
        assert_eq!(told, [format!("queued {n}"), "started".into(), step(1), step(2), format!("complete {n}")]);
    }
}

#[tokio::test]
async fn whatever_stops_one_stops_no_other_and_is_told_at_once() {
    let late = GenerationRequest { deadline: Some(Instant::now() + Duration::from_secs(1)), ..request("late", 9, 1) };
    let asked = request("asked", 9, 1);
    let left = request("left", 9, 1);
    let switches = [&late, &asked, &left].map(|request| request.cancellation.clone());
    let (engine, hands, [stays, late, asked, left]) = drawing([request("stays", 9, 1), late, asked, left]).await;
    switches[1].cancel(CancelReason::Requested);
    drop(left);
    for switch in &switches {
        tokio::time::timeout(LONG, switch.cancelled()).await.unwrap();
    }
    hands.step(1);
    is_cancelled(asked, CancelReason::Requested).await;
    let late = last(late).await;
    assert!(matches!(late, GenerationResponse::Error { code: ErrorCode::DeadlineExceeded, .. }), "{late:?}");
    assert_eq!(switches[2].reason(), Some(CancelReason::Disconnected));
    // The one that is left has eight of its steps before it.
    let alone = async {
        while engine.running() != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, alone).await.unwrap();
    hands.step(8);
    completes(stays).await;
}

#[tokio::test]
async fn whoever_is_stopped_while_it_waits_joins_nobody() {
    let (engine, mut hands) = plugged().await;
    let first = submit(&engine, request("first", 2, 1)).await;
    let stopped = request("stopped", 2, 1);
    let switch = stopped.cancellation.clone();
    let stopped = submit(&engine, stopped).await;
    // In the same turn, so that the worker cannot have let go of it yet.
    switch.cancel(CancelReason::Requested);
    hands.step(1);
    assert_eq!(hands.begun().await, ["first"]);
    is_cancelled(stopped, CancelReason::Requested).await;
    hands.step(2);
    completes(first).await;
}

#[tokio::test]
async fn one_that_fails_costs_its_company_nothing() {
    let (_engine, mut hands, [a, b, c]) = drawing([request("a", 2, 1), request("b", 2, 1), request("c", 2, 1)]).await;
    hands.order(Order::FailOne("b"));
    assert!(failure(b).await.contains("b cannot be drawn"));
    hands.step(2);
    completes(a).await;
    completes(c).await;
    assert!(hands.begun.try_recv().is_err(), "nothing is drawn again");
}

#[tokio::test]
async fn what_fails_for_all_is_drawn_again_alone_and_one_at_fault_fails_by_name() {
    for (together, message) in
        [(Order::FailAll("out of film"), "out of film"), (Order::Panic("lens cap on"), "lens cap on")]
    {
        let [a, b, c] = ["a", "b", "c"].map(|prompt| request(prompt, 2, 1));
        let switch = c.cancellation.clone();
        let (engine, mut hands, [a, b, c]) = drawing([a, b, c]).await;
        hands.step(1);
        hands.order(together);
        assert_eq!(hands.begun().await, ["a"]);
        assert_eq!(engine.running(), 3);
        hands.step(2);
        completes(a).await;
        assert_eq!(hands.begun().await, ["b"]);
        switch.cancel(CancelReason::Requested);
        hands.order(Order::Panic(message));
        assert!(failure(b).await.contains(message));
        // Stopped before its turn.
        assert_eq!(hands.begun().await, ["c"]);
        hands.step(1);
        is_cancelled(c, CancelReason::Requested).await;
        let next = submit(&engine, request("next", 1, 1)).await;
        hands.step(1);
        completes(next).await;
        assert!(engine.is_alive());
    }
}

#[tokio::test]
async fn a_pipeline_that_says_nothing_of_a_job_has_stopped_it() {
    let (_engine, hands, [a, b]) = drawing([request("a", 2, 1), request("b", 2, 1)]).await;
    hands.order(Order::FailOne("a"));
    hands.order(Order::Forget);
    assert!(failure(a).await.contains("a cannot be drawn"));
    assert_eq!(failure(b).await, "the pipeline stopped without being asked to");
}

#[tokio::test]
async fn shutdown_lets_a_group_finish_and_stops_it_past_the_grace() {
    for grace in [Duration::from_secs(30), Duration::ZERO] {
        let requests = [request("a", 2, 1), request("b", 2, 1)];
        let switches = requests.each_ref().map(|request| request.cancellation.clone());
        let (engine, hands, responses) = drawing(requests).await;
        let waiting = submit(&engine, request("waiting", 3, 1)).await;
        let engine = Arc::new(engine.with_shutdown_grace(grace));
        let shutdown = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.shutdown().await }
        });
        // Until the shutdown has begun, so that nothing that waits is drawn.
        loop {
            let (tx, _rx) = mpsc::channel(8);
            if let Err(Error::NotAccepting { .. }) = engine.submit(request("late", 3, 1), tx).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        if grace > Duration::ZERO {
            hands.step(2);
            for responses in responses {
                completes(responses).await;
            }
        } else {
            for switch in switches {
                assert_eq!(tokio::time::timeout(LONG, switch.cancelled()).await.unwrap(), CancelReason::Shutdown);
            }
            hands.step(1);
            for responses in responses {
                is_cancelled(responses, CancelReason::Shutdown).await;
            }
        }
        is_cancelled(waiting, CancelReason::Shutdown).await;
        tokio::time::timeout(LONG, shutdown).await.unwrap().unwrap();
        assert!(!engine.is_alive());
    }
}

#[tokio::test]
async fn a_group_that_does_not_notice_the_shutdown_is_left() {
    let (pipeline, mut hands) = group_fake();
    let mut engine = GenerationEngine::new(10).with_shutdown_grace(Duration::from_millis(20));
    engine.start(pipeline);
    let plug = submit(&engine, request("plug", 1, 1)).await;
    hands.begun().await;
    let (a, b) = (submit(&engine, request("a", 9, 1)).await, submit(&engine, request("b", 9, 1)).await);
    hands.step(1);
    completes(plug).await;
    assert_eq!(hands.begun().await, ["a", "b"]);
    let (let_go, end) = std_mpsc::channel();
    hands.order(Order::Hang(end));
    tokio::time::timeout(LONG, engine.shutdown()).await.unwrap();
    assert!(!engine.is_alive());
    drop(let_go);
    for responses in [a, b] {
        is_cancelled(responses, CancelReason::Shutdown).await;
    }
}

/// A real pipeline that lets a test say when each group is drawn.
struct Gate {
    pipeline: InferencePipeline,
    open: Mutex<std_mpsc::Receiver<()>>,
    /// How many jobs each group has.
    begun: mpsc::UnboundedSender<usize>,
}

impl Generate for Gate {
    fn generate(&self, config: &SamplingConfig, monitor: &mut dyn Monitor) -> Result<Generated> {
        self.pipeline.generate(config, monitor)
    }

    fn generate_group(&self, jobs: &mut [GroupJob<'_>], ended: &mut dyn FnMut(usize, Result<Generated>)) -> Result<()> {
        let _ = self.begun.send(jobs.len());
        let _ = self.open.lock().unwrap().recv();
        self.pipeline.generate_group(jobs, ended)
    }

    fn images_together(&self, config: &SamplingConfig) -> usize {
        self.pipeline.images_together(config)
    }

    fn can_join(&self, first: &SamplingConfig, other: &SamplingConfig) -> bool {
        self.pipeline.can_join(first, other)
    }

    fn model(&self) -> &ModelInfo {
        self.pipeline.model()
    }

    fn check(&self, config: &SamplingConfig) -> Result<()> {
        self.pipeline.check(config)
    }
}

fn tiny(batch: &str) -> InferencePipeline {
    let source = ModelSource::Directory(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/sd15/model").into());
    let (device, dtype, batch) = (DeviceChoice::Cpu, DtypeChoice::F32, batch.parse().unwrap());
    let options = LoadOptions { source, device, dtype, batch, ..LoadOptions::default() };
    InferencePipeline::load(&options, &mut |_| {}).unwrap()
}

#[tokio::test]
async fn two_clients_whose_jobs_agree_are_drawn_together_each_with_its_own_events_and_pictures() {
    let (open, gate) = std_mpsc::channel();
    let (begun_tx, mut begun) = mpsc::unbounded_channel();
    let pipeline = Gate { pipeline: tiny("4"), open: Mutex::new(gate), begun: begun_tx };
    let (address, _plug) = client::start(ServeConfig::default(), |_| Ok(Arc::new(pipeline) as Arc<dyn Generate>)).await;
    until_ready(address).await;
    let body = |prompt: &str, scale: f64, seed: u64, n: usize| json!({ "prompt": prompt, "steps": 3, "guidance_scale": scale, "seed": seed, "n": n, "output": { "format": "png" } });
    let plug = generate(address, &[], &body("plug", 7.5, 0, 1)).await;
    assert_eq!((plug.status, begun.recv().await), (202, Some(1)));
    let bodies = [body("a fox", 7.5, 3, 1), body("an owl", 4.0, 9, 2)];
    let mut streams = Vec::new();
    for body in &bodies {
        let mut stream = generate_events(address, body).await;
        stream.until("queued").await;
        streams.push(stream);
    }
    open.send(()).unwrap();
    assert_eq!(begun.recv().await, Some(2));
    assert_eq!(get(address, "/ready").await.json()["running"], 2);
    client::events(address, plug.json()["job_id"].as_str().unwrap(), None).await.rest().await;
    assert_eq!(get(address, "/jobs?status=running").await.json()["jobs"].as_array().unwrap().len(), 2);
    open.send(()).unwrap();

    let single = tiny("1");
    for (mut stream, body) in streams.into_iter().zip(&bodies) {
        let events: Vec<Sent> = stream.rest().await;
        let steps = events.iter().filter(|event| event.name == "progress").map(|event| &event.data);
        let steps: Vec<_> = steps.map(|data| (data["step"].clone(), data["total"].clone())).collect();
        let n = body["n"].as_u64().unwrap();
        assert_eq!(steps, [1, 2, 3].map(|step| (json!(step * n), json!(3 * n))));
        let last = events.last().unwrap();
        assert_eq!(last.name, "complete");
        let config = SamplingConfig {
            prompt: body["prompt"].as_str().unwrap().to_owned(),
            steps: 3,
            guidance_scale: body["guidance_scale"].as_f64().unwrap(),
            seed: body["seed"].as_u64().unwrap(),
            n: usize::try_from(n).unwrap(),
            ..SamplingConfig::default()
        };
        let alone = single.generate(&config, &mut Unwatched).unwrap();
        let images = last.data["images"].as_array().unwrap();
        assert_eq!(images.len(), alone.images.len());
        for (image, alone) in images.iter().zip(alone.images) {
            let bytes = STANDARD.decode(image["base64"].as_str().unwrap()).unwrap();
            let drawn = image::load_from_memory(&bytes).unwrap().into_rgb8();
            assert_eq!(drawn.as_raw(), alone.into_rgb8().as_raw(), "{body}");
        }
    }
}
