// SPDX-License-Identifier: Apache-2.0
//! What no library offers: device features, test runs with live frames, a thread's priority. The only `unsafe` here.

use anyhow::{Result, bail, ensure};
use libbpf_sys as bpf;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn last(action: &str) -> anyhow::Error {
    anyhow::Error::new(std::io::Error::last_os_error()).context(action.to_owned())
}

/// The calling thread, and those that it starts, run on one processor and before others.
pub fn own_processor(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    // SAFETY: no pointers; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } != 0 {
        return Err(last("setpriority"));
    }
    Ok(())
}

/// Hundreds of namespaces are open at once.
pub fn relax_limits() -> Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// Sends the same datagram to where a socket is connected, `batch` times a call: ns of each call.
pub fn send_batches(socket: &std::net::UdpSocket, data: &[u8], batch: usize, calls: usize) -> Result<Vec<f64>> {
    let slice = [std::io::IoSlice::new(data)];
    let slices = vec![slice; batch];
    let to: Vec<Option<nix::sys::socket::SockaddrStorage>> = vec![None; batch];
    let mut headers = nix::sys::socket::MultiHeaders::preallocate(batch, None);
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let since = std::time::Instant::now();
        let sent =
            nix::sys::socket::sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &to, [], nix::sys::socket::MsgFlags::empty())?.count();
        times.push(since.elapsed().as_nanos() as f64);
        ensure!(sent == batch, "only {sent} of {batch} datagrams were sent");
    }
    Ok(times)
}

const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;

#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// No packet larger than the MTU leaves `eth0` of the calling thread's namespace.
pub fn segmentation_off() -> Result<()> {
    let socket = std::net::UdpSocket::bind("[::]:0")?;
    for cmd in [ETHTOOL_STSO, ETHTOOL_SGSO] {
        let mut value = EthtoolValue { cmd, data: 0 };
        // SAFETY: an ifreq is plain data for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
            *to = *from as _;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL takes an ifreq whose data points to the command's struct; both outlive the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } != 0 {
            return Err(last("SIOCETHTOOL"));
        }
    }
    Ok(())
}

/// Bytes at a frame's beginning that paths change: addresses, and hops with their checksum.
const CHANGED: usize = 40;

/// An XDP program that lets every frame pass. The kernel uses the same pages again and again, with what a path has written into
/// them, so it also puts the headers back.
pub struct Injector {
    program: OwnedFd,
    frame: Vec<u8>,
}

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> u64 {
    u64::from(code) | u64::from(src << 4 | dst) << 8 | u64::from(off as u16) << 16 | u64::from(imm) << 32
}

/// Two bytes of a frame that are random, and where their complement stands, so that no checksum changes.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    pub at: usize,
    pub complements: &'static [usize],
}

impl Injector {
    pub fn new(frame: Vec<u8>) -> Result<Self> {
        Self::with_random(frame, &[])
    }

    /// Each frame has other bytes at these places, which are even and hold zero (and the complement of it).
    pub fn with_random(frame: Vec<u8>, random: &[Random]) -> Result<Self> {
        let last = random.iter().flat_map(|r| r.complements.iter().chain([&r.at])).map(|at| at + 2).max().unwrap_or(0);
        let checked = CHANGED.max(last);
        ensure!(frame.len() >= checked, "a frame of {} bytes", frame.len());
        let mut body: Vec<u64> = Vec::new();
        for (n, word) in frame[..CHANGED].chunks_exact(4).enumerate() {
            body.push(insn(0x62, 6, 0, 4 * n as i16, u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
        }
        for r in random {
            // call bpf_get_prandom_u32; *(u16 *)(r6 + at) = r0; r0 ^= -1; *(u16 *)(r6 + complement) = r0
            body.extend([insn(0x85, 0, 0, 0, 7), insn(0x6b, 6, 0, r.at as i16, 0), insn(0xa7, 0, 0, 0, u32::MAX)]);
            body.extend(r.complements.iter().map(|at| insn(0x6b, 6, 0, *at as i16, 0)));
        }
        // r6 = data; r3 = data_end; r4 = r6 + checked; if r4 > r3 goto pass
        let mut insns = vec![
            insn(0x61, 6, 1, 0, 0),
            insn(0x61, 3, 1, 4, 0),
            insn(0xbf, 4, 6, 0, 0),
            insn(0x07, 4, 0, 0, checked as u32),
            insn(0x2d, 4, 3, body.len() as i16, 0),
        ];
        insns.extend(body);
        // pass: r0 = XDP_PASS; exit
        insns.extend([insn(0xb7, 0, 0, 0, 2), insn(0x95, 0, 0, 0, 0)]);
        // SAFETY: a bpf_insn is eight bytes, and both strings are C strings; options are optional.
        let fd = unsafe {
            bpf::bpf_prog_load(
                bpf::BPF_PROG_TYPE_XDP,
                c"pilus_bench".as_ptr(),
                c"Dual MIT/GPL".as_ptr(),
                insns.as_ptr().cast(),
                insns.len() as _,
                std::ptr::null_mut(),
            )
        };
        if fd < 0 {
            return Err(anyhow::Error::new(std::io::Error::from_raw_os_error(-fd)).context("load an XDP program"));
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { program: unsafe { OwnedFd::from_raw_fd(fd) }, frame })
    }

    /// Lets a device of the calling thread's namespace receive the frame `count` times, and says how many ns each took, as the
    /// kernel measured it.
    pub fn receive(&self, ifindex: u32, count: u32) -> Result<f64> {
        let frame = &self.frame;
        let ctx = bpf::xdp_md { data_end: frame.len() as u32, ingress_ifindex: ifindex, ..Default::default() };
        let mut opts = bpf::bpf_test_run_opts {
            sz: size_of::<bpf::bpf_test_run_opts>() as _,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            ctx_in: (&raw const ctx).cast(),
            ctx_size_in: size_of::<bpf::xdp_md>() as u32,
            repeat: count as i32,
            flags: bpf::BPF_F_TEST_XDP_LIVE_FRAMES,
            ..Default::default()
        };
        // SAFETY: frame and context are valid for the lengths given beside them; live frames have no output.
        let ret = unsafe { bpf::bpf_prog_test_run_opts(self.program.as_raw_fd(), &mut opts) };
        if ret < 0 {
            bail!("test run with live frames: {}", std::io::Error::from_raw_os_error(-ret));
        }
        Ok(opts.duration.into())
    }
}
