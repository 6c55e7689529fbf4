// SPDX-License-Identifier: Apache-2.0
//! What the verifier has to look at.

use pilus_codegen::{Build, Features};
use pilus_tests::sandbox::Sandbox;
use pilus_tests::world::{Who, World};

#[test]
fn verified_instructions_of_the_default_set() {
    for build in [Build::Shared, Build::Own] {
        Sandbox::run(|sandbox| {
            let world = World::new(sandbox, build, &Features::default());
            let (_, container) = world.containers.iter().find(|(who, _)| *who == Who::A).expect("A");
            let programs = container.programs.iter().chain(&world.netdev.programs).chain(&world.slow.programs);
            let counts: Vec<_> = programs.map(|p| (p.name.as_str(), p.verified_insns)).collect();
            let total: u32 = counts.iter().map(|(_, n)| n).sum();
            println!("{}: {total} verified instructions {counts:?}", build.as_str());
            assert!(total > 0 && total < 20_000, "{}: {total} instructions: {counts:?}", build.as_str());
        });
    }
}

#[test]
fn without_ipv4_and_without_events() {
    for feature in ["ipv4", "events"] {
        Sandbox::run(|sandbox| {
            use pilus_model::abi::{EP_DROPS, EP_TRACE_ALL};
            use pilus_tests::world::Family::{V4, V6};
            let world = World::new(sandbox, Build::Shared, &Features::default().with(feature, false));
            world.reset(EP_TRACE_ALL | EP_DROPS);
            let four = world.send(Who::A, V4.ip(Who::A, Who::B).udp(1, 53));
            let six = world.send(Who::A, V6.ip(Who::A, Who::B).udp(1, 53));
            let wanted = if feature == "ipv4" { (2, 7, true) } else { (7, 7, false) };
            assert_eq!((four.retval, six.retval, !six.events.is_empty()), wanted, "without {feature}: {four}\n{six}");
        });
    }
}
