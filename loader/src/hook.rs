// SPDX-License-Identifier: Apache-2.0
//! Where programs meet packets: tcx links, clsact filters where there is no tcx or no time for it, and links of netkit devices.
//!
//! tcx runs before clsact, so a device is promoted without a gap by attaching tcx and then removing the filter. A tcx attach
//! or detach waits 8 to 16 ms for the kernel under its global network lock; a swap takes microseconds, a filter 0.2 ms.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::collection::Program;
use crate::error::{Error, Result};
use crate::sys;

/// How a program is attached to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By a pinned tcx link.
    Tcx,
    /// By a filter on the clsact qdisc.
    Tc,
}

/// Which packets of a device, as the host sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dir {
    /// Coming in from the device: what a container sends, on its host side.
    Ingress,
    /// Going out to the device.
    Egress,
}

/// `BPF_TCX_INGRESS` of linux/bpf.h.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(crate) const TCX_EGRESS: u32 = 47;
/// `BPF_NETKIT_PEER`.
pub(crate) const NETKIT_PEER: u32 = 55;

/// Handle of our filter.
const TC_HANDLE: u32 = 1;
/// Priority of our filter.
const TC_PRIORITY: u32 = 1;

impl Dir {
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => TCX_INGRESS,
            Self::Egress => TCX_EGRESS,
        }
    }

    fn tc(self) -> u32 {
        match self {
            Self::Ingress => libbpf_sys::BPF_TC_INGRESS,
            Self::Egress => libbpf_sys::BPF_TC_EGRESS,
        }
    }
}

/// What became of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkUpdate {
    /// The link runs the new program; no packet saw neither.
    Updated,
    /// The device is gone. The pin is of no use: [`detach_link`] and attach anew.
    Severed,
    /// There is no such pin.
    NoPin,
}

/// Where a link is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A device's tcx hook.
    Tcx(Dir),
    /// The peer of a netkit device: what the container sends.
    NetkitPeer,
}

/// A pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Kernel number of the program it runs.
    pub prog_id: u32,
    /// Interface, 0 if that is gone. Of a netkit link it is the peer, by its index in its own namespace.
    pub ifindex: u32,
    /// Kernel number of the link.
    pub link_id: u32,
    /// Hook of that interface.
    pub point: Point,
}

fn device(mode: &str, ifindex: u32, dir: Dir) -> String {
    format!("{mode} {} of interface {ifindex}", if dir == Dir::Ingress { "ingress" } else { "egress" })
}

fn failed(hook: String, action: &'static str) -> impl FnOnce(i32) -> Error {
    move |errno| Error::Hook { hook, action, errno }
}

/// Attaches a program by a tcx link, behind programs that are there already, and pins the link. A pin that exists is an error
/// (EEXIST) and nothing is attached. ENODEV if the interface is not in the calling thread's network namespace, EINVAL if the
/// kernel has no tcx.
pub fn attach_tcx(prog: &Program, ifindex: u32, dir: Dir, pin: &Path) -> Result<()> {
    attach_link(prog, ifindex, dir.tcx(), pin, || device("tcx", ifindex, dir))
}

/// Attaches a program to what the peer of a netkit device sends, by a link that is pinned. `ifindex` is the device that is
/// here. For the program packets come in from it, as from a veth. EINVAL if the kernel has no netkit, or the device is none.
pub fn attach_netkit(prog: &Program, ifindex: u32, pin: &Path) -> Result<()> {
    attach_link(prog, ifindex, NETKIT_PEER, pin, || format!("netkit peer of interface {ifindex}"))
}

fn attach_link(prog: &Program, ifindex: u32, attach_type: u32, pin: &Path, hook: impl FnOnce() -> String) -> Result<()> {
    if pin.symlink_metadata().is_ok() {
        return Err(Error::pin("pin a link at", pin, libc::EEXIST));
    }
    let link = sys::link_create(prog.fd(), ifindex, attach_type).map_err(|errno| failed(hook(), "attach")(errno))?;
    // A link that could not be pinned detaches as its descriptor closes.
    sys::obj_pin(link.as_fd(), pin).map_err(|e| Error::pin("pin a link at", pin, e))
}

/// Swaps the program of a pinned link, atomically.
pub fn update_link(pin: &Path, prog: &Program) -> Result<LinkUpdate> {
    let link = match sys::obj_get(pin) {
        Ok(link) => link,
        Err(libc::ENOENT) => return Ok(LinkUpdate::NoPin),
        Err(e) => return Err(Error::pin("open the link", pin, e)),
    };
    match sys::link_update(link.as_fd(), prog.fd()) {
        Ok(()) => Ok(LinkUpdate::Updated),
        Err(libc::ENOLINK) => Ok(LinkUpdate::Severed),
        Err(errno) => Err(Error::Hook { hook: pin.display().to_string(), action: "swap the program", errno }),
    }
}

