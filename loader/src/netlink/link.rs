// SPDX-License-Identifier: Apache-2.0
//! Devices.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkFlags, LinkMessage, NetkitMode,
    NetkitPolicy,
};
use netlink_packet_route::{RouteNetlinkMessage, link};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{Netlink, unless, what};
use crate::error::{Error, Result};

/// A device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index.
    pub index: u32,
    pub name: String,
    /// Ethernet address; None for devices with another kind of address or none.
    pub mac: Option<[u8; 6]>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Resolves no neighbours.
    pub noarp: bool,
    /// Driver, as `veth`; None for physical devices.
    pub kind: Option<String>,
    /// Index of the peer (or lower) device, in whichever namespace that is.
    pub peer_index: Option<u32>,
    /// Device group, 0 by default.
    pub group: u32,
}

/// A pair to make, its peer straight in another namespace.
#[derive(Clone, Debug)]
pub struct PairSpec<'a> {
    /// Our end.
    pub name: &'a str,
    /// Index of our end; the kernel chooses when None.
    pub ifindex: Option<u32>,
    pub mac: [u8; 6],
    /// Of both ends, bytes.
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_mac: [u8; 6],
    /// Namespace of the peer.
    pub peer_netns: BorrowedFd<'a>,
    /// Whether our end goes up; the peer stays down.
    pub up: bool,
    /// Our end gets no address of its own, not even a link-local one (`addr_gen_mode none`).
    pub no_autoconf: bool,
}

/// A veth pair to make with both ends here.
#[derive(Clone, Debug)]
pub struct LocalPair<'a> {
    pub name: &'a str,
    /// Index of the first end; the kernel chooses when None.
    pub ifindex: Option<u32>,
    pub peer_name: &'a str,
    pub mac: [u8; 6],
    pub peer_mac: [u8; 6],
    /// Of both ends, bytes.
    pub mtu: u32,
    /// Neither end resolves neighbours: every packet goes to the other end.
    pub noarp: bool,
    /// Both ends get no address of their own.
    pub no_autoconf: bool,
}

