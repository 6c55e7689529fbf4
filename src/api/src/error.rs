// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a program and the agent.

use crate::types::ApiError;
use std::path::PathBuf;

/// Why a call failed. Its text is one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket could not be connected to; nothing was sent.
    #[error("cannot reach the agent at {}: {}; {}", socket.display(), cause(source), advice(source))]
    Connect {
        /// Path that was tried.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The agent understood and refused.
    #[error("{}", refusal(error))]
    Api {
        /// HTTP status.
        status: u16,
        /// Body of the answer.
        error: ApiError,
    },
    /// What came back is no answer of this API, or broke off.
    #[error("{request} at {}: {}; does its version match? (pilus version; the agent's log says more)", socket.display(), one_line(what))]
    Protocol {
        /// Socket of the agent.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// No answer in the time that [`crate::Client::with_timeout`] allows.
    #[error("{request}: the agent at {} gave no answer in {seconds} s; its log may say why", socket.display())]
    Timeout {
        /// Socket of the agent.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl ClientError {
    /// Whether the agent says that the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Api { status: 404, .. })
    }

    /// Whether nobody listens on the socket, so that nothing can have happened.
    pub fn is_connect(&self) -> bool {
        matches!(self, ClientError::Connect { .. })
    }
}

fn refusal(error: &ApiError) -> String {
    match &error.field {
        Some(field) if !error.message.contains(field.as_str()) => format!("{} (field {})", one_line(&error.message), one_line(field)),
        _ => one_line(&error.message),
    }
}

/// The kernel's words without Rust's ` (os error N)`.
fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "run as root or as a member of the socket's group",
        _ => "is pilus-agent running? (--socket or PILUS_SOCKET names another socket)",
    }
}

/// Several lines as one.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
