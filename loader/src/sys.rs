// SPDX-License-Identifier: Apache-2.0
//! The kernel's BPF calls as safe functions. All `unsafe` of this crate is here.
//!
//! Every function returns the positive errno as its error. Lengths of keys and values are checked against what the kernel
//! itself says about the map, which is what makes the wrappers safe: the kernel reads and writes exactly that many bytes.

use std::ffi::{CString, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libbpf_sys as bpf;

/// An errno value, positive.
pub(crate) type Errno = i32;

fn check(ret: c_int) -> Result<c_int, Errno> {
    if ret < 0 { Err(-ret) } else { Ok(ret) }
}

fn own(ret: c_int) -> Result<OwnedFd, Errno> {
    let fd = check(ret)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn path_c(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)
}

/// Opens a pinned object of any kind.
pub(crate) fn obj_get(path: &Path) -> Result<OwnedFd, Errno> {
    let path = path_c(path)?;
    // SAFETY: `path` is a C string that outlives the call.
    own(unsafe { bpf::bpf_obj_get(path.as_ptr()) })
}

/// Pins an object of any kind.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let path = path_c(path)?;
    // SAFETY: `path` is a C string that outlives the call, the descriptor is open.
    check(unsafe { bpf::bpf_obj_pin(fd.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// What the kernel says about a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: String,
}

fn text(bytes: &[std::ffi::c_char]) -> String {
    bytes.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect()
}

/// Asks what a map is. A descriptor of another kind of object is EINVAL.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> Result<MapInfo, Errno> {
    let mut info = bpf::bpf_map_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is writable for `len` bytes; libbpf compares the object's kind through the kernel.
    check(unsafe { bpf::bpf_map_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) })?;
    Ok(MapInfo {
        kind: info.type_,
        id: info.id,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
        name: text(&info.name),
    })
}

/// Opens a map by its number.
pub(crate) fn map_by_id(id: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    own(unsafe { bpf::bpf_map_get_fd_by_id(id) })
}

/// What the kernel says about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgInfo {
    pub id: u32,
    pub kind: u32,
    pub tag: [u8; 8],
    pub name: String,
    pub xlated_bytes: u32,
    pub jited_bytes: u32,
    pub verified_insns: u32,
    pub map_ids: Vec<u32>,
}

/// Asks what a program is.
pub(crate) fn prog_info(fd: BorrowedFd<'_>) -> Result<ProgInfo, Errno> {
    let mut wanted = 0;
    loop {
        let mut map_ids = vec![0u32; wanted as usize];
        let mut info = bpf::bpf_prog_info { nr_map_ids: wanted, map_ids: map_ids.as_mut_ptr() as u64, ..Default::default() };
        let mut len = size_of_val(&info) as u32;
        // SAFETY: `info` is writable for `len` bytes, and `map_ids` for the `nr_map_ids` numbers that it announces.
        check(unsafe { bpf::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) })?;
        if info.nr_map_ids > wanted {
            wanted = info.nr_map_ids;
            continue;
        }
        map_ids.truncate(info.nr_map_ids as usize);
        return Ok(ProgInfo {
            id: info.id,
            kind: info.type_,
            tag: info.tag,
            name: text(&info.name),
            xlated_bytes: info.xlated_prog_len,
            jited_bytes: info.jited_prog_len,
            verified_insns: info.verified_insns,
            map_ids,
        });
    }
}

/// Opens a program by its number.
pub(crate) fn prog_by_id(id: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    own(unsafe { bpf::bpf_prog_get_fd_by_id(id) })
}

/// Loads `r0 = 0; exit` as a tc program: something harmless to ask questions with.
pub(crate) fn load_nothing() -> Result<OwnedFd, Errno> {
    let insns = [0x0000_0000_0000_00b7u64, 0x0000_0000_0000_0095u64];
    // SAFETY: a bpf_insn is eight bytes, and both strings are C strings; options are optional.
    own(unsafe {
        bpf::bpf_prog_load(
            bpf::BPF_PROG_TYPE_SCHED_CLS,
            c"pilus_probe".as_ptr(),
            c"Dual MIT/GPL".as_ptr(),
            insns.as_ptr().cast(),
            insns.len() as _,
            std::ptr::null_mut(),
        )
    })
}

