//! What the program says on its standard streams besides its product: the log, the progress bars, the last error.
//!
//! Owns the lines to stderr, and to stdout while serving. All of it is best effort: a reader that is slow, stuck or gone
//! loses lines and changes nothing else, neither an answer nor an exit code.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    fmt::Display,
    fs::File,
    io::{IsTerminal, stderr, stdout},
    panic::PanicHookInfo,
    sync::OnceLock,
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use crate::{
    Error, Result,
    config::{LogConfig, LogFormat},
    lines::Lines,
};

/// Which lines are written: the syntax of `tracing`'s filters, such as `debug` or `darkroom=trace`.
const FILTER_VARIABLE: &str = "DARKROOM_LOG";
/// How long the end of the program waits for readers.
const LAST_LINES_WAIT: Duration = Duration::from_millis(500);

static STDERR: OnceLock<Lines> = OnceLock::new();
static STDOUT: OnceLock<Lines> = OnceLock::new();

/// Lets the last lines be written when it is dropped, within a bound.
#[derive(Debug)]
pub struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        flush();
    }
}

/// Starts the log, to which panics go, too. `level` is what is written when the environment says nothing.
///
/// # Errors
///
/// [`Error::InvalidParameter`] when the environment names a filter that is none.
pub fn init(config: LogConfig, level: &str) -> Result<()> {
    let filter = filter(env::var_os(FILTER_VARIABLE).as_deref(), level)?;
    let on_terminal = stderr().is_terminal();
    let by_default = if on_terminal { LogFormat::Pretty } else { LogFormat::Json };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let builder = builder.with_writer(|| stderr_lines().clone());
    match config.log_format.unwrap_or(by_default) {
        LogFormat::Pretty => builder.with_ansi(on_terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn filter(said: Option<&std::ffi::OsStr>, level: &str) -> Result<EnvFilter> {
    let said = said.filter(|said| !said.is_empty());
    let Some(said) = said else { return Ok(EnvFilter::new(level)) };
    let wrong = |why: &str| {
        let message = format!("is {said:?}, which {why}; a filter such as debug or darkroom=trace is allowed");
        Error::invalid(FILTER_VARIABLE, message)
    };
    let text = said.to_str().ok_or_else(|| wrong("is not UTF-8"))?;
    EnvFilter::try_new(text).map_err(|error| wrong(&format!("cannot be read: {error}")))
}

/// The standard hook writes to stderr itself, where a reader that is stuck would hold the panicking thread up.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let place = panic.location().map(ToString::to_string);
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    // Only there when RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, thread, backtrace, "panicked: {text}");
}

/// Writes a line to stderr as it is.
pub fn say(line: &dyn Display) {
    stderr_lines().push(format!("{line}\n").as_bytes());
}

/// Writes a line to stdout as it is, where stdout is not what the program is run for.
pub fn announce(line: &dyn Display) {
    let lines = STDOUT.get_or_init(|| match own_stdout() {
        Some(stream) => Lines::start(stream, |_| {}),
        None => Lines::start(stdout(), |_| {}),
    });
    lines.push(format!("{line}\n").as_bytes());
}

/// Waits until what was said is written, within a bound.
pub fn flush() {
    for lines in [&STDERR, &STDOUT].into_iter().filter_map(OnceLock::get) {
        lines.flush(LAST_LINES_WAIT);
    }
}

/// The way to stderr for everything that must not wait for its reader.
pub(crate) fn stderr_lines() -> &'static Lines {
    let tell_lost = |lines| tracing::warn!(lines, "lines of the log were lost: its reader was stuck or gone");
    STDERR.get_or_init(|| match own_stderr() {
        Some(stream) => Lines::start(stream, tell_lost),
        None => Lines::start(stderr(), tell_lost),
    })
}

/// A stream of its own for the thread that writes: one that is stuck in the standard one keeps that locked, so that
/// whatever else writes there waits, too.
#[cfg(unix)]
fn own_stderr() -> Option<File> {
    use std::os::fd::AsFd;
    stderr().as_fd().try_clone_to_owned().ok().map(File::from)
}

#[cfg(unix)]
fn own_stdout() -> Option<File> {
    use std::os::fd::AsFd;
    stdout().as_fd().try_clone_to_owned().ok().map(File::from)
}

/// A console of Windows wants text, not bytes, which only the standard streams translate.
#[cfg(not(unix))]
fn own_stderr() -> Option<File> {
    None
}

#[cfg(not(unix))]
fn own_stdout() -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_what_the_environment_says_or_refused_by_name() {
        let written =
            |said: Option<&str>| filter(said.map(std::ffi::OsStr::new), "info").map(|filter| filter.to_string());
        assert_eq!(written(None).unwrap(), "info");
        assert_eq!(written(Some("")).unwrap(), "info");
        assert_eq!(written(Some("darkroom=trace")).unwrap(), "darkroom=trace");
        let refused = written(Some("darkroom=lots")).unwrap_err().to_string();
        assert!(refused.starts_with("DARKROOM_LOG: is \"darkroom=lots\", which cannot be read: "), "{refused}");
    }
}
