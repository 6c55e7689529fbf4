// SPDX-License-Identifier: Apache-2.0
//! Reading the ring buffer of events.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pilus_model::abi::MapKind;

use crate::bpffs::BpfFs;
use crate::error::{Error, Result};
use crate::{maps, sys};

/// Records that one [`Reader::poll`] hands over at most, so that a flood cannot keep the caller inside for ever.
const AT_ONCE: usize = 65_536;

/// Reads a ring buffer. Two readers of one buffer take records from each other.
///
/// It is ready for `tokio::io::unix::AsyncFd` (readable while there are records, level-triggered).
pub struct Reader {
    ring: sys::Ring,
    name: String,
}

impl Reader {
    /// Opens a pinned ring buffer.
    pub fn open(fs: &BpfFs, name: &str) -> Result<Self> {
        let fd = maps::open_kind(fs, name, &[MapKind::RingBuf])?;
        let ring = sys::Ring::new(fd).map_err(|errno| Error::Map { map: name.to_owned(), action: "map the ring of", errno })?;
        Ok(Self { ring, name: name.to_owned() })
    }

    /// Waits for records, at most `timeout` (rounded up to ms), and hands each to `f`. How many there were: 0 after the timeout
    /// or a signal.
    pub fn poll(&mut self, timeout: Duration, f: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let ms = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(self.ring.epoll(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(0),
            Ok(_) => self.consume(AT_ONCE, f),
            Err(e) => Err(Error::Map { map: self.name.clone(), action: "wait for records of", errno: e as i32 }),
        }
    }

    /// Hands over the records that are there, at most `max`, without waiting.
    pub fn consume(&mut self, max: usize, f: &mut dyn FnMut(&[u8])) -> Result<usize> {
        self.ring.consume(max, f).map_err(|errno| Error::Map { map: self.name.clone(), action: "read records of", errno })
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.epoll()
    }
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.epoll().as_raw_fd()
    }
}
