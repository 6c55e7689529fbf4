// SPDX-License-Identifier: Apache-2.0
//! The reader of the ring buffer, against the kernel's side of it: every record once, whole, in order, round after round.

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use common::{compile, with_fs};
use pilus_loader::Error;
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::{Collection, LoadOptions};
use pilus_loader::events::Reader;
use pilus_loader::maps::PinnedMap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Of each producer (upper bits of the mark): records of 8 to 511 bytes by their number, which is their first word and fills the
/// rest but for the last word, its complement; each seventh is taken back. Bit 0 of the mark: the reader is woken.
const SOURCE: &str = r#"
static void *(*reserve)(void *, u64, u64) = (void *)131;
static void (*submit)(void *, u64) = (void *)132;
static void (*discard)(void *, u64) = (void *)133;
static u64 (*query)(void *, u64) = (void *)134;
struct producer { u64 next, lost, words[64]; };
struct { __uint(type, RINGBUF); __uint(max_entries, 65536); PINNED; } ring SEC(".maps");
struct { __uint(type, ARRAY); __uint(max_entries, 2); __type(key, u32); __type(value, struct producer); PINNED; } producers SEC(".maps");
SEC("tc") int send(struct __sk_buff *ctx) {
    u32 who = ctx->mark >> 1 & 1, len;
    struct producer *p = lookup(&producers, &who);
    u64 n, wake = ctx->mark & 1 ? 2 : 1;
    void *r;
    if (!p)
        return 1;
    n = p->next++;
    if (n % 7 == 6) {
        r = reserve(&ring, 48, 0);
        if (r)
            discard(r, wake);
        return 0;
    }
    len = 8 + n * 11 % 504;
    asm volatile("" : "+r"(len));
    len &= 511;
    p->words[0] = n << 1 | who;
    p->words[len / 8 - 1 & 63] = len >= 16 ? ~n : p->words[0];
    if (ringbuf_output(&ring, p->words, len, wake))
        p->lost++;
    p->words[len / 8 - 1 & 63] = 0;
    return 0;
}
static long (*loop)(u32, void *, void *, u64) = (void *)181;
static long nothing(u32 n, void *ctx) { return 0; }
SEC("tc") int slow(struct __sk_buff *ctx) {
    u64 *r = reserve(&ring, 8, 0);
    if (!r)
        return 1;
    loop(1 << 22, nothing, 0, 0);
    *r = 0;
    submit(r, 1);
    return 0;
}
SEC("tc") int unread(struct __sk_buff *ctx) { return query(&ring, 0); }
SEC("tc") int giant(struct __sk_buff *ctx) {
    void *r = reserve(&ring, 8192, 0);
    if (r)
        submit(r, 1);
    return 0;
}"#;

/// A producer's state in the kernel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Producer {
    next: u64,
    lost: u64,
    words: [u64; 64],
}

struct Ring {
    programs: Collection,
    producers: PinnedMap<u32, Producer>,
    reader: RefCell<Reader>,
}

/// Bytes of record `n`; none of those that were taken back.
fn length(n: u64) -> Option<usize> {
    (n % 7 != 6).then_some(8 + (n * 11 % 504) as usize)
}

/// Checks a record and says who sent it and the how-manieth it is.
fn check(record: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().unwrap());
    let (n, who) = (word(0) >> 1, word(0) & 1);
    assert_eq!(Some(record.len()), length(n), "record {n}");
    let last = record.len() / 8 * 8 - 8;
    assert!(last == 0 || word(last) == !n, "record {n} ends otherwise");
    assert!((8..last).step_by(8).all(|at| word(at) == 0), "record {n} holds something else");
    (who, n)
}

impl Ring {
    fn new(fs: &BpfFs, bytes: u32) -> Self {
        let options = LoadOptions { name: "ring", max_entries: &[("ring", bytes)], ..Default::default() };
        let programs = Collection::load(fs, &compile(SOURCE), &options).unwrap();
        let producers = PinnedMap::open(fs, "producers").unwrap();
        Self { programs, producers, reader: RefCell::new(Reader::open(fs, "ring").unwrap()) }
    }

