// SPDX-License-Identifier: Apache-2.0
//! Objects into the kernel: programs, maps, hooks, devices.
//!
//! Nothing here keeps state of its own: what is loaded is found again by its pin, and a device by asking the kernel. Only this
//! crate's `sys` module holds `unsafe`.

pub mod bpffs;
pub mod clock;
pub mod collection;
mod error;
pub mod events;
pub mod hook;
mod log;
pub mod maps;
pub mod netlink;
pub mod probe;
pub mod stages;
mod sys;

pub use error::{Error, Result};

#[cfg(test)]
mod tests {
    fn crosses_threads<T: Send>() {}
    fn shared<T: Send + Sync>() {}

    #[test]
    fn handles_may_be_used_from_any_thread() {
        shared::<super::collection::Collection>();
        shared::<super::maps::PinnedMap<u32, u32>>();
        shared::<super::maps::ProgArray>();
        shared::<super::netlink::Netlink>();
        shared::<super::Error>();
        crosses_threads::<super::events::Reader>();
    }
}
