// SPDX-License-Identifier: Apache-2.0
//! Stages of the pipeline that are programs of their own, shared by all programs of a generation.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use pilus_model::abi::{STAGE_MAP, map};
use zerocopy::IntoBytes as _;

use crate::collection::Program;
use crate::error::{Error, Result};
use crate::maps::Shape;
use crate::sys::{self, MapFd};

/// The tail-call array of a generation (`abi::STAGE_MAP`). The kernel empties it when its last pin and descriptor go, whatever
/// programs use it, so its pin, beside the programs that are its stages, outlives every program that calls one.
#[derive(Debug)]
pub struct Stages {
    map: MapFd,
}

fn failed(action: &'static str) -> impl Fn(i32) -> Error {
    move |errno| Error::Map { map: map::STAGES.to_owned(), action, errno }
}

impl Stages {
    /// A new array, empty and not pinned.
    pub fn make() -> Result<Self> {
        let shape = Shape::of(&STAGE_MAP);
        let fd =
            sys::map_create(shape.kind, map::STAGES, shape.key_size, shape.value_size, STAGE_MAP.max_entries, 0).map_err(failed("make"))?;
        Ok(Self { map: MapFd::new(fd).map_err(failed("open"))? })
    }

    /// The array pinned in a directory of programs, None if there is none.
    pub fn pinned(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(map::STAGES);
        let fd = match sys::obj_get(&path) {
            Ok(fd) => fd,
            Err(libc::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::pin("open the map", &path, errno)),
        };
        let map = MapFd::new(fd).map_err(failed("open"))?;
        Shape::of(&STAGE_MAP).check(map::STAGES, &Shape::found(&map.info))?;
        Ok(Some(Self { map }))
    }

    pub(crate) fn pin(&self, dir: &Path) -> Result<()> {
        let path = dir.join(map::STAGES);
        sys::obj_pin(self.fd(), &path).map_err(|e| Error::pin("pin a map at", &path, e))
    }

    pub(crate) fn set(&self, slot: u32, program: &Program) -> Result<()> {
        let fd = program.fd().as_raw_fd();
        self.map.update(slot.as_bytes(), fd.as_bytes(), 0).map_err(failed("set a slot of"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.map.info.id
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd.as_fd()
    }
}
