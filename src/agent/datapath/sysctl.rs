// SPDX-License-Identifier: Apache-2.0
//! Settings of the node's network namespace: what routing needs, each change recorded before it is made and undone by cleanup.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    /// Below /proc/sys/net.
    name: String,
    before: String,
    ours: String,
}

/// Changes settings, and remembers what they were in a file that survives reboots.
pub struct Sysctls {
    root: PathBuf,
    record: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("setting net/{name}: {source}")]
    Setting { name: String, source: io::Error },
    #[error("record of changed settings {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

impl Sysctls {
    pub fn new(state_dir: &Path) -> Self {
        Self { root: "/proc/sys/net".into(), record: state_dir.join("sysctls.json") }
    }

    fn record_error(&self, source: io::Error) -> SysctlError {
        SysctlError::Record { path: self.record.clone(), source }
    }

    fn read(&self, name: &str) -> Result<Option<String>, SysctlError> {
        match std::fs::read_to_string(self.root.join(name)) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysctlError::Setting { name: name.to_owned(), source }),
        }
    }

    fn changes(&self) -> Result<Vec<Changed>, SysctlError> {
        match std::fs::read(&self.record) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| self.record_error(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(self.record_error(e)),
        }
    }

    /// Gives a setting a value. One that there is not (no IPv6, no such device) is left alone. True: it had another.
    pub fn set(&self, name: &str, value: &str) -> Result<bool, SysctlError> {
        let Some(before) = self.read(name)? else { return Ok(false) };
        if before == value {
            return Ok(false);
        }
        let mut changes = self.changes()?;
        match changes.iter_mut().find(|c| c.name == name) {
            // What it was at first counts, also if somebody set it again since.
            Some(known) => value.clone_into(&mut known.ours),
            None => changes.push(Changed { name: name.to_owned(), before: before.clone(), ours: value.to_owned() }),
        }
        let next = self.record.with_extension("new");
        let bytes = serde_json::to_vec_pretty(&changes).map_err(|e| self.record_error(e.into()))?;
        std::fs::write(&next, bytes).and_then(|()| std::fs::rename(&next, &self.record)).map_err(|e| self.record_error(e))?;
        tracing::info!(setting = format!("net/{name}"), before, now = value, "changed");
        std::fs::write(self.root.join(name), value).map_err(|source| SysctlError::Setting { name: name.to_owned(), source })?;
        Ok(true)
    }

    /// Lets the kernel route between these devices: IPv4 for each of them; IPv6 has one switch for all, and a device that
    /// listened to router advertisements goes on doing so.
    pub fn forward(&self, devices: &[String], ipv4: bool) -> Result<(), SysctlError> {
        for device in devices.iter().filter(|_| ipv4) {
            self.set(&format!("ipv4/conf/{device}/forwarding"), "1")?;
        }
        if self.read("ipv6/conf/all/forwarding")?.is_some_and(|v| v == "0") {
            let all = std::fs::read_dir(self.root.join("ipv6/conf"))
                .map_err(|source| SysctlError::Setting { name: "ipv6/conf".to_owned(), source })?;
            for entry in all.filter_map(Result::ok) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let accepts = format!("ipv6/conf/{name}/accept_ra");
                if self.read(&accepts)?.is_some_and(|v| v == "1") {
                    self.set(&accepts, "2")?;
                }
            }
            self.set("ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    /// Sets back what was changed and is still as we set it; says what. The last change goes first.
    pub fn undo(&self) -> Result<Vec<String>, SysctlError> {
        let mut done = Vec::new();
        for change in self.changes()?.into_iter().rev() {
            if self.read(&change.name)?.is_some_and(|now| now == change.ours) {
                let set = std::fs::write(self.root.join(&change.name), &change.before);
                set.map_err(|source| SysctlError::Setting { name: change.name.clone(), source })?;
                done.push(format!("set net/{} back to {}", change.name, change.before));
            }
        }
        match std::fs::remove_file(&self.record) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.record_error(e)),
            _ => Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysctls) {
        let dir = tempfile::tempdir().expect("temp dir");
        for (name, value) in files {
            let path = dir.path().join("net").join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
            std::fs::write(path, value).expect("file");
        }
        let sysctls = Sysctls { root: dir.path().join("net"), record: dir.path().join("sysctls.json") };
        (dir, sysctls)
    }

    #[test]
    fn what_was_changed_is_undone_and_nothing_else() {
        let (_dir, s) = tree(&[
            ("ipv4/conf/eth0/forwarding", "0\n"),
            ("ipv4/conf/eth1/forwarding", "1\n"),
            ("ipv6/conf/all/forwarding", "0\n"),
            ("ipv6/conf/eth0/accept_ra", "1\n"),
            ("ipv6/conf/eth1/accept_ra", "0\n"),
        ]);
        let value = |name: &str| s.read(name).expect("read").expect("there");
        let devices = ["eth0".to_owned(), "eth1".into(), "gone".into()];
        s.forward(&devices, true).expect("forward");
        assert_eq!(value("ipv4/conf/eth0/forwarding"), "1");
        assert_eq!(value("ipv6/conf/all/forwarding"), "1");
        assert_eq!((value("ipv6/conf/eth0/accept_ra"), value("ipv6/conf/eth1/accept_ra")), ("2".into(), "0".into()));
        s.forward(&devices, true).expect("again");
        // What somebody else changed since stays theirs.
        std::fs::write(s.root.join("ipv6/conf/eth0/accept_ra"), "0").expect("write");
        let undone = s.undo().expect("undo");
        assert_eq!(undone, ["set net/ipv6/conf/all/forwarding back to 0", "set net/ipv4/conf/eth0/forwarding back to 0"]);
        assert_eq!(value("ipv6/conf/eth0/accept_ra"), "0");
        assert_eq!(value("ipv4/conf/eth1/forwarding"), "1");
        assert!(s.undo().expect("nothing left").is_empty());
    }

    #[test]
    fn nothing_is_changed_that_cannot_be_recorded() {
        let (dir, s) = tree(&[("ipv4/conf/eth0/forwarding", "0")]);
        std::fs::create_dir(dir.path().join("sysctls.new")).expect("in the way");
        assert!(matches!(s.forward(&["eth0".into()], true), Err(SysctlError::Record { .. })));
        assert_eq!(s.read("ipv4/conf/eth0/forwarding").expect("read").as_deref(), Some("0"));
    }
}
