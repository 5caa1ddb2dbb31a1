//! Weighted and long prompts, and what Stable Diffusion XL is told besides, over HTTP and on the command line.

mod common;

use std::{
    io::Cursor,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::client::{Answer, Plug, generate, get, start, until_ready};
use darkroom::{
    config::ServeConfig,
    models::ModelSource,
    pipeline::{Generate, InferencePipeline, LoadOptions},
};
use serde_json::{Value, json};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/data").join(name).join("model")
}

/// A worker that draws with a model, for as long as its plug is kept.
async fn worker(source: ModelSource) -> (SocketAddr, Plug) {
    let options = LoadOptions { source, ..LoadOptions::default() };
    let load = move || InferencePipeline::load(&options, &mut |_| {});
    let (address, plug) = start(ServeConfig::default(), move |_| Ok(Arc::new(load()?) as Arc<dyn Generate>)).await;
    until_ready(address).await;
    (address, plug)
}

async fn draw(address: SocketAddr, more: Value) -> Answer {
    let mut body = json!({ "prompt": "a red apple", "seed": 3, "steps": 4 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = generate(address, &[("Accept", "image/png")], &body).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer
}

fn pixels(answer: &Answer) -> Vec<u8> {
    image::load_from_memory(&answer.body).unwrap().into_rgb8().into_raw()
}

/// The request that a picture holds.
fn held(answer: &Answer) -> Value {
    let reader = png::Decoder::new(Cursor::new(&answer.body)).read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    serde_json::from_str(&texts.iter().find(|text| text.keyword == "darkroom").unwrap().text).unwrap()
}

#[tokio::test]
async fn brackets_weigh_unless_the_request_says_otherwise() {
    let (address, _plug) = worker(ModelSource::Bundled).await;
    let plain = pixels(&draw(address, json!({})).await);
    let weighted = draw(address, json!({ "prompt": "a (red:1.6) apple" })).await;
    assert_ne!(pixels(&weighted), plain);
    // A weight of 1 and escapes are the text itself.
    assert_eq!(pixels(&draw(address, json!({ "prompt": "a (red:1) apple" })).await), plain);
    let literal = pixels(&draw(address, json!({ "prompt": "a (red) apple", "prompt_syntax": "plain" })).await);
    assert!(literal != plain && literal != pixels(&weighted));
    assert_eq!(pixels(&draw(address, json!({ "prompt": r"a \(red\) apple" })).await), literal);
    // Where nothing is weighed and all fits in one window, the defaults are diffusers' way.
    let as_diffusers = json!({ "prompt_syntax": "plain", "long_prompt": "truncate" });
    assert_eq!(pixels(&draw(address, as_diffusers).await), plain);
    for picture in [weighted, draw(address, json!({ "prompt": "(red)", "prompt_syntax": "plain" })).await] {
        let again = generate(address, &[("Accept", "image/png")], &held(&picture)).await;
        assert_eq!(again.body, picture.body);
    }
}

#[tokio::test]
async fn a_long_prompt_is_read_to_its_end() {
    let (address, _plug) = worker(ModelSource::Bundled).await;
    let chunk_tokens = get(address, "/model").await.json()["prompts"]["chunk_tokens"].as_u64().unwrap();
    let long = |end: &str| format!("{} {end}", "red apple, ".repeat(usize::try_from(chunk_tokens).unwrap()));
    let (apple, lion) = (json!({ "prompt": long("apple") }), json!({ "prompt": long("lion"), "negative_prompt": "a" }));
    assert_ne!(pixels(&draw(address, apple.clone()).await), pixels(&draw(address, lion).await));
    let mut cut = apple;
    cut["long_prompt"] = json!("truncate");
    let first = pixels(&draw(address, cut.clone()).await);
    cut["prompt"] = json!(long("lion"));
    assert_eq!(pixels(&draw(address, cut.clone()).await), first);
    cut["prompt"] = json!("an apple BREAK a lion");
    let refused = generate(address, &[], &cut).await;
    let detail = refused.problem(422, "invalid_parameter", Some("prompt"));
    assert!(detail.starts_with("prompt: has a BREAK, which starts a chunk"), "{detail}");
    let broken = draw(address, json!({ "prompt": "a red apple BREAK a lion" })).await;
    assert_ne!(pixels(&broken), pixels(&draw(address, json!({ "prompt": "a red apple a lion" })).await));
}

#[tokio::test]
async fn only_stable_diffusion_xl_takes_a_second_prompt_and_sizes() {
    let (xl, _plug) = worker(ModelSource::Directory(tiny("sdxl"))).await;
    let told = get(xl, "/model").await.json()["prompts"].clone();
    let fields = [
        ("prompt_2", json!("a castle")),
        ("negative_prompt_2", json!("watercolour")),
        ("original_size", json!({ "width": 32, "height": 48 })),
        ("crop", json!({ "left": 8, "top": 16 })),
        ("target_size", json!({ "width": 1024, "height": 640 })),
    ];
    let wanted: Vec<Value> = ["prompt", "negative_prompt"]
        .into_iter()
        .chain(fields.iter().map(|(field, _)| *field))
        .map(Value::from)
        .collect();
    assert_eq!((&told["fields"], &told["chunk_tokens"]), (&json!(wanted), &json!(14)));
    let (one, _other_plug) = worker(ModelSource::Bundled).await;
    let usual = pixels(&draw(xl, json!({ "negative_prompt": "blurry" })).await);
    for (field, value) in fields {
        let body = json!({ "negative_prompt": "blurry", field: value });
        let drawn = draw(xl, body.clone()).await;
        assert_ne!(pixels(&drawn), usual, "{field}");
        assert_eq!(held(&drawn)[field], body[field]);
        let again = generate(xl, &[("Accept", "image/png")], &held(&drawn)).await;
        assert_eq!(again.body, drawn.body, "{field}");
        let mut refused = json!({ "prompt": "a red apple" });
        refused.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let refused = generate(one, &[], &refused).await;
        let detail = refused.problem(422, "unsupported_parameter", Some(field));
        assert!(detail.starts_with(&format!("{field}: is for Stable Diffusion XL; this model is ")), "{detail}");
    }
}

#[test]
fn the_command_line_draws_what_the_server_draws() {
    let folder = tempfile::tempdir().unwrap();
    let run = |file: &str, prompt: &str, more: &[&str]| {
        let program = Command::new(env!("CARGO_BIN_EXE_darkroom"))
            .current_dir(folder.path())
            .args(["generate", prompt, "--steps", "2", "--seed", "1", "--no-metadata", "--output", file])
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&program.stderr).into_owned();
        (program.status.code(), said, std::fs::read(folder.path().join(file)).ok())
    };
    let sdxl = tiny("sdxl");
    let model = ["--model", sdxl.to_str().unwrap()];
    let with = |more: &[&'static str]| [&model[..], more].concat();
    let (code, said, plain) = run("plain.png", "a (red) fox", &with(&["--prompt-syntax", "plain"]));
    assert_eq!(code, Some(0), "{said}");
    let pictures = [
        run("weighted.png", "a (red) fox", &with(&[])).2,
        run("second.png", "a (red) fox", &with(&["--prompt-syntax", "plain", "--prompt-2", "a castle"])).2,
        run("size.png", "a (red) fox", &with(&["--prompt-syntax", "plain", "--original-size", "16x16"])).2,
        run("crop.png", "a (red) fox", &with(&["--prompt-syntax", "plain", "--crop", "32,0"])).2,
        run("target.png", "a (red) fox", &with(&["--prompt-syntax", "plain", "--target-size", "16x900"])).2,
    ];
    assert!(pictures.iter().all(|picture| picture.is_some() && *picture != plain));
    assert_eq!(run("escaped.png", r"a \(red\) fox", &with(&[])).2, plain);
    let (code, said, _) = run("cut.png", &"fox ".repeat(20), &with(&["--long-prompt", "truncate"]));
    assert!(code == Some(0) && said.contains("prompt was cut: this model reads 14 tokens"), "{said}");
    let (code, said, none) = run("none.png", "a fox", &["--prompt-2", "a castle"]);
    assert!(code == Some(2) && said.contains("prompt_2: is for Stable Diffusion XL"), "{code:?} {said}");
    assert!(none.is_none());
}
