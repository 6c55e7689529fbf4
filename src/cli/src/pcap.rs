// SPDX-License-Identifier: Apache-2.0
//! Packets of events in a file that packet tools read.

use crate::commands::event;
use crate::failure::Failure;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};
use pilus_api::types::FlowEvent;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest packet that a file may hold: more than an event carries.
const SNAPLEN: u32 = 65_535;

/// The library does not let go of its writer, which has to be flushed.
#[derive(Clone)]
struct Shared(Rc<RefCell<BufWriter<Box<dyn Write>>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// An open file.
pub struct Pcap {
    writer: PcapWriter<Shared>,
    to: Shared,
    name: String,
}

impl Pcap {
    /// Makes the file, or takes standard output for `-`.
    pub fn open(path: &Path) -> Result<Pcap, Failure> {
        let name = path.display().to_string();
        let file: Box<dyn Write> = match path == Path::new("-") {
            true => Box::new(io::stdout()),
            false => Box::new(File::create(path).map_err(|e| Failure::new(format!("cannot write {name}: {e}")))?),
        };
        let to = Shared(Rc::new(RefCell::new(BufWriter::new(file))));
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(to.clone(), header).map_err(|e| failed(&name, e))?;
        Ok(Pcap { writer, to, name })
    }

    /// Adds the packet of an event; what is about no packet is passed over.
    pub fn write(&mut self, event: &FlowEvent) -> Result<(), Failure> {
        let bytes = event::bytes(&event.packet);
        if bytes.is_empty() {
            return Ok(());
        }
        let at = OffsetDateTime::parse(&event.time, &Rfc3339).map(OffsetDateTime::unix_timestamp_nanos).unwrap_or_default();
        let at = Duration::from_nanos(u64::try_from(at).unwrap_or_default());
        let length = event.length.max(u32::try_from(bytes.len()).unwrap_or(SNAPLEN));
        self.writer.write_packet(&PcapPacket::new(at, length, &bytes)).map_err(|e| failed(&self.name, e))?;
        Ok(())
    }

    /// Writes out what has gathered: whole packets, so that a file that is being written can be read.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(|e| failed(&self.name, PcapError::IoError(e)))
    }
}

fn failed(name: &str, error: PcapError) -> Failure {
    match error {
        PcapError::IoError(e) if e.kind() == io::ErrorKind::BrokenPipe => Failure::Io(e),
        other => Failure::new(format!("cannot write {name}: {other}")),
    }
}
