//! The program itself, drawing with a tiny checkpoint: its first line, a picture, its ends and their exit codes.

#![cfg(unix)]

mod common;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use common::client::{generate, generate_events, get, until, until_ready};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/sd15/model");

/// A daemon that is killed with its test, however that ends.
struct Daemon {
    child: Child,
    address: SocketAddr,
    /// Its lines. They are read by a thread of their own, since a full pipe would hold the daemon up.
    log: mpsc::Receiver<String>,
}

impl Daemon {
    fn start(model: &str) -> Self {
        Self::start_with(Command::new(env!("CARGO_BIN_EXE_darkroom")), model)
    }

    /// Starts the daemon where no more than `files` files may be open.
    fn start_with_files(files: usize) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_darkroom")]);
        Self::start_with(shell, TINY)
    }

    fn start_with(mut command: Command, model: &str) -> Self {
        let mut child = command
            .args(["--port", "0", "--log-format", "json", "--model", model])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}"));
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            // A test that has ended wants no more, but the daemon may still have something to say.
            stderr.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        Self { address: address.parse().unwrap(), child, log }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Reads the log, every line of which is an object, until the worker has come to `state`.
    fn until_logged(&self, state: &str) {
        loop {
            let line = self.log.recv().unwrap_or_else(|_| panic!("the log ended before {state}"));
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if line["state"] == state {
                return;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn long() -> Value {
    json!({ "prompt": "a fox", "width": 512, "height": 512, "steps": 150, "n": 8 })
}

#[tokio::test]
async fn a_picture_is_drawn_and_a_signal_lets_the_running_job_finish() {
    let mut daemon = Daemon::start(TINY);
    until_ready(daemon.address).await;
    let small = json!({ "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 1 });
    let answer = generate(daemon.address, &[("Accept", "image/png")], &small).await;
    assert_eq!((answer.status, answer.header("x-seed")), (200, Some("1")));
    let picture = image::load_from_memory(&answer.body).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 64));

    let running = json!({ "prompt": "a fox", "width": 64, "height": 64, "steps": 20, "n": 4 });
    let mut stream = generate_events(daemon.address, &running).await;
    stream.until("started").await;
    daemon.signal("-INT");
    assert_eq!(stream.until("complete").await.data["images"].as_array().unwrap().len(), 4);
    assert_eq!(daemon.exit_code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut daemon = Daemon::start(TINY);
    until_ready(daemon.address).await;
    generate(daemon.address, &[], &long()).await;
    until(daemon.address, |ready| ready["running"] == 1).await;
    daemon.signal("-TERM");
    daemon.until_logged("draining");
    daemon.signal("-TERM");
    assert_eq!(daemon.exit_code(), Some(130));
}

/// Connects `count` times and says half a head each.
async fn half_heads(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let mut socket = TcpStream::connect(address).await.unwrap();
        // One that was given up for another has been reset.
        let _ = socket.write_all(b"GET /health HTTP/1.1\r\nHo").await;
        sockets.push(socket);
    }
    sockets
}

async fn is_healthy_within_a_second(address: SocketAddr) -> bool {
    let health = tokio::time::timeout(Duration::from_secs(1), get(address, "/health")).await;
    health.is_ok_and(|answer| answer.status == 200)
}

#[tokio::test]
async fn more_connections_than_files_that_say_half_a_head_do_not_hide_the_probes() {
    let daemon = Daemon::start_with_files(256);
    until_ready(daemon.address).await;
    let sockets = half_heads(daemon.address, 300).await;
    assert!(is_healthy_within_a_second(daemon.address).await);
    drop(sockets);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_worker_that_may_open_no_more_files_still_answers() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let daemon = Daemon::start(TINY);
    until_ready(daemon.address).await;
    let id = daemon.child.id();
    let open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count() as u64;
    let few = Rlimit { current: Some(open + 8), maximum: Some(open + 8) };
    prlimit(Pid::from_raw(id.cast_signed()), Resource::Nofile, few).unwrap();
    let sockets = half_heads(daemon.address, 40).await;
    assert!(is_healthy_within_a_second(daemon.address).await);
    drop(sockets);
}

#[test]
fn a_model_that_is_none_fails_the_run_and_not_the_probes() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path().to_str().unwrap());
    daemon.until_logged("failed");
    daemon.signal("-TERM");
    assert_eq!(daemon.exit_code(), Some(1));
}

#[test]
fn a_picture_is_drawn_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |name: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
        command.args(["generate", "a fox", "--model", TINY, "--output", name]).args(more);
        command.current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let drawn = draw("fox.png", &["--width", "64", "--height", "64", "--steps", "2", "--seed", "5"]);
    let drawn = drawn.wait_with_output().unwrap();
    assert_eq!(drawn.status.code(), Some(0), "{}", String::from_utf8_lossy(&drawn.stderr));
    assert_eq!(String::from_utf8(drawn.stdout).unwrap(), "fox.png (seed 5)\n");
    assert_eq!(image::open(folder.path().join("fox.png")).unwrap().width(), 64);
}
