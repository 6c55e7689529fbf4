// SPDX-License-Identifier: Apache-2.0
//! Loading, maps and events on the running kernel. Needs root and clang-19.

mod common;

use std::cell::Cell;
use std::time::Duration;

use common::{BASIC, compile, sandbox, with_fs};
use pilus_loader::Error;
use pilus_loader::bpffs::{self, BpfFs};
use pilus_loader::collection::{Collection, LoadOptions, Program};
use pilus_loader::events::Reader;
use pilus_loader::maps::{self, PercpuMap, PinnedMap, ProgArray};
use pilus_loader::probe::Features;
use pilus_loader::stages::Stages;
use pilus_model::abi::STAGE_SLOW;
use pilus_model::abi::{self, MAPS, map};

/// Small tables: what a test needs, not what a node needs.
const SMALL: &[(&str, u32)] = &[(map::FLOW4, 1024), (map::FLOW6, 1024), (map::POLICY, 1024), (map::IPCACHE, 8192), (map::EVENTS, 65536)];

fn load(fs: &BpfFs) -> Collection {
    Collection::load(fs, &compile(BASIC), &LoadOptions { name: "basic", ..Default::default() }).unwrap()
}

#[test]
fn tree_needs_a_bpf_file_system_and_goes_as_a_whole() {
    let plain = tempfile::tempdir().unwrap();
    assert!(matches!(BpfFs::open(plain.path()), Err(Error::NotBpffs { .. })));
    sandbox(|root| {
        assert!(bpffs::is_bpffs(root) && !bpffs::same_mount_ns_as_init());
        let fs = BpfFs::open(root).unwrap();
        assert_eq!(BpfFs::open(root).unwrap(), fs);
        assert_eq!(maps::create_all(&fs, SMALL).unwrap().len(), MAPS.len());
        assert_eq!(fs.names(&fs.maps()).unwrap().len(), MAPS.len());
        let removed = fs.remove_all().unwrap();
        assert!(removed.contains(&fs.maps().join(map::FLOW4)) && removed.contains(&root.join("pilus")), "{removed:?}");
        assert!(!root.join("pilus").exists());
        assert!(fs.remove_all().unwrap().is_empty());
    });
}

#[test]
fn tables_are_made_once_and_keep_their_size() {
    with_fs(|fs| {
        assert_eq!(maps::create_all(&fs, SMALL).unwrap().len(), MAPS.len());
        let first: PinnedMap<abi::FlowKey4, abi::Flow4> = PinnedMap::open(&fs, map::FLOW4).unwrap();
        assert!(maps::create_all(&fs, &[(map::FLOW4, 4096)]).unwrap().is_empty());
        let again: PinnedMap<abi::FlowKey4, abi::Flow4> = PinnedMap::open(&fs, map::FLOW4).unwrap();
        assert_eq!((first.id(), first.max_entries()), (again.id(), 1024));
        assert!(matches!(maps::create_all(&fs, &[("flow5", 1)]), Err(Error::Invalid { .. })));
        // Types of the wrong size, and kinds that a map is not.
        assert!(matches!(PinnedMap::<u32, u32>::open(&fs, map::FLOW4), Err(Error::Layout { .. })));
        assert!(matches!(PinnedMap::<u32, abi::Counter>::open(&fs, map::METRICS), Err(Error::Layout { field: "map type", .. })));
        assert!(matches!(ProgArray::open(&fs, map::METRICS), Err(Error::Layout { .. })));
        assert_eq!(PinnedMap::<u32, u32>::open(&fs, "nothing").unwrap_err().errno(), Some(libc::ENOENT));
    });
}

