// SPDX-License-Identifier: Apache-2.0
//! Pinned maps with typed keys and values.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pilus_model::abi::{MAPS, MapDef, MapKind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::bpffs::BpfFs;
use crate::collection::Program;
use crate::error::{Error, Result};
use crate::sys::{self, Batch, MapFd, MapInfo};

/// A plain value as the kernel stores it: no padding, every bit pattern valid.
pub trait Pod: FromBytes + IntoBytes + Immutable + KnownLayout {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Pod for T {}

/// `BPF_F_NO_PREALLOC` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;
/// `BPF_NOEXIST`: only if there is no such entry.
const NOEXIST: u64 = 1;
/// Entries asked for at once, to begin with.
const BATCH: usize = 4096;
/// `ENOTSUPP` of the kernel's own errno.h, which some batch operations let out.
const ENOTSUPP: i32 = 524;

/// Everything about a map that programs rely on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    /// None: any.
    pub flags: Option<u32>,
}

impl Shape {
    pub fn of(def: &MapDef) -> Self {
        Self {
            kind: kind_number(def.kind),
            key_size: def.key_size as u32,
            value_size: def.value_size as u32,
            flags: Some(if def.no_prealloc { NO_PREALLOC } else { 0 }),
        }
    }

    pub fn found(info: &MapInfo) -> Self {
        Self { kind: info.kind, key_size: info.key_size, value_size: info.value_size, flags: Some(info.flags) }
    }

    /// Compares what there is with what is expected.
    pub fn check(&self, map: &str, found: &Self) -> Result<()> {
        let mut fields = vec![
            ("map type", self.kind, found.kind),
            ("key size", self.key_size, found.key_size),
            ("value size", self.value_size, found.value_size),
        ];
        if let (Some(expected), Some(found)) = (self.flags, found.flags) {
            fields.push(("flags", expected, found));
        }
        match fields.into_iter().find(|(_, expected, found)| expected != found) {
            None => Ok(()),
            Some((field, expected, found)) => {
                Err(Error::Layout { map: map.to_owned(), field, found: found.to_string(), expected: expected.to_string() })
            }
        }
    }
}

fn kind_number(kind: MapKind) -> u32 {
    match kind {
        MapKind::Array => libbpf_sys::BPF_MAP_TYPE_ARRAY,
        MapKind::PercpuArray => libbpf_sys::BPF_MAP_TYPE_PERCPU_ARRAY,
        MapKind::Hash => libbpf_sys::BPF_MAP_TYPE_HASH,
        MapKind::LruHash => libbpf_sys::BPF_MAP_TYPE_LRU_HASH,
        MapKind::LpmTrie => libbpf_sys::BPF_MAP_TYPE_LPM_TRIE,
        MapKind::ProgArray => libbpf_sys::BPF_MAP_TYPE_PROG_ARRAY,
        MapKind::RingBuf => libbpf_sys::BPF_MAP_TYPE_RINGBUF,
    }
}

/// The declaration of a map of ours.
pub(crate) fn definition(name: &str) -> Option<&'static MapDef> {
    MAPS.iter().find(|m| m.name == name)
}

/// What is pinned there, None if nothing is.
pub(crate) fn pinned(path: &Path) -> Result<Option<MapFd>> {
    match sys::obj_get(path) {
        Ok(fd) => MapFd::new(fd).map(Some).map_err(|e| Error::pin("read information about the map", path, e)),
        Err(libc::ENOENT) => Ok(None),
        Err(e) => Err(Error::pin("open the map", path, e)),
    }
}

/// Opens a pinned map and compares it with its declaration, if it has one, and with the kinds that the caller can handle.
pub(crate) fn open_kind(fs: &BpfFs, name: &str, kinds: &[MapKind]) -> Result<OwnedFd> {
    let path = fs.maps().join(name);
    let fd = sys::obj_get(&path).map_err(|e| Error::pin("open the map", &path, e))?;
    let info = sys::map_info(fd.as_fd()).map_err(|e| Error::pin("read information about the map", &path, e))?;
    if let Some(def) = definition(name) {
        Shape::of(def).check(name, &Shape::found(&info))?;
    }
    if !kinds.iter().any(|k| kind_number(*k) == info.kind) {
        let expected = kinds.iter().map(|k| kind_number(*k).to_string()).collect::<Vec<_>>().join(" or ");
        return Err(Error::Layout { map: name.to_owned(), field: "map type", found: info.kind.to_string(), expected });
    }
    Ok(fd)
}

