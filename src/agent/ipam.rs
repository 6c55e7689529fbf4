// SPDX-License-Identifier: Apache-2.0
//! Addresses and slots of this node. An address that was given back is used again as late as possible.

use crate::options::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::time::Instant;

/// How long an address is kept for an endpoint that is to come. Who asked for it may be dead by then.
const RESERVED_FOR: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IpamError {
    #[error("no free {0} left: delete endpoints or give the agent a larger range")]
    Exhausted(&'static str),
    #[error("{0} is taken")]
    Taken(String),
    #[error("{0} is outside of this node's range {1}")]
    Outside(String, String),
    #[error("{0} is reserved (network, router or broadcast address)")]
    Reserved(String),
}

/// Numbers from `first` to `last`, given out in turn.
#[derive(Debug)]
struct Pool {
    first: u128,
    last: u128,
    next: u128,
    used: BTreeSet<u128>,
    what: &'static str,
}

impl Pool {
    fn new(first: u128, last: u128, what: &'static str) -> Self {
        Self { first, last, next: first, used: BTreeSet::new(), what }
    }

    fn take_any(&mut self) -> Result<u128, IpamError> {
        if self.used.len() as u128 > self.last - self.first {
            return Err(IpamError::Exhausted(self.what));
        }
        let mut n = self.next;
        while self.used.contains(&n) {
            n = if n == self.last { self.first } else { n + 1 };
        }
        self.used.insert(n);
        self.next = if n == self.last { self.first } else { n + 1 };
        Ok(n)
    }

    fn contains(&self, n: u128) -> bool {
        (self.first..=self.last).contains(&n)
    }
}

/// What an endpoint asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish<A> {
    Auto,
    None,
    Exact(A),
}

/// The node's pools.
#[derive(Debug)]
pub struct Ipam {
    v6: Pool,
    v4: Option<Pool>,
    slots: Pool,
    v6_range: Prefix<Ipv6Addr>,
    v4_range: Prefix<Ipv4Addr>,
    /// Taken by nobody yet, and since when.
    reserved: BTreeMap<IpAddr, Instant>,
}

impl Ipam {
    /// The router takes the first address behind the network's own.
    pub fn new(v6_range: Prefix<Ipv6Addr>, v4_range: Prefix<Ipv4Addr>, enable_ipv4: bool, slots: std::ops::Range<u32>) -> Self {
        let v6 = u128::from(v6_range.base);
        let v4 = u128::from(u32::from(v4_range.base));
        let v4_size = 1u128 << (32 - v4_range.len);
        Self {
            v6: Pool::new(v6 + 2, v6 | (u128::MAX >> v6_range.len), "IPv6 address"),
            v4: enable_ipv4.then(|| Pool::new(v4 + 2, v4 + v4_size - 2, "IPv4 address")),
            slots: Pool::new(u128::from(slots.start), u128::from(slots.end - 1), "endpoint slot"),
            v6_range,
            v4_range,
            reserved: BTreeMap::new(),
        }
    }

