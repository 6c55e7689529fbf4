// SPDX-License-Identifier: Apache-2.0
//! State directory, bpffs and network namespace each belong to one agent.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{what} {} is in use by another pilus-agent", path.display())]
    Taken { what: &'static str, path: PathBuf },
    #[error("this network namespace is in use by another pilus-agent")]
    Namespace,
    #[error("cannot lock {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Held while the agent lives; the kernel lets go of them when it dies.
#[derive(Debug)]
pub struct Locks {
    _files: Vec<Flock<File>>,
    _namespace: UnixListener,
}

fn lock(what: &'static str, dir: &Path) -> Result<Flock<File>, LockError> {
    let file = File::open(dir).map_err(|source| LockError::Io { path: dir.to_owned(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => LockError::Taken { what, path: dir.to_owned() },
        other => LockError::Io { path: dir.to_owned(), source: other.into() },
    })
}

/// A process that a killed agent was just starting has its open files until it runs another program: so long, and no longer,
/// it looks as if that agent lived.
const TRIES: u32 = 100;
const TRY_EVERY: Duration = Duration::from_millis(20);

impl Locks {
    /// `pins`: our directory on the bpffs. Blocks for up to two seconds if another agent has them.
    pub fn take(state_dir: &Path, pins: &Path) -> Result<Self, LockError> {
        let mut tries = 0;
        loop {
            match Self::try_take(state_dir, pins) {
                Err(LockError::Taken { .. } | LockError::Namespace) if tries < TRIES => std::thread::sleep(TRY_EVERY),
                taken => return taken,
            }
            tries += 1;
        }
    }

    fn try_take(state_dir: &Path, pins: &Path) -> Result<Self, LockError> {
        let files = vec![lock("state directory", state_dir)?, lock("bpffs directory", pins)?];
        // Names of abstract sockets belong to the network namespace.
        let address =
            SocketAddr::from_abstract_name("pilus-agent").map_err(|source| LockError::Io { path: "@pilus-agent".into(), source })?;
        let namespace = UnixListener::bind_addr(&address).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => LockError::Namespace,
            _ => LockError::Io { path: "@pilus-agent".into(), source: e },
        })?;
        Ok(Self { _files: files, _namespace: namespace })
    }
}
