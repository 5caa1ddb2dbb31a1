//! Jobs over real sockets: the three answers of `POST /generate`, events for several listeners, clients that leave.

mod common;

use std::{io::Cursor, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{
    Order,
    client::{Sent, Worker, delete, events, generate, generate_events, generate_request, get, open, until, worker},
    picture,
};
use darkroom::config::ServeConfig;
use serde_json::{Value, json};

async fn ready() -> Worker {
    worker(ServeConfig::default()).await
}

/// Queues a job and gives its id.
async fn queue(address: SocketAddr, body: Value) -> String {
    let answer = generate(address, &[], &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["job_id"].as_str().unwrap().to_owned()
}

async fn job(address: SocketAddr, id: &str) -> Value {
    get(address, &format!("/jobs/{id}")).await.json()
}

/// Waits for the job's last event.
async fn last(address: SocketAddr, id: &str) -> Sent {
    events(address, id, None).await.rest().await.pop().unwrap()
}

fn names(events: &[Sent]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

#[tokio::test]
async fn a_job_is_accepted_drawn_and_fetched() {
    let Worker { address, mut hands, .. } = ready().await;
    let answer = generate(address, &[], &json!({ "prompt": "a fox", "seed": 42, "n": 2, "tag": "mine" })).await;
    assert_eq!(answer.status, 202);
    let accepted = answer.json();
    let id = accepted["job_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/jobs/{id}").as_str()));
    assert_eq!(answer.header("x-job-id"), Some(id.as_str()));
    assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);
    assert_eq!((&accepted["status"], &accepted["queue_position"]), (&json!("queued"), &json!(0)));
    hands.begun.recv().await.unwrap();
    hands.step(2);
    assert_eq!(last(address, &id).await.name, "complete");

    let mut done = job(address, &id).await;
    for time in ["created_at", "started_at", "finished_at"] {
        done[time].take().as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    done["timings"]["queue_ms"].take().as_u64().unwrap();
    done["timings"]["total_ms"].take().as_u64().unwrap();
    let image = |index: u64| {
        let url = format!("/jobs/{id}/images/{index}");
        json!({ "index": index, "seed": 42 + index, "width": 8, "height": 8, "format": "png", "url": url })
    };
    let expected = json!({
        "job_id": id, "status": "succeeded", "tag": "mine", "queue_position": null, "eta_ms": null,
        "progress": { "step": 2, "total": 2, "percent": 100 },
        "created_at": null, "started_at": null, "finished_at": null,
        "timings": { "queue_ms": null, "encode_ms": 0, "denoise_ms": 0, "decode_ms": 0, "total_ms": null },
        "request": {
            "prompt": "a fox", "negative_prompt": null, "width": 64, "height": 64, "steps": 2, "guidance_scale": 1.0,
            "seed": 42, "n": 2, "sampler": "euler", "scheduler": "checkpoint", "clip_skip": 0,
            "prompt_syntax": "weights", "long_prompt": "chunks", "preview_every": 0,
            "output": { "format": "png", "metadata": true, "inline": true },
            "deadline_ms": null, "on_disconnect": "continue", "tag": "mine",
        },
        "images": [image(0), image(1)], "warnings": [], "error": null,
    });
    assert_eq!(done, expected);

    let fetched = get(address, &format!("/jobs/{id}/images/1")).await;
    assert_eq!((fetched.status, fetched.header("content-type")), (200, Some("image/png")));
    assert_eq!(fetched.header("x-seed"), Some("43"));
    assert_eq!(image::load_from_memory(&fetched.body).unwrap(), picture(43));
    get(address, &format!("/jobs/{id}/images/2")).await.problem(404, "image_not_found", None);
    let list = get(address, "/jobs?status=succeeded&limit=1").await.json();
    assert_eq!((&list["jobs"][0]["job_id"], &list["next"]), (&json!(id), &Value::Null));
    assert_eq!(delete(address, &format!("/jobs/{id}")).await.status, 200);
}

#[tokio::test]
async fn an_absent_negative_prompt_stays_absent_and_an_empty_one_empty() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    for (body, used) in [
        (json!({ "prompt": "a fox" }), Value::Null),
        (json!({ "prompt": "a fox", "negative_prompt": null }), Value::Null),
        (json!({ "prompt": "a fox", "negative_prompt": "" }), json!("")),
        (json!({ "prompt": "a fox", "negative_prompt": "blurry" }), json!("blurry")),
    ] {
        let png = generate(address, &[("Accept", "image/png")], &body).await;
        assert_eq!(job(address, png.header("x-job-id").unwrap()).await["request"]["negative_prompt"], used, "{body}");
        let reader = png::Decoder::new(Cursor::new(&png.body)).read_info().unwrap();
        let texts = &reader.info().uncompressed_latin1_text;
        let written = texts.iter().find(|chunk| chunk.keyword == "darkroom").unwrap();
        let written: Value = serde_json::from_str(&written.text).unwrap();
        assert_eq!(written["negative_prompt"], used, "{body}");
    }
}

