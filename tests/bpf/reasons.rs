// SPDX-License-Identifier: Apache-2.0
//! Every way to drop a packet is in some table.

use pilus_codegen::{Build, Features, NodeConfig, Templates};
use pilus_loader::stages::Stages;
use pilus_model::abi::DropReason::{self, *};
use pilus_model::abi::EP_DROPS;
use pilus_tests::objects::{compile, load, tree};
use pilus_tests::outcome::{Outcome, TC_ACT_REDIRECT, TC_ACT_SHOT};
use pilus_tests::packet::Packet;
use pilus_tests::sandbox::Sandbox;
use pilus_tests::scenario::Scenario;
use pilus_tests::wire::UDP;
use pilus_tests::world::Family::{self, V4};
use pilus_tests::world::Who::{A, B};
use pilus_tests::world::World;
use std::collections::BTreeSet;

/// Reasons that no packet of a test run can meet, and why.
const UNREACHED: &[(DropReason, &str)] = &[
    (WriteError, "bpf_skb_store_bytes, change_tail and pull_data fail only for a packet that the kernel cannot allocate memory for"),
    (FlowInsertFailed, "an LRU table makes room; an update fails only where each CPU's last free element is in use at that moment"),
    (SlotMismatch, "room: a flow of other endpoints is judged as a new one"),
    (RedirectFailed, "room: the kernel redirects after the program has returned, so only real devices show it"),
    (Custom, "only a user's own custom/container.c returns it; tried below"),
];

/// Every row of the tables.
pub fn tables() -> Vec<Scenario> {
    let tables = [
        crate::closing::table,
        crate::device::table,
        crate::flow::table,
        crate::fragments::table,
        crate::mtu::table,
        crate::gateway::table,
        crate::host::table,
        crate::malformed::table,
        crate::policy::table,
        crate::related::table,
        crate::source::table,
    ];
    tables.iter().flat_map(|table| table()).collect()
}

/// Rows assert the reasons that they expect, so what they expect is what is reached.
#[test]
fn every_drop_reason_is_reached() {
    let reached: BTreeSet<DropReason> =
        tables().iter().flat_map(|s| s.reasons().collect::<Vec<_>>()).chain(crate::nat::REASONS).chain(crate::nat46::REASONS).collect();
    let unreached: BTreeSet<DropReason> = UNREACHED.iter().map(|(r, _)| *r).collect();
    let missing: Vec<_> = DropReason::ALL.iter().filter(|r| !reached.contains(r) && !unreached.contains(r)).collect();
    assert!(missing.is_empty(), "no row is dropped for {missing:?}");
    let both: Vec<_> = reached.intersection(&unreached).collect();
    assert!(both.is_empty(), "{both:?} are reached after all");
}

#[test]
fn rows_have_names_of_their_own() {
    let mut names = BTreeSet::new();
    let all = tables();
    for scenario in &all {
        assert!(names.insert(scenario.name), "two rows are called {}", scenario.name);
    }
    println!("{} rows", all.len());
}

/// Drops what a user's program drops: here, frames of 100 bytes and more on their way out, of 60 on their way in.
const CUSTOM: &str = "/* SPDX-License-Identifier: GPL-2.0 */
static __always_inline int custom_from_container(struct __sk_buff *ctx) { return ctx->len >= 100 ? -DROP_CUSTOM : 0; }
static __always_inline int custom_to_container(struct __sk_buff *ctx) { return ctx->len >= 60 ? -DROP_CUSTOM : 0; }
";

#[test]
fn a_custom_program_drops() {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in Templates::load(tree()).unwrap().files() {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    std::fs::create_dir_all(dir.path().join("custom")).unwrap();
    // A reason is a byte: one that is 0 in it is no reason to go on.
    for (refusal, build) in [("DROP_CUSTOM", Build::Shared), ("DROP_CUSTOM", Build::Own), ("256", Build::Shared), ("256", Build::Own)] {
        std::fs::write(dir.path().join("custom/container.c"), CUSTOM.replace("DROP_CUSTOM", refusal)).unwrap();
        let templates = Templates::load(dir.path()).unwrap();
        let elf = compile(&templates, &templates.render_container(&A.config(&Features::default())).unwrap(), build);
        let slow = compile(&templates, &templates.render_slow(&NodeConfig::default()).unwrap(), Build::Shared);
        Sandbox::run(|sandbox| {
            let world = World::new(sandbox, build, &Features::default());
            let stages = Stages::make().unwrap();
            load(sandbox, &stages, &slow, "slow");
            let object = load(sandbox, &stages, &elf, "container");
            let program = object.programs.iter().find(|p| p.name == "from_container").unwrap();
            let run = |packet: Packet| {
                let frame = World::frame(A, packet);
                (world.run(program, &World::context_of(A), &frame), frame.len())
            };
            // On either side the report tells of whom it is.
            let told = |o: &Outcome| {
                let e = o.events[0].event;
                let ends = (u32::from(e.src_slot), e.src_id, u32::from(e.dst_slot), e.dst_id);
                assert_eq!(ends, (A.slot(), A.identity(), B.slot(), B.identity()), "{o}");
                assert_eq!((e.proto, e.dport, o.events.len()), (UDP, 53, 1), "{o}");
            };
            world.reset(EP_DROPS);
            for family in Family::BOTH {
                for (len, wanted) in [(0, vec![]), (20, vec![Custom]), (80, vec![Custom])] {
                    let (o, frame) = run(family.ip(A, B).udp(1, 53).filled(len));
                    // An IPv6 frame without payload is 62 bytes long already.
                    let wanted = if frame == 62 { vec![Custom] } else { wanted };
                    assert_eq!(o.drops(), wanted, "-{refusal}, {frame} bytes: {o}");
                    wanted.iter().for_each(|_| told(&o));
                }
            }
            // Nor does the fast path let through what the receiver's side refuses. What is judged counts as the flow's, as ever.
            world.reset(EP_DROPS);
            let packet = |len| V4.ip(A, B).udp(1, 53).filled(len);
            assert_eq!(run(packet(0)).0.retval, TC_ACT_REDIRECT);
            assert_eq!(world.send(B, V4.ip(B, A).udp(53, 1)).retval, TC_ACT_REDIRECT);
            for n in 2..5 {
                let (o, _) = run(packet(20));
                assert_eq!((o.retval, o.drops(), o.packets(Custom.raw())), (TC_ACT_SHOT, vec![Custom], 1), "{o}");
                told(&o);
                let mut packets = 0;
                assert!(world.edit_flow(&packet(0), |h| {
                    packets = h.packets.iter().sum();
                    Some(h)
                }));
                assert_eq!(packets, 1 + n);
            }
        });
    }
}
