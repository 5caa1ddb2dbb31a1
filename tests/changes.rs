//! Pictures that requests bring along, with the bundled model: what is kept, what is drawn, over HTTP and from files.

mod common;
#[path = "reference/support.rs"]
#[expect(dead_code, reason = "most of it is for the numerical reference")]
mod support;

use std::{io::Cursor, net::SocketAddr, process::Command, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::client::{Plug, generate, get, start, until_ready};
use darkroom::{
    config::ServeConfig,
    image_utils::image_to_base64,
    models::ModelSource,
    pipeline::{Generate, InferencePipeline, LoadOptions},
};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

const SIDE: u32 = 64;

/// Bands of colour, so that a picture that is turned or moved is another one.
fn bands(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, 90]))
}

/// White in its right half.
fn right_half() -> GrayImage {
    GrayImage::from_fn(SIDE, SIDE, |x, _| Luma([if x < SIDE / 2 { 0 } else { 255 }]))
}

fn base64(image: impl Into<DynamicImage>) -> String {
    image_to_base64(&image.into()).unwrap()
}

/// A worker that draws with the bundled model, for as long as its plug is kept.
struct Worker {
    address: SocketAddr,
    _plug: Plug,
}

async fn worker() -> Worker {
    worker_with(LoadOptions::default()).await
}

async fn worker_with(options: LoadOptions) -> Worker {
    let load = move || InferencePipeline::load(&options, &mut |_| {});
    let (address, plug) = start(ServeConfig::default(), move |_| Ok(Arc::new(load()?) as Arc<dyn Generate>)).await;
    until_ready(address).await;
    Worker { address, _plug: plug }
}

/// A request with what draws the same picture every time.
fn whole(body: &Value) -> Value {
    let mut whole = json!({ "prompt": "a red apple", "seed": 3, "steps": 8 });
    whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    whole
}

async fn draw(worker: &Worker, body: Value) -> RgbImage {
    let answer = generate(worker.address, &[("Accept", "image/png")], &whole(&body)).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    image::load_from_memory(&answer.body).unwrap().into_rgb8()
}

