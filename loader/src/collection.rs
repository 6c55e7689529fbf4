// SPDX-License-Identifier: Apache-2.0
//! Programs: from an ELF object into the kernel, and found again by their pins.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use libbpf_rs::{ObjectBuilder, OpenObject};
use pilus_model::abi::{STAGE_MAP, map};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::bpffs::{self, BpfFs, UNFINISHED};
use crate::error::{Error, Result};
use crate::stages::Stages;
use crate::{log, maps, sys};

/// How to load an object.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions<'a> {
    /// Name of the object in messages and of its unnamed maps.
    pub name: &'a str,
    /// Entries of maps that are made anew, by map name. A pinned map keeps its size.
    pub max_entries: &'a [(&'a str, u32)],
    /// Directory to pin the programs in, mostly `objects/<key>`; made anew as a whole, so that it is never seen half full. One
    /// that is there is replaced.
    pub pin: Option<PathBuf>,
    /// The array that the object's programs reach rare stages by.
    pub stages: Option<&'a Stages>,
    /// Programs of the object that are stages themselves: their slots and names. They are put into `stages`, and that is pinned
    /// beside them.
    pub stage: &'a [(u32, &'a str)],
    /// Programs that are loaded beside the others, all together, on a processor of their own.
    pub apart: &'a [&'a str],
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Function name in C.
    pub name: String,
    /// Kernel number.
    pub id: u32,
    /// Hash of the instructions as the kernel sees it.
    pub tag: [u8; 8],
    /// Instructions after dead branches were removed.
    pub insns: u32,
    /// Bytes of machine code, 0 if it is interpreted.
    pub jited: u32,
    /// Instructions that the verifier looked at, all paths together.
    pub verified_insns: u32,
    fd: OwnedFd,
}

/// What a test run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned.
    pub retval: u32,
    /// The packet afterwards.
    pub data_out: Vec<u8>,
    /// `struct __sk_buff` afterwards, if one was given.
    pub ctx_out: Option<[u8; 192]>,
    /// Mean time of a run, ns.
    pub duration_ns: u32,
}

/// Room that a program may add to a packet in a test run, bytes.
const TEST_RUN_ROOM: usize = 4096;

impl Program {
    fn from_fd(fd: OwnedFd, name: Option<&str>) -> Result<Self> {
        let info = sys::prog_info(fd.as_fd()).map_err(|errno| Error::Program {
            program: name.unwrap_or("of unknown name").to_owned(),
            action: "read information about",
            errno,
        })?;
        Ok(Self {
            // The kernel cuts names at 15 bytes, so a caller who knows better is believed.
            name: name.map_or(info.name, str::to_owned),
            id: info.id,
            tag: info.tag,
            insns: info.xlated_bytes / 8,
            jited: info.jited_bytes,
            verified_insns: info.verified_insns,
            fd,
        })
    }

    /// Opens a pinned program, None if there is no such pin. Its name is that of the file.
    pub fn pinned(path: &Path) -> Result<Option<Self>> {
        match sys::obj_get(path) {
            Ok(fd) => Self::from_fd(fd, path.file_name().and_then(OsStr::to_str)).map(Some),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(Error::pin("open the program", path, errno)),
        }
    }

    /// Opens a program by its kernel number, None if it is gone. Its name has at most 15 bytes.
    pub fn by_id(id: u32) -> Result<Option<Self>> {
        match sys::prog_by_id(id) {
            Ok(fd) => Self::from_fd(fd, None).map(Some),
            Err(libc::ENOENT) => Ok(None),
            Err(errno) => Err(Error::Program { program: format!("number {id}"), action: "open", errno }),
        }
    }

    /// The program's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs the program on a packet of at least 14 bytes, `repeat` times (0 counts as 1). Maps and the ring buffer change as by a
    /// real packet; a redirect only shows as the return value. `ctx` is a `struct __sk_buff`.
    pub fn test_run(&self, data_in: &[u8], ctx: Option<&[u8; 192]>, repeat: u32) -> Result<TestRun> {
        let mut data_out = vec![0; data_in.len() + TEST_RUN_ROOM];
        let mut ctx_out = [0; 192];
        let (ctx_in, ctx_buf) = match ctx {
            Some(ctx) => (ctx.as_slice(), ctx_out.as_mut_slice()),
            None => (&[] as &[u8], &mut [] as &mut [u8]),
        };
        let run = sys::test_run(self.fd.as_fd(), data_in, &mut data_out, ctx_in, ctx_buf, repeat).map_err(|errno| Error::Program {
            program: self.name.clone(),
            action: "test",
            errno,
        })?;
        debug_assert!(ctx.is_none() || run.ctx_len <= 192);
        data_out.truncate(run.data_len);
        Ok(TestRun { retval: run.retval, data_out, ctx_out: ctx.map(|_| ctx_out), duration_ns: run.duration_ns })
    }
}

