//! The same request gives the same bytes at every thread count: each drawn by a process of its own.

use std::process::Command;

fn draw(threads: &str, dtype: &str, folder: &std::path::Path) -> Vec<u8> {
    let file = folder.join(format!("{threads}-{dtype}.png"));
    let drawn = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(["generate", "a frog on a green background", "--seed", "7", "--steps", "4", "--guidance-scale", "3"])
        .args(["--threads", threads, "--dtype", dtype, "--output"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    std::fs::read(file).unwrap()
}

#[test]
fn a_picture_is_the_same_at_every_thread_count() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in ["f32", "bf16"] {
        let one = draw("1", dtype, folder.path());
        for threads in ["2", "4"] {
            assert!(draw(threads, dtype, folder.path()) == one, "{threads} threads draw another picture in {dtype}");
        }
    }
}
