// SPDX-License-Identifier: Apache-2.0
//! What the running kernel can do.

use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::{hook, sys};

/// What the running kernel can do. Nothing on the machine is touched to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Programs attach by tcx links (6.6).
    pub tcx: bool,
    /// netkit devices take programs (6.7, and only if built in or loaded).
    pub netkit: bool,
    /// Version, major and minor.
    pub kernel: (u32, u32),
}

impl Features {
    /// Asks the kernel. Needs the right to load programs.
    pub fn probe() -> Result<Self> {
        let prog = sys::load_nothing().map_err(|errno| Error::Kernel { action: "load a program of two instructions", errno })?;
        // No interface has the largest index, so that a kernel which knows the attach type looks for it and finds none (ENODEV)
        // whereas one that does not know the type says EINVAL before it looks.
        let knows = |attach_type| matches!(sys::link_create(prog.as_fd(), i32::MAX as u32, attach_type), Err(libc::ENODEV));
        Ok(Self { tcx: knows(hook::TCX_INGRESS), netkit: knows(hook::NETKIT_PEER), kernel: kernel()? })
    }
}

/// Version of the running kernel, major and minor.
pub fn kernel() -> Result<(u32, u32)> {
    let uts = nix::sys::utsname::uname().map_err(|e| Error::Kernel { action: "ask for the kernel's version", errno: e as i32 })?;
    parse(&uts.release().to_string_lossy()).ok_or(Error::Invalid { field: "kernel version", reason: "not of the form major.minor" })
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions() {
        assert_eq!(parse("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse("6.1-rc3"), Some((6, 1)));
        assert_eq!(parse("linux"), None);
    }
}
