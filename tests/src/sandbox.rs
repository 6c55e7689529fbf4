// SPDX-License-Identifier: Apache-2.0
//! A world of its own for each test, gone with its thread whatever happens in it.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pilus_loader::bpffs::{self, BpfFs};
use pilus_loader::netlink::{Netlink, PairSpec};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

/// Fresh network and mount namespaces with a BPF file system, of the calling thread.
pub struct Sandbox {
    root: PathBuf,
    fs: BpfFs,
    runtime: tokio::runtime::Runtime,
}

impl Sandbox {
    /// Runs `f` in a thread with a sandbox and hands back what it returns; a panic in it goes on here. None where that
    /// is not possible; the reason is printed as `skipped: …`.
    pub fn run<T: Send>(f: impl FnOnce(&Sandbox) -> T + Send) -> Option<T> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("pilus-test-").tempdir().expect("a temporary directory");
        let root = dir.path().to_owned();
        let result = thread::scope(|scope| {
            scope
                .spawn(|| match Self::enter(root) {
                    Ok(sandbox) => Some(f(&sandbox)),
                    Err(reason) => {
                        println!("skipped: {reason}");
                        None
                    }
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn enter(root: PathBuf) -> Result<Sandbox, String> {
        let told = |what: &'static str| move |e: nix::Error| format!("cannot {what}: {e}");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(told("make namespaces"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(told("make mounts private"))?;
        bpffs::mount(&root).map_err(|e| e.to_string())?;
        let fs = BpfFs::open(&root).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        Ok(Sandbox { root, fs, runtime })
    }

    /// The BPF file system's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Our tree in it.
    pub fn fs(&self) -> &BpfFs {
        &self.fs
    }

    /// Drives a future on this thread, so that its sockets are in the sandbox.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The sandbox's own network namespace.
    pub fn netns(&self) -> io::Result<File> {
        File::open("/proc/thread-self/ns/net")
    }

    /// One more network namespace, which lives as long as the file.
    pub fn other_netns() -> io::Result<File> {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A device with that index: a veth whose peer is in this namespace too, or in `peer`.
    pub fn device(&self, name: &str, ifindex: u32, mac: [u8; 6], peer: Option<&File>) -> pilus_loader::Result<()> {
        let own = self.netns().expect("the sandbox's namespace");
        let spec = PairSpec {
            name,
            ifindex: Some(ifindex),
            mac,
            mtu: 1500,
            peer_name: &format!("{name}p"),
            peer_mac: [2, 0, 0, 0, 0xee, ifindex as u8],
            peer_netns: peer.unwrap_or(&own).as_fd(),
            up: true,
            no_autoconf: true,
        };
        self.block_on(async { Netlink::new()?.create_veth(spec).await.map(drop) })
    }
}
