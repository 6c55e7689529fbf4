// SPDX-License-Identifier: Apache-2.0
//! Programs on devices that live long: the host's own pair, and the node's devices, where others may have filters too.

use crate::options::AttachMode;
use pilus_loader::Error;
use pilus_loader::collection::Program;
use pilus_loader::hook::{self, Dir, LinkUpdate};
use pilus_loader::netlink::Netlink;
use std::path::Path;

/// What hangs on the node's devices, as the kernel cuts the names.
const OURS: [&str; 3] = ["from_netdev", "from_netdev_sta", "to_netdev"];

/// Where a program hangs: its pin as a tcx link, the device, the direction.
#[derive(Clone, Copy, Debug)]
pub struct Hook<'a> {
    pub pin: &'a Path,
    pub ifindex: u32,
    pub dir: Dir,
    /// Nobody else has filters on the device, so that the qdisc can go with ours.
    pub ours: bool,
}

/// Whether the filter in our place, if there is one, is ours.
fn filter_is_ours(ifindex: u32, dir: Dir) -> Result<Option<bool>, Error> {
    let Some(id) = hook::tc_info(ifindex, dir)? else { return Ok(None) };
    Ok(Some(Program::by_id(id)?.is_some_and(|p| OURS.contains(&p.name.as_str()))))
}

/// Takes our filter, and nobody else's, from one of the node's devices. Ok(false) if there is none.
pub fn detach_filter(ifindex: u32, dir: Dir) -> Result<bool, Error> {
    if filter_is_ours(ifindex, dir)? == Some(true) { hook::detach_tc(ifindex, dir, false) } else { Ok(false) }
}

/// Takes the qdisc of one of the node's devices away, from which our filter was taken, unless others use it too.
pub async fn drop_unused_qdisc(netlink: &Netlink, ifindex: u32) -> Result<(), Error> {
    if netlink.clsact_used(ifindex).await? == Some(false) {
        hook::remove_clsact(ifindex)?;
    }
    Ok(())
}

impl Hook<'_> {
    fn attach_filter(&self, program: &Program) -> Result<(), Error> {
        let Hook { ifindex, dir, .. } = *self;
        if !self.ours && filter_is_ours(ifindex, dir)? == Some(false) {
            let way = if dir == Dir::Ingress { "ingress" } else { "egress" };
            let hook = format!("clsact {way} of interface {ifindex}: priority 1, handle 1 is another program's, which has to move");
            return Err(Error::Hook { hook, action: "attach", errno: nix::libc::EEXIST });
        }
        hook::attach_tc(program, ifindex, dir)
    }
}

/// Hangs a program on a device, or swaps it in place: there is no hurry that would ask for clsact first. Ok(true): a filter of
/// ours was taken from a qdisc that others may use.
pub fn attach(at: Hook<'_>, program: &Program, mode: AttachMode, tcx: bool) -> Result<bool, Error> {
    let Hook { pin, ifindex, dir, ours } = at;
    if let Some(link) = hook::link_info(pin)? {
        if link.ifindex == ifindex && mode != AttachMode::Tc {
            if link.prog_id == program.id || hook::update_link(pin, program)? == LinkUpdate::Updated {
                return Ok(false);
            }
        } else if link.ifindex == ifindex {
            at.attach_filter(program)?;
        }
        hook::detach_link(pin)?;
    }
    if tcx && mode != AttachMode::Tc {
        tokio::task::block_in_place(|| hook::attach_tcx(program, ifindex, dir, pin))?;
        if ours {
            hook::detach_tc(ifindex, dir, true)?;
            return Ok(false);
        }
        return detach_filter(ifindex, dir);
    }
    if hook::tc_info(ifindex, dir)? != Some(program.id) {
        at.attach_filter(program)?;
    }
    Ok(false)
}