#[test]
fn objects_share_pinned_maps() {
    with_fs(|fs| {
        maps::create_all(&fs, SMALL).unwrap();
        let one = load(&fs);
        let names: Vec<_> = one.programs.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["pass", "drop", "a_program_with_a_long_name", "emit"]);
        let hash: PinnedMap<u32, u64> = PinnedMap::open(&fs, "t_hash").unwrap();
        assert_eq!(hash.max_entries(), 16);
        // Other sizes are wishes about maps that are made anew.
        let two =
            Collection::load(&fs, &compile(BASIC), &LoadOptions { name: "two", max_entries: &[("t_hash", 32)], ..Default::default() })
                .unwrap();
        two.program("drop").unwrap().test_run(&[0; 64], None, 1).unwrap();
        assert_eq!(hash.get(&9).unwrap(), Some(64));
        assert_eq!(PinnedMap::<u32, u64>::open(&fs, "t_hash").unwrap().id(), hash.id());
        assert!(two.program("pass").unwrap().insns > 0 && two.program("nothing").is_none());
        assert_eq!(one.program("drop").unwrap().tag, Program::by_id(one.program("drop").unwrap().id).unwrap().unwrap().tag);
    });
}

#[test]
fn two_loads_at_once_share_what_they_make() {
    with_fs(|fs| {
        let elf = compile(BASIC);
        std::thread::scope(|s| {
            let loads: Vec<_> = (0..4)
                .map(|_| s.spawn(|| Collection::load(&fs, &elf, &LoadOptions { name: "many", ..Default::default() }).map(drop)))
                .collect();
            for load in loads {
                load.join().unwrap().unwrap();
            }
        });
    });
}

