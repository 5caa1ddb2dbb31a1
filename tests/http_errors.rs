//! Each row of the contract's table of errors, asked for in-process.

mod common;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, header},
};
use common::{
    Hands, Order,
    client::{Answer, text_head},
    fake,
};
use darkroom::{
    config::ServeConfig,
    http::{App, Phase, router},
};
use http_body_util::BodyExt;
use image::DynamicImage;
use serde_json::{Value, json};
use tower::ServiceExt;

/// A worker without a socket.
struct InProcess {
    app: Arc<App>,
    router: Router,
    hands: Hands,
}

impl InProcess {
    fn new(config: ServeConfig) -> Self {
        let (pipeline, hands) = fake();
        let app = App::new(config);
        app.make_ready(pipeline);
        Self { router: router(Arc::clone(&app)), app, hands }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, head) = (response.status().as_u16(), text_head(response.headers()));
        let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        Answer { status, head, body }
    }

    async fn post(&self, body: impl Into<Body>) -> Answer {
        self.post_accepting("*/*", body).await
    }

    async fn post_accepting(&self, accept: &str, body: impl Into<Body>) -> Answer {
        let request = Request::post("/generate")
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .header(header::ACCEPT, accept);
        self.send(request.body(body.into()).unwrap()).await
    }

    async fn at(&self, method: Method, path: &str) -> Answer {
        self.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
    }
}

fn ready() -> InProcess {
    InProcess::new(ServeConfig::default())
}

