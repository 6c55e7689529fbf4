// SPDX-License-Identifier: Apache-2.0
//! Routing rules.

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{Netlink, unless, what};
use crate::error::Result;

/// A rule: packets with a mark look into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleSpec {
    /// For IPv6, else IPv4.
    pub ipv6: bool,
    /// Smaller comes first.
    pub priority: u32,
    /// Mark to look for in the bits of `fwmask`; mask 0 takes every packet.
    pub fwmark: u32,
    pub fwmask: u32,
    /// Routing table.
    pub table: u32,
}

impl RuleSpec {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = if self.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(0);
        message.attributes = vec![RuleAttribute::Priority(self.priority), RuleAttribute::Table(self.table)];
        if self.fwmask != 0 {
            message.attributes.extend([RuleAttribute::FwMark(self.fwmark), RuleAttribute::FwMask(self.fwmask)]);
        }
        message
    }

    fn parse(message: &RuleMessage) -> Option<Self> {
        let ipv6 = match message.header.family {
            AddressFamily::Inet => false,
            AddressFamily::Inet6 => true,
            _ => return None,
        };
        if message.header.action != RuleAction::ToTable {
            return None;
        }
        let mut rule = Self { ipv6, priority: 0, fwmark: 0, fwmask: 0, table: message.header.table.into() };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(mark) => rule.fwmark = *mark,
                RuleAttribute::FwMask(mask) => rule.fwmask = *mask,
                _ => {}
            }
        }
        Some(rule)
    }

    fn name(&self) -> String {
        format!("{} of priority {} to table {}", if self.ipv6 { "IPv6" } else { "IPv4" }, self.priority, self.table)
    }
}

impl Netlink {
    /// Adds a rule; Ok(false) if there is the same.
    pub async fn rule_add(&self, rule: &RuleSpec) -> Result<bool> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless(self.execute(RouteNetlinkMessage::NewRule(rule.message()), flags, &what("add rule", &rule.name())).await, &[libc::EEXIST])
    }

    /// Removes a rule; Ok(false) if there is none.
    pub async fn rule_delete(&self, rule: &RuleSpec) -> Result<bool> {
        unless(self.execute(RouteNetlinkMessage::DelRule(rule.message()), 0, &what("delete rule", &rule.name())).await, &[libc::ENOENT])
    }

    /// The rules that look into a table, as far as [`RuleSpec`] can say them.
    pub async fn rules(&self) -> Result<Vec<RuleSpec>> {
        Ok(self.rule_messages().await?.iter().filter_map(RuleSpec::parse).collect())
    }

    /// Whether a rule asks for more of a packet than its addresses and the device that it came by. Marks within `own_marks` do
    /// not count.
    pub async fn rules_ask_for_more(&self, own_marks: u32) -> Result<bool> {
        let asks = |a: &RuleAttribute| match a {
            // The kernel names a mask with each mark.
            RuleAttribute::FwMask(mask) => mask & !own_marks != 0,
            RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::TunId(_) => true,
            _ => false,
        };
        Ok(self.rule_messages().await?.iter().any(|m| m.header.tos != 0 || m.attributes.iter().any(asks)))
    }

    async fn rule_messages(&self) -> Result<Vec<RuleMessage>> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            for answer in self.dump(RouteNetlinkMessage::GetRule(message), &what("list", "rules")).await? {
                if let RouteNetlinkMessage::NewRule(m) = answer {
                    rules.push(m);
                }
            }
        }
        Ok(rules)
    }
}