/// What is loaded apart is of the same collection and uses the same tables; if either part is refused, nothing is left.
#[test]
fn programs_are_loaded_apart() {
    with_fs(|fs| {
        let pin = fs.objects().join("apart");
        let options = LoadOptions { name: "apart", apart: &["drop"], pin: Some(pin.clone()), ..Default::default() };
        let all = Collection::load(&fs, &compile(BASIC), &options).unwrap();
        assert_eq!((all.programs.len(), fs.names(&pin).unwrap().len()), (4, 4));
        all.program("drop").unwrap().test_run(&[0; 64], None, 1).unwrap();
        assert_eq!(PinnedMap::<u32, u64>::open(&fs, "t_hash").unwrap().get(&9).unwrap(), Some(64));
        let elf = compile(
            "SEC(\"tc\") int fine(struct __sk_buff *ctx) { return 0; }
             SEC(\"tc\") int broken(struct __sk_buff *ctx) { return *(volatile u32 *)(unsigned long)ctx->mark; }",
        );
        for apart in [&["fine"], &["broken"]] {
            let pin = fs.objects().join("refused");
            let refused = Collection::load(&fs, &elf, &LoadOptions { apart, pin: Some(pin.clone()), ..options.clone() }).unwrap_err();
            assert!(matches!(&refused, Error::Load { program, .. } if program == "broken"), "{refused}");
            assert!(!pin.exists());
        }
    });
}

#[test]
fn drift_is_refused_and_nothing_loaded() {
    with_fs(|fs| {
        let other = |value: &str, name: &str| {
            compile(&format!(
                "struct {{ __uint(type, HASH); __type(key, u32); __type(value, {value}); __uint(max_entries, 16); PINNED; }} {name} SEC(\".maps\");
                 SEC(\"tc\") int pass(struct __sk_buff *ctx) {{ u32 k = 0; return lookup(&{name}, &k) ? 1 : 0; }}"
            ))
        };
        let options = LoadOptions { name: "drift", ..Default::default() };
        // From abi, though nothing is pinned.
        let refused = Collection::load(&fs, &other("u64", "policy"), &options).unwrap_err();
        assert!(matches!(&refused, Error::Layout { map, field: "key size", .. } if map == "policy"), "{refused}");
        assert!(fs.names(&fs.maps()).unwrap().is_empty());
        // From what is pinned.
        Collection::load(&fs, &other("u64", "t_own"), &options).unwrap();
        let refused = Collection::load(&fs, &other("u32", "t_own"), &options).unwrap_err();
        assert!(matches!(&refused, Error::Layout { map, field: "value size", .. } if map == "t_own"), "{refused}");
        assert!(!refused.is_retryable());
    });
}

#[test]
fn refused_program_brings_the_verifiers_words() {
    with_fs(|fs| {
        let elf = compile(
            "SEC(\"tc\") int fine(struct __sk_buff *ctx) { return 0; }
             SEC(\"tc\") int broken(struct __sk_buff *ctx) { return *(volatile u32 *)(unsigned long)ctx->mark; }",
        );
        let pin = fs.objects().join("broken");
        let refused =
            Collection::load(&fs, &elf, &LoadOptions { name: "words", pin: Some(pin.clone()), ..Default::default() }).unwrap_err();
        let Error::Load { program, errno, log, message } = &refused else { panic!("{refused}") };
        assert_eq!((program.as_str(), *errno), ("broken", libc::EACCES));
        assert!(message.contains("invalid mem access 'scalar'"), "{message}");
        assert!(log.contains("invalid mem access 'scalar'") && log.contains("ctx->mark"), "{log}");
        assert!(!pin.exists());
        // Garbage is refused too, without a log.
        let refused = Collection::load(&fs, b"no elf", &LoadOptions { name: "garbage", ..Default::default() }).unwrap_err();
        assert!(matches!(&refused, Error::Load { program, log, .. } if program == "garbage" && log.is_empty()), "{refused:?}");
    });
}

/// A stage is a program of its own. What calls it finds it as long as the array's pin stands, whoever loaded what.
#[test]
fn stages_are_shared_and_outlive_their_loader() {
    const STAGES: &str = "struct { __uint(type, PROG_ARRAY); __type(key, u32); __type(value, u32);
             __uint(max_entries, 4); } stages SEC(\".maps\");\n";
    let entry = format!("{STAGES} SEC(\"tc\") int entry(struct __sk_buff *ctx) {{ tail_call(ctx, &stages, 0); return 2; }}");
    with_fs(move |fs| {
        let caller = compile(&entry);
        let stage = compile(&format!("{STAGES} SEC(\"tc\") int slow_path(struct __sk_buff *ctx) {{ return 7; }}"));
        let (entries, slow) = (fs.objects().join("entry"), fs.objects().join("slow"));
        let run = |c: &Collection| c.program("entry").unwrap().test_run(&[0; 64], None, 1).unwrap().retval;
        {
            let stages = Stages::make().unwrap();
            let options = LoadOptions { name: "entry", pin: Some(entries.clone()), stages: Some(&stages), ..Default::default() };
            let first = Collection::load(&fs, &caller, &options).unwrap();
            assert_eq!(run(&first), 2, "there is no stage yet");
            let stage_at = &[(STAGE_SLOW, "slow_path")];
            let options =
                LoadOptions { name: "slow", pin: Some(slow.clone()), stages: Some(&stages), stage: stage_at, ..Default::default() };
            Collection::load(&fs, &stage, &options).unwrap();
            assert_eq!(run(&first), 7);
            let unknown = LoadOptions { stage: &[(STAGE_SLOW, "other")], pin: None, ..options };
            assert!(matches!(Collection::load(&fs, &stage, &unknown), Err(Error::Invalid { field: "stage", .. })));
        }
        // Everything that loaded them is closed.
        let stages = Stages::pinned(&slow).unwrap().unwrap();
        assert_eq!(run(&Collection::open_pinned(&fs, &entries, Some(&stages)).unwrap().unwrap()), 7);
        assert_eq!(Collection::open_pinned(&fs, &slow, Some(&stages)).unwrap().unwrap().programs.len(), 1);
        // With other stages, or none, the pinned programs are of no use.
        assert!(Collection::open_pinned(&fs, &entries, Some(&Stages::make().unwrap())).unwrap().is_none());
        assert!(Collection::open_pinned(&fs, &entries, None).unwrap().is_none());
        assert!(Stages::pinned(&entries).unwrap().is_none());
        // An object that calls a stage needs an array.
        assert!(Collection::load(&fs, &caller, &LoadOptions { name: "alone", ..Default::default() }).is_err());
    });
}

#[test]
fn programs_are_found_by_their_pins() {
    with_fs(|fs| {
        let dir = fs.objects().join("abc123");
        assert!(Collection::open_pinned(&fs, &dir, None).unwrap().is_none());
        let elf = compile(BASIC);
        let options = LoadOptions { name: "pinned", pin: Some(dir.clone()), ..Default::default() };
        let loaded = Collection::load(&fs, &elf, &options).unwrap();
        let found = Collection::open_pinned(&fs, &dir, None).unwrap().unwrap();
        let long = "a_program_with_a_long_name";
        assert_eq!(found.program(long).unwrap().id, loaded.program(long).unwrap().id);
        assert_eq!(found.programs.len(), 4);
        assert_eq!(fs.names(&fs.objects()).unwrap(), ["abc123"]);
        // A second load takes the place of the first, as a whole.
        let second = Collection::load(&fs, &elf, &options).unwrap();
        assert_eq!(
            Collection::open_pinned(&fs, &dir, None).unwrap().unwrap().program("pass").unwrap().id,
            second.program("pass").unwrap().id
        );
        assert!(fs.remove_unfinished().unwrap().is_empty());
        // Programs that look at another table than the pinned one are of no use.
        std::fs::remove_file(fs.maps().join("t_hash")).unwrap();
        load(&fs);
        assert!(Collection::open_pinned(&fs, &dir, None).unwrap().is_none());
        assert!(fs.remove_object("abc123").unwrap() && !fs.remove_object("abc123").unwrap());
        assert!(Program::pinned(&dir.join("pass")).unwrap().is_none());
    });
}

#[test]
fn test_run_takes_packet_and_context() {
    with_fs(|fs| {
        let all = load(&fs);
        let mut ctx = [0u8; 192];
        ctx[8..12].copy_from_slice(&41u32.to_ne_bytes());
        let run = all.program("pass").unwrap().test_run(&[7; 60], Some(&ctx), 1).unwrap();
        assert_eq!((run.retval, run.data_out.as_slice()), (0, [7; 60].as_slice()));
        assert_eq!(run.ctx_out.unwrap()[8..12], 42u32.to_ne_bytes());
        assert_eq!(all.program("drop").unwrap().test_run(&[0; 60], None, 0).unwrap().retval, 2);
        assert_eq!(all.program("drop").unwrap().test_run(&[0; 13], None, 1).unwrap_err().errno(), Some(libc::EINVAL));
    });
}

#[test]
fn five_thousand_entries_all_come_back() {
    with_fs(|fs| {
        maps::create_all(&fs, SMALL).unwrap();
        let map: PinnedMap<abi::IpcacheKey, abi::IpcacheEntry> = PinnedMap::open(&fs, map::IPCACHE).unwrap();
        let key = |i: u32| abi::IpcacheKey {
            addr: [abi::Be32::new(i), abi::Be32::new(0), abi::Be32::new(0), abi::Be32::new(0)],
            family: 4,
            zone: 0,
            pad: 0,
        };
        let entry = |i: u32| abi::IpcacheEntry { identity: i, tunnel: abi::Be32::new(0), slot: i as u16, flags: 0 };
        assert!(map.entries().unwrap().is_empty());
        let all: Vec<_> = (0..5000).map(|i| (key(i), entry(i))).collect();
        map.put_batch(&all).unwrap();
        for _ in 0..5 {
            let mut found: Vec<u32> = map
                .entries()
                .unwrap()
                .iter()
                .map(|(k, v)| {
                    assert_eq!(k.addr[0].get(), v.identity);
                    v.identity
                })
                .collect();
            found.sort_unstable();
            assert!(found.iter().copied().eq(0..5000), "{} entries", found.len());
        }
        assert_eq!(map.get(&key(4999)).unwrap().unwrap().identity, 4999);
        assert!(!map.put_new(&key(1), &entry(1)).unwrap() && map.put_new(&key(5000), &entry(5000)).unwrap());
        assert!(map.delete(&key(5000)).unwrap() && !map.delete(&key(5000)).unwrap());
        // Every other key was never there.
        let keys: Vec<_> = (0..5000).flat_map(|i| [key(i), key(i + 100_000)]).collect();
        assert_eq!(map.delete_batch(&keys).unwrap(), 5000);
        assert!(map.entries().unwrap().is_empty());
    });
}

#[test]
fn tries_and_arrays_are_read_whole() {
    with_fs(|fs| {
        maps::create_all(&fs, SMALL).unwrap();
        let trie: PinnedMap<abi::IpcacheLpmKey, abi::IpcacheEntry> = PinnedMap::open(&fs, map::IPCACHE_LPM).unwrap();
        let key = |i: u32| abi::IpcacheLpmKey {
            prefixlen: 56,
            family: 4,
            zone: 0,
            pad: 0,
            addr: [abi::Be32::new(i << 8), abi::Be32::new(0), abi::Be32::new(0), abi::Be32::new(0)],
        };
        let entries: Vec<_> =
            (0..300).map(|i| (key(i), abi::IpcacheEntry { identity: i, tunnel: abi::Be32::new(0), slot: 0, flags: 0 })).collect();
        trie.put_batch(&entries).unwrap();
        assert_eq!(trie.entries().unwrap().len(), 300);
        assert_eq!(trie.delete_batch(&entries.iter().map(|(k, _)| *k).collect::<Vec<_>>()).unwrap(), 300);
        let array: PinnedMap<u32, abi::RuleRecord> = PinnedMap::open(&fs, map::RULE_RECORD).unwrap();
        array.put(&77, &abi::RuleRecord { proxy_port: abi::Be16::new(80), pad: 0, cookie: 5 }).unwrap();
        let rows = array.entries().unwrap();
        assert_eq!(rows.len(), array.max_entries() as usize);
        assert_eq!((rows[77].0, rows[77].1.cookie), (77, 5));
        assert_eq!(array.get(&array.max_entries()).unwrap().map(|r| r.cookie), None);
    });
}

#[test]
fn per_cpu_values_are_whole() {
    with_fs(|fs| {
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout, Clone, Copy)]
        #[repr(C)]
        struct Row {
            a: u32,
            b: u32,
            c: u32,
        }
        let all = load(&fs);
        // Twelve bytes: the kernel's stride is sixteen.
        let map: PercpuMap<Row> = PercpuMap::open(&fs, "t_percpu").unwrap();
        all.program("pass").unwrap().test_run(&[0; 60], None, 100).unwrap();
        let sum = |rows: &[Row]| rows.iter().fold((0, 0, 0), |s, r| (s.0 + r.a, s.1 + r.b, s.2 + r.c));
        assert_eq!(sum(&map.get(1).unwrap()), (100, 200, 300));
        let rows = map.all().unwrap();
        assert_eq!(rows.iter().map(|r| sum(r).0).collect::<Vec<_>>(), [0, 100, 0, 0]);
        map.reset(1).unwrap();
        assert_eq!(sum(&map.get(1).unwrap()), (0, 0, 0));
        assert_eq!(map.get(4).err().and_then(|e| e.errno()), Some(libc::ENOENT));
    });
}

#[test]
fn tail_calls_go_where_the_slot_says() {
    with_fs(|fs| {
        maps::create_all(&fs, SMALL).unwrap();
        let all = load(&fs);
        let array = ProgArray::open(&fs, map::RECEIVE).unwrap();
        let jump = || all.program("a_program_with_a_long_name").unwrap().test_run(&[0; 60], None, 1).unwrap().retval;
        assert_eq!(jump(), 7);
        array.set(3, all.program("drop").unwrap()).unwrap();
        assert_eq!((jump(), array.get(3).unwrap()), (2, Some(all.program("drop").unwrap().id)));
        array.set(3, all.program("pass").unwrap()).unwrap();
        assert_eq!(jump(), 0);
        assert!(array.clear(3).unwrap() && !array.clear(3).unwrap());
        assert_eq!((jump(), array.get(3).unwrap()), (7, None));
    });
}

#[test]
fn a_thousand_events_all_arrive() {
    with_fs(|fs| {
        maps::create_all(&fs, SMALL).unwrap();
        let all = load(&fs);
        let mut reader = Reader::open(&fs, map::EVENTS).unwrap();
        let seen = Cell::new(0);
        let mut count = |record: &[u8]| {
            assert_eq!(record, 60u64.to_ne_bytes());
            seen.set(seen.get() + 1);
        };
        assert_eq!(reader.poll(Duration::ZERO, &mut count).unwrap(), 0);
        all.program("emit").unwrap().test_run(&[0; 60], None, 1000).unwrap();
        assert_eq!(reader.consume(10, &mut count).unwrap(), 10);
        while seen.get() < 1000 {
            assert!(reader.poll(Duration::from_secs(5), &mut count).unwrap() > 0, "only {} events", seen.get());
        }
        assert_eq!((reader.poll(Duration::ZERO, &mut count).unwrap(), seen.get()), (0, 1000));
        // A panic in the callback comes out as one.
        all.program("emit").unwrap().test_run(&[0; 60], None, 1).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader.consume(1, &mut |_| panic!("mine"))));
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"mine"));
        assert!(matches!(Reader::open(&fs, map::METRICS), Err(Error::Layout { .. })));
    });
}