fn expect_size(map: &str, field: &'static str, found: u32, expected: usize) -> Result<()> {
    if found as usize == expected {
        return Ok(());
    }
    Err(Error::Layout { map: map.to_owned(), field, found: found.to_string(), expected: expected.to_string() })
}

/// Makes and pins every map of `abi::MAPS` that is not pinned yet, so that the tables are there before the first program.
/// Pinned ones are compared with their declaration (kind, sizes, flags) and keep their number of entries. `max_entries`: entries
/// (bytes for the ring buffer) of maps made anew, by name. Returns the names of those that were made.
pub fn create_all(fs: &BpfFs, max_entries: &[(&str, u32)]) -> Result<Vec<&'static str>> {
    if max_entries.iter().any(|(name, _)| definition(name).is_none()) {
        return Err(Error::Invalid { field: "max_entries", reason: "names a map that there is not" });
    }
    // All are compared before any is made: drift leaves everything as it was.
    let mut missing = Vec::new();
    for def in MAPS {
        match pinned(&fs.maps().join(def.name))? {
            Some(map) => Shape::of(def).check(def.name, &Shape::found(&map.info))?,
            None => missing.push(def),
        }
    }
    let mut made = Vec::new();
    for def in missing {
        let path = fs.maps().join(def.name);
        let entries = max_entries.iter().find(|(name, _)| *name == def.name).map_or(def.max_entries, |(_, n)| *n);
        let shape = Shape::of(def);
        let fd = sys::map_create(shape.kind, def.name, shape.key_size, shape.value_size, entries, shape.flags.unwrap_or(0))
            .map_err(|errno| Error::Map { map: def.name.to_owned(), action: "make", errno })?;
        match sys::obj_pin(fd.as_fd(), &path) {
            Ok(()) => made.push(def.name),
            // Somebody was faster; theirs is the one.
            Err(libc::EEXIST) => {}
            Err(e) => return Err(Error::pin("pin a map at", &path, e)),
        }
    }
    Ok(made)
}

/// The shared half of the typed maps.
#[derive(Debug)]
struct Table {
    map: MapFd,
    name: String,
}

impl Table {
    fn open(fs: &BpfFs, name: &str, kinds: &[MapKind], key: usize, value: usize) -> Result<Self> {
        let fd = open_kind(fs, name, kinds)?;
        let map = MapFd::new(fd).map_err(|errno| Error::Map { map: name.to_owned(), action: "open", errno })?;
        expect_size(name, "key size", map.info.key_size, key)?;
        expect_size(name, "value size", map.info.value_size, value)?;
        Ok(Self { map, name: name.to_owned() })
    }

    fn failed(&self, action: &'static str) -> impl Fn(i32) -> Error + '_ {
        move |errno| Error::Map { map: self.name.clone(), action, errno }
    }

    /// Hands every entry's key and value bytes to `f`, in batches where the kernel can.
    ///
    /// A short batch is not the last one: the kernel ends a batch before a bucket that does not fit. Only ENOENT is the end.
    fn each(&self, f: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let key = self.map.info.key_size as usize;
        let value = self.map.value_len();
        let max = self.map.info.max_entries as usize;
        let mut n = max.clamp(1, BATCH);
        let mut keys = vec![0; n * key];
        let mut values = vec![0; n * value];
        let mut cursor = None;
        loop {
            let batch = self.map.lookup_batch(&mut cursor, &mut keys, &mut values, n);
            let (count, last) = match batch {
                Ok(Batch::More(count)) => (count, false),
                Ok(Batch::Last(count)) => (count, true),
                Err(libc::ENOSPC) => {
                    n *= 2;
                    keys.resize(n * key, 0);
                    values.resize(n * value, 0);
                    continue;
                }
                Err(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP) if cursor.is_none() => return self.each_slowly(f),
                Err(errno) => return Err(self.failed("read all of")(errno)),
            };
            for i in 0..count {
                f(&keys[i * key..(i + 1) * key], &values[i * value..(i + 1) * value]);
            }
            if last {
                return Ok(());
            }
        }
    }

    /// As `each`, one by one. When the key at hand is deleted meanwhile the kernel starts again, hence the memory.
    fn each_slowly(&self, f: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut seen = HashSet::new();
        let mut key: Option<Vec<u8>> = None;
        let mut next = vec![0; self.map.info.key_size as usize];
        let mut value = vec![0; self.map.value_len()];
        // A bound for a map that changes faster than we read.
        for _ in 0..(self.map.info.max_entries as usize).saturating_mul(2).saturating_add(16) {
            match self.map.next_key(key.as_deref(), &mut next) {
                Ok(()) => {}
                Err(libc::ENOENT) => break,
                Err(errno) => return Err(self.failed("walk")(errno)),
            }
            if seen.insert(next.clone()) {
                match self.map.lookup(&next, &mut value) {
                    Ok(()) => f(&next, &value),
                    Err(libc::ENOENT) => {}
                    Err(errno) => return Err(self.failed("read an entry of")(errno)),
                }
            }
            key = Some(next.clone());
        }
        Ok(())
    }
}

/// A pinned hash, LRU hash, prefix trie or array. For an array the key is its index, a u32.
#[derive(Debug)]
pub struct PinnedMap<K, V> {
    table: Table,
    shape: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> PinnedMap<K, V> {
    /// Opens a pinned map. Another kind, or other sizes than those of `K` and `V`, are [`Error::Layout`].
    pub fn open(fs: &BpfFs, name: &str) -> Result<Self> {
        let kinds = [MapKind::Hash, MapKind::LruHash, MapKind::LpmTrie, MapKind::Array];
        Ok(Self { table: Table::open(fs, name, &kinds, size_of::<K>(), size_of::<V>())?, shape: PhantomData })
    }

    /// The value of a key, None if there is no such entry (or index).
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        match self.table.map.lookup(key.as_bytes(), value.as_mut_bytes()) {
            Ok(()) => Ok(Some(value)),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(self.table.failed("read an entry of")(errno)),
        }
    }

