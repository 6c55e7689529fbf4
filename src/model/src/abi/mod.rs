// SPDX-License-Identifier: Apache-2.0
//! Every key, value, event, map and enum that Rust and the BPF programs share, declared once.
//!
//! [`print::abi_h`] and [`print::maps_h`] print the C side. The committed copies live in `bpf-templates/generated`;
//! `tests/generated.rs` fails when they are stale. Sizes and offsets are asserted in C, implicit padding is a compile
//! error in Rust (zerocopy's `IntoBytes`).

pub mod layout;
mod maps;
pub mod print;
mod shapes;

pub use layout::{Be16, Be32};
pub use maps::*;
pub use shapes::*;
