// SPDX-License-Identifier: Apache-2.0
//! The work itself.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::nl::Socket;
use super::{Address, Code, Configure, Done, Failure, Interface, LinkRef, Mac, Prefix, Request, Route};

/// Index of `lo` in every namespace.
const LO: u32 = 1;
/// Metric of a default route that another one comes before, plus the interface's index. IPv6's own is 1024.
const BEHIND: u32 = 20000;
/// Longest interface name, bytes.
const NAME_LEN: usize = 15;

type Result<T> = std::result::Result<T, Failure>;

pub(super) fn carry_out(request: &Request) -> Result<Done> {
    match request {
        Request::Configure(c) => configure(c),
        Request::Inspect { netns, name } => {
            let mut socket = enter(netns)?;
            let link = find(&mut socket, &LinkRef::Name(name.clone()))?.ok_or_else(|| no_link(name))?;
            Ok(Done { ok: true, interface: Some(describe(&mut socket, link.index)?), ..Done::default() })
        }
        Request::Delete { netns, name } => {
            let mut socket = enter(netns)?;
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.clone()));
            let deleted = match socket.execute(RouteNetlinkMessage::DelLink(message), 0) {
                Ok(()) => true,
                Err(Errno::ENODEV) => false,
                Err(e) => return Err(failed(format_args!("delete interface {name}"), e)),
            };
            Ok(Done { ok: true, deleted: Some(deleted), ..Done::default() })
        }
    }
}

fn failed(action: impl std::fmt::Display, e: Errno) -> Failure {
    Failure::kernel(Code::Kernel, action, e as i32)
}

fn no_link(name: &str) -> Failure {
    Failure::kernel(Code::NoLink, format_args!("find interface {name}"), libc::ENODEV)
}

/// Takes this thread into a network namespace and opens a socket there.
fn enter(netns: &Path) -> Result<Socket> {
    let failed_at = |e| Failure::kernel(Code::NoNetns, format_args!("enter network namespace {}", netns.display()), e);
    let file = File::open(netns).map_err(|e| failed_at(e.raw_os_error().unwrap_or(libc::EINVAL)))?;
    #[expect(clippy::disallowed_methods, reason = "the one place that enters a namespace: a single-threaded program about to end")]
    nix::sched::setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| failed_at(e as i32))?;
    Socket::new().map_err(|e| failed("open a netlink socket", e))
}

/// Whether this thread is in that namespace already.
fn is_own(netns: &Path) -> bool {
    let number = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    number(netns).is_some_and(|n| number(Path::new("/proc/thread-self/ns/net")) == Some(n))
}

/// What matters of a link here.
#[derive(Clone, Debug)]
struct Link {
    index: u32,
    name: String,
    mac: Option<Mac>,
    mtu: u32,
    up: bool,
    carrier: bool,
    peer_index: Option<u32>,
}

fn link_of(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        peer_index: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(peer) => link.peer_index = Some(*peer),
            _ => {}
        }
    }
    link
}

fn find(socket: &mut Socket, link: &LinkRef) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(index) => message.header.index = *index,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.clone())),
    }
    match socket.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(answers) => Ok(answers.iter().find_map(|a| match a {
            RouteNetlinkMessage::NewLink(m) => Some(link_of(m)),
            _ => None,
        })),
        Err(Errno::ENODEV) => Ok(None),
        Err(e) => Err(failed("find an interface", e)),
    }
}

/// Changes one link by flags and attributes.
fn set(socket: &mut Socket, index: u32, up: Option<bool>, attributes: Vec<LinkAttribute>) -> std::result::Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    if let Some(up) = up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags.set(LinkFlags::Up, up);
    }
    socket.execute(RouteNetlinkMessage::SetLink(message), 0)
}

