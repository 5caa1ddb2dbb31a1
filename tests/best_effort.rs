//! The program goes on when nobody reads what it says: streams that are closed, full, broken off or stuck.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Output, Stdio},
};

use common::client::{generate, get, until_ready};
use serde_json::json;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/data/sd15/model");

/// A program that is killed with its test, however that ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn terminate(&mut self) -> Option<i32> {
        assert!(Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

/// The program, run by a shell that redirects as `redirected` says. `exec` gives it the shell's place.
fn darkroom(args: &str, redirected: &str) -> Command {
    let mut command = Command::new("bash");
    let script = format!("exec \"$DARKROOM\" {args} --model \"$MODEL\" {redirected}");
    command.args(["-c", &script]).env("DARKROOM", env!("CARGO_BIN_EXE_darkroom")).env("MODEL", TINY);
    command.env("DARKROOM_LOG", "debug").stdin(Stdio::null());
    command
}

/// A port that was free a moment ago, for a program whose first line cannot be read.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn until_listening(address: SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
}

/// Draws a picture and asks for `/health`, which both write to the log.
async fn works(address: SocketAddr) {
    until_ready(address).await;
    let small = json!({ "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 1 });
    let drawn = generate(address, &[("Accept", "image/png")], &small).await;
    assert_eq!(drawn.status, 200);
    assert_eq!(image::load_from_memory(&drawn.body).unwrap().width(), 64);
    assert_eq!(get(address, "/health").await.status, 200);
}

#[tokio::test]
async fn a_server_whose_streams_nobody_reads_draws_and_ends_as_ever() {
    for redirected in [
        "2> >(head -n 1 >&/dev/null)",
        "2>/dev/full",
        "2>&-",
        "> >(head -n 0)",
        ">/dev/full",
        ">&-",
        "2> >(exec true) > >(exec true)",
        ">&- 2>/dev/full",
    ] {
        let address = free_port();
        let mut command = darkroom(&format!("--port {}", address.port()), redirected);
        let mut program = Program(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until_listening(address).await;
        works(address).await;
        assert_eq!(program.terminate(), Some(0), "{redirected}");
    }
}

/// A pipe that has no room left, and its reading end.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    std::io::Write::write_all(&mut &writer, &[b'\n'; 4096]).unwrap();
    (reader, writer)
}

#[tokio::test]
async fn a_log_that_is_stuck_holds_nothing_up_and_goes_on_when_it_is_read() {
    let (mut reader, writer) = full_pipe();
    let address = free_port();
    let stdout = Stdio::from(writer.try_clone().unwrap());
    let mut command = darkroom(&format!("--log-format json --port {}", address.port()), "");
    let mut program = Program(command.stdout(stdout).stderr(Stdio::from(writer)).spawn().unwrap());
    drop(command);
    until_listening(address).await;
    works(address).await;
    // Nothing was read so far: what was said waits, and comes once there is a reader.
    let read = std::thread::spawn(move || {
        let mut said = String::new();
        reader.read_to_string(&mut said).map(|_| said)
    });
    assert_eq!(program.terminate(), Some(0));
    let said = read.join().unwrap().unwrap();
    assert!(said.contains("\"message\":\"job ended\"") && said.contains("listening on http://"), "{said}");
}

#[tokio::test]
async fn a_log_that_stays_stuck_does_not_keep_the_program() {
    let (reader, writer) = full_pipe();
    let address = free_port();
    let mut command = darkroom(&format!("--port {}", address.port()), "");
    let mut program = Program(command.stdout(Stdio::null()).stderr(Stdio::from(writer)).spawn().unwrap());
    until_listening(address).await;
    works(address).await;
    assert_eq!(program.terminate(), Some(0));
    drop(reader);
}

fn draw(folder: &std::path::Path, redirected: &str) -> Output {
    let args = "generate 'a fox' --output fox.png --width 64 --height 64 --steps 2 --seed 5";
    let mut command = darkroom(args, redirected);
    command.current_dir(folder).output().unwrap()
}

#[test]
fn a_picture_is_drawn_whoever_reads_and_an_unwritten_line_of_stdout_is_a_failure() {
    for (redirected, code) in
        [("2>/dev/full", 0), ("2> >(exec true)", 0), ("2>&-", 0), (">&-", 0), ("> >(exec true)", 0), (">/dev/full", 1)]
    {
        let folder = tempfile::tempdir().unwrap();
        let drawn = draw(folder.path(), redirected);
        let said = String::from_utf8_lossy(&drawn.stderr);
        assert_eq!(drawn.status.code(), Some(code), "{redirected}: {said}");
        assert_eq!(said.contains("error: stdout: cannot be written"), code == 1, "{redirected}: {said}");
        assert!(!said.contains("panicked"), "{redirected}: {said}");
        assert_eq!(image::open(folder.path().join("fox.png")).unwrap().width(), 64, "{redirected}");
    }
}

#[test]
fn a_bench_ends_quietly_once_its_reader_has_left() {
    let mut command = darkroom("bench --stages unet_pair --runs 1000000 --size 64", "");
    let mut program = Program(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("load "), "{line}");
    // The next line, `peak`, finds nobody: the million runs behind it are not begun.
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("error"), "{said}");
}

#[test]
fn a_terminal_that_is_held_does_not_hold_a_drawing() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    // As Ctrl-S does.
    rustix::termios::tcflow(&terminal, rustix::termios::Action::OOff).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = darkroom("generate 'a fox' --output fox.png --width 64 --height 64 --steps 20", "");
    command.current_dir(folder.path()).env("TERM", "xterm").stdout(Stdio::null()).stderr(Stdio::from(terminal));
    let mut program = Program(command.spawn().unwrap());
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
    assert!(folder.path().join("fox.png").exists());
}