fn fox(more: Value) -> String {
    let mut body = json!({ "prompt": "a fox" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn base64_png() -> String {
    darkroom::image_utils::image_to_base64(&DynamicImage::new_rgb8(8, 8)).unwrap()
}

#[tokio::test]
async fn malformed_json_400() {
    let worker = ready();
    for (body, field, said) in [
        ("{", None, "EOF"),
        ("", None, "EOF"),
        ("[]", None, "expected an object with the fields of a request"),
        ("3", None, "expected an object with the fields of a request"),
        ("{\"prompt\": \"a\", \"output\": 3}", Some("output"), "expected an object with the fields of `output`"),
        ("{\"prompt\": \"a\"} x", None, "trailing"),
        ("{\"promt\": \"a fox\"}", Some("promt"), "unknown field `promt`, expected one of `prompt`"),
        ("{\"prompt\": 7}", Some("prompt"), "invalid type: integer `7`, expected a string"),
        ("{\"prompt\": \"a\", \"width\": \"64\"}", Some("width"), "expected a whole number"),
        ("{\"prompt\": \"a\", \"steps\": 1.5}", Some("steps"), "expected a whole number"),
        ("{\"prompt\": \"a\", \"output\": {\"formt\": \"png\"}}", Some("output.formt"), "unknown field"),
        ("{\"prompt\": \"a\", \"seed\": 1, \"seed\": 2}", Some("seed"), "duplicate field"),
    ] {
        let detail = worker.post(body).await.problem(400, "malformed_json", field);
        assert!(detail.contains(said), "{body}: {detail}");
    }
}

#[tokio::test]
async fn job_not_found_404_and_job_expired_410() {
    let mut config = ServeConfig::default();
    config.work.result_ttl_seconds = 0;
    let worker = InProcess::new(config);
    for (method, path) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/events"), (Method::GET, "/images/0")]
    {
        let answer = worker.at(method, &format!("/jobs/0190{path}")).await;
        assert_eq!(answer.problem(404, "job_not_found", None), "there is no job \"0190\"");
    }
    worker.hands.step(2);
    let drawn = worker.post_accepting("image/png", fox(json!({}))).await;
    let id = drawn.header("x-job-id").unwrap().to_owned();
    for path in ["", "/events", "/images/0"] {
        worker.at(Method::GET, &format!("/jobs/{id}{path}")).await.problem(410, "job_expired", None);
    }
}

#[tokio::test]
async fn not_found_404_and_method_not_allowed_405_elsewhere() {
    let worker = ready();
    worker.at(Method::GET, "/generatee").await.problem(404, "not_found", None);
    let answer = worker.at(Method::GET, "/generate").await;
    answer.problem(405, "method_not_allowed", None);
    assert_eq!(answer.header("allow"), Some("POST"));
    worker.at(Method::GET, "/jobs/%FF").await.problem(404, "not_found", None);
    worker.at(Method::DELETE, "/jobs").await.problem(405, "method_not_allowed", None);
}

#[tokio::test]
async fn not_acceptable_406() {
    let worker = ready();
    let detail = worker.post_accepting("text/html", fox(json!({}))).await.problem(406, "not_acceptable", None);
    assert!(detail.ends_with("application/json, text/event-stream, image/png, image/jpeg, image/webp"), "{detail}");
    let body = fox(json!({ "output": { "format": "png" } }));
    worker.post_accepting("image/jpeg", body).await.problem(406, "not_acceptable", None);
}

#[tokio::test]
async fn body_too_large_413() {
    let mut config = ServeConfig::default();
    config.listen.max_body_bytes = 100;
    let worker = InProcess::new(config);
    let body = fox(json!({ "negative_prompt": "x".repeat(100) }));
    let detail = worker.post(body).await.problem(413, "body_too_large", None);
    assert_eq!(detail, "the body is larger than the 100 bytes that this worker takes");
}

#[tokio::test]
async fn unsupported_media_type_415() {
    let worker = ready();
    let form = Request::post("/generate").header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let detail = worker.send(form.body(fox(json!({})).into()).unwrap()).await;
    let detail = detail.problem(415, "unsupported_media_type", None);
    assert!(detail.starts_with("was given \"application/x-www-form-urlencoded\""), "{detail}");
    let none = worker.send(Request::post("/generate").body(fox(json!({})).into()).unwrap()).await;
    none.problem(415, "unsupported_media_type", None);
}

#[tokio::test]
async fn invalid_parameter_422() {
    let worker = ready();
    let image = base64_png();
    worker.post("{}").await.problem(422, "invalid_parameter", Some("prompt"));
    for (body, field, said) in [
        (json!({ "prompt": "" }), "prompt", "has 0 characters; 1 to 10000 are allowed"),
        (json!({ "width": 100 }), "width", "is 100; a multiple of 8 from 64 to 2048 is allowed"),
        (json!({ "height": -8 }), "height", "is -8; a multiple of 8 from 64 to 2048 is allowed"),
        (json!({ "width": 2048, "height": 2048 }), "width", "this worker allows at most 1048576"),
        (json!({ "steps": 151 }), "steps", "is 151; 1 to 150 are allowed"),
        (json!({ "guidance_scale": 31 }), "guidance_scale", "is 31; 0 to 30 is allowed"),
        (json!({ "seed": 9_007_199_254_740_992_u64 }), "seed", "is 9007199254740992; 0 to 9007199254740991"),
        (json!({ "seed": -1 }), "seed", "is -1; 0 to 9007199254740991 is allowed"),
        (json!({ "n": 5 }), "n", "is 5; this worker allows 1 to 4 images"),
        (json!({ "sampler": "magic" }), "sampler", "is \"magic\"; one of ddim, pndm"),
        (json!({ "scheduler": "magic" }), "scheduler", "is \"magic\"; one of checkpoint, karras is allowed"),
        (json!({ "clip_skip": 3 }), "clip_skip", "is 3; the fake has 3 layers"),
        (json!({ "preview_every": 151 }), "preview_every", "is 151; 0 to 150 is allowed"),
        (json!({ "output": { "format": "gif" } }), "output.format", "is \"gif\"; one of png, jpeg, webp is allowed"),
        (json!({ "output": { "format": "jpeg", "quality": 0 } }), "output.quality", "is 0; 1 to 100 is allowed"),
        (json!({ "output": { "format": "webp", "quality": 90 } }), "output.quality", "only jpeg has a quality"),
        (json!({ "deadline_ms": 0 }), "deadline_ms", "is 0; 1 to 86400000 is allowed"),
        (json!({ "on_disconnect": "hang" }), "on_disconnect", "is \"hang\"; one of cancel, continue is allowed"),
        (json!({ "tag": "é".repeat(129) }), "tag", "has 258 bytes; at most 256 are allowed"),
        (json!({ "image": "not base64!" }), "image", "is not standard base64"),
        (json!({ "image": "aGVsbG8=" }), "image", "is none of png, jpeg and webp"),
        (json!({ "image": image, "mask": "aGVsbG8=" }), "mask", "is none of png, jpeg and webp"),
        (json!({ "mask": image }), "mask", "is given without an image to repaint"),
        (json!({ "strength": 0.5 }), "strength", "is 0.5, without an image to start from"),
        (json!({ "image": image, "strength": 0 }), "strength", "is 0; above 0 and up to 1 is allowed"),
        (json!({ "image": image, "strength": 1.01 }), "strength", "is 1.01; above 0 and up to 1 is allowed"),
    ] {
        let detail = worker.post(fox(body)).await.problem(422, "invalid_parameter", Some(field));
        assert!(detail.starts_with(&format!("{field}: ")) && detail.contains(said), "{detail}");
    }
    for (query, field) in [
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("page=2", "page"),
        ("limit=%FF", "limit"),
    ] {
        worker.at(Method::GET, &format!("/jobs?{query}")).await.problem(422, "invalid_parameter", Some(field));
    }
}

#[tokio::test]
async fn unsupported_parameter_422() {
    let worker = ready();
    let body = fox(json!({ "image": base64_png(), "mask": base64_png(), "strength": 1 }));
    worker.post(body).await.problem(422, "unsupported_parameter", Some("image"));
}

#[tokio::test]
async fn queue_full_429_says_when_to_come_again() {
    let mut config = ServeConfig::default();
    config.work.queue_capacity = 1;
    let mut worker = InProcess::new(config);
    let first = worker.post(fox(json!({ "steps": 100 }))).await.json();
    worker.hands.begun.recv().await.unwrap();
    let waiting = worker.post(fox(json!({}))).await.json();
    let refused = worker.post(fox(json!({}))).await;
    let detail = refused.problem(429, "queue_full", None);
    assert_eq!(detail, "the queue is full: 1 requests are waiting already");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(seconds, 1, "nothing was measured, so the least is said");
    let ready = worker.at(Method::GET, "/ready").await;
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &json!("the queue is full: 1 of 1 requests wait")));
    let job = |answer: &serde_json::Value| format!("/jobs/{}", answer["job_id"].as_str().unwrap());
    // Whoever waits and is cancelled makes room, though the first goes on.
    assert_eq!(worker.at(Method::DELETE, &job(&waiting)).await.status, 202);
    let ready = async {
        while worker.at(Method::GET, "/ready").await.status == 503 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap();
    assert_eq!(worker.post(fox(json!({}))).await.status, 202);
    assert_eq!(worker.at(Method::DELETE, &job(&first)).await.status, 202);
    worker.hands.orders.send(Order::Step).unwrap();
}

#[tokio::test]
async fn generation_failed_500_and_never_a_stack_trace() {
    let worker = ready();
    for order in [Order::Fail("no film"), Order::Panic("no film")] {
        worker.hands.orders.send(order).unwrap();
        let answer = worker.post_accepting("image/*", fox(json!({}))).await;
        let detail = answer.problem(500, "generation_failed", None);
        assert!(detail.contains("no film") && !detail.contains("src/"), "{detail}");
    }
    let jobs = worker.at(Method::GET, "/jobs?status=failed").await.json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(jobs["jobs"][0]["error"]["code"], "generation_failed");
}

#[tokio::test]
async fn not_ready_503_and_draining_503() {
    let app = App::new(ServeConfig::default());
    let (pipeline, hands) = fake();
    let worker = InProcess { router: router(Arc::clone(&app)), app: Arc::clone(&app), hands };
    let answer = worker.post(fox(json!({}))).await;
    answer.problem(503, "not_ready", None);
    assert_eq!(answer.header("retry-after"), Some("5"));
    app.advance(Phase::Loading { percent: 42 });
    let detail = worker.post(fox(json!({}))).await.problem(503, "not_ready", None);
    assert_eq!(detail, "the worker is not ready: loading the model: 42%");
    worker.at(Method::GET, "/model").await.problem(503, "not_ready", None);
    app.make_ready(pipeline);
    worker.app.drain().await;
    let answer = worker.post(fox(json!({}))).await;
    answer.problem(503, "draining", None);
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test]
async fn deadline_exceeded_504_while_it_waits_and_while_it_is_drawn() {
    let mut worker = ready();
    let running = worker.post(fox(json!({ "steps": 100 }))).await.json();
    worker.hands.begun.recv().await.unwrap();
    let answer = worker.post_accepting("image/png", fox(json!({ "deadline_ms": 20 }))).await;
    answer.problem(504, "deadline_exceeded", None);
    worker.at(Method::DELETE, &format!("/jobs/{}", running["job_id"].as_str().unwrap())).await;
    worker.hands.orders.send(Order::Step).unwrap();
    worker.hands.orders.send(Order::UntilStopped).unwrap();
    let answer = worker.post_accepting("image/png", fox(json!({ "deadline_ms": 20 }))).await;
    let detail = answer.problem(504, "deadline_exceeded", None);
    assert_eq!(detail, "the deadline passed before the picture was finished");
    assert_eq!(worker.hands.begun.recv().await.unwrap(), "a fox");
}

#[tokio::test]
async fn cancelled_is_told_to_whoever_waits_for_a_picture() {
    let mut worker = ready();
    let router = worker.router.clone();
    let request = Request::post("/generate")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "image/png")
        .body(Body::from(fox(json!({}))))
        .unwrap();
    let waiting = tokio::spawn(async move { router.oneshot(request).await.unwrap() });
    worker.hands.begun.recv().await.unwrap();
    let jobs = worker.at(Method::GET, "/jobs").await.json();
    let path = format!("/jobs/{}", jobs["jobs"][0]["job_id"].as_str().unwrap());
    assert_eq!(worker.at(Method::DELETE, &path).await.status, 202);
    worker.hands.step(1);
    assert_eq!(waiting.await.unwrap().status(), 409);
    let job = worker.at(Method::GET, &path).await.json();
    let expected = json!({ "code": "cancelled", "message": "the job was cancelled: requested", "reason": "requested" });
    assert_eq!((&job["status"], &job["error"]), (&json!("cancelled"), &expected));
}

#[tokio::test]
async fn other_origins_are_refused_until_one_is_named() {
    let preflight = |origin: &str| {
        Request::options("/generate")
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .body(Body::empty())
            .unwrap()
    };
    let closed = ready().send(preflight("https://example.org")).await;
    assert_eq!(closed.header("access-control-allow-origin"), None);
    let mut config = ServeConfig::default();
    config.listen.cors_allow_origin = vec!["https://example.org".into()];
    let worker = InProcess::new(config);
    let opened = worker.send(preflight("https://example.org")).await;
    assert_eq!(opened.header("access-control-allow-origin"), Some("https://example.org"));
    let other = worker.send(preflight("https://example.com")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn every_answer_has_the_requests_id() {
    let worker = ready();
    let given = Request::get("/health").header("x-request-id", "mine").body(Body::empty()).unwrap();
    assert_eq!(worker.send(given).await.header("x-request-id"), Some("mine"));
    let made = worker.at(Method::GET, "/nowhere").await;
    assert_eq!(made.header("x-request-id").map(str::len), Some(36));
}

#[tokio::test]
async fn a_handler_that_panics_answers_500_and_says_nothing_of_itself() {
    let worker = ready();
    let detail = worker.post(json!({ "prompt": "panic in the check" }).to_string()).await;
    let detail = detail.problem(500, "internal_error", None);
    assert_eq!(detail, "this worker has a fault; its log says more");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let worker = ready();
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    worker.post(Body::from_stream(never)).await.problem(408, "body_too_slow", None);
}
