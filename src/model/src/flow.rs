// SPDX-License-Identifier: Apache-2.0
//! Keys of the flow tables. The programs make the same in `lib/ct.h`.

use crate::abi::{Be16, Be32, FlowKey4, FlowKey6};

/// Sorted as the words stand in memory.
fn sorted<T: Ord>(one: T, other: T) -> (T, T) {
    if one <= other { (one, other) } else { (other, one) }
}

impl FlowKey4 {
    /// Of the flow between two ends, whoever opened it.
    pub fn between(one: (Be32, Be16), other: (Be32, Be16), proto: u8) -> Self {
        let ((a, ap), (b, bp)) = sorted(one, other);
        Self { a, b, ap, bp, proto, ..Self::default() }
    }
}

impl FlowKey6 {
    /// Of the flow between two ends, whoever opened it.
    pub fn between(one: ([Be32; 4], Be16), other: ([Be32; 4], Be16), proto: u8) -> Self {
        let ((a, ap), (b, bp)) = sorted(one, other);
        Self { a, b, ap, bp, proto, ..Self::default() }
    }
}
