//! The life of a worker over real sockets: probes while it loads, its end with work in hand.

mod common;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use axum::{body::Body, http::Request};
use common::{
    Order,
    client::{
        Worker, events, generate, generate_events, generate_request, get, open, start, until, until_ready, worker,
    },
    fake,
};
use darkroom::{
    Error,
    config::ServeConfig,
    http::{App, router},
    loading::LoadStage,
    pipeline::Generate,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::Instant};
use tower::ServiceExt;

fn with_grace(seconds: u64) -> ServeConfig {
    let mut config = ServeConfig::default();
    config.work.shutdown_grace_seconds = seconds;
    config
}

#[tokio::test]
async fn probes_answer_while_the_model_loads_and_say_how_far_it_is() {
    let (pipeline, _hands) = fake();
    let (go_on, gate) = mpsc::channel::<()>();
    let (address, _plug) = start(ServeConfig::default(), move |report| {
        report(LoadStage::Reading { fraction: 0.425 });
        gate.recv().unwrap();
        report(LoadStage::Warming);
        gate.recv().unwrap();
        Ok(pipeline as Arc<dyn Generate>)
    })
    .await;
    let loading = until(address, |ready| ready["loading_percent"] == 42).await;
    let expected = json!({
        "ready": false, "accepting": false, "state": "loading", "reason": "loading the model: 42%", "loading_percent": 42,
        "queue": { "depth": 0, "capacity": 10 }, "running": 0,
    });
    assert_eq!(loading, expected);
    let health = get(address, "/health").await;
    assert_eq!((health.status, &health.json()["model"]), (200, &Value::Null));
    generate(address, &[], &json!({ "prompt": "a fox" })).await.problem(503, "not_ready", None);
    go_on.send(()).unwrap();
    until(address, |ready| ready["state"] == "warming").await;
    assert_eq!(get(address, "/ready").await.status, 503);
    go_on.send(()).unwrap();
    until_ready(address).await;

    let ready = get(address, "/ready").await;
    let expected = json!({
        "ready": true, "accepting": true, "state": "ready", "reason": null, "queue": { "depth": 0, "capacity": 10 }, "running": 0,
    });
    assert_eq!((ready.status, ready.json()), (200, expected));
    let mut health = get(address, "/health").await.json();
    assert!(health["uptime_ms"].take().is_u64());
    let version = env!("CARGO_PKG_VERSION");
    let expected = json!({ "status": "ok", "version": version, "uptime_ms": null, "device": "cpu", "model": "fake" });
    assert_eq!(health, expected);
    let expected = json!({
        "name": "fake", "sha256": null, "family": "none", "device": "cpu", "dtype": "f32",
        "native_size": { "width": 64, "height": 64 },
        "defaults": { "steps": 2, "guidance_scale": 1.0, "sampler": "euler", "scheduler": "checkpoint" },
        "samplers": ["ddim", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpm_2", "dpm_2_ancestral", "lms",
            "uni_pc", "deis", "ddpm", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_single", "lcm",
            "tcd", "edm_euler", "edm_dpmpp_2m"],
        "schedulers": [
            "checkpoint", "karras", "exponential", "beta", "lu", "sgm_uniform", "simple", "ddim_uniform", "kl_optimal",
            "ays", "leading", "linspace", "trailing"
        ],
        "formats": ["png", "jpeg", "webp"], "inputs": ["image", "mask"],
        "limits": {
            "max_pixels": 1_048_576, "max_batch": 4, "max_body_bytes": 33_554_432, "queue_capacity": 10,
        },
        "prompts": {
            "fields": ["prompt", "negative_prompt"], "syntaxes": ["weights", "plain"],
            "long_prompts": ["chunks", "truncate"], "chunk_tokens": 75, "max_prompt_chunks": 10,
        },
        "memory": { "weights_bytes": 1_048_576, "limit_bytes": 1_073_741_824 },
    });
    assert_eq!(get(address, "/model").await.json(), expected);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_fails_the_probes_and_the_run() {
    for panics in [false, true] {
        let (address, plug) = start(ServeConfig::default(), move |_| {
            assert!(!panics, "no such tensor");
            Err(Error::Image("no such tensor".into()))
        })
        .await;
        let ready = until(address, |ready| ready["state"] == "failed").await;
        let reason = ready["reason"].as_str().unwrap();
        assert!(reason.starts_with("the model could not be loaded: "), "{reason}");
        let health = get(address, "/health").await;
        assert_eq!((health.status, &health.json()["status"]), (503, &json!("failed")));
        generate(address, &[], &json!({ "prompt": "a fox" })).await.problem(503, "not_ready", None);
        plug.pull().await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn a_worker_that_is_still_loading_stops_at_once() {
    let (go_on, gate) = mpsc::channel::<()>();
    let (address, plug) = start(ServeConfig::default(), move |_| {
        let _ = gate.recv();
        Err(Error::Image("too late".into()))
    })
    .await;
    until(address, |ready| ready["state"] == "loading").await;
    plug.pull().await.unwrap().unwrap();
    drop(go_on);
}

#[tokio::test]
async fn shutdown_finishes_the_running_job_cancels_the_waiting_and_refuses_new_ones() {
    let Worker { address, mut hands, plug } = worker(with_grace(600)).await;
    let mut running = generate_events(address, &json!({ "prompt": "running", "steps": 1 })).await;
    hands.begun.recv().await.unwrap();
    let mut waiting = generate_events(address, &json!({ "prompt": "waiting" })).await;
    assert_eq!(waiting.event().await.unwrap().name, "queued");
    let wants_picture = generate_request(&[("Accept", "image/png")], &json!({ "prompt": "picture" }));
    let picture = tokio::spawn(async move { common::client::exchange(address, &wants_picture).await });
    until(address, |ready| ready["queue"]["depth"] == 2).await;

    let served = plug.pull();
    let draining = until(address, |ready| ready["state"] == "draining").await;
    assert_eq!((&draining["ready"], &draining["reason"]), (&json!(false), &json!("shutting down")));
    generate(address, &[], &json!({ "prompt": "new" })).await.problem(503, "draining", None);
    assert_eq!(get(address, "/health").await.status, 200);
    hands.step(1);
    assert_eq!(running.until("complete").await.data["images"][0]["index"], 0);
    assert!(running.event().await.is_none());
    assert_eq!(waiting.until("cancelled").await.data["reason"], "shutdown");
    picture.await.unwrap().problem(503, "draining", None);
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the socket is closed");
}

#[tokio::test]
async fn past_the_grace_the_running_job_is_cancelled_within_one_step() {
    let Worker { address, mut hands, plug } = worker(with_grace(0)).await;
    let mut running = generate_events(address, &json!({ "prompt": "running" })).await;
    hands.begun.recv().await.unwrap();
    hands.orders.send(Order::UntilStopped).unwrap();
    let served = plug.pull();
    assert_eq!(running.until("cancelled").await.data["reason"], "shutdown");
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn idle_connections_and_clients_that_do_not_read_cannot_hold_the_end_up() {
    let Worker { address, hands, plug } = worker(ServeConfig::default()).await;
    let idle = TcpStream::connect(address).await.unwrap();
    let keeps_alive = open(address, &common::client::request("GET", "/health", &[], "")).await;
    drop(hands);
    let mut stream = generate_events(address, &json!({ "prompt": "a fox" })).await;
    let id = stream.event().await.unwrap().data["job_id"].as_str().unwrap().to_owned();
    let unread = events(address, &id, None).await;
    stream.until("complete").await;
    plug.pull().await.unwrap().unwrap();
    drop((idle, keeps_alive, unread));
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive_with_comments() {
    let (pipeline, mut hands) = fake();
    let app = App::new(ServeConfig::default());
    app.make_ready(pipeline);
    let request = Request::post("/generate")
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .body(Body::from(json!({ "prompt": "a fox" }).to_string()));
    let response = router(app).oneshot(request.unwrap()).await.unwrap();
    let mut body = response.into_body();
    let mut frame = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(frame().await.starts_with(b"event: queued\n"));
    assert!(frame().await.starts_with(b"event: started\n"));
    hands.begun.recv().await.unwrap();
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(frame().await, ": still here\n\n");
    }
}

/// A worker whose jobs `n` images each were accepted and drawn by nobody yet, told to stop.
async fn accepted(config: ServeConfig, body: Value) -> (Worker, String) {
    let mut worker = worker(config).await;
    let answer = generate(worker.address, &[], &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    worker.hands.begun.recv().await.unwrap();
    (worker, answer.json()["job_id"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_drained_worker_stays_until_its_results_are_fetched() {
    let (worker, id) = accepted(with_grace(600), json!({ "prompt": "a fox", "n": 2 })).await;
    let Worker { address, hands, plug } = worker;
    let waiting = generate(address, &[], &json!({ "prompt": "waits" })).await.json()["job_id"].clone();
    let served = plug.pull();
    until(address, |ready| ready["state"] == "draining").await;
    drop(hands);
    let job = format!("/jobs/{id}");
    while get(address, &job).await.json()["status"] != "succeeded" {
        tokio::task::yield_now().await;
    }
    let ready = get(address, "/ready").await;
    assert_eq!((ready.status, ready.header("connection")), (503, Some("close")));
    generate(address, &[], &json!({ "prompt": "new" })).await.problem(503, "draining", None);
    assert_eq!(get(address, &format!("{job}/images/0")).await.status, 200);
    // A head is no picture, and a picture that is not there is none either.
    for path in ["images/1", "images/2"] {
        open(address, &common::client::request("HEAD", &format!("{job}/{path}"), &[], "")).await;
    }
    // Nor has anybody read what became of the other job.
    assert_eq!(get(address, &format!("{job}/images/1")).await.status, 200);
    let waiting = get(address, &format!("/jobs/{}", waiting.as_str().unwrap())).await.json();
    assert_eq!((&waiting["status"], &waiting["error"]["reason"]), (&json!("cancelled"), &json!("shutdown")));
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the socket is closed");
}

#[tokio::test]
async fn the_events_of_a_job_are_its_result_as_well() {
    let (worker, id) = accepted(with_grace(600), json!({ "prompt": "a fox", "n": 2 })).await;
    let Worker { address, hands, plug } = worker;
    let served = plug.pull();
    until(address, |ready| ready["state"] == "draining").await;
    drop(hands);
    while get(address, &format!("/jobs/{id}")).await.json()["status"] != "succeeded" {
        tokio::task::yield_now().await;
    }
    events(address, &id, None).await.until("complete").await;
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_job_that_failed_is_kept_until_that_was_read() {
    let (worker, id) = accepted(with_grace(600), json!({ "prompt": "a fox" })).await;
    let Worker { address, hands, plug } = worker;
    let served = plug.pull();
    until(address, |ready| ready["state"] == "draining").await;
    hands.orders.send(Order::Fail("no film")).unwrap();
    while get(address, &format!("/jobs/{id}")).await.json()["status"] != "failed" {
        tokio::task::yield_now().await;
    }
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn results_that_nobody_fetches_are_kept_for_the_grace_alone() {
    let (worker, _) = accepted(with_grace(1), json!({ "prompt": "a fox" })).await;
    let began = Instant::now();
    drop(worker.hands);
    worker.plug.pull().await.unwrap().unwrap();
    assert_eq!(began.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_answers_for_as_long_as_it_was_told() {
    for seconds in [0, 5] {
        let mut config = ServeConfig::default();
        config.work.drain_seconds = seconds;
        let Worker { address, plug, .. } = worker(config).await;
        let began = Instant::now();
        let served = plug.pull();
        if seconds > 0 {
            until(address, |ready| ready["state"] == "draining").await;
        }
        served.await.unwrap().unwrap();
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
}
