//! What pictures' files say of how they were drawn, and drawing them again, with the bundled model.

mod common;

use std::{net::SocketAddr, path::Path, process::Command, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::client::{Answer, Plug, exchange, generate, get, request, start, until_ready};
use darkroom::{
    config::ServeConfig,
    imaging::inspect,
    pipeline::{Generate, InferencePipeline, LoadOptions},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A worker that draws with the bundled model, for as long as its plug is kept.
struct Worker {
    address: SocketAddr,
    _plug: Plug,
}

async fn worker() -> Worker {
    let load = || InferencePipeline::load(&LoadOptions::default(), &mut |_| {});
    let (address, plug) = start(ServeConfig::default(), move |_| Ok(Arc::new(load()?) as Arc<dyn Generate>)).await;
    until_ready(address).await;
    Worker { address, _plug: plug }
}

/// The bytes of the picture that a request draws, asked for as `accept`.
async fn draw(worker: &Worker, accept: &str, body: &Value) -> Vec<u8> {
    let answer = generate(worker.address, &[("Accept", accept)], body).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.body.to_vec()
}

/// A request that says more than the least.
fn wish() -> Value {
    json!({
        "prompt": "a red apple, 狐", "negative_prompt": "blue", "seed": 41, "steps": 5, "width": 96, "height": 64,
        "guidance_scale": 4.5, "sampler": "euler_ancestral", "scheduler": "karras", "clip_skip": 1,
        "guidance_rescale": 0.5, "guidance_start": 0.2, "guidance_end": 0.8,
    })
}

#[tokio::test]
async fn listed_levels_are_drawn_again_and_give_way_to_a_spacing() {
    let worker = worker().await;
    let mut body = wish();
    for field in ["steps", "scheduler"] {
        body.as_object_mut().unwrap().remove(field);
    }
    body["sigmas"] = json!([14.6, 3.1, 0.4, 0.0]);
    let first = draw(&worker, "image/png", &body).await;
    let from = STANDARD.encode(&first);
    assert!(first == draw(&worker, "image/png", &json!({ "from": from })).await);

    let spaced = draw(&worker, "image/png", &json!({ "from": from, "scheduler": "simple" })).await;
    let mut wanted = body.clone();
    wanted.as_object_mut().unwrap().remove("sigmas");
    (wanted["scheduler"], wanted["steps"]) = (json!("simple"), json!(3));
    assert!(spaced == draw(&worker, "image/png", &wanted).await && spaced != first);

    let listed = draw(&worker, "image/png", &json!({ "from": STANDARD.encode(&spaced), "sigmas": [9, 1] })).await;
    wanted = body;
    wanted["sigmas"] = json!([9, 1]);
    assert!(listed == draw(&worker, "image/png", &wanted).await);
}

async fn inspected(worker: &Worker, picture: &[u8]) -> Value {
    let body = json!({ "image": STANDARD.encode(picture) });
    let sent = request("POST", "/inspect", &[("Content-Type", "application/json")], &body.to_string());
    let answer = exchange(worker.address, &sent).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

#[tokio::test]
async fn a_picture_of_every_format_is_drawn_again_byte_for_byte() {
    let worker = worker().await;
    for format in ["png", "jpeg", "webp"] {
        let media_type = format!("image/{format}");
        let mut body = wish();
        if format == "jpeg" {
            body["output"] = json!({ "format": "jpeg", "quality": 71 });
        }
        let first = draw(&worker, &media_type, &body).await;
        let again = draw(&worker, &media_type, &json!({ "from": STANDARD.encode(&first) })).await;
        assert!(first == again, "{format}");

        // A job takes the format of the picture that it draws again.
        let body = json!({ "from": STANDARD.encode(&first) });
        let job = generate(worker.address, &[("Prefer", "wait=60")], &body).await.json();
        assert_eq!(job["images"][0]["format"], format);
        assert_eq!(job["images"][0]["base64"], STANDARD.encode(&first), "{format}");

        let other = draw(&worker, &media_type, &json!({ "from": STANDARD.encode(&first), "seed": 42 })).await;
        assert!(first != other, "what the request says counts first: {format}");
        let asked = json!({ "from": STANDARD.encode(&first), "output": { "format": "png" } });
        assert!(draw(&worker, "image/png", &asked).await.starts_with(b"\x89PNG"), "{format}");
    }
}

#[tokio::test]
async fn inspecting_a_picture_shows_its_request_and_the_weights() {
    let worker = worker().await;
    // Whoever has a picture has waited for the digest.
    draw(&worker, "image/png", &json!({ "prompt": "a", "steps": 1 })).await;
    let model = get(worker.address, "/model").await.json();
    let digest = model["sha256"].as_str().unwrap();
    for media_type in ["image/png", "image/jpeg", "image/webp"] {
        let picture = draw(&worker, media_type, &wish()).await;
        let seen = inspected(&worker, &picture).await;
        assert_eq!((&seen["width"], &seen["height"]), (&json!(96), &json!(64)));
        for (field, value) in wish().as_object().unwrap() {
            assert_eq!(&seen["request"][field], value, "{media_type} {field}");
        }
        let parameters = seen["parameters"].as_str().unwrap();
        assert!(parameters.starts_with("a red apple, 狐\nNegative prompt: blue\nSteps: 5, Sampler: Euler a, "));
        assert!(parameters.contains(&format!("Model hash: {}, Model: ", &digest[..10])), "{parameters}");
        assert!(parameters.contains(&format!("Model SHA-256: {digest}, ")), "{parameters}");
        assert!(parameters.ends_with(concat!("Version: darkroom ", env!("CARGO_PKG_VERSION"))));
        // What the file says is a request as it is.
        assert!(draw(&worker, media_type, &seen["request"]).await == picture, "{media_type}");

        let mut silent = wish();
        silent["output"] = json!({ "metadata": false });
        let seen = inspected(&worker, &draw(&worker, media_type, &silent).await).await;
        assert_eq!((&seen["parameters"], &seen["request"]), (&Value::Null, &Value::Null), "{media_type}");
    }
}

#[tokio::test]
async fn a_picture_is_inspected_as_a_body_of_its_own() {
    let worker = worker().await;
    let picture = draw(&worker, "image/png", &wish()).await;
    let seen = post_file(worker.address, "image/png", &picture).await;
    assert!(seen.starts_with("HTTP/1.1 200") && seen.contains(r#""format":"png","width":96,"height":64"#), "{seen}");
    assert_eq!(post_file(worker.address, "application/octet-stream", &picture).await.get(..12), Some("HTTP/1.1 200"));
    for (media_type, body, status, code) in [
        ("image/png", "no picture", 422, "invalid_parameter"),
        ("text/plain", "no picture", 415, "unsupported_media_type"),
        ("application/json", "{}", 422, "invalid_parameter"),
        ("application/json", r#"{"image": 3}"#, 400, "malformed_json"),
        ("application/json", r#"{"image": "!"}"#, 422, "invalid_parameter"),
    ] {
        let sent = request("POST", "/inspect", &[("Content-Type", media_type)], body);
        let field = (media_type != "text/plain").then_some("image");
        exchange(worker.address, &sent).await.problem(status, code, field);
    }
    assert!(inspected(&worker, &picture).await["request"].is_object());
}

/// The whole answer to a file that is sent as it is.
async fn post_file(address: SocketAddr, media_type: &str, bytes: &[u8]) -> String {
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /inspect HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    socket.write_all(&[head.as_bytes(), bytes].concat()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn refused(worker: &Worker, body: &Value) -> String {
    let answer: Answer = generate(worker.address, &[], body).await;
    answer.problem(422, "invalid_parameter", Some("from"))
}

#[tokio::test]
async fn what_a_file_does_not_hold_is_asked_for() {
    let worker = worker().await;
    assert!(refused(&worker, &json!({ "from": "!" })).await.contains("base64"));
    assert!(refused(&worker, &json!({ "from": STANDARD.encode("text") })).await.contains("none of png"));
    let silent = json!({ "prompt": "a", "steps": 1, "output": { "metadata": false } });
    let silent = draw(&worker, "image/png", &silent).await;
    assert!(refused(&worker, &json!({ "from": STANDARD.encode(silent) })).await.contains("holds no request"));

    let picture = STANDARD.encode(draw(&worker, "image/png", &wish()).await);
    let changed = json!({ "prompt": "a red apple", "image": picture, "mask": picture, "mask_blur": 2, "steps": 4 });
    let changed = draw(&worker, "image/png", &changed).await;
    let from = STANDARD.encode(&changed);
    assert!(refused(&worker, &json!({ "from": from })).await.contains("give image and mask"));
    assert!(refused(&worker, &json!({ "from": from, "image": picture })).await.contains("give mask or extend"));
    let again = json!({ "from": from, "image": picture, "mask": picture });
    assert!(draw(&worker, "image/png", &again).await == changed);
}

#[tokio::test]
async fn other_weights_are_told_of() {
    let worker = worker().await;
    let picture = draw(&worker, "image/png", &wish()).await;
    // The same file, drawn by weights with another digest.
    let texts = inspect(&picture).unwrap().texts;
    let parameters = texts.parameters.as_ref().unwrap();
    let digest = parameters.split("Model SHA-256: ").nth(1).unwrap().get(..64).unwrap();
    let other = darkroom::imaging::PictureTexts {
        parameters: Some(parameters.replace(digest, &"0".repeat(64))),
        request: texts.request.clone(),
    };
    let image = image::load_from_memory(&picture).unwrap();
    let file = darkroom::output::encode(&image, &darkroom::output::OutputOptions::default(), &other).unwrap();
    let body = json!({ "from": STANDARD.encode(file) });
    let job = generate(worker.address, &[("Prefer", "wait=60")], &body).await.json();
    let warning = job["warnings"][0].as_str().unwrap();
    assert!(warning.contains("0000000000") && warning.contains(&digest[..10]), "{warning}");
    let body = json!({ "from": STANDARD.encode(&picture) });
    let job = generate(worker.address, &[("Prefer", "wait=60")], &body).await.json();
    assert_eq!(job["warnings"], json!([]));
}

fn generate_file(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let drawn = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .arg("generate")
        .args(arguments)
        .current_dir(folder)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    (drawn.status.code().unwrap(), String::from_utf8_lossy(&drawn.stderr).into_owned())
}

#[test]
fn the_command_line_draws_a_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let wish = ["a red apple", "--negative-prompt", "blue", "--seed", "9", "--steps", "4", "--guidance-scale", "3.5"];
    let more = ["--sampler", "heun", "--scheduler", "exponential", "--clip-skip", "1", "--width", "96"];
    for (name, quality) in [("a.png", &[][..]), ("a.jpg", &["--quality", "60"]), ("a.webp", &[])] {
        let drawn = [&wish[..], &more, &["-o", name], quality].concat();
        assert_eq!(generate_file(folder.path(), &drawn).0, 0);
        let again = format!("again-{name}");
        let (code, said) = generate_file(folder.path(), &["--from", name, "-o", &again]);
        assert_eq!(code, 0, "{said}");
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert!(read(name) == read(&again), "{name}");
    }
    let (code, said) = generate_file(folder.path(), &["--from", "a.png", "-o", "b.png", "--seed", "10"]);
    assert_eq!(code, 0, "{said}");
    assert_ne!(
        std::fs::read(folder.path().join("b.png")).unwrap(),
        std::fs::read(folder.path().join("a.png")).unwrap()
    );

    let (code, said) = generate_file(folder.path(), &["--from", "nothing.png", "-o", "c.png"]);
    assert!(code == 2 && said.contains("from: is nothing.png: "), "{code} {said}");
    let changed = ["a", "--image", "a.png", "--steps", "4", "-o", "changed.png"];
    assert_eq!(generate_file(folder.path(), &changed).0, 0);
    let (code, said) = generate_file(folder.path(), &["--from", "changed.png", "-o", "c.png"]);
    assert!(code == 2 && said.contains("give image"), "{code} {said}");
    let (code, said) = generate_file(folder.path(), &["-o", "c.png"]);
    assert!(code == 2 && said.contains("PROMPT"), "{code} {said}");
}
