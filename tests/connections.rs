//! The server's connections over raw sockets: clients that half-close, leave, say half of something, or do not read.

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{
    Order,
    client::{Worker, events, generate, generate_events, generate_request, get, open, request, worker},
};
use darkroom::config::ServeConfig;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// The headers of each form in which `POST /generate` answers after the drawing.
const WAITING_FORMS: [&[(&str, &str)]; 3] =
    [&[("Accept", "image/png")], &[("Accept", "text/event-stream")], &[("Prefer", "wait=600")]];
/// What `curl --http2` sends along.
const UPGRADE_OFFER: [(&str, &str); 3] =
    [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA")];

async fn ready() -> Worker {
    worker(ServeConfig::default()).await
}

async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes.as_ref()).await.unwrap();
    socket
}

/// Everything that comes until the server ends the connection.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and with `end`.
async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        bytes.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

fn fox() -> Value {
    json!({ "prompt": "a fox", "seed": 7 })
}

async fn newest_job(address: SocketAddr) -> Value {
    get(address, "/jobs?limit=1").await.json()["jobs"][0].take()
}

/// Why the newest job ended.
async fn end_of_newest(address: SocketAddr) -> Value {
    let job = newest_job(address).await;
    events(address, job["job_id"].as_str().unwrap(), None).await.rest().await.pop().unwrap().data
}

