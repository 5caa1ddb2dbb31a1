//! The log on stderr.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Which lines are written: the syntax of `tracing`'s filters, such as `debug` or `darkroom=trace`.
const FILTER_VARIABLE: &str = "DARKROOM_LOG";

/// Starts the log. `level` is what is written when the environment says nothing.
pub fn init(config: LogConfig, level: &str) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(level));
    let on_terminal = stderr().is_terminal();
    let by_default = if on_terminal { LogFormat::Pretty } else { LogFormat::Json };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match config.log_format.unwrap_or(by_default) {
        LogFormat::Pretty => builder.with_ansi(on_terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
    }
}
