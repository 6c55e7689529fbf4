// SPDX-License-Identifier: Apache-2.0
#[path = "../kernel/support.rs"]
#[allow(dead_code, reason = "shared with the kernel tests, which use more of it")]
mod support;

mod containerd;
mod cri;
mod docker;
mod podman;
mod vagrant;
