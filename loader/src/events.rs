// SPDX-License-Identifier: Apache-2.0
//! Reading the ring buffer of events.

use std::time::Duration;

use pilus_model::abi::MapKind;

use crate::bpffs::BpfFs;
use crate::error::{Error, Result};
use crate::{maps, sys};

/// Records that one [`Reader::poll`] hands over at most, so that a flood cannot keep the caller inside for ever.
const AT_ONCE: usize = 65_536;

/// Unread bytes that nobody waits with: who reads in small portions writes its position as often as the kernel writes records.
const MUCH: u64 = 64 * 1024;

/// Reads a ring buffer. Two readers of one buffer take records from each other. What was read and what was not is kept in the
/// buffer, so a reader goes on where the one before it ended.
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

    /// Waits until much has gathered or a program wakes the reader, at most `timeout` (rounded up to ms), and hands each record
    /// that is there then to `f`. How many there were.
    pub fn poll(&mut self, timeout: Duration, f: &mut dyn FnMut(&[u8])) -> Result<usize> {
        if self.ring.unread() < MUCH {
            let ms = i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
            self.ring.wait(ms).map_err(|errno| Error::Map { map: self.name.clone(), action: "wait for records of", errno })?;
        }
        self.consume(AT_ONCE, f)
    }

    /// Hands over the records that are there, at most `max`, without waiting.
    pub fn consume(&mut self, max: usize, f: &mut dyn FnMut(&[u8])) -> Result<usize> {
        self.ring.consume(max, f).map_err(|errno| Error::Map { map: self.name.clone(), action: "read records of", errno })
    }
}
