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
    config::{Cli, Command, ServeConfig},
    http::{App, Phase, router},
    loading::load_model,
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
        ("", None, "the body is empty"),
        ("[]", None, "the body is an array; an object is wanted"),
        ("3", None, "the body is integer `3`; an object is wanted"),
        ("null", None, "the body is null; an object is wanted"),
        ("[\"a fox\"]", None, "the body is an array; an object is wanted"),
        ("\"a fox\"", None, "an object is wanted"),
        ("{\"prompt\": \"a\", \"output\": 3}", Some("output"), "output: is integer `3`; an object is wanted"),
        ("{\"prompt\": \"a\"} x", None, "trailing"),
        ("{\"promt\": \"a fox\"}", Some("promt"), "unknown field `promt`, expected one of `prompt`"),
        ("{\"prompt\": 7}", Some("prompt"), "prompt: is 7; a string is wanted"),
        (
            "{\"prompt\": \"a\", \"width\": \"64\"}",
            Some("width"),
            "width: is the string \"64\"; a whole number is wanted, without quotes",
        ),
        ("{\"prompt\": \"a\", \"steps\": 1.5}", Some("steps"), "steps: is 1.5; a whole number is wanted"),
        ("{\"prompt\": \"a\", \"output\": {\"formt\": \"png\"}}", Some("output.formt"), "unknown field"),
        ("{\"prompt\": \"a\", \"seed\": 1, \"seed\": 2}", Some("seed"), "duplicate field"),
        ("{\"n\": true}", Some("n"), "n: is true; a whole number is wanted"),
        ("{\"prompt\": [\"a\"]}", Some("prompt"), "prompt: is an array; a string is wanted"),
        ("{\"guidance_scale\": \"7.5\"}", Some("guidance_scale"), "a number is wanted, without quotes"),
        ("{\"output\": {\"inline\": \"no\"}}", Some("output.inline"), "true or false is wanted, without quotes"),
        ("{\"output\": {\"quality\": 90.5}}", Some("output.quality"), "is 90.5; a whole number is wanted"),
        ("{\"output\": [\"png\", 90, true, true]}", Some("output"), "output: is an array; an object is wanted"),
        ("{\"guidance_scale\": NaN}", Some("guidance_scale"), "JSON has no such number"),
        ("{\"guidance_scale\": -Infinity}", Some("guidance_scale"), "JSON has no such number"),
        ("{\"seed\": None}", Some("seed"), "JSON writes true, false and null"),
        ("{\"prompt\": 'a fox'}", Some("prompt"), "strings stand in double quotes"),
        ("{\"crop\": [0, 0]}", Some("crop"), "crop: is an array; an object is wanted"),
        ("{\"target_size\": {\"widht\": 8}}", Some("target_size.widht"), "unknown field"),
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
        (json!({ "guidance_rescale": 1.1 }), "guidance_rescale", "is 1.1; 0 to 1 is allowed"),
        (json!({ "guidance_start": -0.1 }), "guidance_start", "is -0.1; 0 and more, below 1, is allowed"),
        (json!({ "guidance_start": 1 }), "guidance_start", "is 1; 0 and more, below 1, is allowed"),
        (
            json!({ "guidance_end": 1.5 }),
            "guidance_end",
            "is 1.5; above guidance_start, which is 0, and up to 1 is allowed",
        ),
        (
            json!({ "guidance_start": 0.5, "guidance_end": 0.5 }),
            "guidance_end",
            "is 0.5; above guidance_start, which is 0.5, and up to 1 is allowed",
        ),
        (json!({ "image_guidance_scale": 0.9 }), "image_guidance_scale", "is 0.9; 1 to 30 is allowed"),
        (json!({ "image_guidance_scale": 31 }), "image_guidance_scale", "is 31; 1 to 30 is allowed"),
        (json!({ "seed": 9_007_199_254_740_992_u64 }), "seed", "is 9007199254740992; 0 to 9007199254740991"),
        (json!({ "seed": -1 }), "seed", "is -1; 0 to 9007199254740991 is allowed; leave seed out for a random one"),
        (json!({ "seed": 1e300 }), "seed", "is 1e300; 0 to 9007199254740991 is allowed"),
        (json!({ "steps": 151.0 }), "steps", "is 151; 1 to 150 are allowed"),
        (json!({ "n": 5 }), "n", "is 5; this worker allows 1 to 4 images"),
        (json!({ "sampler": "magic" }), "sampler", "is \"magic\"; one of ddim, pndm"),
        (
            json!({ "scheduler": "magic" }),
            "scheduler",
            "is \"magic\"; one of checkpoint, karras, exponential, beta, lu, sgm_uniform, simple, ddim_uniform, kl_optimal, \
             ays, leading, linspace, trailing is allowed",
        ),
        (json!({ "sigmas": [] }), "sigmas", "has 0 values before a last 0; 1 to 150 are allowed"),
        (json!({ "sigmas": [1, 2, 0] }), "sigmas", "goes from 1 to 2; values that fall are allowed"),
        (json!({ "sigmas": [3, -1] }), "sigmas", "has -1; 0.0001 to 10000 is allowed, and 0 as the last value"),
        (
            json!({ "sigmas": [3, 1], "scheduler": "lu" }),
            "sigmas",
            "is given beside the scheduler lu; one of the two is allowed",
        ),
        (json!({ "sigmas": [3, 1, 0], "steps": 3 }), "steps", "is 3; the 2 steps of sigmas are allowed"),
        (json!({ "sampler": "ddim", "eta": 1.5 }), "eta", "is 1.5; 0 to 1 is allowed"),
        (
            json!({ "sampler": "dpmpp_2m", "eta": 0.5 }),
            "eta",
            "is 0.5, which means nothing to the sampler dpmpp_2m; ddim and tcd take it",
        ),
        // The fake's own sampler.
        (json!({ "eta": 0 }), "eta", "is 0, which means nothing to the sampler euler; ddim and tcd take it"),
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
        (json!({ "image": "" }), "image", "is empty; base64 is wanted"),
        (
            json!({ "image": image }),
            "image",
            "has 8x8 pixels; 64 to 2048 a side can be drawn: name a width and a height",
        ),
        (json!({ "extend": { "left": 8 } }), "extend", "is given without an image to extend"),
        (json!({ "image": image, "extend": {} }), "extend", "is 0 on every side; at least one has to grow"),
        (json!({ "image": image, "extend": { "top": 2049 } }), "extend.top", "is 2049; 0 to 2048 is allowed"),
        (
            json!({ "image": image, "extend": { "top": 2000, "left": 1000 } }),
            "extend",
            "makes a picture of 1008x2008 = 2024064 pixels; at most 1048576 are allowed",
        ),
        (json!({ "mask_blur": 4 }), "mask_blur", "is 4, without a mask to blur"),
        (json!({ "image": image, "mask_invert": true }), "mask_invert", "is true, without a mask to invert"),
        (json!({ "image": image, "inpaint_padding": 8 }), "inpaint_padding", "is 8, without a mask to crop to"),
        (
            json!({ "image": image, "mask": image, "mask_blur": 65, "width": 64, "height": 64 }),
            "mask_blur",
            "is 65; 0 to 64 pixels are allowed",
        ),
        (json!({ "prompt_syntax": "a1111" }), "prompt_syntax", "is \"a1111\"; one of weights, plain is allowed"),
        (json!({ "long_prompt": "cut" }), "long_prompt", "is \"cut\"; one of chunks, truncate is allowed"),
        (json!({ "prompt_2": "" }), "prompt_2", "has 0 characters; 1 to 10000 are allowed"),
        (
            json!({ "negative_prompt": "", "negative_prompt_2": "a".repeat(10_001) }),
            "negative_prompt_2",
            "has 10001 characters; at most 10000 are allowed",
        ),
        (
            json!({ "negative_prompt_2": "blurry" }),
            "negative_prompt_2",
            "is given without a negative_prompt, which may be empty",
        ),
        (json!({ "original_size": { "width": 64 } }), "original_size", "lacks a side; width and height are wanted"),
        (
            json!({ "original_size": { "width": 0, "height": 64 } }),
            "original_size",
            "has a width of 0; 1 to 16384 is allowed",
        ),
        (
            json!({ "target_size": { "width": 64, "height": -64 } }),
            "target_size",
            "has a height of -64; 1 to 16384 is allowed",
        ),
        (json!({ "crop": { "top": 16_385 } }), "crop", "has a top of 16385; 0 to 16384 is allowed"),
        (
            json!({ "image": image, "strength": 0, "width": 64, "height": 64 }),
            "strength",
            "is 0; above 0 and up to 1 is allowed",
        ),
        (
            json!({ "image": image, "strength": 1.01, "width": 64, "height": 64 }),
            "strength",
            "is 1.01; above 0 and up to 1 is allowed",
        ),
    ] {
        let detail = worker.post(fox(body)).await.problem(422, "invalid_parameter", Some(field));
        assert!(detail.starts_with(&format!("{field}: ")) && detail.contains(said), "{detail}");
    }
    for (query, field) in [
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("page=2", "page"),
        ("limit=1&limit=2", "limit"),
        ("limit=%FF", "limit"),
    ] {
        worker.at(Method::GET, &format!("/jobs?{query}")).await.problem(422, "invalid_parameter", Some(field));
    }
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
    let told = ready.json();
    assert_eq!((ready.status, &told["ready"], &told["accepting"]), (200, &json!(true), &json!(false)));
    assert_eq!(told["reason"], "the queue is full: 1 of 1 requests wait");
    let job = |answer: &serde_json::Value| format!("/jobs/{}", answer["job_id"].as_str().unwrap());
    // Whoever waits and is cancelled makes room, though the first goes on.
    assert_eq!(worker.at(Method::DELETE, &job(&waiting)).await.status, 202);
    let ready = async {
        while worker.at(Method::GET, "/ready").await.json()["accepting"] == false {
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

#[tokio::test]
async fn a_full_worker_is_unready_only_when_it_is_told_to_be() {
    for (ready_when_full, status) in [(true, 200), (false, 503)] {
        let mut config = ServeConfig::default();
        config.work.queue_capacity = 1;
        config.work.ready_when_full = ready_when_full;
        let mut worker = InProcess::new(config);
        worker.post(fox(json!({}))).await;
        worker.hands.begun.recv().await.unwrap();
        // A job is drawn and there is room.
        let ready = worker.at(Method::GET, "/ready").await;
        assert_eq!((ready.status, &ready.json()["accepting"]), (200, &json!(true)));
        worker.post(fox(json!({}))).await;
        let ready = worker.at(Method::GET, "/ready").await;
        assert_eq!((ready.status, &ready.json()["accepting"]), (status, &json!(false)));
        worker.post(fox(json!({}))).await.problem(429, "queue_full", None);
    }
}

#[tokio::test]
async fn a_worker_that_failed_for_good_asks_nobody_to_come_again() {
    let app = App::new(ServeConfig::default());
    let worker = InProcess { router: router(Arc::clone(&app)), app, hands: fake().1 };
    worker.app.advance(Phase::Loading { percent: 1 });
    assert_eq!(worker.post(fox(json!({}))).await.header("retry-after"), Some("5"));
    worker.app.advance(Phase::Failed { reason: "no such tensor".into() });
    for answer in [worker.post(fox(json!({}))).await, worker.at(Method::GET, "/model").await] {
        answer.problem(503, "not_ready", None);
        assert_eq!(answer.header("retry-after"), None);
    }
}

#[tokio::test]
async fn what_a_client_sent_is_not_repeated_at_length() {
    let worker = ready();
    for body in [json!({ "sampler": "x".repeat(100_000) }), json!({ "狐".repeat(100_000): 1 })] {
        let answer = worker.post(fox(body)).await;
        assert!(matches!(answer.status, 400 | 422) && answer.body.len() < 5000, "{}", answer.body.len());
    }
}

#[tokio::test]
async fn a_coded_body_is_decoded_within_the_limit() {
    use std::io::Write;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let mut config = ServeConfig::default();
    config.listen.max_body_bytes = 1000;
    let worker = InProcess::new(config);
    let post = async |coding: &str, body: Vec<u8>| {
        let request = Request::post("/generate").header(header::CONTENT_TYPE, "application/json");
        worker.send(request.header(header::CONTENT_ENCODING, coding).body(body.into()).unwrap()).await
    };
    assert_eq!(post("gzip", gzip(&fox(json!({})))).await.status, 202);
    assert_eq!(post("identity", fox(json!({})).into_bytes()).await.status, 202);
    let bomb = gzip(&fox(json!({ "negative_prompt": "x".repeat(100_000) })));
    assert!(bomb.len() < 1000);
    let detail = post("gzip", bomb).await.problem(413, "body_too_large", None);
    assert_eq!(detail, "the body is larger, once decoded, than the 1000 bytes that this worker takes");
    let detail = post("gzip", fox(json!({})).into_bytes()).await.problem(400, "malformed_encoding", None);
    assert!(detail.starts_with("the body is not valid gzip"), "{detail}");
    let unknown = post("compress", Vec::new()).await;
    unknown.problem(415, "unsupported_content_encoding", None);
    assert_eq!(unknown.header("accept-encoding"), Some("gzip, deflate, br, zstd"));
}

#[tokio::test]
async fn a_body_is_utf_8_and_a_mark_before_it_is_ignored() {
    let worker = ready();
    assert_eq!(worker.post(format!("\u{feff}{}", fox(json!({})))).await.status, 202);
    let detail = worker.post(&b"{\"prompt\": \"caf\xe9\"}"[..]).await.problem(400, "malformed_json", None);
    assert!(detail.contains("not UTF-8: the byte 0xe9 at offset 15"), "{detail}");
}

#[tokio::test]
async fn whole_numbers_may_have_a_point_and_null_is_absent() {
    let worker = ready();
    let body =
        r#"{"prompt": "a", "steps": 1e1, "width": 64.0, "seed": null, "output": {"format": "jpeg", "quality": 8e1}}"#;
    let answer = worker.post(body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let request = &answer.json()["request"];
    assert_eq!((&request["steps"], &request["width"]), (&json!(10), &json!(64)));
    assert_eq!(request["output"]["quality"], 80);
}

#[tokio::test]
async fn urls_carry_the_base_path_whether_or_not_a_proxy_takes_it_off() {
    let mut config = ServeConfig::default();
    config.listen.base_path = "/darkroom".parse().unwrap();
    let worker = InProcess::new(config);
    for prefix in ["", "/darkroom"] {
        worker.hands.step(2);
        let request = Request::post(format!("{prefix}/generate"))
            .header(header::CONTENT_TYPE, "application/json")
            .header("prefer", "wait=60")
            .body(fox(json!({})).into())
            .unwrap();
        let answer = worker.send(request).await;
        let job = answer.json();
        let location = format!("/darkroom/jobs/{}", job["job_id"].as_str().unwrap());
        assert_eq!(answer.header("location"), Some(location.as_str()));
        assert_eq!(job["images"][0]["url"], format!("{location}/images/0"));
        // Seen from a client, and from a proxy that has taken the prefix off.
        for path in [location.as_str(), location.strip_prefix("/darkroom").unwrap()] {
            assert_eq!(worker.at(Method::GET, path).await.json()["images"], {
                let mut linked = job["images"].clone();
                linked[0].as_object_mut().unwrap().remove("base64");
                linked
            });
            assert_eq!(worker.at(Method::GET, &format!("{path}/images/0")).await.status, 200);
        }
    }
    let detail = worker.at(Method::GET, "/darkroom/nowhere").await.problem(404, "not_found", None);
    assert!(detail.starts_with("/darkroom/nowhere: "), "{detail}");
    worker.at(Method::GET, "/darkroom/generate").await.problem(405, "method_not_allowed", None);
    worker.at(Method::GET, "/darkroomm/health").await.problem(404, "not_found", None);
}

#[tokio::test]
async fn a_private_network_is_opened_to_named_origins_alone() {
    for (allowed, origin, expected) in [
        ("https://example.org", "https://example.org", Some("true")),
        ("https://example.org", "https://example.com", None),
        ("*", "https://example.org", None),
    ] {
        let mut config = ServeConfig::default();
        config.listen.cors_allow_origin = vec![allowed.into()];
        let preflight = Request::options("/generate")
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header("access-control-request-private-network", "true");
        let answer = InProcess::new(config).send(preflight.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("access-control-allow-private-network"), expected, "{allowed} {origin}");
    }
}

#[tokio::test]
async fn a_size_beyond_the_memory_limit_names_what_it_needs_and_what_is_allowed() {
    use clap::Parser;

    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/sd15/model");
    let arguments = ["darkroom", "serve", "--model", model, "--device", "cpu", "--dtype", "f32"];
    let cli = Cli::try_parse_from(arguments.iter().chain(&["--memory-limit", "24MiB"])).unwrap();
    let Command::Serve(config) = cli.into_command() else { panic!("it serves") };
    let app = App::new(config.clone());
    app.make_ready(load_model(&config.model, config.cost.limits(), &mut |_| {}).unwrap());
    let router = router(Arc::clone(&app));
    let worker = InProcess { app, router, hands: fake().1 };
    let sized = |width: usize, height: usize| fox(json!({ "width": width, "height": height, "steps": 1 }));
    let detail = worker.post(sized(1024, 768)).await.problem(422, "invalid_parameter", Some("width"));
    let said = detail.strip_prefix("width: 1024 times height 768 needs ").unwrap_or_else(|| panic!("{detail}"));
    let (needed, allowed) = said.split_once(" MiB of memory besides the model; ").unwrap();
    assert!(needed.parse::<usize>().unwrap() > 24 && allowed == "24 MiB are allowed", "{detail}");
    // What fits is drawn by the same worker.
    let drawn = worker.post_accepting("image/png", sized(64, 64)).await;
    assert_eq!(drawn.status, 200, "{}", String::from_utf8_lossy(&drawn.body));
    assert_eq!(worker.at(Method::GET, "/model").await.json()["memory"]["limit_bytes"], 24 << 20);
}