#[tokio::test]
async fn a_picture_is_the_answer_where_one_is_accepted() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    for (accept, media_type, format) in [
        ("image/png", "image/png", image::ImageFormat::Png),
        ("image/*", "image/png", image::ImageFormat::Png),
        ("image/jpeg", "image/jpeg", image::ImageFormat::Jpeg),
        ("image/webp, */*;q=0.1", "image/webp", image::ImageFormat::WebP),
    ] {
        let answer = generate(address, &[("Accept", accept)], &json!({ "prompt": "狐", "seed": 9 })).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)));
        assert_eq!(answer.header("x-seed"), Some("9"));
        let id = answer.header("x-job-id").unwrap();
        assert_eq!(job(address, id).await["request"]["on_disconnect"], "cancel");
        assert_eq!(image::guess_format(&answer.body).unwrap(), format);
        if format == image::ImageFormat::Png {
            let reader = png::Decoder::new(Cursor::new(&answer.body)).read_info().unwrap();
            let texts = &reader.info().utf8_text;
            let keywords: Vec<_> = texts.iter().map(|text| text.keyword.as_str()).collect();
            assert_eq!(keywords, ["parameters", "darkroom"]);
            let infotext = texts[0].get_text().unwrap();
            let begins =
                "狐\nSteps: 2, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 64x64, Model: fake, Version: darkroom ";
            assert!(infotext.starts_with(begins), "{infotext}");
            let parameters: Value = serde_json::from_str(&texts[1].get_text().unwrap()).unwrap();
            assert_eq!(parameters["prompt"], "狐");
            // What a picture holds draws it again.
            let again = generate(address, &[("Accept", accept)], &parameters).await;
            assert_eq!(again.body, answer.body);
        }
    }
}

#[tokio::test]
async fn a_preferred_wait_gives_the_finished_job_or_the_accepted_one() {
    let Worker { address, mut hands, .. } = ready().await;
    let wait = |seconds: &'static str| [("Prefer", seconds)];
    let late = generate(address, &wait("wait=0"), &json!({ "prompt": "slow" })).await;
    assert_eq!((late.status, late.header("preference-applied")), (202, Some("wait=0")));
    let slow = late.json()["job_id"].as_str().unwrap().to_owned();
    hands.begun.recv().await.unwrap();
    drop(hands);
    // The client has its answer, so it has not left: the job goes on.
    assert_eq!(last(address, &slow).await.name, "complete");
    let done = generate(address, &wait("wait=60"), &json!({ "prompt": "a fox", "seed": 5 })).await;
    assert_eq!((done.status, done.header("preference-applied")), (200, Some("wait=60")));
    let done = done.json();
    assert_eq!(done["status"], "succeeded");
    let bytes = STANDARD.decode(done["images"][0]["base64"].as_str().unwrap()).unwrap();
    assert_eq!(image::load_from_memory(&bytes).unwrap(), picture(5));
}

#[tokio::test]
async fn a_seed_that_nobody_chose_is_told() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    let seed = || async {
        let answer = generate(address, &[("Accept", "image/png")], &json!({ "prompt": "a fox" })).await;
        answer.header("x-seed").unwrap().parse::<u64>().unwrap()
    };
    let (first, second) = (seed().await, seed().await);
    assert!(first != second && first < 1 << 53 && second < 1 << 53);
}

