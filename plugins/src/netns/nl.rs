// SPDX-License-Identifier: Apache-2.0
//! A blocking netlink socket: one request, its answers.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// Answers of the kernel fit: it fills at most 32 KiB in a dump.
const BUFFER: usize = 64 * 1024;
/// How often a dump is repeated because something changed meanwhile.
const DUMP_ATTEMPTS: usize = 20;

/// A socket in the network namespace in which it was made.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn new() -> Result<Self, Errno> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request that is answered by yes or no.
    pub fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    /// Sends a get for one object.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        self.request(message, 0).map(|(all, _)| all)
    }

    /// Asks for all of a kind; again if something changed meanwhile.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        for _ in 0..DUMP_ATTEMPTS {
            let (all, interrupted) = self.request(message.clone(), NLM_F_DUMP)?;
            if !interrupted {
                return Ok(all);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(Vec<RouteNetlinkMessage>, bool), Errno> {
        self.sequence += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;

        let mut all = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if len > buffer.len() {
                return Err(Errno::EMSGSIZE);
            }
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::EBADMSG)?;
                let step = (answer.header.length as usize).next_multiple_of(4).clamp(16, rest.len().max(16));
                rest = rest.get(step..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(m) => {
                        all.push(m);
                        // The one answer to a plain get has no acknowledgement.
                        if flags == 0 {
                            return Ok((all, interrupted));
                        }
                    }
                    NetlinkPayload::Error(e) => {
                        return match e.code {
                            None => Ok((all, interrupted)),
                            Some(code) => Err(Errno::from_raw(code.get().saturating_neg())),
                        };
                    }
                    NetlinkPayload::Done(done) => {
                        return match done.code {
                            0 => Ok((all, interrupted)),
                            code => Err(Errno::from_raw(code.saturating_neg())),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}
