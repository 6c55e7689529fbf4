// SPDX-License-Identifier: Apache-2.0
//! A world of its own for each test: mount namespace with a BPF file system, network namespace, and nothing left afterwards
//! whatever happens, because all of it goes with the thread.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pilus_loader::bpffs::{self, BpfFs};

/// Runs a test in a thread with its own mount and network namespaces and a BPF file system on `root`.
pub fn sandbox(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        bpffs::mount(&root).unwrap();
        test(&root);
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// As [`sandbox`], with our tree opened.
pub fn with_fs(test: impl FnOnce(BpfFs) + Send + 'static) {
    sandbox(|root| test(BpfFs::open(root).unwrap()));
}

/// Drives a future on this thread, so that its sockets are in this thread's network namespace.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A network namespace that lives as long as the file.
pub fn netns() -> File {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// Runs something inside a network namespace.
pub fn in_netns<T: Send + 'static>(ns: &File, f: impl FnOnce() -> T + Send + 'static) -> T {
    let ns = ns.try_clone().unwrap();
    thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "a test looks into the namespace that it made, on a thread of its own")]
        nix::sched::setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
        f()
    })
    .join()
    .unwrap()
}

/// What every test program starts with.
const PRELUDE: &str = r#"
typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
enum { HASH = 1, ARRAY = 2, PROG_ARRAY = 3, PERCPU_ARRAY = 6, RINGBUF = 27 };
struct __sk_buff { u32 len, pkt_type, mark; };
static void *(*lookup)(void *, const void *) = (void *)1;
static long (*update)(void *, const void *, const void *, u64) = (void *)2;
static long (*tail_call)(void *, void *, u32) = (void *)12;
static long (*ringbuf_output)(void *, void *, u64, u64) = (void *)130;
char _license[] SEC("license") = "GPL";
#define PINNED __uint(pinning, 1)
"#;

/// Compiles a program once, also for tests under another kernel, which see the same target directory.
pub fn compile(source: &str) -> Vec<u8> {
    let source = format!("{PRELUDE}{source}");
    let mut hash = DefaultHasher::new();
    source.hash(&mut hash);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("loader-{:016x}.o", hash.finish()));
    if let Ok(object) = std::fs::read(&kept) {
        return object;
    }
    // Beside it, so that it comes to its place whole.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, object) = (dir.path().join("test.c"), dir.path().join("test.o"));
    std::fs::write(&file, &source).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test compiles its own program")]
    let mut clang = std::process::Command::new("clang-19");
    // From a file, not from stdin, so that the verifier's log quotes the source.
    clang.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-nostdinc", "-c"]).arg(&file).arg("-o").arg(&object);
    assert!(clang.status().expect("clang-19").success(), "clang refused:\n{source}");
    std::fs::rename(&object, &kept).unwrap();
    std::fs::read(&kept).unwrap()
}

/// A test object: counts, drops, jumps, reports.
pub const BASIC: &str = r#"
struct { __uint(type, HASH); __type(key, u32); __type(value, u64); __uint(max_entries, 16); PINNED; } t_hash SEC(".maps");
struct cell { u32 a, b, c; };
struct { __uint(type, PERCPU_ARRAY); __type(key, u32); __type(value, struct cell); __uint(max_entries, 4); PINNED; } t_percpu SEC(".maps");
struct { __uint(type, PROG_ARRAY); __uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 65536); PINNED; } receive SEC(".maps");
struct { __uint(type, RINGBUF); __uint(max_entries, 4 << 20); PINNED; } events SEC(".maps");
volatile const u32 limit = 5;

SEC("tc") int pass(struct __sk_buff *ctx)
{
	u32 key = 1;
	struct cell *c = lookup(&t_percpu, &key);
	if (c && limit == 5)
		c->a += 1, c->b += 2, c->c += 3;
	ctx->mark += 1;
	return 0;
}

SEC("tc") int drop(struct __sk_buff *ctx)
{
	u32 key = 9;
	u64 value = ctx->len;
	update(&t_hash, &key, &value, 0);
	return 2;
}

SEC("tc") int a_program_with_a_long_name(struct __sk_buff *ctx)
{
	tail_call(ctx, &receive, 3);
	return 7;
}

SEC("tc") int emit(struct __sk_buff *ctx)
{
	u64 value = ctx->len;
	return ringbuf_output(&events, &value, sizeof(value), 0) ? 2 : 0;
}
"#;
