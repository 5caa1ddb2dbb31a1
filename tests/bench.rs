//! `darkroom bench`: each stage is measured once, and what it says can be read by programs.

use std::process::{Command, Stdio};

use serde_json::Value;

/// The keys and values of the text in the denoiser's 7 attentions to it, whose channels are 1152 in all: a drawing computes
/// them once for all its steps.
const TEXT_SEEN: f64 = (2 * 24) as f64 * 192.0 * 2.0 * 1152.0 * 2.0;

/// What is the same for both of a guidance pair is computed once: the timestep's embedding, and all that comes before the
/// first look at the text. Channels are 64, then 128; pixels 8 by 8, then 4 by 4; the embedding is 256 wide, and 11
/// residual blocks of 1536 channels in all are told it.
const SHARED: f64 = 2.0
    * ((64 * 256 + 256 * 256 + 256 * 1536)
        + 64 * 9 * (8 * 64 + 2 * 64 * 64)
        + 16 * 9 * (64 * 64 + 64 * 128 + 128 * 128)
        + 16 * (64 * 128 + 6 * 128 * 128 + 2 * 16 * 128)) as f64;

/// Four of nine products are left of a 3×3 convolution behind a doubling, by its pixels and channels.
const fn doubling(pixels: u32, channels: u32) -> f64 {
    2.0 * (5 * pixels * channels * channels) as f64
}

/// Six of nine products are left of a 3×3 convolution behind a norm, by its pixels and its channels in and out.
const fn behind_norm(convolutions: &[(u32, u32, u32)]) -> f64 {
    let (mut products, mut number) = (0, 0);
    while number < convolutions.len() {
        let (pixels, inputs, outputs) = convolutions[number];
        products += 3 * pixels * inputs * outputs;
        number += 1;
    }
    2.0 * products as f64
}

/// Those of the denoiser. The first two blocks are computed once for both of a pair.
const OF_UNET: [(u32, u32, u32); 19] = [
    (64, 64, 2 * 64),
    (16, 64, 128),
    (16, 128, 128),
    (2 * 4, 128, 192),
    (2 * 4, 192, 192),
    (2 * 4, 192, 4 * 192),
    (2 * 4, 192 + 192, 192),
    (2 * 4, 192, 192),
    (2 * 4, 192 + 128, 192),
    (2 * 4, 192, 192),
    (2 * 16, 192 + 128, 128),
    (2 * 16, 128, 128),
    (2 * 16, 128 + 64, 128),
    (2 * 16, 128, 128),
    (2 * 64, 128 + 64, 64),
    (2 * 64, 64, 64),
    (2 * 64, 64 + 64, 64),
    (2 * 64, 64, 64),
    (2 * 64, 64, 8),
];
/// Those of the decoder: its middle and four blocks, and the last layer.
const OF_DECODER: [(u32, u32, u32); 5] =
    [(64, 128, 8 * 128), (256, 128 + 3 * 64, 64), (1024, 64 + 3 * 32, 32), (4096, 32 + 3 * 16, 16), (4096, 16, 3)];
/// Those of the encoder.
const OF_ENCODER: [(u32, u32, u32); 6] = [
    (4096, 16, 2 * 16),
    (1024, 16 + 32, 32),
    (256, 32 + 64, 64),
    (64, 64 + 128, 128),
    (64, 128, 4 * 128),
    (64, 128, 16),
];

/// What torch's `FlopCounterMode` counts in the same networks of the bundled model at 64 by 64 pixels, less what is not
/// computed here.
const OPERATIONS: [(&str, f64); 4] = [
    ("text_pair", 130_056_192.0),
    (
        "unet_pair",
        451_575_808.0 - TEXT_SEEN - SHARED - doubling(2 * 16, 192) - doubling(2 * 64, 128) - behind_norm(&OF_UNET),
    ),
    (
        "vae_decode",
        677_912_576.0 - doubling(256, 128) - doubling(1024, 64) - doubling(4096, 32) - behind_norm(&OF_DECODER),
    ),
    ("vae_encode", 221_413_376.0 - behind_norm(&OF_ENCODER)),
];

fn bench(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    command.stdin(Stdio::null()).arg("bench").args(args).output().unwrap()
}

#[test]
fn each_stage_is_measured_once() {
    let output = bench(&["--json", "--size", "64", "--runs", "1", "--threads", "1", "--dtype", "f32"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("most memory held: "), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<&str> = lines.iter().map(|line| line["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["load", "peak", "text_pair", "unet_pair", "vae_decode", "vae_encode", "image"]);
    for line in &lines {
        assert!(line["seconds"].as_f64().unwrap() > 0.0, "{line}");
        assert_eq!((&line["dtype"], &line["size"], &line["threads"]), (&"f32".into(), &64.into(), &1.into()));
        if line["stage"] == "load" {
            assert_eq!((&line["gflops"], &line["peak_share"]), (&Value::Null, &Value::Null));
        } else {
            assert!(line["gflops"].as_f64().unwrap() > 0.0 && line["peak_share"].as_f64().unwrap() > 0.0, "{line}");
        }
    }
    for (stage, operations) in OPERATIONS {
        let line = lines.iter().find(|line| line["stage"] == stage).unwrap();
        let counted = line["gflops"].as_f64().unwrap() * 1e9 * line["seconds"].as_f64().unwrap();
        assert!((counted / operations - 1.0).abs() < 1e-6, "{line}");
    }
}

#[test]
fn only_the_stages_that_are_asked_for_are_measured() {
    let output = bench(&["--json", "--size", "64", "--runs", "1", "--dtype", "f32", "--stages", "image", "vae_decode"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<&str> = lines.iter().map(|line| line["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["load", "peak", "vae_decode", "image"]);
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    for (args, code, said) in [
        (&["--size", "100"][..], 2, "'100' for '--size <PIXELS>': a multiple of 8 from 64 to 2048 is needed"),
        (&["--stages", "unet"], 2, "[possible values: text_pair, unet_pair, vae_decode, vae_encode, image]"),
        (&["--runs", "0"], 2, "'0' for '--runs <RUNS>': at least 1 is needed"),
        (&["--dtype", "f64"], 2, "one of auto, f32, f16, bf16 is allowed"),
        (&["--steps", "3"], 2, "--steps"),
        (&["--model", "/no/such/model"], 64, "/no/such/model: is neither a directory"),
    ] {
        let output = bench(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}
