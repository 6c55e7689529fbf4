// SPDX-License-Identifier: Apache-2.0
//! The kernel's tick.

use crate::error::{Error, Result};

/// Ticks (jiffies) a second: what turns seconds into the times that flow entries hold. The coarse clock moves once a tick,
/// so its resolution is the tick.
pub fn hz() -> Result<u32> {
    let ns = crate::sys::coarse_resolution_ns().map_err(|errno| Error::Kernel { action: "read the clock's resolution", errno })?;
    // Rounded: HZ=300 has a resolution of 3333333 ns.
    u32::try_from((1_000_000_000 + ns / 2) / ns.max(1))
        .map_err(|_| Error::Invalid { field: "clock resolution", reason: "below a nanosecond" })
}