    fn send(&self, mark: u32, count: u32) {
        let mut ctx = [0; 192];
        ctx[8..12].copy_from_slice(&mark.to_ne_bytes());
        assert_eq!(self.programs.program("send").unwrap().test_run(&[0; 64], Some(&ctx), count).unwrap().retval, 0);
    }

    /// As the kernel sees it.
    fn unread(&self) -> u32 {
        self.programs.program("unread").unwrap().test_run(&[0; 64], None, 1).unwrap().retval
    }

    fn lost(&self, who: u32) -> u64 {
        self.producers.get(&who).unwrap().unwrap().lost
    }

    /// Numbers of the records that are there, at most `max`.
    fn take(&self, max: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        let n = self.reader.borrow_mut().consume(max, &mut |r| seen.push(check(r).1)).unwrap();
        assert_eq!(n, seen.len());
        seen
    }
}

fn wanted(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.filter(|n| length(*n).is_some()).collect()
}

#[test]
fn records_stay_whole_and_in_order_round_after_round() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 65536);
        let (mut sent, mut seen) = (0u64, Vec::new());
        // About 60 rounds, each in other places.
        for turn in 0..300 {
            let count = 1 + turn * 31 % 97;
            ring.send(0, count);
            sent += u64::from(count);
            seen.extend(ring.take(turn as usize % 13));
            seen.extend(ring.take(usize::MAX));
        }
        assert_eq!((ring.unread(), ring.lost(0)), (0, 0));
        assert_eq!(seen, wanted(0..sent));
    });
}

/// It is a line of memory that the kernel looks at for each record that it makes, and that goes from one processor to the other
/// each time it is written.
#[test]
fn the_kernel_is_told_in_steps_what_was_read() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 1 << 20);
        ring.send(0, 3300);
        let full = ring.unread();
        assert!(full > 700_000 && ring.lost(0) == 0, "{full}");
        let mut told = vec![full];
        ring.reader
            .borrow_mut()
            .consume(usize::MAX, &mut |_| {
                let now = ring.unread();
                if told.last() != Some(&now) {
                    told.push(now);
                }
            })
            .unwrap();
        assert!(told.windows(2).all(|w| (65_536..65_536 + 520).contains(&(w[0] - w[1]))), "{told:?}");
        assert!(told.len() > 10, "so much stays free for others: {told:?}");
        assert_eq!(ring.unread(), 0);
        // Of what was read the kernel learns also if the caller panics, and the record with which it did was read.
        ring.send(0, 6);
        let count = Cell::new(0);
        let mut third = |_: &[u8]| {
            count.set(count.get() + 1);
            assert!(count.get() < 3, "mine");
        };
        let panicked = catch_unwind(AssertUnwindSafe(|| ring.reader.borrow_mut().consume(usize::MAX, &mut third)));
        assert!(panicked.is_err());
        assert_eq!(ring.take(usize::MAX), wanted(3300..3306)[3..]);
        assert_eq!(ring.unread(), 0);
    });
}

#[test]
fn a_reader_goes_on_where_the_one_before_it_ended() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 65536);
        ring.send(0, 40);
        assert_eq!(ring.take(11), wanted(0..40)[..11]);
        ring.reader.replace(Reader::open(&fs, "ring").unwrap());
        assert_eq!(ring.take(usize::MAX), wanted(0..40)[11..]);
    });
}

