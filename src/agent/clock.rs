// SPDX-License-Identifier: Apache-2.0
//! Times for people.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// Now, RFC 3339 in UTC.
pub fn now() -> String {
    text(OffsetDateTime::now_utc())
}

/// `CLOCK_MONOTONIC`, ns, as events carry it.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A `CLOCK_MONOTONIC` time in ns, as events carry it, as RFC 3339 in UTC.
pub fn from_monotonic(ns: u64) -> String {
    let age = std::time::Duration::from_nanos(monotonic_ns().saturating_sub(ns));
    text(OffsetDateTime::now_utc() - age)
}
