// SPDX-License-Identifier: Apache-2.0
//! The clsact qdisc of a device, as far as it matters who else uses it.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::{Netlink, what};
use crate::error::Result;

/// Where clsact's filters hang: major number of clsact, minor TC_H_MIN_INGRESS and TC_H_MIN_EGRESS (uapi pkt_sched.h).
const SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

impl Netlink {
    /// Whether a device's clsact qdisc has filters, of either direction; None if there is no such qdisc.
    pub async fn clsact_used(&self, index: u32) -> Result<Option<bool>> {
        let object = format!("clsact of interface {index}");
        let about = || TcMessage::with_index(index as i32);
        let is_clsact = |m: &TcMessage| {
            m.header.index == index as i32 && m.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "clsact"))
        };
        let qdiscs = self.dump(RouteNetlinkMessage::GetQueueDiscipline(about()), &what("list", &object)).await?;
        if !qdiscs.iter().any(|a| matches!(a, RouteNetlinkMessage::NewQueueDiscipline(m) if is_clsact(m))) {
            return Ok(None);
        }
        for side in SIDES {
            let mut message = about();
            message.header.parent = TcHandle::from(side);
            let answers = self.dump(RouteNetlinkMessage::GetTrafficFilter(message), &what("list filters of", &object)).await?;
            if answers.iter().any(|a| matches!(a, RouteNetlinkMessage::NewTrafficFilter(_))) {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }
}
