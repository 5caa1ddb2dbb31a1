//! The life of the server: bound, loading, drawing, draining, gone.
//!
//! Owns the order in which things start and end. The socket and the end of the worker come from outside, so that a
//! test binds port 0 and pulls the plug itself.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, Result,
    bars::{loading_bar, show_stage},
    config::ServeConfig,
    connections::Connections,
    http::{App, Phase, router_on},
    loading::{LoadStage, load_model},
    pipeline::Generate,
};

/// How long the clients have, once every job has its last word, to be sent it. An idle connection, or a client that
/// does not read, cannot hold the end up for longer.
const LAST_BYTES_WAIT: Duration = Duration::from_secs(5);
/// How often results whose time is over are let go of when nobody asks for any.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Serves on `listener` with the model that `config` names until `shutdown` resolves; then drains and returns.
///
/// # Errors
///
/// When the model could not be loaded. The server stays up until `shutdown` even so, and its probes say why.
pub async fn run(config: ServeConfig, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<()> {
    let (model, limits) = (config.model.clone(), config.cost.limits());
    serve(config, listener, shutdown, move |report| load_model(&model, limits, report)).await
}

/// Serves as [`run`] does, with what `load` gives. `load` runs on a blocking thread after the socket is answered.
///
/// # Errors
///
/// What `load` failed with.
pub async fn serve<L>(
    config: ServeConfig,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    load: L,
) -> Result<()>
where
    L: FnOnce(&mut dyn FnMut(LoadStage)) -> Result<Arc<dyn Generate>> + Send + 'static,
{
    let connections = Connections::new(config.listen.connection_limits());
    let work = config.work;
    let app = App::new(config);
    // Where the address cannot be told, the stricter rule holds.
    let bound = listener.local_addr().map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip());
    let server = connections.clone().serve(listener, router_on(Arc::clone(&app), bound));
    let server = AbortOnDropHandle::new(tokio::spawn(server));
    let _sweeper = AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(&app))));
    let loading = tokio::spawn(load_watched(Arc::clone(&app), load));

    shutdown.await;
    let told = Instant::now();
    // The listener stays open while draining, so new requests get a 503 instead of a refused connection.
    connections.drain();
    app.drain().await;
    app.hand_over(work.shutdown_grace().saturating_sub(told.elapsed())).await;
    tokio::time::sleep(work.drain_wait().saturating_sub(told.elapsed())).await;
    connections.close();
    if tokio::time::timeout(LAST_BYTES_WAIT, server).await.is_err() {
        tracing::warn!("some clients did not read their last answer; leaving them");
    }
    app.advance(Phase::Stopped);
    loaded_or_error(loading).await
}

/// Loads the model on a blocking thread and makes the worker ready, or says why not.
async fn load_watched<L>(app: Arc<App>, load: L) -> Result<()>
where
    L: FnOnce(&mut dyn FnMut(LoadStage)) -> Result<Arc<dyn Generate>> + Send + 'static,
{
    let watched = Arc::clone(&app);
    let load = move || {
        let bar = loading_bar();
        watched.advance(Phase::Loading { percent: 0 });
        let loaded = load(&mut |stage| {
            let percent = show_stage(&bar, stage);
            watched.advance(percent.map_or(Phase::Warming, |percent| Phase::Loading { percent }));
        });
        bar.finish_and_clear();
        loaded
    };
    let loaded = tokio::task::spawn_blocking(load)
        .await
        .unwrap_or_else(|error| Err(Error::Panicked { message: format!("while the model was loaded: {error}") }));
    match loaded {
        Ok(pipeline) => {
            let model = pipeline.model();
            tracing::info!(model = model.name, family = model.family, device = model.device, "model loaded");
            // Pictures name the weights that drew them; large ones take a while to read.
            let digest = model.digest.clone();
            tokio::task::spawn_blocking(move || digest.wait().map(str::len));
            app.make_ready(pipeline);
            Ok(())
        }
        Err(error) => {
            tracing::error!(%error, "the model could not be loaded");
            app.advance(Phase::Failed { reason: error.to_string() });
            Err(error)
        }
    }
}

/// What became of the loading. One that still goes on is left behind: it ends with the process.
async fn loaded_or_error(loading: JoinHandle<Result<()>>) -> Result<()> {
    if !loading.is_finished() {
        return Ok(());
    }
    loading.await.unwrap_or(Ok(()))
}

async fn sweep(app: Arc<App>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        app.sweep();
    }
}