#[tokio::test]
async fn every_event_has_its_number_and_its_shape() {
    let Worker { address, hands, .. } = ready().await;
    for order in [Order::Step, Order::Preview, Order::Step] {
        hands.orders.send(order).unwrap();
    }
    let mut stream = generate_events(address, &json!({ "prompt": "a fox", "seed": 1, "tag": "t" })).await;
    assert_eq!(stream.status, 200);
    assert!(stream.head.contains("text/event-stream"), "{}", stream.head);
    let mut events = stream.rest().await;
    assert_eq!(names(&events), ["queued", "started", "progress", "preview", "progress", "complete"]);
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let id = events[0].data["job_id"].clone();
    for event in &events {
        assert_eq!((&event.data["job_id"], &event.data["tag"]), (&id, &json!("t")));
    }
    assert_eq!(events[0].data, json!({ "job_id": id, "tag": "t", "queue_position": 0, "eta_ms": null }));
    assert_eq!(events[1].data["request"]["sampler"], "euler");
    let progress = &mut events[2].data;
    assert!(progress["step_ms"].take().is_u64() && progress["eta_ms"].take().is_u64());
    let expected =
        json!({ "job_id": id, "tag": "t", "step": 1, "total": 2, "percent": 50, "step_ms": null, "eta_ms": null });
    assert_eq!(*progress, expected);
    let preview = &mut events[3].data;
    let bytes = STANDARD.decode(preview["image"].take().as_str().unwrap()).unwrap();
    assert_eq!(image::guess_format(&bytes).unwrap(), image::ImageFormat::Jpeg);
    let expected =
        json!({ "job_id": id, "tag": "t", "step": 1, "image": null, "format": "jpeg", "width": 8, "height": 8 });
    assert_eq!(*preview, expected);
    let complete = &mut events[5].data;
    let bytes = STANDARD.decode(complete["images"][0]["base64"].take().as_str().unwrap()).unwrap();
    assert_eq!(image::load_from_memory(&bytes).unwrap(), picture(1));
    assert!(complete["timings"]["total_ms"].is_u64());
    assert_eq!(complete["warnings"], json!([]));
}

#[tokio::test]
async fn pictures_are_linked_where_they_are_not_wanted_inline() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    let body = json!({ "prompt": "a fox", "output": { "inline": false } });
    let mut stream = generate_events(address, &body).await;
    for header in ["cache-control: no-cache, no-transform\r\n", "x-accel-buffering: no\r\n"] {
        assert!(stream.head.contains(header), "{}", stream.head);
    }
    let complete = stream.until("complete").await.data;
    let id = complete["job_id"].as_str().unwrap();
    let image = &complete["images"][0];
    assert_eq!((&image["url"], &image["base64"]), (&json!(format!("/jobs/{id}/images/0")), &Value::Null));
    let waited = generate(address, &[("Prefer", "wait=60")], &body).await.json();
    assert_eq!((&waited["status"], &waited["images"][0]["base64"]), (&json!("succeeded"), &Value::Null));
    // A listener takes what the request said, unless it says itself.
    for (query, inline) in [("", false), ("?inline=false", false), ("?inline=true", true)] {
        let path = format!("/jobs/{id}/events{query}");
        let mut stream = open(address, &common::client::request("GET", &path, &[], "")).await;
        assert!(stream.head.contains("cache-control: no-cache, no-transform\r\n"), "{}", stream.head);
        let complete = stream.until("complete").await.data;
        assert_eq!(complete["images"][0]["base64"].is_string(), inline, "{query}");
    }
    for (query, field) in [("inline=maybe", "inline"), ("inlin=true", "inlin"), ("inline=true&inline=true", "inline")] {
        let wrong = get(address, &format!("/jobs/{id}/events?{query}")).await;
        wrong.problem(422, "invalid_parameter", Some(field));
    }
}

