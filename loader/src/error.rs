// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between us and the kernel.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the nouns that it is about. Numbers are errno values, positive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory for pins is not on a BPF file system.
    #[error("{} is not on a BPF file system (mount one: mount -t bpf bpf {})", path.display(), path.display())]
    NotBpffs { path: PathBuf },
    /// A file operation failed, mostly on pins.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A map's shape is not the one that this program was built with.
    #[error("map {map}: {field} is {found}, expected {expected}; a map with another layout must be removed or migrated first")]
    Layout { map: String, field: &'static str, found: String, expected: String },
    /// An object could not be read or loaded. `log` is the end of the verifier's log, empty if it was not the verifier.
    #[error("cannot load {program}: {message} ({})", io::Error::from_raw_os_error(*errno))]
    Load { program: String, errno: i32, log: String, message: String },
    /// A map operation failed.
    #[error("cannot {action} map {map}: {}", io::Error::from_raw_os_error(*errno))]
    Map { map: String, action: &'static str, errno: i32 },
    /// A program operation failed.
    #[error("cannot {action} program {program}: {}", io::Error::from_raw_os_error(*errno))]
    Program { program: String, action: &'static str, errno: i32 },
    /// Attaching, swapping, asking or detaching at a hook failed. `hook` names interface index and direction, or the pin.
    #[error("cannot {action} at {hook}: {}", io::Error::from_raw_os_error(*errno))]
    Hook { hook: String, action: &'static str, errno: i32 },
    /// Something else in the kernel failed.
    #[error("cannot {action}: {}", io::Error::from_raw_os_error(*errno))]
    Kernel { action: &'static str, errno: i32 },
    /// The kernel refused a netlink request.
    #[error("cannot {action} {object}: {}", io::Error::from_raw_os_error(*errno))]
    Netlink { action: &'static str, object: String, errno: i32 },
    /// The netlink socket is gone, or gave an answer that is none.
    #[error("cannot {action} {object}: the netlink connection gave no answer")]
    NetlinkClosed { action: &'static str, object: String },
    /// An interface of that name exists.
    #[error("interface name {name} is taken")]
    NameTaken { name: String },
    /// An interface with that index exists.
    #[error("interface index {index} is taken")]
    IndexTaken { index: u32 },
    /// The caller asked for what can never be right.
    #[error("invalid {field}: {reason}")]
    Invalid { field: &'static str, reason: &'static str },
}

impl Error {
    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Load { errno, .. }
            | Self::Map { errno, .. }
            | Self::Program { errno, .. }
            | Self::Hook { errno, .. }
            | Self::Kernel { errno, .. }
            | Self::Netlink { errno, .. } => Some(*errno),
            Self::NameTaken { .. } | Self::IndexTaken { .. } => Some(libc::EEXIST),
            Self::NotBpffs { .. } | Self::Layout { .. } | Self::NetlinkClosed { .. } | Self::Invalid { .. } => None,
        }
    }

    /// Whether the same call may succeed later without anything else being changed.
    pub fn is_retryable(&self) -> bool {
        matches!(self.errno(), Some(libc::EAGAIN | libc::EINTR | libc::EBUSY | libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE))
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn pin(action: &'static str, path: &Path, errno: i32) -> Self {
        Self::io(action, path, io::Error::from_raw_os_error(errno))
    }
}