/// Answer of a test run.
pub(crate) struct RawRun {
    pub retval: u32,
    pub data_len: usize,
    pub ctx_len: usize,
    pub duration_ns: u32,
}

/// Runs a program on a packet.
pub(crate) fn test_run(
    fd: BorrowedFd<'_>,
    data_in: &[u8],
    data_out: &mut [u8],
    ctx_in: &[u8],
    ctx_out: &mut [u8],
    repeat: u32,
) -> Result<RawRun, Errno> {
    let or_null = |b: &[u8]| if b.is_empty() { std::ptr::null() } else { b.as_ptr().cast::<c_void>() };
    let or_null_mut = |b: &mut [u8]| if b.is_empty() { std::ptr::null_mut() } else { b.as_mut_ptr().cast::<c_void>() };
    let mut opts = bpf::bpf_test_run_opts {
        sz: size_of::<bpf::bpf_test_run_opts>() as _,
        data_in: or_null(data_in),
        data_size_in: data_in.len() as u32,
        data_out: or_null_mut(data_out),
        data_size_out: data_out.len() as u32,
        ctx_in: or_null(ctx_in),
        ctx_size_in: ctx_in.len() as u32,
        ctx_out: or_null_mut(ctx_out),
        ctx_size_out: ctx_out.len() as u32,
        repeat: c_int::try_from(repeat).map_err(|_| libc::EINVAL)?,
        ..Default::default()
    };
    // SAFETY: all four buffers are valid for the lengths given beside them.
    check(unsafe { bpf::bpf_prog_test_run_opts(fd.as_raw_fd(), &mut opts) })?;
    Ok(RawRun {
        retval: opts.retval,
        data_len: opts.data_size_out as usize,
        ctx_len: opts.ctx_size_out as usize,
        duration_ns: opts.duration,
    })
}

/// Creates a map. Sizes in bytes.
pub(crate) fn map_create(kind: u32, name: &str, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let name = CString::new(name).map_err(|_| libc::EINVAL)?;
    let opts = bpf::bpf_map_create_opts { sz: size_of::<bpf::bpf_map_create_opts>() as _, map_flags: flags, ..Default::default() };
    // SAFETY: `name` and `opts` outlive the call.
    own(unsafe { bpf::bpf_map_create(kind, name.as_ptr(), key_size, value_size, max_entries, &opts) })
}

/// Possible CPUs: how many values a per-CPU entry has.
pub(crate) fn cpus() -> Result<usize, Errno> {
    // SAFETY: no pointers.
    check(unsafe { bpf::libbpf_num_possible_cpus() }).map(|n| n as usize)
}

/// A map and the sizes that the kernel will use with it.
#[derive(Debug)]
pub(crate) struct MapFd {
    pub fd: OwnedFd,
    pub info: MapInfo,
    /// Bytes of one key in a batch cursor or buffer.
    key: usize,
    /// Bytes that the kernel reads and writes for one value: all CPUs' values in a per-CPU map.
    value: usize,
}

/// Whether an object asks for a map to be pinned.
pub(crate) fn has_pin_path(map: &libbpf_rs::OpenMapMut<'_>) -> bool {
    let map = libbpf_rs::AsRawLibbpf::as_libbpf_object(map);
    // SAFETY: the pointer is that of a map whose object `map` borrows.
    !unsafe { bpf::bpf_map__pin_path(map.as_ptr()) }.is_null()
}

/// Has a map that uses a descriptor not look for its pin once more.
pub(crate) fn forget_pin_path(map: &mut libbpf_rs::OpenMapMut<'_>) {
    let map = libbpf_rs::AsRawLibbpf::as_libbpf_object(map);
    // SAFETY: the pointer is that of a map whose object `map` borrows. Nothing can fail without a new path.
    unsafe { bpf::bpf_map__set_pin_path(map.as_ptr(), std::ptr::null()) };
}

