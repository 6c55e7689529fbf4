// SPDX-License-Identifier: Apache-2.0
//! Keys of the flow tables. The programs make the same in `lib/ct.h`.

use crate::abi::{Be16, Be32, FlowKey4, FlowKey6};
use zerocopy::IntoBytes;

fn sorted<T, K: Ord>(one: T, other: T, order: impl Fn(&T) -> K) -> (T, T) {
    if order(&one) <= order(&other) { (one, other) } else { (other, one) }
}

/// The address as words of 64 bits, as they stand in memory: what the ends of an IPv6 flow are sorted by, then by their ports.
fn key6_order(address: &[Be32; 4]) -> [u64; 2] {
    let word = |at| address.as_bytes()[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
    [word(0), word(8)]
}

impl FlowKey4 {
    /// Of the flow between two ends, whoever opened it. Sorted by address and port as they stand in memory.
    pub fn between(one: (Be32, Be16), other: (Be32, Be16), proto: u8) -> Self {
        let ((a, ap), (b, bp)) = sorted(one, other, |end| *end);
        Self { a, b, ap, bp, proto, ..Self::default() }
    }
}

impl FlowKey6 {
    /// Of the flow between two ends, whoever opened it.
    pub fn between(one: ([Be32; 4], Be16), other: ([Be32; 4], Be16), proto: u8) -> Self {
        let ((a, ap), (b, bp)) = sorted(one, other, |(address, port)| (key6_order(address), *port));
        Self { a, b, ap, bp, proto, ..Self::default() }
    }
}