    pub fn router_v6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6_range.base) + 1)
    }

    pub fn router_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4_range.base) + 1)
    }

    pub fn ipv4_enabled(&self) -> bool {
        self.v4.is_some()
    }

    pub fn take_slot(&mut self) -> Result<u16, IpamError> {
        self.slots.take_any().map(|n| n as u16)
    }

    pub fn take_v6(&mut self, wish: Option<Ipv6Addr>) -> Result<Ipv6Addr, IpamError> {
        let Some(ip) = wish else { return self.v6.take_any().map(Ipv6Addr::from) };
        let n = u128::from(ip);
        if n >> (128 - self.v6_range.len) != u128::from(self.v6_range.base) >> (128 - self.v6_range.len) {
            return Err(IpamError::Outside(ip.to_string(), self.v6_range.to_string()));
        }
        if !self.v6.contains(n) {
            return Err(IpamError::Reserved(ip.to_string()));
        }
        if !self.v6.used.insert(n) {
            return Err(IpamError::Taken(ip.to_string()));
        }
        Ok(ip)
    }

    /// None where the node has no IPv4 and none was asked for by number.
    pub fn take_v4(&mut self, wish: Wish<Ipv4Addr>) -> Result<Option<Ipv4Addr>, IpamError> {
        let range = self.v4_range;
        match (wish, &mut self.v4) {
            (Wish::None, _) | (Wish::Auto, None) => Ok(None),
            (Wish::Auto, Some(pool)) => pool.take_any().map(|n| Some(Ipv4Addr::from(n as u32))),
            (Wish::Exact(ip), None) => Err(IpamError::Outside(ip.to_string(), "(IPv4 is off)".into())),
            (Wish::Exact(ip), Some(pool)) => {
                let n = u128::from(u32::from(ip));
                if u32::from(ip) >> (32 - range.len) != u32::from(range.base) >> (32 - range.len) {
                    return Err(IpamError::Outside(ip.to_string(), range.to_string()));
                }
                if !pool.contains(n) {
                    return Err(IpamError::Reserved(ip.to_string()));
                }
                if !pool.used.insert(n) {
                    return Err(IpamError::Taken(ip.to_string()));
                }
                Ok(Some(ip))
            }
        }
    }

    /// Takes addresses for an endpoint that is to come.
    pub fn reserve(&mut self, v6: Option<Ipv6Addr>, v4: Wish<Ipv4Addr>) -> Result<(Option<Ipv6Addr>, Option<Ipv4Addr>), IpamError> {
        self.forget_reserved();
        let v6 = self.take_v6(v6)?;
        let v4 = self.take_v4(v4).inspect_err(|_| self.release(None, Some(v6), None))?;
        let both = [Some(v6.into()), v4.map(IpAddr::from)].into_iter().flatten();
        self.reserved.extend(both.map(|ip| (ip, Instant::now())));
        Ok((Some(v6), v4))
    }

    pub fn reserve_exact(&mut self, ip: IpAddr) -> Result<(Option<Ipv6Addr>, Option<Ipv4Addr>), IpamError> {
        self.forget_reserved();
        let taken = match ip {
            IpAddr::V6(ip) => (Some(self.take_v6(Some(ip))?), None),
            IpAddr::V4(ip) => (None, self.take_v4(Wish::Exact(ip))?),
        };
        self.reserved.insert(ip, Instant::now());
        Ok(taken)
    }

    /// An endpoint's address: one that was reserved, or another.
    pub fn take_reserved_v6(&mut self, wish: Option<Ipv6Addr>) -> Result<Ipv6Addr, IpamError> {
        self.forget_reserved();
        match wish {
            Some(ip) if self.reserved.remove(&IpAddr::V6(ip)).is_some() => Ok(ip),
            wish => self.take_v6(wish),
        }
    }

    pub fn take_reserved_v4(&mut self, wish: Wish<Ipv4Addr>) -> Result<Option<Ipv4Addr>, IpamError> {
        self.forget_reserved();
        match wish {
            Wish::Exact(ip) if self.reserved.remove(&IpAddr::V4(ip)).is_some() => Ok(Some(ip)),
            wish => self.take_v4(wish),
        }
    }

    /// Gives back what no endpoint has taken.
    pub fn release_reserved(&mut self, ip: IpAddr) {
        if self.reserved.remove(&ip).is_some() {
            match ip {
                IpAddr::V4(ip) => self.release(None, None, Some(ip)),
                IpAddr::V6(ip) => self.release(None, Some(ip), None),
            }
        }
    }

    fn forget_reserved(&mut self) {
        let now = Instant::now();
        let old: Vec<IpAddr> = self.reserved.iter().filter(|(_, since)| now - **since >= RESERVED_FOR).map(|(ip, _)| *ip).collect();
        old.into_iter().for_each(|ip| self.release_reserved(ip));
    }

    /// Marks what a restored endpoint has, wherever it lies.
    pub fn restore(&mut self, slot: u16, v6: Ipv6Addr, v4: Option<Ipv4Addr>) {
        self.slots.used.insert(u128::from(slot));
        self.v6.used.insert(u128::from(v6));
        if let (Some(pool), Some(ip)) = (&mut self.v4, v4) {
            pool.used.insert(u128::from(u32::from(ip)));
        }
    }

    /// Gives back; what was not taken is no error.
    pub fn release(&mut self, slot: Option<u16>, v6: Option<Ipv6Addr>, v4: Option<Ipv4Addr>) {
        if let Some(slot) = slot {
            self.slots.used.remove(&u128::from(slot));
        }
        if let Some(ip) = v6 {
            self.v6.used.remove(&u128::from(ip));
        }
        if let (Some(pool), Some(ip)) = (&mut self.v4, v4) {
            pool.used.remove(&u128::from(u32::from(ip)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Ipam {
        Ipam::new("fd00::/112".parse().expect("v6"), "10.1.2.0/28".parse().expect("v4"), true, 256..260)
    }

    #[test]
    fn addresses_are_reused_last() {
        let mut i = small();
        let a = i.take_v4(Wish::Auto).expect("first").expect("on");
        assert_eq!(a, Ipv4Addr::new(10, 1, 2, 2));
        i.release(None, None, Some(a));
        assert_eq!(i.take_v4(Wish::Auto), Ok(Some(Ipv4Addr::new(10, 1, 2, 3))));
        for _ in 0..11 {
            i.take_v4(Wish::Auto).expect("room");
        }
        assert_eq!(i.take_v4(Wish::Auto), Ok(Some(a)));
        assert_eq!(i.take_v4(Wish::Auto), Err(IpamError::Exhausted("IPv4 address")));
    }

    #[test]
    fn wishes_are_checked() {
        let mut i = small();
        assert_eq!(i.take_v4(Wish::Exact(Ipv4Addr::new(10, 1, 2, 9))), Ok(Some(Ipv4Addr::new(10, 1, 2, 9))));
        assert!(matches!(i.take_v4(Wish::Exact(Ipv4Addr::new(10, 1, 2, 9))), Err(IpamError::Taken(_))));
        assert!(matches!(i.take_v4(Wish::Exact(Ipv4Addr::new(10, 1, 2, 1))), Err(IpamError::Reserved(_))));
        assert!(matches!(i.take_v4(Wish::Exact(Ipv4Addr::new(10, 1, 2, 15))), Err(IpamError::Reserved(_))));
        assert!(matches!(i.take_v4(Wish::Exact(Ipv4Addr::new(10, 1, 3, 1))), Err(IpamError::Outside(..))));
        assert!(matches!(i.take_v6(Some("fd00::1".parse().expect("ip"))), Err(IpamError::Reserved(_))));
        assert!(matches!(i.take_v6(Some("fd01::5".parse().expect("ip"))), Err(IpamError::Outside(..))));
        assert_eq!(i.take_v6(None), Ok("fd00::2".parse().expect("ip")));
        assert_eq!((0..4).map(|_| i.take_slot()).collect::<Result<Vec<_>, _>>(), Ok(vec![256, 257, 258, 259]));
        assert!(i.take_slot().is_err());
    }

    /// Whoever reserved addresses and died does not keep them: it would be for as long as the agent runs.
    #[tokio::test(start_paused = true)]
    async fn reserved_addresses_are_free_again_some_day() {
        let mut i = small();
        let (v6, v4) = i.reserve(None, Wish::Auto).expect("reserve");
        let (v6, v4) = (v6.expect("v6"), v4.expect("v4"));
        let other: IpAddr = "10.1.2.9".parse().expect("address");
        i.reserve_exact(other).expect("reserve");
        assert_eq!(i.reserve_exact(other), Err(IpamError::Taken(other.to_string())));
        tokio::time::advance(RESERVED_FOR - Duration::from_secs(1)).await;
        assert_eq!(i.reserve_exact(other), Err(IpamError::Taken(other.to_string())));
        assert_eq!(i.take_reserved_v4(Wish::Exact(v4)), Ok(Some(v4)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(i.take_reserved_v6(Some(v6)), Ok(v6));
        i.reserve_exact(other).expect("it is free again");
        // What an endpoint took stays.
        assert_eq!(i.take_reserved_v4(Wish::Exact(v4)), Err(IpamError::Taken(v4.to_string())));
        assert_eq!(i.take_reserved_v6(Some(v6)), Err(IpamError::Taken(v6.to_string())));
    }
}
