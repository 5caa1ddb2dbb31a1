//! Progress bars on a terminal; nothing elsewhere.

use std::{
    env,
    io::{self, IsTerminal, stderr},
    sync::{Mutex, PoisonError},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use crate::{loading::LoadStage, telemetry};

const TEMPLATE: &str = "{msg} [{bar:40}] {pos}/{len} {eta}";
/// A bar that finds more bytes than these waiting for the terminal leaves its frame out.
const MOST_WAITING_BYTES: usize = 4096;
/// The width of a terminal that does not say.
const DEFAULT_WIDTH: u16 = 80;

/// A bar of `length` ticks that says what is going on.
#[must_use]
pub fn bar(length: u64, message: &'static str) -> ProgressBar {
    let can_draw = stderr().is_terminal() && env::var_os("TERM").is_none_or(|kind| kind != "dumb");
    let target = if can_draw {
        ProgressDrawTarget::term_like(Box::new(Screen::default()))
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that was tried");
    ProgressBar::with_draw_target(Some(length), target).with_style(style.progress_chars("=> ")).with_message(message)
}

/// A bar for a model that is loaded, in percent.
#[must_use]
pub fn loading_bar() -> ProgressBar {
    bar(100, "loading the model")
}

/// Shows a stage of loading, and gives the percentage while files are read.
pub fn show_stage(bar: &ProgressBar, stage: LoadStage) -> Option<u8> {
    match stage {
        LoadStage::Reading { fraction } => {
            // Clamped to 0..=100 first, so the conversion is exact.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=100")]
            let percent = (fraction * 100.0).clamp(0.0, 100.0) as u8;
            bar.set_position(percent.into());
            Some(percent)
        }
        LoadStage::Warming => {
            bar.set_message("warming up");
            bar.set_position(100);
            None
        }
    }
}

/// The terminal behind stderr, drawn on by the thread that writes the log: a terminal that is held (Ctrl-S) must hold up
/// neither loading nor drawing.
#[derive(Debug, Default)]
struct Screen {
    frame: Mutex<String>,
}

impl Screen {
    fn add(&self, text: &str) {
        self.frame.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }

    /// Moves the cursor with the control sequence that ends in `direction` (ECMA-48, 8.3.19 to 8.3.22).
    fn go(&self, count: usize, direction: char) -> io::Result<()> {
        // A count of 0 means 1 there.
        if count > 0 {
            self.add(&format!("\x1b[{count}{direction}"));
        }
        Ok(())
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        columns().filter(|columns| *columns > 0).unwrap_or(DEFAULT_WIDTH)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text);
        self.add("\n");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\x1b[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *self.frame.lock().unwrap_or_else(PoisonError::into_inner));
        telemetry::stderr_lines().push_into(MOST_WAITING_BYTES, frame.as_bytes());
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn columns() -> Option<u16> {
    rustix::termios::tcgetwinsize(stderr()).ok().map(|size| size.ws_col)
}

#[cfg(not(target_os = "linux"))]
fn columns() -> Option<u16> {
    None
}
