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

fn restarts(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}
