// SPDX-License-Identifier: Apache-2.0
//! The agent, which may be about to come back.

use std::path::Path;
use std::time::{Duration, Instant};

use pilus_api::client::Client;
use pilus_api::error::ClientError;

/// How long one call may take: more than the agent itself waits for a container to be ready.
const CALL: Duration = Duration::from_secs(120);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(20);

/// Longest time that plugins wait for an agent, seconds: no runtime has more patience.
pub const LONGEST_WAIT: u64 = 3600;

/// An agent that is waited for.
pub struct Agent {
    pub client: Client,
    wait: Duration,
}

impl Agent {
    pub fn new(socket: &Path, wait: Duration) -> Self {
        Self { client: Client::new(socket).with_timeout(CALL), wait }
    }

    /// Repeats a call that may be repeated until an agent answers it. Says whether an earlier attempt may have had an effect.
    pub async fn call<T, F>(&self, call: impl Fn() -> F) -> Result<(T, bool), ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let until = Instant::now() + self.wait;
        let mut begun = false;
        loop {
            match call().await {
                Ok(value) => return Ok((value, begun)),
                Err(ClientError::Connect { ref source, .. }) if restarts(source) && Instant::now() < until => {}
                // It went away with our request.
                Err(ClientError::Protocol { .. }) if Instant::now() < until => begun = true,
                Err(e) => return Err(e),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// No socket, one of an agent that is gone, or of one that ended before it took the connection. Nothing was sent in any of these.
fn restarts(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
    matches!(e.kind(), NotFound | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// What the kernel says to who comes to an agent that is about to end, or has ended.
    #[test]
    fn an_agent_that_restarts_is_told_from_one_that_refuses() {
        let dir = tempfile::tempdir().expect("directory");
        let socket = dir.path().join("pilus.sock");
        assert!(restarts(&UnixStream::connect(&socket).expect_err("no socket")));
        let listener = UnixListener::bind(&socket).expect("socket");
        let waits = UnixStream::connect(&socket).expect("a place in the queue");
        drop(listener);
        let gone = waits.take_error().expect("a socket's error").expect("nobody took it");
        assert_eq!(gone.kind(), ErrorKind::ConnectionReset);
        assert!(restarts(&gone));
        assert!(restarts(&UnixStream::connect(&socket).expect_err("nobody listens")));
        assert!(!restarts(&Error::from(ErrorKind::PermissionDenied)));
    }
}