#[test]
fn features_are_told_without_touching_anything() {
    sandbox(|_| {
        let features = Features::probe().unwrap();
        assert_eq!(features.tcx, features.kernel >= (6, 6), "{features:?}");
        assert!([100, 250, 300, 1000].contains(&pilus_loader::clock::hz().unwrap()));
    });
}

/// Records as long as events. The reader is woken each time another 64 KiB are unread: a wake-up for each record beyond the first
/// 64 KiB makes both sides ten times slower. What finds no room is counted.
const FLOOD: &str = r#"
static void *(*reserve)(void *, u64, u64) = (void *)131;
static void (*submit)(void *, u64) = (void *)132;
static u64 (*query)(void *, u64) = (void *)134;
struct { __uint(type, RINGBUF); __uint(max_entries, 4194304); PINNED; } flood SEC(".maps");
struct { __uint(type, ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u64); PINNED; } flood_lost SEC(".maps");
SEC("tc") int produce(struct __sk_buff *ctx) {
    u32 zero = 0;
    u64 *lost = lookup(&flood_lost, &zero);
    for (int i = 0; lost && i < 100; i++) {
        u64 *r = reserve(&flood, 192, 0);
        if (!r) { *lost += 1; continue; }
        for (int n = 0; n < 24; n++) r[n] = n;
        u64 unread = query(&flood, 0);
        submit(r, unread >= 65536 && (unread & 65535) < 200 ? 2 : 1);
    }
    return 0;
}"#;