/// Detaches a pinned link and removes the pin. When it returns, the program no longer runs. Ok(false) if there was no pin.
pub fn detach_link(pin: &Path) -> Result<bool> {
    match sys::obj_get(pin) {
        // The link's own way out is asynchronous (the kernel frees it from a work queue), hence the explicit detach; of a
        // severed link it may fail, and the pin goes all the same.
        Ok(link) => {
            let _ = sys::link_detach(link.as_fd());
        }
        Err(libc::ENOENT) => return Ok(false),
        Err(e) => return Err(Error::pin("open the link", pin, e)),
    }
    match std::fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("unpin the link", pin, e)),
        _ => Ok(true),
    }
}

/// What a pinned link is, None if there is no such pin.
pub fn link_info(pin: &Path) -> Result<Option<LinkInfo>> {
    let link = match sys::obj_get(pin) {
        Ok(link) => link,
        Err(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::pin("open the link", pin, e)),
    };
    let info = sys::link_info(link.as_fd()).map_err(failed(pin.display().to_string(), "read a link"))?;
    let point = match info.attach_type {
        TCX_INGRESS => Point::Tcx(Dir::Ingress),
        TCX_EGRESS => Point::Tcx(Dir::Egress),
        NETKIT_PEER => Point::NetkitPeer,
        // Nothing that we attach.
        _ => return Err(failed(pin.display().to_string(), "read a link")(libc::EINVAL)),
    };
    Ok(Some(LinkInfo { prog_id: info.prog_id, ifindex: info.ifindex, link_id: info.id, point }))
}

/// Attaches a program by a direct-action filter (handle 1, priority 1), making the clsact qdisc if there is none. A filter of
/// that handle and priority is replaced atomically. Works in the calling thread's network namespace.
pub fn attach_tc(prog: &Program, ifindex: u32, dir: Dir) -> Result<()> {
    crate::log::install();
    match sys::clsact_create(ifindex) {
        Ok(()) | Err(libc::EEXIST) => {}
        Err(errno) => return Err(failed(device("clsact", ifindex, dir), "make the qdisc")(errno)),
    }
    sys::tc_attach(prog.fd(), ifindex, dir.tc(), TC_HANDLE, TC_PRIORITY).map_err(failed(device("clsact", ifindex, dir), "attach"))
}

/// Whether the errno says that filter, qdisc or device are not there. The kernel says EINVAL for a parent without qdisc.
fn absent(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::ENODEV | libc::EINVAL)
}

/// Removes our filter. `remove_qdisc` removes the clsact qdisc too, with the filters of others and of both directions: only
/// for devices that are ours. Ok(false) if there was no filter.
pub fn detach_tc(ifindex: u32, dir: Dir, remove_qdisc: bool) -> Result<bool> {
    crate::log::install();
    let was = match sys::tc_detach(ifindex, dir.tc(), TC_HANDLE, TC_PRIORITY) {
        Ok(()) => true,
        Err(errno) if absent(errno) => false,
        Err(errno) => return Err(failed(device("clsact", ifindex, dir), "detach")(errno)),
    };
    if remove_qdisc {
        remove_clsact(ifindex)?;
    }
    Ok(was)
}

/// Removes a device's clsact qdisc with all that hangs there. Ok(false) if there was none.
pub fn remove_clsact(ifindex: u32) -> Result<bool> {
    crate::log::install();
    match sys::clsact_destroy(ifindex) {
        Ok(()) => Ok(true),
        Err(errno) if absent(errno) => Ok(false),
        Err(errno) => Err(failed(format!("clsact of interface {ifindex}"), "remove the qdisc")(errno)),
    }
}

/// Kernel number of the program in our filter, None if filter, qdisc or device are not there. Its name:
/// [`Program::by_id`].
pub fn tc_info(ifindex: u32, dir: Dir) -> Result<Option<u32>> {
    crate::log::install();
    match sys::tc_query(ifindex, dir.tc(), TC_HANDLE, TC_PRIORITY) {
        Ok(id) => Ok(Some(id)),
        Err(errno) if absent(errno) => Ok(None),
        Err(errno) => Err(failed(device("clsact", ifindex, dir), "ask for the filter")(errno)),
    }
}
