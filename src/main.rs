//! The program: parse, start the log, run, exit code.

use std::{
    fmt::Display,
    io::{self, Write, stdout},
    ops::ControlFlow,
    process::ExitCode,
};

use darkroom::{
    Error,
    bench::{self, Measurement},
    command::{self, GenerateError},
    config::{BenchConfig, Command, GenerateConfig, ServeConfig},
    environment::{self, Settings},
    listen,
    loading::load_model,
    memory, signals, telemetry, threads,
};

const BAD_ARGUMENT: u8 = 2;
const BAD_CONFIGURATION: u8 = 64;

fn main() -> anyhow::Result<ExitCode> {
    memory::keep_freed_blocks();
    let Settings { cli, warnings } = environment::read();
    let command = cli.into_command();
    // Dropped at the end, which lets the last lines be written.
    let _last_lines = telemetry::LastLines;
    if let Err(error) = telemetry::init(command.log(), command.log_level()) {
        return Ok(ExitCode::from(failed(BAD_CONFIGURATION, &error)));
    }
    let threads = command.model().threads();
    let started = match command {
        Command::Serve(_) => threads::start_beside_answers(threads),
        Command::Generate(_) | Command::Bench(_) => threads::start(threads),
    };
    if let Err(error) = started {
        return Ok(ExitCode::from(failed(BAD_CONFIGURATION, &error)));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let code = match command {
        Command::Serve(config) => runtime.block_on(serve(config, &warnings)),
        Command::Generate(config) => runtime.block_on(generate(config)),
        Command::Bench(config) => measure(&config),
    };
    // A model that is still being loaded must not hold the end up.
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

async fn serve(config: ServeConfig, warnings: &[String]) -> u8 {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let listener = match listen::bind(&config.listen.host, config.listen.port).await {
        Ok(listener) => listener,
        Err(error) => return failed(BAD_CONFIGURATION, &error),
    };
    let address = match listener.local_addr() {
        Ok(address) => address,
        Err(error) => return failed(1, &error),
    };
    telemetry::announce(&format!("listening on http://{address}"));
    tracing::info!(%address, host = %config.listen.host, threads = config.model.threads(), "listening");
    match darkroom::run(config, listener, signals::shutdown()).await {
        Ok(()) => 0,
        Err(error) => failed(1, &error),
    }
}

async fn generate(config: GenerateConfig) -> u8 {
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let (model, limits) = (config.model.clone(), config.cost.limits());
    let load = move |report: &mut dyn FnMut(_)| load_model(&model, limits, report);
    match command::generate(&config, signals::shutdown(), load).await {
        Ok(written) => {
            let lines = written.iter().map(|file| format!("{} (seed {})", file.path.display(), file.seed));
            printed(lines.into_iter().try_for_each(|line| print(&line)))
        }
        Err(error @ GenerateError::BadArgument(_)) => failed(BAD_ARGUMENT, &error),
        Err(error @ GenerateError::Failed(_)) => failed(1, &error),
        Err(error @ GenerateError::Interrupted) => failed(signals::INTERRUPTED, &error),
    }
}

fn measure(config: &BenchConfig) -> u8 {
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let mut out = Ok(());
    let mut report = |line: &Measurement| {
        out = if config.json { print(&line.to_json()) } else { print(line) };
        if out.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    match bench::run(config, &mut report) {
        Ok(()) => {
            if let Some(bytes) = bench::peak_memory_bytes() {
                telemetry::say(&format!("most memory held: {} MiB", bytes >> 20));
            }
            printed(out)
        }
        Err(error @ Error::InvalidParameter { .. }) => failed(BAD_ARGUMENT, &error),
        Err(error) => failed(1, &error),
    }
}

/// Prints a line of what the program is run for.
fn print(line: &dyn Display) -> io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The exit code once everything is printed. A reader that has left wants no more, which is no failure.
fn printed(out: io::Result<()>) -> u8 {
    match out {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            failed(1, &format!("stdout: cannot be written: {error}"))
        }
        _ => 0,
    }
}

fn failed(code: u8, error: &dyn Display) -> u8 {
    telemetry::say(&format!("error: {error}"));
    code
}