/// The mean difference of two pictures of one size, in levels.
fn difference(first: &RgbImage, second: &RgbImage) -> f64 {
    assert_eq!(first.dimensions(), second.dimensions());
    let sum: u64 = first.iter().zip(second.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / first.as_raw().len() as f64
}

#[tokio::test]
async fn a_picture_changes_with_strength_and_a_mask_keeps_what_is_black() {
    let worker = worker().await;
    let picture = bands(SIDE, SIDE);
    let image = base64(picture.clone());
    let weak = draw(&worker, json!({ "image": image, "strength": 0.15 })).await;
    let strong = draw(&worker, json!({ "image": image, "strength": 1 })).await;
    assert!(difference(&weak, &picture) < difference(&strong, &picture) / 2.0);

    let mask = base64(right_half());
    let repainted = draw(&worker, json!({ "image": image, "mask": mask, "strength": 1 })).await;
    let kept = |x: u32, y: u32| repainted.get_pixel(x, y) == picture.get_pixel(x, y);
    assert!((0..SIDE / 2).all(|x| (0..SIDE).all(|y| kept(x, y))), "what is black in the mask is kept byte for byte");
    assert!((SIDE / 2..SIDE).any(|x| (0..SIDE).any(|y| !kept(x, y))), "what is white is drawn anew");
    let inverted =
        draw(&worker, json!({ "image": image, "mask": mask, "mask_invert": true, "mask_blur": 2, "strength": 1 }))
            .await;
    assert_eq!(inverted.get_pixel(SIDE - 1, 9), picture.get_pixel(SIDE - 1, 9));
    assert_ne!(inverted.get_pixel(1, 9), picture.get_pixel(1, 9));
}

#[tokio::test]
async fn a_picture_grows_around_what_it_was() {
    let worker = worker().await;
    let picture = bands(SIDE, SIDE);
    let body = json!({ "image": base64(picture.clone()), "extend": { "left": 32, "bottom": 16 } });
    let grown = draw(&worker, body).await;
    assert_eq!(grown.dimensions(), (SIDE + 32, SIDE + 16));
    for (x, y, pixel) in picture.enumerate_pixels() {
        assert_eq!(grown.get_pixel(x + 32, y), pixel, "{x}, {y}");
    }
}

#[tokio::test]
async fn a_region_is_drawn_at_full_size_and_put_back() {
    let worker = worker().await;
    let picture = bands(200, 150);
    let mask = GrayImage::from_fn(200, 150, |x, y| {
        Luma([if (100..140).contains(&x) && (60..90).contains(&y) { 255 } else { 0 }])
    });
    let body = json!({ "image": base64(picture.clone()), "mask": base64(mask.clone()), "inpaint_padding": 8 });
    let drawn = draw(&worker, body).await;
    assert_eq!(drawn.dimensions(), picture.dimensions());
    let mut changed = 0;
    for (x, y, pixel) in picture.enumerate_pixels() {
        if mask.get_pixel(x, y).0[0] == 0 {
            assert_eq!(drawn.get_pixel(x, y), pixel, "{x}, {y}");
        } else {
            changed += usize::from(drawn.get_pixel(x, y) != pixel);
        }
    }
    assert!(changed > 1000, "{changed}");
    // A region at the drawing's edge and one of nothing.
    let black =
        json!({ "prompt": "a", "image": base64(picture), "mask": base64(GrayImage::new(9, 9)), "inpaint_padding": 0 });
    let answer = generate(worker.address, &[("Prefer", "wait=60")], &black).await.json();
    assert_eq!((&answer["status"], &answer["error"]["field"]), (&json!("failed"), &json!("mask")));
}

#[tokio::test]
async fn the_size_is_the_picture_s_rounded_down_unless_one_is_asked_for() {
    let worker = worker().await;
    let image = base64(bands(85, 70));
    assert_eq!(draw(&worker, json!({ "image": image })).await.dimensions(), (80, 64));
    assert_eq!(draw(&worker, json!({ "image": image, "width": 64 })).await.dimensions(), (64, 64));
    let answer = generate(
        worker.address,
        &[("Prefer", "wait=60")],
        &json!({ "prompt": "a", "image": image, "steps": 8, "strength": 0.5 }),
    )
    .await
    .json();
    assert_eq!(answer["progress"], json!({ "step": 4, "total": 4, "percent": 100 }));
    assert_eq!((&answer["request"]["strength"], &answer["request"]["image"]), (&json!(0.5), &Value::Null));
    let inputs = get(worker.address, "/model").await.json()["inputs"].clone();
    assert_eq!(inputs, json!(["image", "mask"]));
    let late = json!({ "prompt": "a", "image": image, "steps": 8, "strength": 0.1 });
    let refused = generate(worker.address, &[], &late).await;
    assert_eq!((refused.status, &refused.json()["field"]), (422, &json!("strength")));
}

/// A JPEG whose EXIF says that the camera was turned: what is stored has to be turned by 90° to the right.
fn turned_jpeg(stored: &RgbImage) -> Vec<u8> {
    let mut jpeg = Cursor::new(Vec::new());
    stored.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.into_inner();
    // One entry: tag 0x0112 (orientation), of type short, one of it, 6.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, exif, &jpeg[2..]].concat()
}

#[tokio::test]
async fn a_camera_that_was_turned_is_turned_back() {
    let worker = worker().await;
    let body = json!({ "image": STANDARD.encode(turned_jpeg(&bands(96, 64))), "strength": 0.15, "guidance_scale": 1 });
    let drawn = draw(&worker, body).await;
    assert_eq!(drawn.dimensions(), (64, 96));
    let upright = image::imageops::rotate90(&bands(96, 64));
    assert!(difference(&drawn, &upright) < difference(&drawn, &image::imageops::rotate180(&upright)) / 2.0);
}

#[test]
fn the_command_line_takes_pictures_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let picture = bands(SIDE, SIDE);
    picture.save(path("in.png")).unwrap();
    right_half().save(path("mask.png")).unwrap();
    let run = |args: &[&str]| {
        let program = Command::new(env!("CARGO_BIN_EXE_darkroom"))
            .current_dir(folder.path())
            .args(["generate", "a lion", "--steps", "4", "--seed", "1", "--output", "out.png"])
            .args(args)
            .output()
            .unwrap();
        (program.status.code(), String::from_utf8_lossy(&program.stderr).into_owned())
    };
    assert_eq!(run(&["--image", "in.png", "--mask", "mask.png", "--strength", "1"]).0, Some(0));
    let drawn = image::open(path("out.png")).unwrap().into_rgb8();
    assert!((0..SIDE).all(|y| drawn.get_pixel(5, y) == picture.get_pixel(5, y)) && drawn != picture);
    assert_eq!(run(&["--image", "in.png", "--extend", "0,0,64,0"]).0, Some(0));
    assert_eq!(image::open(path("out.png")).unwrap().into_rgb8().dimensions(), (SIDE * 2, SIDE));
    let (code, said) = run(&["--image", "gone.png"]);
    assert!(code == Some(2) && said.contains("image: is gone.png: No such file"), "{code:?} {said}");
    assert_eq!(run(&["--mask", "mask.png"]).0, Some(2));
    assert_eq!(run(&["--image", "in.png", "--extend", "1,2"]).0, Some(2));
}

