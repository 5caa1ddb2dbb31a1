//! The same request gives the same bytes at every thread count, each drawn by a process of its own; and how many draw.

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

/// A control group of version 1 or 2 that may use some cores; removed when dropped.
#[cfg(target_os = "linux")]
struct Quota(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Quota {
    /// None where this process may make no group.
    fn new(name: &str, us_in_100_ms: u32) -> Option<Self> {
        let groups = std::path::Path::new("/sys/fs/cgroup");
        let is_unified = groups.join("cgroup.controllers").exists();
        let name = format!("darkroom-test-{name}-{}", std::process::id());
        let group = if is_unified { groups.join(name) } else { groups.join("cpu").join(name) };
        std::fs::create_dir(&group).ok()?;
        let quota = Self(group);
        let (file, text) = if is_unified {
            ("cpu.max", format!("{us_in_100_ms} 100000"))
        } else {
            ("cpu.cfs_quota_us", us_in_100_ms.to_string())
        };
        std::fs::write(quota.0.join(file), text).ok()?;
        Some(quota)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Quota {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn under_a_quota_no_more_threads_draw_than_whole_cores_and_one_at_least() {
    for (name, quota, threads) in [("half", 50_000, 1), ("more", 150_000, 1)] {
        let Some(quota) = Quota::new(name, quota) else {
            eprintln!("no control group can be made here");
            return;
        };
        let script = "echo $$ > \"$0\" && exec \"$1\" bench --stages text_pair --runs 1 --json";
        let mut command = Command::new("sh");
        let command =
            command.args(["-c", script]).arg(quota.0.join("cgroup.procs")).arg(env!("CARGO_BIN_EXE_darkroom"));
        let measured = command.output().unwrap();
        let lines = String::from_utf8(measured.stdout).unwrap();
        assert!(
            lines.contains(&format!("\"threads\":{threads}")),
            "{lines}{}",
            String::from_utf8_lossy(&measured.stderr)
        );
    }
}
