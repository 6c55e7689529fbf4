// SPDX-License-Identifier: Apache-2.0
//! The directory tree of pins, `<bpf-root>/pilus/v1`.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use pilus_model::abi;

use crate::error::{Error, Result};
use crate::sys;

/// Prefix of directories that a load was filling when its process ended. (bpffs refuses names with dots.)
pub(crate) const UNFINISHED: &str = "tmp_";

/// Our part of a BPF file system. Only paths: it holds nothing open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfFs {
    root: PathBuf,
}

impl BpfFs {
    /// Opens `<bpf_root>/pilus/v1` and makes what is missing of it, for root only. [`Error::NotBpffs`] if `bpf_root` is not on
    /// a BPF file system: pins elsewhere would be plain failures later.
    pub fn open(bpf_root: &Path) -> Result<Self> {
        if !is_bpffs(bpf_root) {
            return Err(Error::NotBpffs { path: bpf_root.to_owned() });
        }
        let fs = Self { root: bpf_root.join("pilus").join(abi::LAYOUT) };
        for dir in [fs.maps(), fs.endpoint(), fs.links(), fs.objects()] {
            make_dir(&dir)?;
        }
        Ok(fs)
    }

    /// `<bpf-root>/pilus/v1`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pinned maps, by name.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// What belongs to one endpoint.
    pub fn endpoint(&self) -> PathBuf {
        self.root.join("endpoint")
    }

    /// Pinned links, a file per device and direction.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Pinned programs, a directory per object.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Names in a directory of pins, sorted; unfinished loads are left out. A directory that is not there is empty.
    pub fn names(&self, dir: &Path) -> Result<Vec<String>> {
        let mut names: Vec<String> = entries(dir)?
            .into_iter()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| !n.starts_with(UNFINISHED))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Unpins the programs of loads that never finished (their process died). Only for the one agent that owns this tree, while
    /// it loads nothing. Returns what went.
    pub fn remove_unfinished(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for entry in entries(&self.objects())? {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove_tree(&entry.path(), &mut removed)?;
            }
        }
        Ok(removed)
    }

    /// Removes one directory of pinned programs; Ok(false) if it is not there.
    pub fn remove_object(&self, name: &str) -> Result<bool> {
        let path = self.objects().join(name);
        if path.symlink_metadata().is_err() {
            return Ok(false);
        }
        remove_tree(&path, &mut Vec::new())?;
        Ok(true)
    }

    /// Detaches every pinned link and unpins everything. Returns the paths that went, in that order; those of other layout
    /// versions stay.
    pub fn remove_all(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        // Links first, so that no packet meets a program whose tail-call arrays are already empty.
        for dir in [self.links(), self.endpoint(), self.root.clone()] {
            if dir.symlink_metadata().is_ok() {
                remove_tree(&dir, &mut removed)?;
            }
        }
        if let Some(parent) = self.root.parent()
            && fs::remove_dir(parent).is_ok()
        {
            removed.push(parent.to_owned());
        }
        Ok(removed)
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| Error::io("make directory", dir, e))
}

fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    let read = match fs::read_dir(dir) {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read directory", dir, e)),
    };
    read.collect::<io::Result<Vec<_>>>().map_err(|e| Error::io("read directory", dir, e))
}

/// Removes a directory of pins and what is in it, leaves first. What goes away meanwhile is no error.
pub(crate) fn remove_tree(path: &Path, removed: &mut Vec<PathBuf>) -> Result<()> {
    let gone = |r: io::Result<()>, action| match r {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(action, path, e)),
        _ => Ok(()),
    };
    if path.is_dir() {
        for entry in entries(path)? {
            remove_tree(&entry.path(), removed)?;
        }
        gone(fs::remove_dir(path), "remove directory")?;
    } else {
        // A link would go by itself, but later: the kernel frees it from a work queue.
        if let Ok(fd) = sys::obj_get(path)
            && sys::link_info(fd.as_fd()).is_ok()
        {
            let _ = sys::link_detach(fd.as_fd());
        }
        gone(fs::remove_file(path), "unpin")?;
    }
    removed.push(path.to_owned());
    Ok(())
}

/// Whether `path` is there and on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system, making the directory if need be. A mount that dies with the caller's mount namespace takes all
/// links along: ask [`same_mount_ns_as_init`] first.
pub fn mount(path: &Path) -> Result<()> {
    if !path.is_dir() {
        make_dir(path)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|e| Error::io("mount a BPF file system on", path, e.into()))
}

/// Whether the calling thread's mount namespace is that of process 1. False if that cannot be told.
pub fn same_mount_ns_as_init() -> bool {
    let ns = |path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    matches!((ns("/proc/thread-self/ns/mnt"), ns("/proc/1/ns/mnt")), (Ok(ours), Ok(init)) if ours == init)
}
