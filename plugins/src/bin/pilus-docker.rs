// SPDX-License-Identifier: Apache-2.0
//! Docker's network and IPAM driver: serves a socket in Docker's plugin directory.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pilus_plugins::docker::{Driver, Options, follow};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Network and IPAM driver for Docker.
///
/// Docker finds it by its socket: with pilus.sock in the plugin directory, networks are made with
/// `docker network create -d pilus --ipam-driver pilus --ipv6 NAME`.
#[derive(Parser)]
#[command(name = "pilus-docker", version)]
struct Args {
    /// Socket that Docker connects to; its name is the driver's
    #[arg(long, env = "PILUS_PLUGIN_SOCKET", value_name = "PATH", default_value = "/run/docker/plugins/pilus.sock")]
    plugin_socket: PathBuf,
    /// Socket of the agent
    #[arg(long, env = "PILUS_SOCKET", value_name = "PATH", default_value = pilus_api::client::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Socket of Docker, where the labels of containers come from
    #[arg(long, env = "PILUS_DOCKER_SOCKET", value_name = "PATH", default_value = "/run/docker.sock")]
    docker_socket: PathBuf,
    /// How long a request waits for an agent that restarts
    #[arg(long, env = "PILUS_WAIT", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=pilus_plugins::agent::LONGEST_WAIT))]
    wait: u64,
    /// error, warn, info or debug (every request and answer)
    #[arg(long, env = "PILUS_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: tracing::Level,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_max_level(args.log_level).with_writer(io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(serve(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pilus-docker: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Binds beside the socket's place and moves it there: Docker never finds one that nobody serves, and that of a killed
/// predecessor is replaced.
fn bind(path: &PathBuf) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let next = path.with_extension("new");
    let _ = fs::remove_file(&next);
    let listener = UnixListener::bind(&next)?;
    fs::rename(&next, path)?;
    Ok(listener)
}

async fn serve(args: Args) -> io::Result<()> {
    let driver =
        Driver::new(&Options { agent_socket: args.socket, docker_socket: args.docker_socket, wait: Duration::from_secs(args.wait) });
    let cannot = |e: io::Error| io::Error::new(e.kind(), format!("cannot serve {}: {e}", args.plugin_socket.display()));
    let listener = bind(&args.plugin_socket).map_err(cannot)?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(socket = %args.plugin_socket.display(), "ready");
    tokio::spawn(follow(driver.clone()));
    let served = tokio::select! {
        served = axum::serve(listener, driver.router()) => served,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    };
    let _ = fs::remove_file(&args.plugin_socket);
    served
}