/// A folder with the tiny checkpoint that edits pictures.
fn editing_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    support::copy_folder(&support::data("sd15/model"), folder.path());
    support::make_for_editing(folder.path());
    folder
}

#[tokio::test]
async fn a_model_that_edits_takes_a_picture_and_how_far_to_follow_it() {
    let folder = editing_model();
    let source = ModelSource::Directory(folder.path().to_owned());
    let worker = worker_with(LoadOptions { source, ..LoadOptions::default() }).await;
    let model = get(worker.address, "/model").await.json();
    assert_eq!((&model["inputs"], &model["defaults"]["image_guidance_scale"]), (&json!(["image"]), &json!(1.5)));

    let image = base64(bands(SIDE, SIDE));
    let body = json!({ "image": image, "image_guidance_scale": 2 });
    let answer = generate(worker.address, &[("Accept", "image/png")], &whole(&body)).await;
    let edited = image::load_from_memory(&answer.body).unwrap().into_rgb8();
    assert!(difference(&edited, &draw(&worker, json!({ "image": image })).await) > 1.0, "the default is another");
    let job = generate(worker.address, &[("Prefer", "wait=60")], &whole(&json!({ "image": image }))).await.json();
    assert_eq!((&job["request"]["image_guidance_scale"], &job["request"]["strength"]), (&json!(1.5), &Value::Null));
    assert!(job["warnings"].as_array().is_none_or(Vec::is_empty), "{job}");

    let from = STANDARD.encode(&answer.body);
    let again = generate(worker.address, &[("Accept", "image/png")], &json!({ "from": from, "image": image })).await;
    assert!(again.body == answer.body, "it is drawn again byte for byte");
    for (body, field) in [
        (json!({}), "image"),
        (json!({ "image": image, "strength": 1 }), "strength"),
        (json!({ "image": image, "mask": base64(right_half()) }), "mask"),
        (json!({ "image": image, "extend": { "left": 8 } }), "extend"),
        (json!({ "from": from }), "from"),
    ] {
        let refused = generate(worker.address, &[], &whole(&body)).await;
        assert_eq!((refused.status, &refused.json()["field"]), (422, &json!(field)), "{body}");
    }
}

#[tokio::test]
async fn a_model_that_does_not_edit_refuses_how_far_to_follow_a_picture() {
    let worker = worker().await;
    let model = get(worker.address, "/model").await.json();
    assert_eq!(model["inputs"], json!(["image", "mask"]));
    assert_eq!(model["defaults"]["image_guidance_scale"], Value::Null);
    let body = json!({ "image": base64(bands(SIDE, SIDE)), "image_guidance_scale": 1.5 });
    let refused = generate(worker.address, &[], &whole(&body)).await;
    assert_eq!((refused.status, &refused.json()["field"]), (422, &json!("image_guidance_scale")));
}

#[test]
fn the_command_line_edits_a_picture() {
    let model = editing_model();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    bands(96, 64).save(path("in.png")).unwrap();
    let run = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_darkroom"))
            .current_dir(folder.path())
            .args(["generate", "make it snow", "--output", "out.png", "--seed", "3", "--steps", "2", "--model"])
            .arg(model.path())
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["--image", "in.png", "--image-guidance-scale", "2", "--guidance-end", "0.5"]);
    assert_eq!(code, Some(0), "{said}");
    let request = darkroom::imaging::inspect(&std::fs::read(path("out.png")).unwrap()).unwrap().texts;
    let parameters = request.parameters.unwrap();
    assert!(parameters.contains("Size: 96x64") && parameters.contains("Image CFG scale: 2,"), "{parameters}");
    assert!(request.request.unwrap().contains(r#""guidance_end":0.5,"image_guidance_scale":2.0"#));
    let (code, said) = run(&["--image", "in.png", "--strength", "0.5"]);
    assert!(code == Some(2) && said.contains("strength: "), "{code:?}: {said}");
    let (code, said) = run(&[]);
    assert!(code == Some(2) && said.contains("image: is missing"), "{code:?}: {said}");
}
