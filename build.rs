//! With the feature `cuda`: CUDA's version for the program, and its runtime linked in.
//!
//! The tensor library's compiled kernels name CUDA's runtime as a shared library. Linked statically it needs no file where the
//! program runs, and finds the driver itself, if it is there.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let roots = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
    for root in roots {
        println!("cargo::rerun-if-env-changed={root}");
    }
    println!("cargo::rustc-env=DARKROOM_CUDA_VERSION={}", cuda_version());
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let named = roots.into_iter().filter_map(env::var_os).map(PathBuf::from);
    for root in named.chain([PathBuf::from("/usr/local/cuda")]) {
        for folder in ["lib64", "lib", "targets/x86_64-linux/lib"] {
            let folder = root.join(folder);
            if folder.join("libcudart_static.a").is_file() {
                println!("cargo::rustc-link-search=native={}", folder.display());
                // All of it, before the shared one is looked at: that is left out then.
                println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=cudart_static");
                return;
            }
        }
    }
}

/// The compiler's version, as the driver counts: 13000 for "release 13.0".
fn cuda_version() -> u32 {
    let output = Command::new("nvcc").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let release = text.split_once("release ").and_then(|(_, rest)| rest.split([',', '\n']).next());
    let numbers = release.and_then(|release| release.trim().split_once('.'));
    let version =
        numbers.and_then(|(major, minor)| Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok()? * 10));
    version.expect("the feature \"cuda\" needs CUDA's compiler, nvcc, on PATH: see deploy/cuda/setup.sh")
}