fn configure(c: &Configure) -> Result<Done> {
    let valid = !c.name.is_empty() && c.name.len() <= NAME_LEN && !matches!(c.name.as_str(), "." | "..");
    if !valid || c.name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace()) {
        return Err(Failure::new(Code::BadRequest, format!("{:?} is no interface name", c.name)));
    }
    let own = is_own(&c.netns);
    let mut socket = enter(&c.netns)?;
    let socket = &mut socket;
    let mut warnings = Vec::new();

    // Before anything is changed: which link is it, and is its name free?
    let named = find(socket, &LinkRef::Name(c.name.clone()))?;
    let link = match (find(socket, &c.link)?, &named) {
        (Some(link), _) => link,
        (None, Some(named)) if named.mac == Some(c.mac) => named.clone(),
        (None, _) => {
            return Err(no_link(&match &c.link {
                LinkRef::Index(index) => format!("with index {index}"),
                LinkRef::Name(name) => name.clone(),
            }));
        }
    };
    if named.is_some_and(|n| n.index != link.index) {
        return Err(Failure::kernel(Code::NameTaken, format_args!("rename {} to {}", link.name, c.name), libc::EEXIST));
    }

    shape(socket, c, &link)?;
    // A container's addresses and routes never become the node's: whoever takes the interface away gives it its own.
    if own {
        let interface = describe(socket, link.index)?;
        return Ok(Done { ok: true, interface: Some(interface), deleted: None, warnings });
    }
    sysctls(c, &mut warnings);
    addresses(socket, c, link.index)?;
    set(socket, LO, Some(true), Vec::new()).map_err(|e| failed("set up lo", e))?;
    set(socket, link.index, Some(true), Vec::new()).map_err(|e| failed(format_args!("set up {}", c.name), e))?;
    routes(socket, c, link.index)?;

    // Asking for a link makes what its carrier means take effect at once (since 6.8), so that its queue takes packets.
    let interface = describe(socket, link.index)?;
    warnings.extend(in_use(socket, c)?);
    warnings.extend(interface.addresses.iter().filter(|a| a.tentative).map(|a| format!("address {} is tentative", a.address)));
    Ok(Done { ok: true, interface: Some(interface), deleted: None, warnings })
}

/// Name, Ethernet address, MTU; only what differs, so that a repeated request touches no running interface.
fn shape(socket: &mut Socket, c: &Configure, link: &Link) -> Result<()> {
    if link.name != c.name {
        // Before 6.2 an interface that is up has its name for good.
        if link.up {
            set(socket, link.index, Some(false), Vec::new()).map_err(|e| failed(format_args!("set down {}", link.name), e))?;
        }
        set(socket, link.index, None, vec![LinkAttribute::IfName(c.name.clone())]).map_err(|e| {
            let code = if e == Errno::EEXIST { Code::NameTaken } else { Code::Kernel };
            Failure::kernel(code, format_args!("rename {} to {}", link.name, c.name), e as i32)
        })?;
    }
    let mut attributes = Vec::new();
    if link.mac != Some(c.mac) {
        attributes.push(LinkAttribute::Address(c.mac.0.to_vec()));
    }
    if link.mtu != c.mtu {
        attributes.push(LinkAttribute::Mtu(c.mtu));
    }
    if !attributes.is_empty() {
        set(socket, link.index, None, attributes)
            .map_err(|e| failed(format_args!("set address {} and MTU {} of {}", c.mac, c.mtu, c.name), e))?;
    }
    Ok(())
}

/// Settings that only /proc/sys has. It follows the network namespace of the thread that writes. Some runtimes mount it
/// read-only; nothing that follows depends on it, except IPv6 where the runtime switched that off.
fn sysctls(c: &Configure, warnings: &mut Vec<String>) {
    let ipv6 = c.addresses.iter().any(|a| a.ip.is_ipv6());
    // Docker switches IPv6 off in namespaces that it gave no IPv6 address.
    let settings: &[(&str, &str)] =
        if ipv6 { &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")] } else { &[("accept_ra", "0")] };
    for (key, value) in settings {
        let path = Path::new("/proc/sys/net/ipv6/conf").join(&c.name).join(key);
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == *value => continue,
            // A kernel without IPv6, or an MTU too small for it, has no such file, and nothing to switch off.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !ipv6 => continue,
            _ => {}
        }
        if let Err(e) = fs::write(&path, value) {
            warnings.push(format!("cannot set {} to {value}: {e}", path.display()));
        }
    }
}