/// The programs of an object, loaded.
#[derive(Debug)]
pub struct Collection {
    /// In the object's order; by name when opened from pins.
    pub programs: Vec<Program>,
}

impl Collection {
    /// Loads an object. Its maps are those pinned in `fs.maps()` under their names, made and pinned where missing; a map whose
    /// shape differs from the pinned one or from `abi::MAPS` is [`Error::Layout`] and nothing is loaded. A program that the
    /// verifier refuses is [`Error::Load`] with its log.
    ///
    /// Every program loads with the type that its section names and attach type 0, which is what lets tcx, clsact and
    /// tail-call arrays share them.
    pub fn load(fs: &BpfFs, elf: &[u8], options: &LoadOptions<'_>) -> Result<Self> {
        let invalid = |reason| Error::Invalid { field: "stage", reason };
        let load = |apart: bool| {
            let programs = load_programs(fs, elf, options, |name| options.apart.contains(&name) == apart)?;
            // The kernel rewrites each call of a stage, and waits for all processors: while other programs are still loaded.
            for (slot, name) in options.stage {
                if let Some(program) = programs.iter().find(|p| p.name == *name) {
                    options.stages.ok_or(invalid("needs an array"))?.set(*slot, program)?;
                }
            }
            Ok(programs)
        };
        let programs = if options.apart.is_empty() {
            load(false)?
        } else {
            // libbpf loads one program of an object after the other, so each thread has an object of its own.
            std::thread::scope(|scope| {
                let beside = scope.spawn(|| load(true));
                let mut programs = load(false)?;
                programs.extend(beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
                Ok(programs)
            })?
        };
        let collection = Self { programs };
        if options.stage.iter().any(|(_, name)| collection.program(name).is_none()) {
            return Err(invalid("names a program that the object has not"));
        }
        if let Some(dir) = &options.pin {
            collection.pin(dir, options.stages.filter(|_| !options.stage.is_empty()))?;
        }
        Ok(collection)
    }

    /// Opens programs pinned by an earlier load. None if there is no such directory, or if a program in it uses a map that is no
    /// longer the pinned one of that name, or other stages: such programs would look at tables that nobody writes any more.
    pub fn open_pinned(fs: &BpfFs, dir: &Path, stages: Option<&Stages>) -> Result<Option<Self>> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let mut programs = Vec::new();
        for name in fs.names(dir)?.into_iter().filter(|n| n != map::STAGES) {
            // A pin that goes while we read belongs to a directory that is being removed.
            let Some(program) = Program::pinned(&dir.join(name))? else { return Ok(None) };
            if !uses_pinned_maps(fs, &program, stages)? {
                return Ok(None);
            }
            programs.push(program);
        }
        Ok((!programs.is_empty()).then_some(Self { programs }))
    }

    /// The program of that function name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name == name)
    }

    /// Pins the programs under a name of our own and then gives the whole directory its name: a crash leaves either the old
    /// directory or the new one.
    fn pin(&self, dir: &Path, stages: Option<&Stages>) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = dir.parent().ok_or(Error::Invalid { field: "pin", reason: "has no parent directory" })?;
        let own = parent.join(format!("{UNFINISHED}{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let result = self.fill(&own, stages).and_then(|()| {
            let rename = |flags| renameat2(AT_FDCWD, &own, AT_FDCWD, dir, flags);
            match rename(RenameFlags::RENAME_NOREPLACE) {
                Err(nix::errno::Errno::EEXIST) => rename(RenameFlags::RENAME_EXCHANGE),
                other => other,
            }
            .map_err(|e| Error::io("name the directory of pinned programs", dir, e.into()))
        });
        // After an exchange the old programs are under our name; after a failure, what there is of the new ones.
        let removed = if own.is_dir() { bpffs::remove_tree(&own, &mut Vec::new()) } else { Ok(()) };
        result.and(removed)
    }

    fn fill(&self, dir: &Path, stages: Option<&Stages>) -> Result<()> {
        fs::create_dir(dir).map_err(|e| Error::io("make directory", dir, e))?;
        for program in &self.programs {
            let path = dir.join(&program.name);
            sys::obj_pin(program.fd(), &path).map_err(|e| Error::pin("pin a program at", &path, e))?;
        }
        stages.map_or(Ok(()), |s| s.pin(dir))
    }
}