/// Loads an opened object. (libbpf-rs's own `load` keeps the errno to itself.)
pub(crate) fn object_load(object: libbpf_rs::OpenObject) -> Result<libbpf_rs::Object, Errno> {
    let ptr = libbpf_rs::AsRawLibbpf::as_libbpf_object(&object);
    // SAFETY: the object is open, ours alone, and was not loaded before.
    check(unsafe { bpf::bpf_object__load(ptr.as_ptr()) })?;
    // SAFETY: the object was just loaded, and `take_ptr` gives up its only other owner.
    Ok(unsafe { libbpf_rs::Object::from_ptr(object.take_ptr()) })
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// More may follow.
    More(usize),
    /// These were the last.
    Last(usize),
}

impl MapFd {
    /// Takes a map over.
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let info = map_info(fd.as_fd())?;
        let percpu =
            matches!(info.kind, bpf::BPF_MAP_TYPE_PERCPU_ARRAY | bpf::BPF_MAP_TYPE_PERCPU_HASH | bpf::BPF_MAP_TYPE_LRU_PERCPU_HASH);
        let value = if percpu { (info.value_size as usize).next_multiple_of(8) * cpus()? } else { info.value_size as usize };
        Ok(Self { fd, key: info.key_size as usize, value, info })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of one value as the kernel sees it.
    pub fn value_len(&self) -> usize {
        self.value
    }

    fn fits(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), Errno> {
        if key.len() != self.key || value.is_some_and(|v| v.len() != self.value) { Err(libc::EINVAL) } else { Ok(()) }
    }

    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        self.fits(key, Some(value))?;
        // SAFETY: `fits` proved that the kernel reads and writes no more than these buffers.
        check(unsafe { bpf::bpf_map_lookup_elem(self.fd.as_raw_fd(), key.as_ptr().cast(), value.as_mut_ptr().cast()) }).map(drop)
    }

    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.fits(key, Some(value))?;
        // SAFETY: as in `lookup`; the kernel only reads.
        check(unsafe { bpf::bpf_map_update_elem(self.fd.as_raw_fd(), key.as_ptr().cast(), value.as_ptr().cast(), flags) }).map(drop)
    }

    pub fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.fits(key, None)?;
        // SAFETY: as in `lookup`; the kernel only reads.
        check(unsafe { bpf::bpf_map_delete_elem(self.fd.as_raw_fd(), key.as_ptr().cast()) }).map(drop)
    }

    /// The key after `key`, or the first; ENOENT at the end.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
        self.fits(next, None)?;
        if let Some(key) = key {
            self.fits(key, None)?;
        }
        let key = key.map_or(std::ptr::null(), |k| k.as_ptr().cast());
        // SAFETY: as in `lookup`; a null key asks for the first.
        check(unsafe { bpf::bpf_map_get_next_key(self.fd.as_raw_fd(), key, next.as_mut_ptr().cast()) }).map(drop)
    }

    /// Bytes of a batch cursor: the kernel keeps a bucket number or a key in it.
    pub fn cursor_len(&self) -> usize {
        self.key.max(4)
    }

    /// Reads the next entries. `cursor` is None at the start and is left where the next call goes on.
    /// ENOSPC: the buffers hold less than one bucket; the cursor is unchanged.
    pub fn lookup_batch(&self, cursor: &mut Option<Vec<u8>>, keys: &mut [u8], values: &mut [u8], n: usize) -> Result<Batch, Errno> {
        if keys.len() != n * self.key || values.len() != n * self.value || cursor.as_ref().is_some_and(|c| c.len() != self.cursor_len()) {
            return Err(libc::EINVAL);
        }
        let mut out = vec![0u8; self.cursor_len()];
        let mut count = u32::try_from(n).map_err(|_| libc::EINVAL)?;
        let opts = bpf::bpf_map_batch_opts { sz: size_of::<bpf::bpf_map_batch_opts>() as _, ..Default::default() };
        let input = cursor.as_mut().map_or(std::ptr::null_mut(), |c| c.as_mut_ptr().cast());
        // SAFETY: cursors are `cursor_len` bytes, keys and values hold `count` entries of the map's sizes; checked above.
        let ret = unsafe {
            bpf::bpf_map_lookup_batch(
                self.fd.as_raw_fd(),
                input,
                out.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                &opts,
            )
        };
        let count = (count as usize).min(n);
        match check(ret) {
            Ok(_) => {
                *cursor = Some(out);
                Ok(Batch::More(count))
            }
            Err(libc::ENOENT) => Ok(Batch::Last(count)),
            Err(e) => Err(e),
        }
    }

    /// Writes entries. The error carries how many were written before it.
    pub fn update_batch(&self, keys: &[u8], values: &[u8], n: usize) -> Result<(), (Errno, usize)> {
        // Per-CPU maps are refused: callers have one value per entry.
        if keys.len() != n * self.key || values.len() != n * self.value || self.value != self.info.value_size as usize {
            return Err((libc::EINVAL, 0));
        }
        let mut count = u32::try_from(n).map_err(|_| (libc::EINVAL, 0))?;
        let opts = bpf::bpf_map_batch_opts { sz: size_of::<bpf::bpf_map_batch_opts>() as _, ..Default::default() };
        // SAFETY: keys and values hold `count` entries of the map's sizes, checked above; the kernel only reads them.
        let ret =
            unsafe { bpf::bpf_map_update_batch(self.fd.as_raw_fd(), keys.as_ptr().cast(), values.as_ptr().cast(), &mut count, &opts) };
        check(ret).map(drop).map_err(|e| (e, (count as usize).min(n)))
    }

    /// Deletes entries. The error carries how many were deleted before it.
    pub fn delete_batch(&self, keys: &[u8], n: usize) -> Result<(), (Errno, usize)> {
        if keys.len() != n * self.key {
            return Err((libc::EINVAL, 0));
        }
        let mut count = u32::try_from(n).map_err(|_| (libc::EINVAL, 0))?;
        let opts = bpf::bpf_map_batch_opts { sz: size_of::<bpf::bpf_map_batch_opts>() as _, ..Default::default() };
        // SAFETY: keys hold `count` entries of the map's key size, checked above; the kernel only reads them.
        let ret = unsafe { bpf::bpf_map_delete_batch(self.fd.as_raw_fd(), keys.as_ptr().cast(), &mut count, &opts) };
        check(ret).map(drop).map_err(|e| (e, (count as usize).min(n)))
    }
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawLinkInfo {
    pub id: u32,
    pub prog_id: u32,
    pub ifindex: u32,
    pub attach_type: u32,
}