/// The link-local address that the kernel would make from an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let pair = |x, y| u16::from_be_bytes([x, y]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

fn addresses(socket: &mut Socket, c: &Configure, index: u32) -> Result<()> {
    if c.addresses.iter().any(|a| a.ip.is_ipv6()) {
        // The kernel's own link-local address would be tentative for a second where accept_dad could not be set. So the kernel
        // makes none and we add the same one without a search for duplicates.
        let none = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
        set(socket, index, None, vec![LinkAttribute::AfSpecUnspec(none)])
            .map_err(|e| failed(format_args!("switch off IPv6 autoconfiguration of {}", c.name), e))?;
        let local = Prefix { ip: link_local(c.mac).into(), plen: 64 };
        add_address(socket, index, local, true).map_err(|e| failed(format_args!("add address {local} to {}", c.name), e))?;
    }
    for address in &c.addresses {
        add_address(socket, index, *address, false).map_err(|e| failed(format_args!("add address {address} to {}", c.name), e))?;
    }
    Ok(())
}

fn add_address(socket: &mut Socket, index: u32, address: Prefix, prefix_route: bool) -> std::result::Result<(), Errno> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.plen;
    let mut flags = if prefix_route { AddressFlags::empty() } else { AddressFlags::Noprefixroute };
    match address.ip {
        IpAddr::V4(_) => message.header.family = AddressFamily::Inet,
        IpAddr::V6(ip) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            flags |= AddressFlags::Nodad;
            if ip.segments()[0] & 0xffc0 == 0xfe80 {
                message.header.scope = AddressScope::Link;
            }
        }
    }
    message.attributes = vec![AddressAttribute::Local(address.ip), AddressAttribute::Address(address.ip), AddressAttribute::Flags(flags)];
    match socket.execute(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// On-link routes to the gateways and default routes through them. Where another interface has the default route, this one's
/// stands behind it: what goes through the other goes on doing so.
fn routes(socket: &mut Socket, c: &Configure, index: u32) -> Result<()> {
    let gateways = [c.gateway6.map(IpAddr::V6), c.gateway4.map(IpAddr::V4)];
    for gateway in gateways.into_iter().flatten() {
        let (any, host, family) = match gateway {
            IpAddr::V4(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 32, AddressFamily::Inet),
            IpAddr::V6(_) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128, AddressFamily::Inet6),
        };
        let fail = |e| failed(format_args!("set the routes through gateway {gateway} of {}", c.name), e);
        let on_link = route(Prefix { ip: gateway, plen: host }, None, index);
        let (ours, others) = default_routes(socket, family, index)?;
        // Not replaced: that would take the same address's route through another interface away.
        match socket.execute(RouteNetlinkMessage::NewRoute(on_link), NLM_F_CREATE | NLM_F_APPEND) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(fail(e)),
        }
        if ours {
            continue;
        }
        let mut default = route(Prefix { ip: any, plen: 0 }, Some(gateway), index);
        if others {
            default.attributes.push(RouteAttribute::Priority(BEHIND + index));
        }
        socket.execute(RouteNetlinkMessage::NewRoute(default), NLM_F_CREATE | NLM_F_REPLACE).map_err(fail)?;
    }
    Ok(())
}

/// Whether this interface has a default route, and whether another one has.
fn default_routes(socket: &mut Socket, family: AddressFamily, index: u32) -> Result<(bool, bool)> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    let (mut ours, mut others) = (false, false);
    for answer in socket.dump(RouteNetlinkMessage::GetRoute(message)).map_err(|e| failed("list routes", e))? {
        if let RouteNetlinkMessage::NewRoute(m) = answer
            && m.header.destination_prefix_length == 0
            && m.header.table == RouteHeader::RT_TABLE_MAIN
            && m.header.kind == RouteType::Unicast
        {
            match route_of(&m, index) {
                Some(_) => ours = true,
                None => others = true,
            }
        }
    }
    Ok((ours, others))
}