/// A processor that no other load has. The verifier needs nothing but a processor: of more loads than there are, those that
/// began first are to end first, and not all of them late.
struct Turn(usize);

/// Processors that are taken.
static TURNS: (Mutex<BTreeSet<usize>>, Condvar) = (Mutex::new(BTreeSet::new()), Condvar::new());

impl Turn {
    fn take() -> Self {
        static ALL: OnceLock<usize> = OnceLock::new();
        let all = *ALL.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok();
        let here = sched_getcpu().unwrap_or(0);
        let free = |taken: &BTreeSet<usize>| {
            // That of the caller first, so that most need not move.
            let may = |cpu: &usize| allowed.as_ref().is_none_or(|set| set.is_set(*cpu) == Ok(true)) && !taken.contains(cpu);
            (taken.len() < all).then(|| std::iter::once(here).chain(0..CpuSet::count()).find(may)).flatten()
        };
        let taken = TURNS.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = TURNS.1.wait_while(taken, |t| free(t).is_none()).unwrap_or_else(PoisonError::into_inner);
        let cpu = free(&taken).unwrap_or(here);
        taken.insert(cpu);
        drop(taken);
        if let Some(allowed) = allowed.filter(|_| cpu != here) {
            begin_on(cpu, &allowed);
        }
        Self(cpu)
    }
}

/// Moves the calling thread to a processor, which it may leave again. Two threads that begin on the same one would stay there
/// for milliseconds, beside others that idle. What fails costs time only.
fn begin_on(cpu: usize, allowed: &CpuSet) {
    let mut only = CpuSet::new();
    if only.set(cpu).is_ok() && sched_setaffinity(Pid::from_raw(0), &only).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), allowed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        // Not everybody may have this one.
        TURNS.1.notify_all();
    }
}

/// Loads those programs of an object that are wanted.
fn load_programs(fs: &BpfFs, elf: &[u8], options: &LoadOptions<'_>, wanted: impl Fn(&str) -> bool) -> Result<Vec<Program>> {
    let _turn = Turn::take();
    let (opened, said) = log::capture(|| {
        let mut builder = ObjectBuilder::default();
        builder.name(options.name)?.pin_root_path(fs.maps())?.open_memory(elf)
    });
    let mut object = opened.map_err(|e| load_error(options.name, errno(&e), &said))?;
    // Two loads that both miss a map would both make it. Held from a look at the pins that misses some until they are made.
    static MAKING_MAPS: Mutex<()> = Mutex::new(());
    let _guard = if fit_maps(fs, &mut object, options)? {
        None
    } else {
        let guard = MAKING_MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        fit_maps(fs, &mut object, options)?;
        Some(guard)
    };

    for mut prog in object.progs_mut() {
        if !wanted(&prog.name().to_string_lossy()) {
            prog.set_autoload(false);
        }
    }
    let (loaded, said) = log::capture(|| sys::object_load(object));
    let object = loaded.map_err(|errno| load_error(options.name, errno, &said))?;
    let mut programs = Vec::new();
    for prog in object.progs() {
        if !prog.autoload() {
            continue;
        }
        let name = prog.name().to_string_lossy();
        let fd = prog.as_fd().try_clone_to_owned().map_err(|e| Error::Program {
            program: name.clone().into_owned(),
            action: "keep",
            errno: e.raw_os_error().unwrap_or(libc::EMFILE),
        })?;
        programs.push(Program::from_fd(fd, Some(&name))?);
    }
    Ok(programs)
}