#[tokio::test]
async fn over_a_loopback_socket_only_hosts_that_are_this_worker_s_are_answered() {
    let mut config = ServeConfig::default();
    config.listen.allowed_host = vec!["images.example.org".parse().unwrap()];
    let Worker { address, .. } = worker(config).await;
    let ask = async |host: &str| {
        let request = format!("GET /health HTTP/1.1\r\n{host}\r\n\r\n");
        common::client::exchange(address, &request).await
    };
    for host in ["Host: localhost", "Host: 127.0.0.1:7860", "Host: [::1]", "Host: Images.Example.org:443"] {
        assert_eq!(ask(host).await.status, 200, "{host}");
    }
    let detail = ask("Host: evil.example:7860").await.problem(421, "misdirected_request", None);
    assert!(detail.ends_with("start it with --allowed-host evil.example"), "{detail}");
    ask("X-Nothing: here").await.problem(400, "invalid_host", None);
    let old = common::client::exchange(address, "GET /health HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status, 200);
}

#[tokio::test]
async fn a_failed_job_tells_its_error_event() {
    let Worker { address, hands, .. } = ready().await;
    hands.orders.send(Order::Fail("no film")).unwrap();
    let events = generate_events(address, &json!({ "prompt": "a fox" })).await.rest().await;
    assert_eq!(names(&events), ["queued", "started", "error"]);
    let id = &events[0].data["job_id"];
    let expected = json!({ "job_id": id, "tag": null, "code": "generation_failed", "message": "image: no film" });
    assert_eq!(events[2].data, expected);
}

#[tokio::test]
async fn several_listeners_hear_the_same_and_a_late_one_resumes() {
    let Worker { address, mut hands, .. } = ready().await;
    let id = queue(address, json!({ "prompt": "a fox", "steps": 3 })).await;
    let mut early = events(address, &id, None).await;
    hands.begun.recv().await.unwrap();
    hands.step(1);
    let first = early.until("progress").await;
    let mut second = events(address, &id, None).await;
    let mut resumed = events(address, &id, Some(first.id)).await;
    hands.step(2);
    let (early, second, resumed) = (early.rest().await, second.rest().await, resumed.rest().await);
    assert_eq!(names(&second), ["queued", "started", "progress", "progress", "progress", "complete"]);
    assert_eq!(second[3..], early[..]);
    assert_eq!(second[3..], resumed[..]);
    // After the last event there is nothing to come back for.
    let last = second.last().unwrap().id;
    assert_eq!(events(address, &id, Some(last)).await.status, 204);
    let wrong = common::client::request("GET", &format!("/jobs/{id}/events"), &[("Last-Event-ID", "x")], "");
    common::client::exchange(address, &wrong).await.problem(422, "invalid_parameter", Some("Last-Event-ID"));
}

#[tokio::test]
async fn a_listener_that_does_not_read_slows_nobody_and_still_gets_the_end() {
    let Worker { address, mut hands, .. } = ready().await;
    let id = queue(address, json!({ "prompt": "a fox", "steps": 150, "n": 1 })).await;
    let mut slow = events(address, &id, None).await;
    hands.begun.recv().await.unwrap();
    drop(hands);
    // The drawing ends though nothing was read: another listener hears its end.
    assert_eq!(last(address, &id).await.name, "complete");
    let heard = slow.rest().await;
    assert!(heard.iter().map(|event| event.id).is_sorted());
    assert_eq!(heard.last().unwrap().name, "complete");
}

#[tokio::test]
async fn those_who_wait_are_told_when_they_move_up() {
    let Worker { address, mut hands, .. } = ready().await;
    let first = queue(address, json!({ "prompt": "first", "steps": 1 })).await;
    hands.begun.recv().await.unwrap();
    let second = queue(address, json!({ "prompt": "second", "steps": 1 })).await;
    queue(address, json!({ "prompt": "third", "steps": 1 })).await;
    let fourth = queue(address, json!({ "prompt": "fourth", "steps": 1 })).await;
    assert_eq!(job(address, &fourth).await["queue_position"], 3);
    let mut events = events(address, &fourth, None).await;
    assert_eq!(events.event().await.unwrap().data["queue_position"], 3);
    // One that is cancelled while it waits ends at once, though the first is still drawn.
    let cancelled = delete(address, &format!("/jobs/{second}")).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (202, &json!("cancelled")));
    assert_eq!(last(address, &second).await.data["reason"], "requested");
    assert_eq!(job(address, &first).await["status"], "running");
    assert_eq!(events.event().await.unwrap().data["queue_position"], 2);
    hands.step(1);
    let moved = events.event().await.unwrap();
    assert_eq!((moved.name.as_str(), &moved.data["queue_position"]), ("queued", &json!(1)));
    assert!(moved.data["eta_ms"].is_u64(), "a step was measured by now");
    assert_eq!(hands.begun.recv().await.unwrap(), "third");
    hands.step(2);
    events.until("started").await;
    assert_eq!(names(&events.rest().await), ["progress", "complete"]);
    assert_eq!(hands.begun.recv().await.unwrap(), "fourth");
}

