// SPDX-License-Identifier: Apache-2.0
//! `pilus status`, `version`, `config` and `cleanup`.

use super::confirm;
use crate::args::StatusArgs;
use crate::failure::Failure;
use crate::output::{Output, Tone};
use pilus_api::types::{ConfigModel, StatusModel};
use pilus_api::{Client, ClientError};
use serde::Serialize;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(100);

/// Shows the state; with `--wait` only when it is well or the time is up.
pub async fn status(client: Client, out: &mut Output, args: &StatusArgs) -> Result<(), Failure> {
    let limit = Duration::from_secs(args.timeout);
    let client = client.with_timeout(limit);
    let status = if args.wait { well(&client, limit).await? } else { client.status().await? };
    out.show(&status, |out, status| match (args.brief, args.verbose) {
        (true, _) => out.line(&status.state),
        (false, verbose) => status_table(out, status, verbose),
    })?;
    if status.state == "ok" {
        return Ok(());
    }
    let waited = if args.wait { format!(" after {} s", args.timeout) } else { String::new() };
    let why = if status.warnings.is_empty() { String::new() } else { format!(" ({})", status.warnings.join("; ")) };
    Err(Failure::new(format!("the agent is not well{waited}: {}{why}", status.state)))
}

/// Polls until the state is ok. When the time is up: the last answer, whatever it was.
async fn well(client: &Client, limit: Duration) -> Result<StatusModel, Failure> {
    let end = Instant::now() + limit;
    loop {
        let answer = client.status().await;
        if matches!(&answer, Ok(status) if status.state == "ok") || Instant::now() + POLL >= end {
            return Ok(answer?);
        }
        // Waiting helps against an agent that starts, not against one that refuses us or is none.
        match answer {
            Err(ClientError::Connect { ref source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => return Ok(answer?),
            Err(ClientError::Protocol { .. } | ClientError::Api { .. }) => return Ok(answer?),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn status_table(out: &mut Output, s: &StatusModel, verbose: bool) -> io::Result<()> {
    let endpoints: Vec<String> = s.endpoints.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let endpoints = if endpoints.is_empty() { "none".to_owned() } else { endpoints.join(", ") };
    let mut fields = vec![
        ("State", s.state.clone()),
        ("Node", s.node_name.clone()),
        ("Version", s.version.clone()),
        ("Uptime", duration(s.uptime_seconds)),
        ("Endpoints", endpoints),
        ("Identities", s.identities.to_string()),
        ("Policy revision", s.policy_revision.to_string()),
        ("Ranges", join(&s.ipv6_range, &s.ipv4_range)),
        ("Router", join(&s.router_ipv6, &s.router_ipv4)),
    ];
    if verbose {
        let o = &s.objects;
        fields.extend([
            ("Kernel", s.kernel.clone()),
            ("Attach mode", s.attach_mode.clone()),
            ("Clang", s.clang.clone()),
            ("Templates", s.template_hash.clone()),
            ("Objects", format!("{} built, {} embedded, {} from disk, {} shared", o.builds, o.embedded, o.disk, o.shared)),
            ("Monitor", format!("{} events, {} lost, {} listeners", s.monitor.events, s.monitor.lost, s.monitor.listeners)),
        ]);
    }
    out.fields(&fields)?;
    for warning in &s.warnings {
        let line = format!("{} {}", out.paint(Tone::Warn, "Warning:"), crate::output::sanitize(warning));
        out.painted_line(&line)?;
    }
    Ok(())
}

fn join(v6: &str, v4: &str) -> String {
    [v6, v4].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, m) => format!("{m}m{}s", seconds % 60),
        (0, h, m) => format!("{h}h{m}m"),
        (d, h, _) => format!("{d}d{h}h"),
    }
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    agent: Option<String>,
}

/// Shows both versions, the client's also when there is no agent.
pub async fn version(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let status = client.clone().with_timeout(Duration::from_secs(10)).status().await;
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), agent: status.as_ref().ok().map(|s| s.version.clone()) };
    out.show(&versions, |out, v| {
        let agent = v.agent.clone().unwrap_or_else(|| "unknown".to_owned());
        out.fields(&[("Client", v.client.to_owned()), ("Agent", agent)])
    })?;
    status?;
    Ok(())
}

/// Shows or changes the agent's options.
pub async fn config(client: &Client, out: &mut Output, options: Vec<(String, String)>) -> Result<(), Failure> {
    let config = if options.is_empty() { client.config().await? } else { client.set_config(options.into_iter().collect()).await? };
    out.show(&config, |out, config: &ConfigModel| {
        let changeable = |name| if config.changeable.contains(name) { "yes" } else { "no" };
        let rows: Vec<_> = config.options.iter().map(|(k, v)| vec![k.clone(), v.clone(), changeable(k).to_owned()]).collect();
        out.table(&["option", "value", "changeable"], &rows)
    })
}

/// Removes everything, after asking.
pub async fn cleanup(client: &Client, out: &mut Output, yes: bool) -> Result<(), Failure> {
    confirm(yes, "remove everything that Pilus made on this node, and disconnect its containers")?;
    match client.cleanup().await {
        Ok(lines) => out.show(&lines, |out, lines| lines.lines.iter().try_for_each(|line| out.line(line))),
        Err(error) if error.is_connect() => Err(Failure::new(format!("{error}; without an agent run: pilus-agent --cleanup"))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations() {
        let texts: Vec<String> = [5, 65, 3725, 90061].into_iter().map(super::duration).collect();
        assert_eq!(texts, ["5s", "1m5s", "1h2m", "1d1h"]);
    }
}
