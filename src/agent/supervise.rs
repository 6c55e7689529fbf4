// SPDX-License-Identifier: Apache-2.0
//! Processes that the agent starts: the short-lived helper that works inside a container's network namespace.

use pilus_plugins::netns::{Done, Failure, Request, Response};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("cannot start {}: {source}; it belongs beside pilus-agent", path.display())]
    Start { path: PathBuf, source: std::io::Error },
    #[error("pilus-netns did not answer within {TIMEOUT:?}")]
    Timeout,
    #[error("pilus-netns ended without an answer ({0})")]
    NoAnswer(String),
    #[error("{0}")]
    Failed(Failure),
}

fn helper() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("pilus-netns")));
    match beside {
        Some(path) if path.exists() => path,
        // Test programs live one directory below the programs.
        Some(path) if path.parent().and_then(|p| p.parent()).is_some_and(|p| p.join("pilus-netns").exists()) => {
            path.parent().and_then(|p| p.parent()).map(|p| p.join("pilus-netns")).unwrap_or(path)
        }
        _ => PathBuf::from("pilus-netns"),
    }
}

/// Runs one request in `pilus-netns`. The helper is killed when the answer is no longer wanted.
pub async fn netns(request: &Request) -> Result<Done, HelperError> {
    let path = helper();
    #[expect(clippy::disallowed_methods, reason = "this is the place that starts processes")]
    let mut child = tokio::process::Command::new(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| HelperError::Start { path, source })?;
    let text = serde_json::to_vec(request).map_err(|e| HelperError::NoAnswer(e.to_string()))?;
    let work = async move {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&text).await.map_err(|e| HelperError::NoAnswer(e.to_string()))?;
        }
        child.wait_with_output().await.map_err(|e| HelperError::NoAnswer(e.to_string()))
    };
    let output = tokio::time::timeout(TIMEOUT, work).await.map_err(|_| HelperError::Timeout)??;
    let answer: Response = serde_json::from_slice(&output.stdout).map_err(|_| HelperError::NoAnswer(output.status.to_string()))?;
    let done = answer.into_result().map_err(HelperError::Failed)?;
    for warning in &done.warnings {
        tracing::warn!(warning, "pilus-netns");
    }
    Ok(done)
}