#[tokio::test]
async fn deleting_a_running_job_frees_the_worker_within_one_step() {
    let Worker { address, mut hands, .. } = ready().await;
    let id = queue(address, json!({ "prompt": "long", "steps": 100 })).await;
    hands.begun.recv().await.unwrap();
    let stopping = delete(address, &format!("/jobs/{id}")).await;
    assert_eq!((stopping.status, &stopping.json()["status"]), (202, &json!("running")));
    hands.step(1);
    let end = last(address, &id).await;
    assert_eq!((end.name.as_str(), &end.data["reason"]), ("cancelled", &json!("requested")));
    let next = queue(address, json!({ "prompt": "next", "steps": 1 })).await;
    assert_eq!(hands.begun.recv().await.unwrap(), "next");
    hands.step(1);
    assert_eq!(last(address, &next).await.name, "complete");
    assert_eq!(delete(address, &format!("/jobs/{id}")).await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_what_it_waited_for_unless_it_said_otherwise() {
    let Worker { address, mut hands, .. } = ready().await;
    for headers in [[("Accept", "text/event-stream")], [("Accept", "image/png")], [("Prefer", "wait=600")]] {
        let request = generate_request(&headers, &json!({ "prompt": "a fox" }));
        let client = tokio::spawn(async move { open(address, &request).await.until("never").await });
        hands.begun.recv().await.unwrap();
        hands.orders.send(Order::UntilStopped).unwrap();
        client.abort();
        let list = get(address, "/jobs?limit=1").await.json();
        let id = list["jobs"][0]["job_id"].as_str().unwrap();
        assert_eq!(last(address, id).await.data["reason"], "disconnected", "{headers:?}");
    }
    let request = generate_request(
        &[("Accept", "text/event-stream")],
        &json!({ "prompt": "a fox", "on_disconnect": "continue", "steps": 1 }),
    );
    let mut stream = open(address, &request).await;
    let id = stream.event().await.unwrap().data["job_id"].as_str().unwrap().to_owned();
    hands.begun.recv().await.unwrap();
    drop(stream);
    // A listener that was never the job's own client does not matter either.
    drop(events(address, &id, None).await);
    hands.step(1);
    assert_eq!(last(address, &id).await.name, "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_requests_each_is_drawn_or_refused_and_none_is_lost() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    let clients: Vec<_> = (0..20)
        .map(|client| {
            tokio::spawn(async move {
                let (mut drawn, mut refused) = (0, 0);
                for request in 0..10_u64 {
                    let seed = client * 10 + request;
                    let body = json!({ "prompt": "a fox", "seed": seed, "steps": 1 });
                    let answer = generate(address, &[("Accept", "image/png")], &body).await;
                    if answer.status == 200 {
                        assert_eq!(image::load_from_memory(&answer.body).unwrap(), picture(seed));
                        drawn += 1;
                    } else {
                        answer.problem(429, "queue_full", None);
                        assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
                        refused += 1;
                    }
                }
                (drawn, refused)
            })
        })
        .collect();
    let (mut drawn, mut refused) = (0, 0);
    for client in clients {
        let counts = client.await.unwrap();
        drawn += counts.0;
        refused += counts.1;
    }
    assert_eq!(drawn + refused, 200);
    assert!(drawn >= 10, "{drawn} drawn, {refused} refused");
    let ready = until(address, |ready| ready["queue"]["depth"] == 0 && ready["running"] == 0).await;
    assert_eq!(ready["queue"], json!({ "depth": 0, "capacity": 10 }));
    let jobs = get(address, "/jobs?limit=100&status=succeeded").await.json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), drawn.min(100));
}