/// Attaches a program to an interface by a link.
pub(crate) fn link_create(prog: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> Result<OwnedFd, Errno> {
    let ifindex = c_int::try_from(ifindex).map_err(|_| libc::ENODEV)?;
    let opts = bpf::bpf_link_create_opts { sz: size_of::<bpf::bpf_link_create_opts>() as _, ..Default::default() };
    // SAFETY: `opts` outlives the call. Zero in all of it means: behind the programs that are there already.
    own(unsafe { bpf::bpf_link_create(prog.as_raw_fd(), ifindex, attach_type, &opts) })
}

/// Swaps the program of a link.
pub(crate) fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers; options are optional.
    check(unsafe { bpf::bpf_link_update(link.as_raw_fd(), prog.as_raw_fd(), std::ptr::null()) }).map(drop)
}

/// Detaches a link at once, whoever else still holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { bpf::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// Asks what a link is; EINVAL if it is neither of tcx nor of netkit.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> Result<RawLinkInfo, Errno> {
    let mut info = bpf::bpf_link_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is writable for `len` bytes.
    check(unsafe { bpf::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut len) })?;
    // SAFETY: the link's type says which field is in use; both are two plain numbers.
    let (ifindex, attach_type) = unsafe {
        let of = info.__bindgen_anon_1;
        match info.type_ {
            bpf::BPF_LINK_TYPE_TCX => (of.tcx.ifindex, of.tcx.attach_type),
            bpf::BPF_LINK_TYPE_NETKIT => (of.netkit.ifindex, of.netkit.attach_type),
            _ => return Err(libc::EINVAL),
        }
    };
    Ok(RawLinkInfo { id: info.id, prog_id: info.prog_id, ifindex, attach_type })
}

fn tc_hook(ifindex: u32, point: u32) -> Result<bpf::bpf_tc_hook, Errno> {
    let ifindex = c_int::try_from(ifindex).map_err(|_| libc::ENODEV)?;
    Ok(bpf::bpf_tc_hook { sz: size_of::<bpf::bpf_tc_hook>() as _, ifindex, attach_point: point, ..Default::default() })
}

