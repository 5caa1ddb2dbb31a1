//! `darkroom bench`: each stage is measured once, and what it says can be read by programs.

use std::process::{Command, Stdio};

use serde_json::Value;

/// The keys and values of the text in the denoiser's 7 attentions to it, whose channels are 1152 in all: a drawing computes
/// them once for all its steps.
const TEXT_SEEN: f64 = (2 * 24) as f64 * 192.0 * 2.0 * 1152.0 * 2.0;

/// What torch's `FlopCounterMode` counts in the same networks of the bundled model at 64 by 64 pixels.
const OPERATIONS: [(&str, f64); 4] = [
    ("text_pair", 130_056_192.0),
    ("unet_pair", 451_575_808.0 - TEXT_SEEN),
    ("vae_decode", 677_912_576.0),
    ("vae_encode", 221_413_376.0),
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
fn what_cannot_be_measured_is_refused_by_name() {
    for (args, code, said) in [
        (&["--size", "100"][..], 2, "'100' for '--size <PIXELS>': a multiple of 8 from 64 to 2048 is needed"),
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
