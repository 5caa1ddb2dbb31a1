//! The signals that end the program.

/// Exit code of a program that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process at once.
pub async fn shutdown() {
    let name = next().await;
    tracing::info!(signal = name, "stopping; a second signal ends at once");
    tokio::spawn(async {
        next().await;
        std::process::exit(INTERRUPTED.into());
    });
}

#[cfg(unix)]
async fn next() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = kinds else {
        tracing::error!("signals cannot be watched here; only a kill ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(not(unix))]
async fn next() -> &'static str {
    if tokio::signal::ctrl_c().await.is_err() {
        tracing::error!("signals cannot be watched here; only a kill ends this process");
        return std::future::pending().await;
    }
    "SIGINT"
}
