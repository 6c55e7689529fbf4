// SPDX-License-Identifier: Apache-2.0
//! The stream of `GET /v1/flows`.

use crate::client::{Connection, query};
use crate::error::ClientError;
use crate::types::FlowEvent;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// A longer line is no event; it would only fill memory.
const MAX_LINE: usize = 1 << 20;

/// Which events to send. An empty list does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Event types, e.g. `drop`.
    pub types: Vec<String>,
    /// References of endpoints that send.
    pub from: Vec<String>,
    /// References of endpoints that receive.
    pub to: Vec<String>,
    /// References of endpoints that do either.
    pub related: Vec<String>,
}

impl FlowFilter {
    pub(crate) fn target(&self) -> String {
        let lists = [("type", &self.types), ("from", &self.from), ("to", &self.to), ("related", &self.related)];
        let pairs: Vec<(&str, String)> =
            lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(key, list)| (key, list.join(","))).collect();
        query("/v1/flows", &pairs)
    }
}

/// Events as they come. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Flows {
    connection: Connection,
    body: Incoming,
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that hold no newline.
    searched: usize,
    ended: bool,
}

impl Flows {
    pub(crate) fn new(connection: Connection, body: Incoming) -> Flows {
        Flows { connection, body, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next event, or `None` when the agent ended the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<FlowEvent>, ClientError> {
        loop {
            if let Some(line) = self.take_line()? {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|e| self.connection.protocol(format!("a line of the stream is no event: {e}")));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(e)) => {
                    self.ended = true;
                    return Err(self.connection.protocol(format!("the stream broke off: {e}")));
                }
                None => self.ended = true,
            }
        }
    }

    /// Whether [`Flows::next`] would answer without waiting; a printer flushes when not.
    pub fn has_buffered(&self) -> bool {
        self.buffer[self.searched..].contains(&b'\n')
    }

    fn take_line(&mut self) -> Result<Option<BytesMut>, ClientError> {
        if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let line = self.buffer.split_to(self.searched + at);
            self.buffer.advance(1);
            self.searched = 0;
            return Ok(Some(line));
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > MAX_LINE {
            return Err(self.connection.protocol(format!("a line of the stream is longer than {MAX_LINE} bytes")));
        }
        if self.ended && !self.buffer.is_empty() {
            self.searched = 0;
            return Ok(Some(self.buffer.split()));
        }
        Ok(None)
    }
}