/// Points every shared map of the object at its pin and gives it the size that it has, or is to have, there. Whether all of
/// them are pinned already.
fn fit_maps(fs: &BpfFs, object: &mut OpenObject, options: &LoadOptions<'_>) -> Result<bool> {
    let mut all_pinned = true;
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let found = maps::Shape {
            kind: u32::from(map.map_type()),
            key_size: map.key_size(),
            value_size: map.value_size(),
            flags: Some(map.map_flags()),
        };
        if name == map::STAGES {
            maps::Shape::of(&STAGE_MAP).check(&name, &found)?;
            let fitted = match options.stages {
                Some(stages) => map.reuse_fd(stages.fd()),
                None => map.set_autocreate(false),
            };
            fitted.map_err(|e| Error::Map { map: name, action: "use", errno: errno(&e) })?;
            continue;
        }
        let declared = maps::definition(&name);
        if let Some(def) = declared {
            maps::Shape::of(def).check(&name, &found)?;
        }
        if declared.is_none() && !sys::has_pin_path(&map) {
            // A private map (.rodata) is none of our business, whatever is pinned under its name.
            continue;
        }
        let path = fs.maps().join(&name);
        let set = |map: &mut libbpf_rs::OpenMapMut<'_>, n| {
            map.set_max_entries(n).map_err(|e| Error::Map { map: name.clone(), action: "size", errno: errno(&e) })
        };
        match maps::pinned(&path)? {
            Some(pinned) => {
                // The object is checked against the pin, also for maps that abi does not know.
                found.check(&name, &maps::Shape::found(&pinned.info))?;
                map.reuse_fd(pinned.fd.as_fd()).map_err(|e| Error::Map { map: name, action: "use", errno: errno(&e) })?;
                sys::forget_pin_path(&mut map);
                continue;
            }
            None => {
                all_pinned = false;
                if let Some((_, n)) = options.max_entries.iter().find(|(of, _)| *of == name) {
                    set(&mut map, *n)?;
                }
            }
        }
        if declared.is_some() {
            map.set_pin_path(&path).map_err(|e| Error::Map { map: name.clone(), action: "choose the pin of", errno: errno(&e) })?;
        }
    }
    Ok(all_pinned)
}

/// Whether each map that the program uses is the pinned one of its name, if there is a pin of that name, and its stages are these.
fn uses_pinned_maps(fs: &BpfFs, program: &Program, stages: Option<&Stages>) -> Result<bool> {
    let failed = |errno| Error::Program { program: program.name.clone(), action: "read the maps of", errno };
    for id in sys::prog_info(program.fd()).map_err(failed)?.map_ids {
        let map = sys::map_by_id(id).map_err(failed)?;
        let info = sys::map_info(map.as_fd()).map_err(failed)?;
        if info.name.contains('.') {
            // A private one (.rodata): bpffs takes no such name.
            continue;
        }
        if info.name == map::STAGES {
            if stages.is_none_or(|s| s.id() != id) {
                return Ok(false);
            }
            continue;
        }
        match maps::pinned(&fs.maps().join(&info.name))? {
            Some(pinned) if pinned.info.id != id => return Ok(false),
            None if maps::definition(&info.name).is_some() => return Ok(false),
            _ => {}
        }
    }
    Ok(true)
}

/// The errno that libbpf-rs only prints.
fn errno(e: &libbpf_rs::Error) -> i32 {
    let text = format!("{e:#}");
    let number = text.rsplit_once("os error ").and_then(|(_, n)| n.trim_end_matches(')').parse().ok());
    number.unwrap_or(libc::EINVAL)
}

fn load_error(object: &str, errno: i32, said: &str) -> Error {
    let log = log::verifier_log(said);
    Error::Load {
        program: log::refused_program(said).unwrap_or(object).to_owned(),
        errno,
        log: log.to_owned(),
        message: log::message(said, log),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Side by side, but never two on one processor; afterwards a thread may go wherever it might before.
    #[test]
    fn turns_are_processors() {
        static HELD: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
        let me = Pid::from_raw(0);
        let processors = std::thread::available_parallelism().expect("processors").get();
        std::thread::scope(|scope| {
            for _ in 0..8 * processors {
                scope.spawn(|| {
                    let before = sched_getaffinity(me).expect("affinity");
                    let turn = Turn::take();
                    {
                        let mut held = HELD.lock().expect("no panic");
                        assert!(held.insert(turn.0), "two have processor {}", turn.0);
                        assert!(held.len() <= processors);
                    }
                    assert_eq!(before.is_set(turn.0), Ok(true));
                    assert_eq!(sched_getaffinity(me), Ok(before));
                    // Others come between, if they may.
                    std::thread::yield_now();
                    HELD.lock().expect("no panic").remove(&turn.0);
                });
            }
        });
        assert!(TURNS.0.lock().expect("no panic").is_empty());
    }
}