#[tokio::test]
async fn a_client_that_half_closes_gets_the_whole_answer() {
    let Worker { address, mut hands, .. } = ready().await;
    for offer in [&[][..], &UPGRADE_OFFER] {
        for form in WAITING_FORMS {
            let mut socket = send(address, generate_request(&[form, offer].concat(), &fox())).await;
            socket.shutdown().await.unwrap();
            hands.begun.recv().await.unwrap();
            // The answer begins before there is one, and goes on with it.
            let beginning = socket.read_u8().await.unwrap();
            hands.step(2);
            let answer = format!("{}{}", char::from(beginning), rest(&mut socket).await);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{form:?}: {answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let whole = match form[0].1 {
                "image/png" => body.ends_with("IEND\u{fffd}B`\u{fffd}"),
                "text/event-stream" => body.contains("event: complete\n") && body.ends_with("\r\n0\r\n\r\n"),
                _ => serde_json::from_str::<Value>(body).unwrap()["status"] == "succeeded",
            };
            assert!(whole, "{form:?}: {head}\n{body}");
        }
        for quick in [generate_request(offer, &fox()), request("GET", "/jobs", offer, "")] {
            let mut socket = send(address, quick).await;
            socket.shutdown().await.unwrap();
            let answer = rest(&mut socket).await;
            assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            serde_json::from_str::<Value>(body).unwrap();
        }
        assert_eq!(hands.begun.recv().await.unwrap(), "a fox");
        hands.step(2);
        assert_eq!(end_of_newest(address).await["images"][0]["seed"], 7);
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_that_half_closes_gets_the_whole_answer() {
    let Worker { address, mut hands, .. } = ready().await;
    let old = generate_request(&[("Accept", "image/png")], &fox()).replace("HTTP/1.1", "HTTP/1.0");
    let mut socket = send(address, old).await;
    socket.shutdown().await.unwrap();
    hands.begun.recv().await.unwrap();
    let beginning = socket.read_u8().await.unwrap();
    hands.step(2);
    let answer = format!("{}{}", char::from(beginning), rest(&mut socket).await);
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("IEND\u{fffd}B`\u{fffd}"), "{answer}");
}

#[tokio::test]
async fn an_offer_to_upgrade_is_answered_over_http_1_1() {
    let Worker { address, hands, .. } = ready().await;
    drop(hands);
    for form in [WAITING_FORMS[0], WAITING_FORMS[1], WAITING_FORMS[2], &[]] {
        let stream = open(address, &generate_request(&[form, &UPGRADE_OFFER].concat(), &fox())).await;
        let expected = if form.is_empty() { 202 } else { 200 };
        assert_eq!((stream.status, &stream.head[..9]), (expected, "HTTP/1.1 "), "{form:?}");
    }
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_order_to_a_client_that_half_closes() {
    let Worker { address, mut hands, .. } = ready().await;
    let requests = [
        request("GET", "/health", &[], ""),
        generate_request(&[("Prefer", "wait=600")], &json!({ "prompt": "first" })),
        generate_request(&[("Prefer", "wait=600")], &json!({ "prompt": "second" })),
        request("GET", "/model", &[], ""),
    ];
    let mut socket = send(address, requests.concat()).await;
    socket.shutdown().await.unwrap();
    for prompt in ["first", "second"] {
        assert_eq!(hands.begun.recv().await.unwrap(), prompt);
        hands.step(2);
    }
    let answers = rest(&mut socket).await;
    let answers: Vec<&str> = answers.split("HTTP/1.1 200 OK\r\n").collect();
    assert_eq!((answers.len(), answers[0]), (5, ""), "{answers:?}");
    let bodies: Vec<Value> = answers[1..]
        .iter()
        .map(|answer| serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
        .collect();
    assert_eq!(bodies[0]["status"], "ok");
    assert_eq!((&bodies[1]["request"]["prompt"], &bodies[2]["request"]["prompt"]), (&json!("first"), &json!("second")));
    assert_eq!(bodies[3]["name"], "fake");
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_whatever_waits_behind_its_request() {
    let Worker { address, mut hands, .. } = ready().await;
    let pipelined = request("GET", "/health", &[], "");
    let garbage = "x".repeat(100_000);
    for behind in ["", "\r\n", &pipelined, &garbage] {
        for form in WAITING_FORMS {
            for at_once in [true, false] {
                let asked = generate_request(form, &fox());
                let mut socket = send(address, if at_once { format!("{asked}{behind}") } else { asked }).await;
                hands.begun.recv().await.unwrap();
                if !at_once {
                    socket.write_all(behind.as_bytes()).await.unwrap();
                }
                hands.orders.send(Order::UntilStopped).unwrap();
                drop(socket);
                let reason = end_of_newest(address).await["reason"].take();
                assert_eq!(reason, "disconnected", "{form:?}, {} bytes behind", behind.len());
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_when_what_waits_behind_its_request_fills_every_buffer() {
    let Worker { address, mut hands, .. } = ready().await;
    let garbage = "x".repeat(1 << 16);
    for form in WAITING_FORMS {
        let socket = send(address, generate_request(form, &fox())).await;
        hands.begun.recv().await.unwrap();
        while socket.try_write(garbage.as_bytes()).is_ok() {}
        hands.orders.send(Order::UntilStopped).unwrap();
        drop(socket);
        assert_eq!(end_of_newest(address).await["reason"], "disconnected", "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_sends_a_large_request_behind_another_gets_both_answers_whole() {
    let Worker { address, mut hands, .. } = ready().await;
    let form = [("Content-Type", "application/json"), ("Prefer", "wait=600")];
    let large = json!({ "prompt": "second" }).to_string() + &" ".repeat(1 << 20);
    let requests = [
        generate_request(&form[1..], &json!({ "prompt": "first" })),
        request("POST", "/generate", &form, &large),
        request("GET", "/model", &[], ""),
    ];
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let writing = tokio::spawn(async move { writer.write_all(requests.concat().as_bytes()).await.map(|()| writer) });
    assert_eq!(hands.begun.recv().await.unwrap(), "first");
    // The client is asked whether it is still there, with the beginning of its answer.
    let mut answers = vec![reader.read_u8().await.unwrap()];
    hands.step(2);
    assert_eq!(hands.begun.recv().await.unwrap(), "second");
    hands.step(2);
    let mut writer = writing.await.unwrap().unwrap();
    writer.shutdown().await.unwrap();
    reader.read_to_end(&mut answers).await.unwrap();
    let answers = String::from_utf8(answers).unwrap();
    let answers: Vec<&str> = answers.split("HTTP/1.1 200 OK\r\n").collect();
    assert_eq!((answers.len(), answers[0]), (4, ""), "{answers:?}");
    for (answer, prompt) in answers[1..3].iter().zip(["first", "second"]) {
        let job: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&job["status"], &job["request"]["prompt"]), (&json!("succeeded"), &json!(prompt)));
    }
}

#[tokio::test]
async fn a_client_that_half_closes_first_and_leaves_later_is_noticed() {
    let Worker { address, mut hands, .. } = ready().await;
    for (form, sent) in WAITING_FORMS.into_iter().zip(["HT", "event: started", "HT"]) {
        let mut socket = send(address, generate_request(form, &fox())).await;
        hands.begun.recv().await.unwrap();
        socket.shutdown().await.unwrap();
        read_until(&mut socket, sent).await;
        if sent != "HT" {
            read_until(&mut socket, ": still here\n\n").await;
        }
        hands.orders.send(Order::UntilStopped).unwrap();
        drop(socket);
        assert_eq!(end_of_newest(address).await["reason"], "disconnected", "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_resets_its_connection_is_noticed() {
    let Worker { address, mut hands, .. } = ready().await;
    for form in WAITING_FORMS {
        let socket = send(address, generate_request(form, &fox())).await;
        hands.begun.recv().await.unwrap();
        hands.orders.send(Order::UntilStopped).unwrap();
        socket.set_zero_linger().unwrap();
        drop(socket);
        assert_eq!(end_of_newest(address).await["reason"], "disconnected", "{form:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_head_and_an_idle_connection_are_waited_for_and_not_for_ever() {
    let Worker { address, .. } = ready().await;
    let health = request("GET", "/health", &[], "");
    for (said, least) in [("", 10), ("GET /health HTTP/1.1\r\nHo", 10), (&health, 75)] {
        let began = Instant::now();
        let mut socket = send(address, said).await;
        if said == health {
            read_until(&mut socket, "}").await;
            // Half of the next head does not start that time anew.
        }
        rest(&mut socket).await;
        let waited = began.elapsed();
        let least = Duration::from_secs(least);
        assert!((least..least + Duration::from_secs(1)).contains(&waited), "{said:?}: {waited:?}");
    }
    let mut socket = send(address, &health).await;
    read_until(&mut socket, "}").await;
    let began = Instant::now();
    socket.write_all(b"GET /he").await.unwrap();
    rest(&mut socket).await;
    assert_eq!(began.elapsed().as_secs(), 10, "half of a later head is waited for as for the first");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_left_after_a_minute_without_progress() {
    let Worker { address, .. } = ready().await;
    let many = request("GET", "/model", &[], "").repeat(100);
    let began = Instant::now();
    let mut socket = send(address, &many).await;
    while socket.write_all(many.as_bytes()).await.is_ok() {}
    let waited = began.elapsed().as_secs();
    assert!((60..62).contains(&waited), "{waited} s");
}

fn with_places(most: usize) -> ServeConfig {
    let mut config = ServeConfig::default();
    config.listen.max_connections = most;
    config
}

#[tokio::test]
async fn when_every_connection_is_in_use_probes_are_answered_and_the_rest_is_refused() {
    let Worker { address, mut hands, .. } = worker(with_places(2)).await;
    let mut first = generate_events(address, &fox()).await;
    hands.begun.recv().await.unwrap();
    let mut second = generate_events(address, &fox()).await;
    first.until("started").await;
    second.until("queued").await;
    for _ in 0..40 {
        for probe in ["/health", "/ready", "/model"] {
            let answer = get(address, probe).await;
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        }
        let refused = generate(address, &[], &fox()).await;
        refused.problem(503, "too_many_connections", None);
        assert!(refused.header("retry-after").is_some());
    }
    hands.step(4);
    first.until("complete").await;
    second.until("complete").await;
    drop((first, second));
    // A place that is free again is one for everything.
    while generate(address, &[], &fox()).await.status != 202 {}
}

#[tokio::test]
async fn who_waits_longest_makes_room_for_the_next() {
    let Worker { address, hands, .. } = worker(with_places(3)).await;
    drop(hands);
    // Behind those that asked whether the worker is ready.
    let mut oldest = send(address, "GET /health HTTP/1.1\r\nHo").await;
    let idle = open(address, &request("GET", "/health", &[], "")).await;
    let mut newest = send(address, "GET /health HTTP/1.1\r\nHo").await;
    let answer = generate(address, &[("Accept", "image/png")], &fox()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(rest(&mut oldest).await, "");
    newest.write_all(b"st: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = rest(&mut newest).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    drop(idle);
}

#[tokio::test]
async fn a_refusal_is_not_lost_with_the_body_that_was_not_read() {
    let mut config = ServeConfig::default();
    config.listen.max_body_bytes = 1000;
    let Worker { address, .. } = worker(config).await;
    let large = generate_request(&[], &json!({ "prompt": "x".repeat(500_000) }));
    let mut socket = send(address, large).await;
    let answer = rest(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}