/// Who is woken for each record, or reads each by itself, has no time for them.
#[test]
fn the_reader_waits_until_it_is_woken_or_much_is_there() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 1 << 20);
        // Also the second time: what is there already wakes nobody.
        for turn in [0, 7] {
            ring.send(0, 5);
            let mut held = ring.reader.borrow_mut();
            let reader: &mut Reader = &mut held;
            let mut seen = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let mut seen = Vec::new();
                    reader.poll(Duration::MAX, &mut |r| seen.push(check(r).1)).unwrap();
                    seen
                });
                for _ in 0..1000 {
                    assert!(!waiting.is_finished(), "nobody has woken it");
                    std::thread::yield_now();
                }
                ring.send(1, 2);
                waiting.join().unwrap()
            });
            // The second of both wakes too, maybe when the first has been enough: that is over before the next turn.
            held.poll(Duration::ZERO, &mut |r| seen.push(check(r).1)).unwrap();
            assert_eq!(seen, wanted(turn..turn + 7));
        }
        // A lone one comes when the time is up; much is read at once.
        let mut seen = Vec::new();
        ring.send(0, 1);
        while seen.is_empty() {
            ring.reader.borrow_mut().poll(Duration::from_millis(1), &mut |r| seen.push(check(r).1)).unwrap();
        }
        assert_eq!(seen, wanted(14..15));
        ring.send(0, 400);
        seen.clear();
        ring.reader.borrow_mut().poll(Duration::MAX, &mut |r| seen.push(check(r).1)).unwrap();
        assert_eq!(seen, wanted(15..415));
        assert_eq!(ring.reader.borrow_mut().poll(Duration::ZERO, &mut |_| {}).unwrap(), 0);
    });
}

/// A program may be interrupted while it writes one.
#[test]
fn a_record_comes_when_it_is_whole() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 65536);
        let (programs, mut reader) = (&ring.programs, ring.reader.borrow_mut());
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| programs.program("slow").unwrap().test_run(&[0; 64], None, 3).unwrap());
            let mut seen = 0;
            while seen < 3 {
                reader.consume(usize::MAX, &mut |r| seen += usize::from(check(r) == (0, 0))).unwrap();
            }
            assert_eq!(writing.join().unwrap().retval, 0);
        });
        assert_eq!(ring.unread(), 0);
    });
}

/// What finds no room is counted, to the last one, and what does comes in each producer's order.
#[test]
fn of_two_producers_every_record_is_read_or_counted() {
    with_fs(|fs| {
        const RECORDS: u32 = 300_000;
        let Ring { programs, producers, reader } = Ring::new(&fs, 65536);
        let (programs, mut reader) = (Arc::new(programs), reader.into_inner());
        let threads: Vec<_> = (0..2u32)
            .map(|who| {
                let programs = Arc::clone(&programs);
                std::thread::spawn(move || {
                    let mut ctx = [0; 192];
                    ctx[8..12].copy_from_slice(&(who << 1).to_ne_bytes());
                    programs.program("send").unwrap().test_run(&[0; 64], Some(&ctx), RECORDS).unwrap();
                })
            })
            .collect();
        let (mut read, mut next) = ([0u64; 2], [0u64; 2]);
        let mut take = |record: &[u8]| {
            let (who, n) = check(record);
            let who = who as usize;
            assert!(n >= next[who], "{n} after {}", next[who]);
            next[who] = n + 1;
            read[who] += 1;
        };
        while threads.iter().any(|t| !t.is_finished()) {
            reader.poll(Duration::from_millis(1), &mut take).unwrap();
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        while reader.consume(usize::MAX, &mut take).unwrap() > 0 {}
        let all = wanted(0..u64::from(RECORDS)).len() as u64;
        for (who, read) in (0..).zip(read) {
            let lost = producers.get(&who).unwrap().unwrap().lost;
            println!("producer {who}: {read} read, {lost} lost");
            assert_eq!(read + lost, all);
            assert!(read > 0);
        }
    });
}

/// Only a page of the ring's second copy is mapped.
#[test]
fn a_record_that_is_too_long_is_an_error() {
    with_fs(|fs| {
        let ring = Ring::new(&fs, 65536);
        ring.programs.program("giant").unwrap().test_run(&[0; 64], None, 1).unwrap();
        let error = ring.reader.borrow_mut().consume(usize::MAX, &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Map { errno: libc::EMSGSIZE, .. }), "{error}");
    });
}