fn parse(message: &LinkMessage) -> LinkInfo {
    let mut info = LinkInfo {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        noarp: message.header.flags.contains(LinkFlags::Noarp),
        kind: None,
        peer_index: None,
        group: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name.clone_from(name),
            LinkAttribute::Address(address) => info.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
            LinkAttribute::Link(peer) => info.peer_index = Some(*peer),
            LinkAttribute::Group(group) => info.group = *group,
            LinkAttribute::LinkInfo(infos) => {
                info.kind = infos.iter().find_map(|i| match i {
                    link::LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    info
}

pub(super) fn info_of(message: &LinkMessage) -> LinkInfo {
    parse(message)
}

fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn flag(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
    message.header.change_mask |= flag;
    message.header.flags.set(flag, on);
}

fn end(name: &str, mac: [u8; 6], mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(mtu)];
    message
}

fn pair(mut ours: LinkMessage, kind: InfoKind, data: InfoData) -> LinkMessage {
    ours.attributes.push(LinkAttribute::LinkInfo(vec![link::LinkInfo::Kind(kind), link::LinkInfo::Data(data)]));
    ours
}

fn veth(ours: LinkMessage, peer: LinkMessage) -> LinkMessage {
    pair(ours, InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer)))
}

/// The peer sends nothing but by a program; what is sent to the peer needs none.
fn netkit(ours: LinkMessage, peer: LinkMessage) -> LinkMessage {
    let data = vec![
        InfoNetkit::Peer(peer),
        InfoNetkit::Mode(NetkitMode::L2),
        InfoNetkit::Policy(NetkitPolicy::Pass),
        InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
    ];
    pair(ours, InfoKind::Netkit, InfoData::Netkit(data))
}

impl Netlink {
    /// Makes a veth pair and returns the index of our end. [`Error::NameTaken`] and [`Error::IndexTaken`] say what collided;
    /// after any error no pair is left.
    pub async fn create_veth(&self, spec: PairSpec<'_>) -> Result<u32> {
        self.create_pair(spec, veth).await
    }

    /// As [`Self::create_veth`], a netkit pair with Ethernet headers. Its peer, which is the other end, sends nothing until a
    /// program is attached to it ([`crate::hook::attach_netkit`]).
    pub async fn create_netkit(&self, spec: PairSpec<'_>) -> Result<u32> {
        self.create_pair(spec, netkit).await
    }

    async fn create_pair(&self, spec: PairSpec<'_>, pair: fn(LinkMessage, LinkMessage) -> LinkMessage) -> Result<u32> {
        let mut ours = end(spec.name, spec.mac, spec.mtu);
        ours.header.index = spec.ifindex.unwrap_or(0);
        let mut peer = end(spec.peer_name, spec.peer_mac, spec.mtu);
        peer.attributes.push(LinkAttribute::NetNsFd(spec.peer_netns.as_raw_fd()));
        self.create(pair(ours, peer), spec.name, spec.ifindex, spec.peer_name, false).await?;
        let index = match spec.ifindex {
            Some(index) => index,
            None => self.index_of(spec.name).await?,
        };
        let finished = async {
            // Creation ignores this one, and it must be set before the device goes up.
            if spec.no_autoconf {
                self.set_no_autoconf(index).await?;
            }
            if spec.up { self.set_up(index).await } else { Ok(()) }
        };
        self.undo_unless(index, finished.await).await?;
        Ok(index)
    }

    /// Makes a veth pair with both ends here, both down, and returns their indexes.
    pub async fn create_veth_local(&self, pair: LocalPair<'_>) -> Result<(u32, u32)> {
        let mut ours = end(pair.name, pair.mac, pair.mtu);
        ours.header.index = pair.ifindex.unwrap_or(0);
        let peer = end(pair.peer_name, pair.peer_mac, pair.mtu);
        self.create(veth(ours, peer), pair.name, pair.ifindex, pair.peer_name, true).await?;
        let index = self.index_of(pair.name).await?;
        let finished = async {
            let peer = self.index_of(pair.peer_name).await?;
            for index in [index, peer] {
                if pair.no_autoconf {
                    self.set_no_autoconf(index).await?;
                }
                if pair.noarp {
                    self.set_noarp(index, true).await?;
                }
            }
            Ok(peer)
        };
        let peer = self.undo_unless(index, finished.await).await?;
        Ok((index, peer))
    }

    async fn create(&self, message: LinkMessage, name: &str, index: Option<u32>, peer: &str, peer_here: bool) -> Result<()> {
        let w = what("make interface", name);
        match self.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &w).await {
            // The kernel says EEXIST for our name, the peer's name and, as EBUSY too, for the index: look which it was.
            Err(e) if matches!(e.errno(), Some(libc::EEXIST | libc::EBUSY)) => {
                if let Some(index) = index
                    && self.link_by_index(index).await?.is_some()
                {
                    return Err(Error::IndexTaken { index });
                }
                if self.link_by_name(name).await?.is_some() {
                    return Err(Error::NameTaken { name: name.to_owned() });
                }
                // A peer elsewhere cannot be looked up from here, but nothing else is left to collide.
                if !peer_here || self.link_by_name(peer).await?.is_some() {
                    return Err(Error::NameTaken { name: peer.to_owned() });
                }
                Err(e)
            }
            other => other,
        }
    }

    async fn undo_unless<T>(&self, index: u32, finished: Result<T>) -> Result<T> {
        if finished.is_err() {
            // The first error is the one to tell.
            let _ = self.delete_link(index).await;
        }
        finished
    }

    async fn index_of(&self, name: &str) -> Result<u32> {
        let found = self.link_by_name(name).await?;
        found.map(|l| l.index).ok_or_else(|| what("find interface", name).errno(libc::ENODEV))
    }

    async fn find(&self, message: LinkMessage, object: &str) -> Result<Option<LinkInfo>> {
        match self.get(RouteNetlinkMessage::GetLink(message), &what("find interface", object)).await {
            Ok(answers) => Ok(answers.iter().find_map(|a| match a {
                RouteNetlinkMessage::NewLink(m) => Some(parse(m)),
                _ => None,
            })),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The device of that name, if there is one.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<LinkInfo>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find(message, name).await
    }

    /// The device with that index, if there is one.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<LinkInfo>> {
        self.find(at(index), &index.to_string()).await
    }

    /// All devices.
    pub async fn links(&self) -> Result<Vec<LinkInfo>> {
        let all = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), &what("list", "interfaces")).await?;
        Ok(all
            .iter()
            .filter_map(|a| match a {
                RouteNetlinkMessage::NewLink(m) => Some(parse(m)),
                _ => None,
            })
            .collect())
    }

    async fn set(&self, message: LinkMessage, action: &'static str) -> Result<()> {
        let object = message.header.index.to_string();
        self.execute(RouteNetlinkMessage::SetLink(message), 0, &what(action, &object)).await
    }

    /// Takes a device into operation.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        let mut message = at(index);
        flag(&mut message, LinkFlags::Up, true);
        self.set(message, "set up interface").await
    }

    /// Takes a device out of operation.
    pub async fn set_down(&self, index: u32) -> Result<()> {
        let mut message = at(index);
        flag(&mut message, LinkFlags::Up, false);
        self.set(message, "set down interface").await
    }

    /// Sets the largest packet, bytes.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message, "set the MTU of interface").await
    }

    /// Sets the Ethernet address.
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<()> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.set(message, "set the address of interface").await
    }

    /// Whether the device does without neighbour resolution.
    pub async fn set_noarp(&self, index: u32, noarp: bool) -> Result<()> {
        let mut message = at(index);
        flag(&mut message, LinkFlags::Noarp, noarp);
        self.set(message, "set NOARP of interface").await
    }

    /// The device gives itself no IPv6 address when it goes up. Ok also where IPv6 is not there to do so.
    pub async fn set_no_autoconf(&self, index: u32) -> Result<()> {
        let mut message = at(index);
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])]));
        unless(self.set(message, "switch off autoconfiguration of interface").await, &[libc::EAFNOSUPPORT]).map(drop)
    }

    /// Removes a device, and its peer with it; Ok(false) if it is not there. Takes 16 to 32 ms of waiting in the kernel: delete
    /// many by [`Self::delete_links_group`].
    pub async fn delete_link(&self, index: u32) -> Result<bool> {
        let object = index.to_string();
        unless(self.execute(RouteNetlinkMessage::DelLink(at(index)), 0, &what("delete interface", &object)).await, &[libc::ENODEV])
    }

    /// Puts a device into a group.
    pub async fn set_group(&self, index: u32, group: u32) -> Result<()> {
        let mut message = at(index);
        message.attributes.push(LinkAttribute::Group(group));
        self.set(message, "set the group of interface").await
    }

    /// Removes many devices in one go: puts them into the group and deletes the group, with whatever else is in it. Absent ones
    /// are passed over. How many of them were there. Group 0, where every device is by default, is refused.
    pub async fn delete_links_group(&self, indexes: &[u32], group: u32) -> Result<usize> {
        if group == 0 {
            return Err(Error::Invalid { field: "group", reason: "0 is the group of all devices" });
        }
        let mut there = 0;
        for index in indexes {
            there += usize::from(unless(self.set_group(*index, group).await, &[libc::ENODEV])?);
        }
        self.delete_group(group).await?;
        Ok(there)
    }

    /// Removes all devices of a group; Ok(false) if it is empty. Group 0 is refused.
    pub async fn delete_group(&self, group: u32) -> Result<bool> {
        if group == 0 {
            return Err(Error::Invalid { field: "group", reason: "0 is the group of all devices" });
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        let object = group.to_string();
        unless(self.execute(RouteNetlinkMessage::DelLink(message), 0, &what("delete interfaces of group", &object)).await, &[libc::ENODEV])
    }
}