    /// Writes an entry, new or not. E2BIG if a hash is full.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        self.table.map.update(key.as_bytes(), value.as_bytes(), 0).map_err(self.table.failed("write an entry of"))
    }

    /// Writes an entry only if there is none; Ok(false) if there is. Not for arrays, whose entries all exist.
    pub fn put_new(&self, key: &K, value: &V) -> Result<bool> {
        match self.table.map.update(key.as_bytes(), value.as_bytes(), NOEXIST) {
            Ok(()) => Ok(true),
            Err(libc::EEXIST) => Ok(false),
            Err(errno) => Err(self.table.failed("write an entry of")(errno)),
        }
    }

    /// Deletes an entry; Ok(false) if there was none. Arrays refuse (EINVAL).
    pub fn delete(&self, key: &K) -> Result<bool> {
        match self.table.map.delete(key.as_bytes()) {
            Ok(()) => Ok(true),
            Err(libc::ENOENT) => Ok(false),
            Err(errno) => Err(self.table.failed("delete an entry of")(errno)),
        }
    }

    /// All entries; of an array all indexes, in order. Entries that come or go meanwhile may or may not be among them, those
    /// that stay all are.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.each(|key, value| all.push((key, value)))?;
        Ok(all)
    }

    /// As [`Self::entries`], without keeping them all.
    pub fn each(&self, mut f: impl FnMut(K, V)) -> Result<()> {
        self.table.each(&mut |key, value| {
            // Sizes were compared when the map was opened, and every bit pattern is valid.
            if let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) {
                f(key, value);
            }
        })
    }

    /// Writes many entries, each new or not, faster than one by one. After an error the entries before the one that failed are
    /// written.
    pub fn put_batch(&self, entries: &[(K, V)]) -> Result<()> {
        for chunk in entries.chunks(BATCH) {
            let keys: Vec<u8> = chunk.iter().flat_map(|(k, _)| k.as_bytes()).copied().collect();
            let values: Vec<u8> = chunk.iter().flat_map(|(_, v)| v.as_bytes()).copied().collect();
            match self.table.map.update_batch(&keys, &values, chunk.len()) {
                Ok(()) => {}
                Err((libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP, 0)) => chunk.iter().try_for_each(|(k, v)| self.put(k, v))?,
                Err((errno, _)) => return Err(self.table.failed("write entries of")(errno)),
            }
        }
        Ok(())
    }

    /// Deletes many entries; those that are not there are passed over. How many there were.
    pub fn delete_batch(&self, keys: &[K]) -> Result<usize> {
        let bytes: Vec<u8> = keys.iter().flat_map(|k| k.as_bytes()).copied().collect();
        let mut deleted = 0;
        let mut at = 0;
        while at < keys.len() {
            let n = (keys.len() - at).min(BATCH);
            at += match self.table.map.delete_batch(&bytes[at * size_of::<K>()..(at + n) * size_of::<K>()], n) {
                Ok(()) => {
                    deleted += n;
                    n
                }
                // The kernel stops at the first that is absent: go on behind it.
                Err((libc::ENOENT, done)) if done < n => {
                    deleted += done;
                    done + 1
                }
                Err((libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP, 0)) => {
                    for key in &keys[at..at + n] {
                        deleted += usize::from(self.delete(key)?);
                    }
                    n
                }
                Err((errno, _)) => return Err(self.table.failed("delete entries of")(errno)),
            };
        }
        Ok(deleted)
    }

    /// Entries that it has room for.
    pub fn max_entries(&self) -> u32 {
        self.table.map.info.max_entries
    }

    /// Kernel number of the map.
    pub fn id(&self) -> u32 {
        self.table.map.info.id
    }

    /// The map's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.table.map.as_fd()
    }
}

