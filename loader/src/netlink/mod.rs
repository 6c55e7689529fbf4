// SPDX-License-Identifier: Apache-2.0
//! Devices, addresses, routes, rules and neighbours, by netlink.
//!
//! What exists already is no error when it is added, and what is absent is none when it is removed: every call may be repeated.

mod address;
mod link;
mod neighbour;
mod qdisc;
mod route;
mod rule;
mod watch;

use futures::StreamExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use std::sync::Arc;
use tokio::sync::Mutex;

pub use address::Address;
pub use link::{LinkInfo, LocalPair, PairSpec};
pub use route::{ROUTE_PROTOCOL, Route, RouteKind, RouteSpec};
pub use rule::RuleSpec;
pub use watch::Change;

use crate::error::{Error, Result};

/// A netlink connection to the network namespace in which it was made. Clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel gives one list at a time to a socket, and says EBUSY to a second request.
    listing: Arc<Mutex<()>>,
}

/// What a request is about, for its error.
struct What<'a> {
    action: &'static str,
    object: &'a str,
}

impl What<'_> {
    fn errno(&self, errno: i32) -> Error {
        Error::Netlink { action: self.action, object: self.object.to_owned(), errno }
    }

    fn closed(&self) -> Error {
        Error::NetlinkClosed { action: self.action, object: self.object.to_owned() }
    }
}

fn what<'a>(action: &'static str, object: &'a str) -> What<'a> {
    What { action, object }
}

impl Netlink {
    /// Connects to the calling thread's network namespace; later calls may come from any thread. Must be called inside a tokio
    /// runtime, which drives the connection.
    pub fn new() -> Result<Self> {
        let (mut connection, handle, _) = rtnetlink::new_connection()
            .map_err(|e| Error::Kernel { action: "open a netlink socket", errno: e.raw_os_error().unwrap_or(libc::EINVAL) })?;
        // Acknowledgements and the ends of dumps are answers too: else a connection that dies looks like success.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    /// Sends a request and collects the answers, and whether something changed while the kernel gave them.
    async fn request(&self, message: RouteNetlinkMessage, flags: u16, what: &What<'_>) -> Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(message).map_err(|_| what.closed())?;
        let mut all = Vec::new();
        let mut complete = false;
        let mut interrupted = false;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(m) => {
                    // The one answer to a plain get has no acknowledgement.
                    complete |= flags == 0;
                    all.push(m);
                }
                NetlinkPayload::Error(e) => match e.code {
                    None => complete = true,
                    Some(code) => return Err(what.errno(code.get().saturating_neg())),
                },
                NetlinkPayload::Done(done) => match done.code {
                    0 => complete = true,
                    code => return Err(what.errno(code.saturating_neg())),
                },
                _ => {}
            }
        }
        // The stream also ends when the connection dies.
        if complete { Ok((all, interrupted)) } else { Err(what.closed()) }
    }

    /// Sends a request that is answered by yes or no.
    async fn execute(&self, message: RouteNetlinkMessage, flags: u16, what: &What<'_>) -> Result<()> {
        self.request(message, NLM_F_ACK | flags, what).await.map(drop)
    }

    /// Sends a get for one object.
    async fn get(&self, message: RouteNetlinkMessage, what: &What<'_>) -> Result<Vec<RouteNetlinkMessage>> {
        Ok(self.request(message, 0, what).await?.0)
    }

    /// Asks for all of a kind. A dump during which something changed may miss others, so it is repeated; after some attempts it
    /// is EAGAIN.
    async fn dump(&self, message: RouteNetlinkMessage, what: &What<'_>) -> Result<Vec<RouteNetlinkMessage>> {
        let _one = self.listing.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            let (all, interrupted) = self.request(message.clone(), NLM_F_DUMP, what).await?;
            if !interrupted {
                return Ok(all);
            }
        }
        Err(what.errno(libc::EAGAIN))
    }
}

/// How often a dump is repeated because something changed meanwhile.
const DUMP_ATTEMPTS: usize = 20;

/// Turns the errno that says "it is already so" into Ok(false).
fn unless(result: Result<()>, errno: &[i32]) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::Netlink { errno: e, .. }) if errno.contains(&e) => Ok(false),
        Err(e) => Err(e),
    }
}