fn route(destination: Prefix, gateway: Option<IpAddr>, oif: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if destination.ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    header.destination_prefix_length = destination.plen;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Boot;
    header.kind = RouteType::Unicast;
    header.scope = if gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
    if gateway.is_some() {
        header.flags = RouteFlags::Onlink;
    }
    if destination.plen > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.ip.into()));
    }
    message.attributes.push(RouteAttribute::Oif(oif));
    message.attributes.extend(gateway.map(|g| RouteAttribute::Gateway(g.into())));
    message
}

/// Tries, and the time between two, until an address counts as late.
const TRIES: u32 = 2000;
const TRY_EVERY: Duration = Duration::from_micros(500);

/// Waits until the kernel takes packets for each IPv6 address. It puts an address into use from a work queue, also one without
/// duplicate detection: until then packets for it are forwarded, that is dropped. Returns warnings.
fn in_use(socket: &mut Socket, c: &Configure) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for address in c.addresses.iter().filter(|a| a.ip.is_ipv6()) {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.destination_prefix_length = 128;
        message.attributes.push(RouteAttribute::Destination(address.ip.into()));
        let mut tries = 0;
        loop {
            // Unreachable, as an error, is an answer too.
            let answers = socket.get(RouteNetlinkMessage::GetRoute(message.clone())).unwrap_or_default();
            if answers.iter().any(|a| matches!(a, RouteNetlinkMessage::NewRoute(m) if m.header.kind == RouteType::Local)) {
                break;
            }
            tries += 1;
            if tries == TRIES {
                warnings.push(format!("address {} is not in use yet", address.ip));
                break;
            }
            std::thread::sleep(TRY_EVERY);
        }
    }
    Ok(warnings)
}

fn describe(socket: &mut Socket, index: u32) -> Result<Interface> {
    let link = find(socket, &LinkRef::Index(index))?.ok_or_else(|| no_link(&format!("with index {index}")))?;
    let mut addresses = Vec::new();
    let all = socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).map_err(|e| failed("list addresses", e))?;
    for answer in all {
        if let RouteNetlinkMessage::NewAddress(m) = answer
            && m.header.index == index
        {
            addresses.extend(address_of(&m));
        }
    }
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet6, AddressFamily::Inet] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        for answer in socket.dump(RouteNetlinkMessage::GetRoute(message)).map_err(|e| failed("list routes", e))? {
            if let RouteNetlinkMessage::NewRoute(m) = answer {
                routes.extend(route_of(&m, index));
            }
        }
    }
    Ok(Interface {
        index: link.index,
        name: link.name,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        carrier: link.carrier,
        peer_index: link.peer_index,
        addresses,
        routes,
    })
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => ip = Some(*local),
            // For IPv4 that is the other end, if there is a `Local`.
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let tentative = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    Some(Address { address: Prefix { ip: ip?, plen: message.header.prefix_len }, tentative })
}

fn route_of(message: &RouteMessage, index: u32) -> Option<Route> {
    let ip = |a: &RouteAddress| match a {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let header = &message.header;
    let main = header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast;
    let mut by_index = false;
    let mut destination =
        if header.address_family == AddressFamily::Inet { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => by_index = *oif == index,
            RouteAttribute::Destination(a) => destination = ip(a)?,
            RouteAttribute::Gateway(a) => gateway = ip(a),
            _ => {}
        }
    }
    let destination = Prefix { ip: destination, plen: header.destination_prefix_length };
    (main && by_index).then_some(Route { destination, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_address_is_the_kernel_s() {
        assert_eq!(link_local(Mac([0x02, 0, 0, 0, 0, 0x01])).to_string(), "fe80::ff:fe00:1");
    }
}
