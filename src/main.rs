//! The program: parse, start the log, run, exit code.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;
use darkroom::{
    Error,
    bench::{self, Measurement},
    command::{self, GenerateError},
    config::{BenchConfig, Cli, Command, GenerateConfig, ServeConfig},
    loading::load_model,
    memory, signals, telemetry, threads,
};
use tokio::net::TcpListener;

const BAD_ARGUMENT: u8 = 2;
const BAD_CONFIGURATION: u8 = 64;

fn main() -> anyhow::Result<ExitCode> {
    memory::keep_freed_blocks();
    let command = Cli::parse().into_command();
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
        Command::Serve(config) => runtime.block_on(serve(config)),
        Command::Generate(config) => runtime.block_on(generate(config)),
        Command::Bench(config) => measure(&config),
    };
    // A model that is still being loaded must not hold the end up.
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

async fn serve(config: ServeConfig) -> u8 {
    telemetry::init(config.log, "info");
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let address = SocketAddr::new(config.listen.host, config.listen.port);
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    let (listener, address) = match bound.await {
        Ok(bound) => bound,
        Err(error) => return failed(BAD_CONFIGURATION, &format!("cannot listen on {address}: {error}")),
    };
    println!("listening on http://{address}");
    tracing::info!(%address, "listening");
    match darkroom::run(config, listener, signals::shutdown()).await {
        Ok(()) => 0,
        Err(error) => failed(1, &error),
    }
}

async fn generate(config: GenerateConfig) -> u8 {
    telemetry::init(config.log, "warn");
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let (model, limits) = (config.model.clone(), config.cost.limits());
    let load = move |report: &mut dyn FnMut(_)| load_model(&model, limits, report);
    match command::generate(&config, signals::shutdown(), load).await {
        Ok(written) => {
            for file in written {
                println!("{} (seed {})", file.path.display(), file.seed);
            }
            0
        }
        Err(error @ GenerateError::BadArgument(_)) => failed(BAD_ARGUMENT, &error),
        Err(error @ GenerateError::Failed(_)) => failed(1, &error),
        Err(error @ GenerateError::Interrupted) => failed(signals::INTERRUPTED, &error),
    }
}

fn measure(config: &BenchConfig) -> u8 {
    telemetry::init(config.log, "warn");
    if let Err(error) = config.model.source() {
        return failed(BAD_CONFIGURATION, &error);
    }
    let mut print = |line: &Measurement| if config.json { println!("{}", line.to_json()) } else { println!("{line}") };
    match bench::run(config, &mut print) {
        Ok(()) => {
            if let Some(bytes) = bench::peak_memory_bytes() {
                eprintln!("most memory held: {} MiB", bytes >> 20);
            }
            0
        }
        Err(error @ Error::InvalidParameter { .. }) => failed(BAD_ARGUMENT, &error),
        Err(error) => failed(1, &error),
    }
}

fn failed(code: u8, error: &dyn std::fmt::Display) -> u8 {
    eprintln!("error: {error}");
    code
}