fn tc_opts(handle: u32, priority: u32) -> bpf::bpf_tc_opts {
    bpf::bpf_tc_opts { sz: size_of::<bpf::bpf_tc_opts>() as _, handle, priority, ..Default::default() }
}

/// Adds the clsact qdisc; EEXIST if it is there.
pub(crate) fn clsact_create(ifindex: u32) -> Result<(), Errno> {
    let mut hook = tc_hook(ifindex, bpf::BPF_TC_INGRESS | bpf::BPF_TC_EGRESS)?;
    // SAFETY: `hook` outlives the call.
    check(unsafe { bpf::bpf_tc_hook_create(&mut hook) }).map(drop)
}

/// Removes the clsact qdisc with everything on it.
pub(crate) fn clsact_destroy(ifindex: u32) -> Result<(), Errno> {
    let mut hook = tc_hook(ifindex, bpf::BPF_TC_INGRESS | bpf::BPF_TC_EGRESS)?;
    // SAFETY: `hook` outlives the call.
    check(unsafe { bpf::bpf_tc_hook_destroy(&mut hook) }).map(drop)
}

/// Puts a program on one side of a clsact qdisc (direct action), in place of the filter with the same handle and priority.
pub(crate) fn tc_attach(prog: BorrowedFd<'_>, ifindex: u32, point: u32, handle: u32, priority: u32) -> Result<(), Errno> {
    let hook = tc_hook(ifindex, point)?;
    let mut opts = tc_opts(handle, priority);
    opts.prog_fd = prog.as_raw_fd();
    opts.flags = bpf::BPF_TC_F_REPLACE;
    // SAFETY: both structures outlive the call.
    check(unsafe { bpf::bpf_tc_attach(&hook, &mut opts) }).map(drop)
}

/// Removes a filter.
pub(crate) fn tc_detach(ifindex: u32, point: u32, handle: u32, priority: u32) -> Result<(), Errno> {
    let hook = tc_hook(ifindex, point)?;
    let opts = tc_opts(handle, priority);
    // SAFETY: both structures outlive the call.
    check(unsafe { bpf::bpf_tc_detach(&hook, &opts) }).map(drop)
}

/// Program of a filter.
pub(crate) fn tc_query(ifindex: u32, point: u32, handle: u32, priority: u32) -> Result<u32, Errno> {
    let hook = tc_hook(ifindex, point)?;
    let mut opts = tc_opts(handle, priority);
    // SAFETY: both structures outlive the call.
    check(unsafe { bpf::bpf_tc_query(&hook, &mut opts) })?;
    Ok(opts.prog_id)
}

/// Pages of this process's memory that belong to a map.
struct Mapped {
    at: NonNull<u8>,
    len: usize,
}

impl Mapped {
    /// Those of a ring buffer from `offset` on, in bytes.
    fn new(map: BorrowedFd<'_>, offset: usize, len: usize, prot: c_int) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, map.as_raw_fd(), offset as libc::off_t) };
        if at == libc::MAP_FAILED {
            return Err(last_errno());
        }
        Ok(Self { at: NonNull::new(at.cast()).ok_or(libc::ENOMEM)?, len })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and borrows of it do not outlive `self`.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// Before each record in a ring: its length with two flags, and the page that it is on.
const RECORD_HEADER: usize = 8;

/// Bytes that were read before the kernel is told of it: it looks at the reader's position for each record that it makes, and a
/// line of memory that both write goes from one processor to the other each time.
const TELL: u64 = 64 * 1024;

/// A mapped ring buffer (linux/bpf.h, Documentation/bpf/ringbuf.rst): a page with the reader's position, which we write, one with
/// the kernel's, and the records, twice in a row, so that none is in two pieces. Of the second copy a page is mapped: no record
/// may be longer.
pub(crate) struct Ring {
    reader: Mapped,
    kernel: Mapped,
    page: usize,
    size: usize,
    epoll: OwnedFd,
    _map: OwnedFd,
}

// SAFETY: a mapping has no tie to the thread that made it; `&mut self` in `consume` excludes two at a time.
unsafe impl Send for Ring {}

/// The reader's position; the kernel learns it in steps, and in the end even if the sink panics.
struct Position<'a> {
    shared: &'a AtomicU64,
    at: u64,
    told: u64,
}

impl Position<'_> {
    fn tell(&mut self) {
        self.shared.store(self.at, Ordering::Release);
        self.told = self.at;
    }
}

