//! `darkroom generate` on a terminal: it shows how far it is, and an interrupt ends it by its own exit code.
#![cfg(target_os = "linux")]

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A program whose standard error is a terminal.
struct OnTerminal {
    child: Child,
    screen: File,
    shown: String,
}

impl OnTerminal {
    fn generate(output: &Path, more: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_darkroom"))
            .args(["generate", "a frog", "--output"])
            .arg(output)
            .args(more)
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(terminal))
            .spawn()
            .unwrap();
        Self { child, screen: File::from(master), shown: String::new() }
    }

    /// Reads what is shown until `text` is there; whether it ever was.
    fn shows(&mut self, text: &str) -> bool {
        let mut bytes = [0; 1024];
        while !self.shown.contains(text) {
            match self.screen.read(&mut bytes) {
                // Linux reports an error once the program has let go of the terminal.
                Ok(0) | Err(_) => return false,
                Ok(count) => self.shown += &String::from_utf8_lossy(&bytes[..count]),
            }
        }
        true
    }

    fn end(mut self) -> (Option<i32>, String) {
        // What stays unread would fill the terminal, and the program would wait for room.
        self.shows("\0");
        (self.child.wait().unwrap().code(), self.shown)
    }
}

#[test]
fn a_drawing_shows_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frog.png");
    let mut program = OnTerminal::generate(&path, &["--steps", "40"]);
    assert!(program.shows("/40 "), "{}", program.shown);
    let (code, shown) = program.end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(path.exists());
}

#[test]
fn an_interrupt_ends_a_drawing_with_its_own_code_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frog.png");
    let mut program = OnTerminal::generate(&path, &["--steps", "150", "--n", "8"]);
    assert!(program.shows("/1200 "), "{}", program.shown);
    assert!(Command::new("kill").args(["-INT", &program.child.id().to_string()]).status().unwrap().success());
    let (code, shown) = program.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(shown.contains("error: interrupted"), "{shown}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
