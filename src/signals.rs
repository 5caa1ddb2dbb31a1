//! The signals that end the program.

/// Exit code of a program that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process at once.
pub async fn shutdown() {
    let mut signals = Signals::watch();
    let name = signals.next().await;
    tracing::info!(signal = name, "stopping; a second signal ends at once");
    // The same watch goes on, so that a second signal is seen however soon it comes.
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(INTERRUPTED.into());
    });
}

#[cfg(unix)]
struct Signals(Option<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    fn watch() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(terminate), Ok(interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            tracing::error!("signals cannot be watched here; only a kill ends this process");
            return Self(None);
        };
        Self(Some((terminate, interrupt)))
    }

    async fn next(&mut self) -> &'static str {
        let Some((terminate, interrupt)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn watch() -> Self {
        Self
    }

    async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            tracing::error!("signals cannot be watched here; only a kill ends this process");
            return std::future::pending().await;
        }
        "SIGINT"
    }
}