impl Drop for Position<'_> {
    fn drop(&mut self) {
        if self.told != self.at {
            self.tell();
        }
    }
}

impl Ring {
    /// Maps a ring buffer map.
    pub fn new(map: OwnedFd) -> Result<Self, Errno> {
        let size = map_info(map.as_fd())?.max_entries as usize;
        // SAFETY: no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(|_| libc::EINVAL)?;
        let reader = Mapped::new(map.as_fd(), 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let kernel = Mapped::new(map.as_fd(), page, page + size + page, libc::PROT_READ)?;
        // SAFETY: no pointers.
        let epoll = own(check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map_err(|_| last_errno())?)?;
        // Edge-triggered: ready when a program wakes the reader, and not already when something is there.
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        // SAFETY: both descriptors are open, `event` outlives the call.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, map.as_raw_fd(), &mut event) } != 0 {
            return Err(last_errno());
        }
        Ok(Self { reader, kernel, page, size, epoll, _map: map })
    }

    fn reader(&self) -> &AtomicU64 {
        // SAFETY: the page begins with it, is mapped for writing as long as `self` lives, and is written by atomic stores alone.
        unsafe { AtomicU64::from_ptr(self.reader.at.as_ptr().cast()) }
    }

    fn kernel(&self) -> &AtomicU64 {
        // SAFETY: as above, but that we only read it, which an atomic load does.
        unsafe { AtomicU64::from_ptr(self.kernel.at.as_ptr().cast()) }
    }

    /// Bytes that wait to be read.
    pub fn unread(&self) -> u64 {
        self.kernel().load(Ordering::Relaxed).wrapping_sub(self.reader().load(Ordering::Relaxed))
    }

    /// Waits until a program wakes us, or a signal comes, at most so many ms; -1 is for ever.
    pub fn wait(&self, ms: c_int) -> Result<(), Errno> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `event` has room for one.
        match unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &mut event, 1, ms) } {
            -1 if last_errno() != libc::EINTR => Err(last_errno()),
            _ => Ok(()),
        }
    }

    /// Hands over at most `max` records that are there now; how many it were.
    pub fn consume(&mut self, max: usize, sink: &mut dyn FnMut(&[u8])) -> Result<usize, Errno> {
        let at = self.reader().load(Ordering::Relaxed);
        let mut position = Position { shared: self.reader(), at, told: at };
        let mut count = 0;
        loop {
            let end = self.kernel().load(Ordering::Acquire);
            if position.at == end {
                return Ok(count);
            }
            while position.at != end {
                if count == max {
                    return Ok(count);
                }
                let offset = self.page + (position.at as usize & (self.size - 1));
                // SAFETY: below the kernel's position is a record, at a multiple of eight bytes, whose header is mapped and is
                // written by the kernel before, and once more, atomically, when the record is whole.
                let header = unsafe { AtomicU32::from_ptr(self.kernel.at.as_ptr().add(offset).cast()) }.load(Ordering::Acquire);
                if header & bpf::BPF_RINGBUF_BUSY_BIT != 0 {
                    return Ok(count);
                }
                let len = (header & !bpf::BPF_RINGBUF_DISCARD_BIT) as usize;
                if len > self.page - RECORD_HEADER {
                    return Err(libc::EMSGSIZE);
                }
                // Also if the sink panics, it has had this one.
                position.at = position.at.wrapping_add((RECORD_HEADER + len).next_multiple_of(8) as u64);
                if header & bpf::BPF_RINGBUF_DISCARD_BIT == 0 {
                    count += 1;
                    // SAFETY: a whole record stays as it is until the kernel is told that it was read, which is after this.
                    sink(unsafe { std::slice::from_raw_parts(self.kernel.at.as_ptr().add(offset + RECORD_HEADER), len) });
                }
                if position.at.wrapping_sub(position.told) >= TELL {
                    position.tell();
                }
            }
        }
    }
}

/// Resolution of the coarse monotonic clock in ns: the length of a jiffy.
pub(crate) fn coarse_resolution_ns() -> Result<u64, Errno> {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is writable.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut ts) } != 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
    }
    Ok(ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64)
}
