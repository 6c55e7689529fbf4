// SPDX-License-Identifier: Apache-2.0
//! pilus-agent: one per node.

use pilus_agent::agent::Agent;
use pilus_agent::options::{LogFormat, Options};
use pilus_agent::{cleanup, server};
use pilus_api::documents;
use pilus_api::types::PolicyImport;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let options = match Options::from_process() {
        Ok(options) => options,
        Err(e) => return fail(2, &e),
    };
    if !options.validate.is_empty() {
        return validate(&options);
    }
    let filter = match EnvFilter::try_new(&options.log_level) {
        Ok(filter) => filter,
        Err(e) => return fail(2, &format_args!("option `log-level`: {e}")),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    match tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(e) => fail(1, &e),
    }
}

fn fail(code: u8, e: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pilus-agent: {e}");
    ExitCode::from(code)
}

/// `--validate`: as `pilus policy validate`, without an agent.
fn validate(options: &Options) -> ExitCode {
    let documents = match documents::read(&options.validate, &mut std::io::stdin().lock()) {
        Ok(documents) => documents,
        Err(e) => return fail(1, &e),
    };
    let told = server::validate_alone(options, &PolicyImport { documents });
    told.errors.iter().for_each(|e| println!("{e}"));
    told.warnings.iter().for_each(|w| println!("warning: {w}"));
    if !told.valid {
        return fail(1, &"an import would be refused");
    }
    println!("{} {}, no mistake", told.rules, if told.rules == 1 { "rule" } else { "rules" });
    ExitCode::SUCCESS
}

async fn run(options: Options) -> ExitCode {
    if options.cleanup {
        let (done, failed) = cleanup::all(&options).await;
        done.iter().for_each(|line| println!("{line}"));
        if done.is_empty() {
            println!("nothing to remove");
        }
        failed.iter().for_each(|line| eprintln!("pilus-agent: {line}"));
        return ExitCode::from(u8::from(!failed.is_empty()));
    }
    let agent = match Agent::start(options).await {
        Ok(agent) => agent,
        Err(e) => return fail(e.exit_code(), &e),
    };
    let mut stopped = agent.stop.subscribe();
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(e), _) | (_, Err(e)) => return fail(1, &e),
    };
    let served = tokio::select! {
        served = server::serve(&agent) => served,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    };
    // What is attached goes on forwarding: only the agent ends.
    agent.monitor.stop();
    let _ = std::fs::remove_file(&agent.options.socket);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &e),
    }
}
