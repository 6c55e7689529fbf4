// SPDX-License-Identifier: Apache-2.0
//! An event as a line for people.

use crate::output::{Output, Tone, sanitize};
use pilus_api::types::{FlowEvent, PeerModel};
use std::fmt::Write as _;
use std::io;

/// What to print besides the line.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// The packet's first bytes.
    pub hex: bool,
    /// Interface and state of every event.
    pub verbose: bool,
}

/// Prints one event.
pub fn print(out: &mut Output, event: &FlowEvent, style: Style) -> io::Result<()> {
    let (word, tone) = kind(event);
    let word = sanitize(&word).into_owned();
    let rest = rest(event, style);
    let line = format!("{} {}{}", sanitize(clock(&event.time)), out.paint(tone, &word), sanitize(&rest));
    out.painted_line(&line)?;
    if style.verbose && !event.headers.is_empty() {
        out.line(&format!("  {}", event.headers))?;
    }
    if style.hex && !event.packet.is_empty() {
        for row in dump(&event.packet) {
            out.line(&row)?;
        }
    }
    Ok(())
}

fn kind(event: &FlowEvent) -> (String, Tone) {
    match (event.kind.as_str(), event.verdict.as_str()) {
        ("drop", "audit") | ("policy-verdict", "audit") => (format!("{} audit", event.kind.to_uppercase()), Tone::Warn),
        ("drop", _) => ("DROP".to_owned(), Tone::Bad),
        ("policy-verdict", "") => ("POLICY-VERDICT".to_owned(), Tone::Plain),
        ("policy-verdict", verdict) => {
            let tone = if verdict == "allow" { Tone::Good } else { Tone::Bad };
            (format!("POLICY-VERDICT {verdict}"), tone)
        }
        ("lost", _) => ("LOST".to_owned(), Tone::Warn),
        ("trace", _) => ("TRACE".to_owned(), Tone::Good),
        (kind, _) => (kind.to_uppercase(), Tone::Plain),
    }
}

/// Everything after the kind, beginning with a space if there is anything.
fn rest(e: &FlowEvent, style: Style) -> String {
    let mut text = String::new();
    if e.kind == "lost" {
        let _ = write!(text, " {} events", e.count);
        if !e.reason.is_empty() {
            let _ = write!(text, ": {}", e.reason);
        }
        return text;
    }
    // What is no packet has nothing but words.
    let packet = e.source.is_some() || e.destination.is_some() || !e.summary.is_empty();
    match (e.reason.is_empty(), packet) {
        (true, _) => {}
        (false, true) => text.extend([" (", &e.reason, ")"]),
        (false, false) => text.extend([" ", &e.reason]),
    }
    for part in [&e.direction, &e.state] {
        if !part.is_empty() && part != "none" {
            text.extend([" ", part]);
        }
    }
    if e.source.is_some() || e.destination.is_some() {
        let _ = write!(text, " {} -> {}", peer(e.source.as_ref()), peer(e.destination.as_ref()));
        let _ = write!(text, " identity {} -> {}", identity(e.source.as_ref()), identity(e.destination.as_ref()));
    }
    if !e.rule.is_empty() {
        let _ = write!(text, " rule {}", e.rule);
    } else if packet && matches!(e.kind.as_str(), "drop" | "policy-verdict") {
        text.push_str(" rule none");
    }
    if style.verbose && e.ifindex != 0 {
        let _ = write!(text, " ifindex {}", e.ifindex);
    }
    if !e.summary.is_empty() {
        let _ = write!(text, ": {}", e.summary);
        if e.length != 0 && !e.summary.contains(" length ") {
            let _ = write!(text, " length {}", e.length);
        }
    }
    if e.count > 1 {
        let _ = write!(text, " ({} packets)", e.count);
    }
    text
}

/// `10:32:07.123` of `2026-01-02T10:32:07.123456Z`; what is no such time stays as it is.
fn clock(time: &str) -> &str {
    let Some((_, clock)) = time.split_once('T') else { return time };
    let clock = clock.trim_end_matches('Z');
    clock.get(..12).unwrap_or(clock)
}

/// `web(258)`, or what a peer that is no endpoint is called.
fn peer(peer: Option<&PeerModel>) -> String {
    let Some(peer) = peer else { return "unknown".to_owned() };
    let reserved = || peer.labels.iter().find_map(|label| label.strip_prefix("reserved:"));
    match (peer.endpoint, peer.name.as_str()) {
        (0, "") => reserved().unwrap_or("unknown").to_owned(),
        (0, name) => name.to_owned(),
        (id, "") => format!("endpoint({id})"),
        (id, name) => format!("{name}({id})"),
    }
}

fn identity(peer: Option<&PeerModel>) -> String {
    peer.map_or_else(|| "0".to_owned(), |peer| format!("{} [{}]", peer.identity, peer.labels.join(" ")))
}

/// Bytes of hex digits; what is no digit is passed over.
pub fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Hex digits as rows of sixteen bytes with offset and text.
fn dump(hex: &str) -> Vec<String> {
    let bytes = bytes(hex);
    let row = |(n, row): (usize, &[u8])| {
        let mut line = format!("  {:04x} ", n * 16);
        for half in 0..8 {
            let pair: String = row.iter().skip(half * 2).take(2).map(|byte| format!("{byte:02x}")).collect();
            let _ = write!(line, " {pair:4}");
        }
        let text: String = row.iter().map(|b| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '.' }).collect();
        format!("{line}  {text}")
    };
    bytes.chunks(16).enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_show_milliseconds() {
        assert_eq!(clock("2026-01-02T10:32:07.123456Z"), "10:32:07.123");
        assert_eq!(clock("2026-01-02T10:32:07Z"), "10:32:07");
        assert_eq!(clock("soon"), "soon");
        assert_eq!(clock("T10:32:07.12ü4"), "10:32:07.12ü4");
    }

    #[test]
    fn packets_are_dumped_in_rows() {
        let rows = dump("60000000abcd4142434445464748494a4b0");
        assert_eq!(
            rows,
            ["  0000  6000 0000 abcd 4142 4344 4546 4748 494a  `.....ABCDEFGHIJ", "  0010  4b                                       K",]
        );
        assert!(dump("").is_empty());
    }
}