/// A pinned per-CPU array.
#[derive(Debug)]
pub struct PercpuMap<V> {
    table: Table,
    shape: PhantomData<fn() -> V>,
}

impl<V: Pod> PercpuMap<V> {
    /// Opens a pinned per-CPU array.
    pub fn open(fs: &BpfFs, name: &str) -> Result<Self> {
        Ok(Self { table: Table::open(fs, name, &[MapKind::PercpuArray], 4, size_of::<V>())?, shape: PhantomData })
    }

    /// Splits the kernel's answer: each CPU's value starts at a multiple of eight bytes.
    fn split(bytes: &[u8]) -> Vec<V> {
        bytes.chunks_exact(size_of::<V>().next_multiple_of(8)).filter_map(|c| V::read_from_prefix(c).ok().map(|(v, _)| v)).collect()
    }

    /// The values of an index, one for each possible CPU. An index beyond the end is ENOENT.
    pub fn get(&self, index: u32) -> Result<Vec<V>> {
        let mut bytes = vec![0; self.table.map.value_len()];
        self.table.map.lookup(index.as_bytes(), &mut bytes).map_err(self.table.failed("read an entry of"))?;
        Ok(Self::split(&bytes))
    }

    /// The values of all indexes, in order.
    pub fn all(&self) -> Result<Vec<Vec<V>>> {
        let mut all = Vec::with_capacity(self.max_entries() as usize);
        self.table.each(&mut |_, bytes| all.push(Self::split(bytes)))?;
        Ok(all)
    }

    /// Sets the values of an index to zero on every CPU. What a program adds at the same moment may be lost.
    pub fn reset(&self, index: u32) -> Result<()> {
        let zero = vec![0; self.table.map.value_len()];
        self.table.map.update(index.as_bytes(), &zero, 0).map_err(self.table.failed("write an entry of"))
    }

    /// Indexes that it has.
    pub fn max_entries(&self) -> u32 {
        self.table.map.info.max_entries
    }
}

/// A pinned tail-call array. The kernel empties it when its last pin and descriptor go, whatever programs use it.
#[derive(Debug)]
pub struct ProgArray {
    table: Table,
}

impl ProgArray {
    /// Opens a pinned tail-call array.
    pub fn open(fs: &BpfFs, name: &str) -> Result<Self> {
        Ok(Self { table: Table::open(fs, name, &[MapKind::ProgArray], 4, 4)? })
    }

    /// Puts a program into a slot, in place of what is there; packets see one or the other. All programs of an array must have
    /// the same type and expected attach type (EINVAL).
    pub fn set(&self, slot: u32, program: &Program) -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let fd = program.fd().as_raw_fd();
        self.table.map.update(slot.as_bytes(), fd.as_bytes(), 0).map_err(self.table.failed("set a slot of"))
    }

    /// Empties a slot; Ok(false) if it was empty.
    pub fn clear(&self, slot: u32) -> Result<bool> {
        match self.table.map.delete(slot.as_bytes()) {
            Ok(()) => Ok(true),
            Err(libc::ENOENT) => Ok(false),
            Err(errno) => Err(self.table.failed("clear a slot of")(errno)),
        }
    }

    /// Kernel number of the program in a slot, None if it is empty.
    pub fn get(&self, slot: u32) -> Result<Option<u32>> {
        let mut id = 0u32;
        match self.table.map.lookup(slot.as_bytes(), id.as_mut_bytes()) {
            Ok(()) => Ok(Some(id)),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(self.table.failed("read a slot of")(errno)),
        }
    }

    /// Slots that it has.
    pub fn max_entries(&self) -> u32 {
        self.table.map.info.max_entries
    }
}