/// Nothing is lost without being counted, and a lone record comes with the next sweep although nobody is woken for it. Prints how
/// fast it went; run optimised, the rate is that of the producer.
#[test]
fn a_flood_is_read_or_counted() {
    with_fs(|fs| {
        let programs = Collection::load(&fs, &compile(FLOOD), &LoadOptions { name: "flood", ..Default::default() }).unwrap();
        let lost: PinnedMap<u32, u64> = PinnedMap::open(&fs, "flood_lost").unwrap();
        let mut reader = Reader::open(&fs, "flood").unwrap();
        let runs = 20_000;
        let produce = std::sync::Arc::new(programs);
        let producer = {
            let programs = std::sync::Arc::clone(&produce);
            std::thread::spawn(move || programs.program("produce").unwrap().test_run(&[0; 64], None, runs).unwrap())
        };
        let begun = std::time::Instant::now();
        let (mut read, mut sum) = (0u64, 0u64);
        let mut take = |record: &[u8]| {
            assert_eq!(record.len(), 192);
            read += 1;
            sum += u64::from(record[8]);
        };
        while !producer.is_finished() {
            if reader.poll(Duration::from_millis(25), &mut take).unwrap() == 0 {
                reader.consume(65_536, &mut take).unwrap();
            }
        }
        producer.join().unwrap();
        while reader.consume(65_536, &mut take).unwrap() > 0 {}
        let seconds = begun.elapsed().as_secs_f64();
        let lost = lost.get(&0).unwrap().unwrap();
        println!("{read} read, {lost} lost in {seconds:.2} s: {:.2} million a second", read as f64 / seconds / 1e6);
        assert_eq!((read + lost, sum), (u64::from(runs) * 100, read));
        assert!(read > 0);
    });
}
