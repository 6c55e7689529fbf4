// SPDX-License-Identifier: Apache-2.0
//! What goes wrong around containers: namespaces, names and addresses that are not what they should be, and what is left
//! of the attempt, which is nothing.

use crate::support::{Talk, netlink, policy, settled, talk, until};
use pilus_api::error::ClientError;
use pilus_api::types::{Build, EndpointModel, EndpointRequest, LabelsRequest, PolicyDocument, PolicyImport};
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use pilus_loader::netlink::LocalPair;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn wish(name: &str, container: &Container) -> EndpointRequest {
    EndpointRequest { name: name.into(), netns: container.path(), ..EndpointRequest::default() }
}

fn put(node: &Node, request: &EndpointRequest) -> Result<(EndpointModel, bool), ClientError> {
    node.block_on(node.client().put_endpoint(request, true)).map(|put| (put.endpoint, put.created))
}

/// Status, code, field and message of a refusal.
fn refused(node: &Node, request: &EndpointRequest) -> (u16, String, String, String) {
    match put(node, request) {
        Err(ClientError::Api { status, error }) => (status, error.code, error.field.unwrap_or_default(), error.message),
        other => panic!("{request:?}: {other:?}"),
    }
}

fn ping(from: &Container, to: &Container, family: Family) {
    let raw = Raw::new(from, family).expect("raw socket");
    raw.echo(to.ip(family), 9, 9).expect("send");
    raw.receive(|m| m.kind == icmp::echo_types(family).1 && m.body.starts_with(&9u16.to_be_bytes())).expect("answer");
}

#[test]
fn a_namespace_that_is_none_leaves_nothing() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let file = node.path("file");
    std::fs::write(&file, "no namespace").expect("file");
    let mount = format!("/proc/{}/ns/mnt", std::process::id());
    // Mounted as `ip netns` does it: one that is of another kind, and one that is what it should be.
    let bind = |from: &str, name: &str| {
        let (from, to) = (from.to_owned(), node.path(name));
        std::fs::write(&to, "").expect("mount point");
        let path = to.display().to_string();
        let mounted =
            node.run_inside(move || nix::mount::mount(Some(&*from), &to, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>));
        mounted.expect("node").expect("mount");
        path
    };
    let uts = bind("/proc/self/ns/uts", "uts");
    let good = Container::new("mounted").expect("container");
    let good = EndpointRequest { name: "mounted".into(), netns: bind(&good.path(), "net"), ..EndpointRequest::default() };
    for path in [file.to_str().expect("path"), "/no/such/namespace", "relative", &mount, &uts, "/tmp"] {
        let request = EndpointRequest { name: "web".into(), netns: path.into(), ..EndpointRequest::default() };
        let (status, code, field, message) = refused(&node, &request);
        assert_eq!((status, code.as_str(), field.as_str()), (400, "invalid", "netns"), "{path}: {message}");
        assert!(message.contains(path), "{path}: {message}");
        assert!(settled(&node).is_empty(), "{path}");
    }
    assert!(put(&node, &good).expect("a mounted namespace").1);
    assert!(node.delete("mounted").expect("delete"));
    // A namespace that is gone before the request: the number of the file is free again.
    let gone = Container::new("gone").expect("container").path();
    let request = EndpointRequest { name: "gone".into(), netns: gone, ..EndpointRequest::default() };
    refused(&node, &request);
    assert!(settled(&node).is_empty());
    let web = node.add("web", &[]).expect("the name is free");
    let other = node.add("other", &[]).expect("other");
    talk(&web, &other, 5000);
}

#[test]
fn a_taken_interface_name_leaves_nothing() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let other = node.add("other", &[]).expect("other");
    let container = Container::new("web").expect("container");
    container.run(|| {
        netlink(async |n| {
            let pair = LocalPair {
                name: "eth0",
                ifindex: None,
                peer_name: "far",
                mac: [2; 6],
                peer_mac: [6; 6],
                mtu: 1500,
                noarp: false,
                no_autoconf: true,
            };
            n.create_veth_local(pair).await.expect("veth");
        });
    });
    let before = settled(&node);
    let mut request = wish("web", &container);
    request.labels = vec!["app=never-seen".into()];
    let (_, _, _, message) = refused(&node, &request);
    assert!(message.contains("eth0"), "{message}");
    assert_eq!(settled(&node).len(), before.len());
    let inside = container.run(|| netlink(async |n| n.links().await.expect("links")));
    let names: Vec<_> = inside.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(inside.len(), 3, "an interface is left inside: {names:?}");
    request.ifname = Some("net1".into());
    let (endpoint, created) = put(&node, &request).expect("another name");
    assert!(created);
    let mut web = container.clone();
    web.learn(&endpoint);
    talk(&web, &other, 5000);
}

#[test]
fn two_interfaces_of_one_container() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let first = node.add("first", &[]).expect("first");
    let other = node.add("other", &[]).expect("other");
    let mut request = wish("second", &first);
    request.ifname = Some("eth1".into());
    let (endpoint, _) = put(&node, &request).expect("second interface");
    let mut second = first.clone();
    second.learn(&endpoint);
    assert_ne!(first.ipv6, second.ipv6);
    // The first one's routes are still its own.
    talk(&first, &other, 5000);
    for family in Family::BOTH {
        // A packet that names its device takes the second.
        let far = other.udp(family, 6000).expect("bind");
        let near = second.udp(family, 0).expect("bind");
        second.run(|| socket2::SockRef::from(&near).bind_device(Some(b"eth1"))).expect("bind to the device");
        near.send_to(b"x", (other.ip(family), 6000)).expect("send");
        let mut buffer = [0; 4];
        let (_, from) = far.recv_from(&mut buffer).expect("a packet by the second interface");
        assert_eq!(from.ip(), second.ip(family));
        far.send_to(b"y", from).expect("send");
        near.recv(&mut buffer).expect("the answer");
    }
    assert_eq!(settled(&node).len(), 3);
    assert!(node.delete("second").expect("delete"));
    talk(&first, &other, 5001);
}

#[test]
fn without_the_helper_nothing_is_left() {
    let mut node = Node::prepare(NodeOptions::default()).expect("node");
    let alone = node.path("alone");
    std::fs::create_dir(&alone).expect("dir");
    let agent = alone.join("pilus-agent");
    let original = pilus_e2e::node::program("pilus-agent");
    std::fs::hard_link(&original, &agent).or_else(|_| std::fs::copy(&original, &agent).map(drop)).expect("copy");
    node.set_agent(agent);
    node.start_agent().expect("agent");
    let container = Container::new("web").expect("container");
    let (status, code, _, message) = refused(&node, &wish("web", &container));
    assert_eq!((status, code.as_str()), (500, "failed"), "{message}");
    assert!(message.contains("pilus-netns") && message.contains("beside pilus-agent"), "{message}");
    assert!(settled(&node).is_empty());
}

#[test]
fn names_are_taken_once() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let (one, two) = (Container::new("one").expect("container"), Container::new("two").expect("container"));
    let mut request = wish("web", &one);
    request.labels = vec!["app=web".into()];
    let (first, created) = put(&node, &request).expect("add");
    assert!(created);
    let (again, created) = put(&node, &request).expect("the same again");
    assert!(!created);
    assert_eq!((first.id, first.ipv6, first.ipv4), (again.id, again.ipv6, again.ipv4));
    let as_it_is =
        EndpointRequest { ipv4: first.ipv4.map(|ip| ip.to_string()), ipv6: first.ipv6.map(|ip| ip.to_string()), ..request.clone() };
    assert!(!put(&node, &as_it_is).expect("the same, by number").1);
    let rows = [
        ("another namespace", EndpointRequest { netns: two.path(), ..request.clone() }),
        ("other labels", EndpointRequest { labels: vec!["app=db".into()], ..request.clone() }),
        ("another interface", EndpointRequest { ifname: Some("eth1".into()), ..request.clone() }),
        ("without IPv4", EndpointRequest { ipv4: Some("none".into()), ..request.clone() }),
        ("another address", EndpointRequest { ipv6: Some(format!("{}9", first.ipv6.expect("IPv6"))), ..request.clone() }),
        ("another name for the same interface", EndpointRequest { name: "db".into(), ..request.clone() }),
    ];
    for (what, request) in rows {
        let (status, code, _, message) = refused(&node, &request);
        assert_eq!((status, code.as_str()), (409, "conflict"), "{what}: {message}");
        assert!(message.contains(&first.id.to_string()), "{what} does not name who has it: {message}");
    }
    assert_eq!(settled(&node).len(), 1);
    assert!(node.delete("web").expect("delete"));
    assert!(!node.delete("web").expect("delete again"), "nothing was there");
    assert!(!node.block_on(node.client().delete_endpoint("4242", true)).expect("delete by number"), "nothing was there");
}

#[test]
fn addresses_by_number() {
    let args = ["--ipv6-range", "fd00:77::/64", "--ipv4-range", "10.77.0.0/24"].map(str::to_owned).to_vec();
    let node = Node::start(NodeOptions { args, ..NodeOptions::default() }).expect("node");
    let containers: Vec<_> = (0..3).map(|n| Container::new(&format!("c{n}")).expect("container")).collect();
    let asking = |n: usize, v6: &str, v4: &str| EndpointRequest {
        ipv6: Some(v6.into()),
        ipv4: Some(v4.into()),
        ..wish(&format!("c{n}"), &containers[n])
    };
    let (first, _) = put(&node, &asking(0, "fd00:77::aa", "10.77.0.77")).expect("by number");
    assert_eq!(first.ipv6, Some("fd00:77::aa".parse::<Ipv6Addr>().expect("ip")));
    assert_eq!(first.ipv4, Some(Ipv4Addr::new(10, 77, 0, 77)));
    let rows = [
        ("fd00:77::aa", "auto", 409, "fd00:77::aa is taken"),
        ("auto", "10.77.0.77", 409, "10.77.0.77 is taken"),
        ("fd00:78::1", "auto", 409, "fd00:78::1 is outside"),
        ("auto", "10.78.0.1", 409, "10.78.0.1 is outside"),
        ("fd00:77::1", "auto", 409, "fd00:77::1 is reserved"),
        ("auto", "10.77.0.1", 409, "10.77.0.1 is reserved"),
        ("auto", "10.77.0.255", 409, "10.77.0.255 is reserved"),
        ("10.77.0.5", "auto", 400, "10.77.0.5"),
        ("auto", "fd00::5", 400, "fd00::5"),
        ("none", "none", 400, "one family at least"),
    ];
    for (v6, v4, status, expected) in rows {
        let seen = refused(&node, &asking(1, v6, v4));
        assert!(seen.0 == status && seen.3.contains(expected), "{v6} {v4}: {seen:?}");
        assert_eq!(settled(&node).len(), 1);
    }
    // What a refused request took is free: of the pair only one was bad.
    let (second, _) = put(&node, &asking(1, "fd00:77::bb", "none")).expect("without IPv4");
    assert_eq!(second.ipv4, None);
    let ips = |e: &EndpointModel| [e.ipv6.map(IpAddr::from), e.ipv4.map(IpAddr::from)];
    let (third, _) = put(&node, &asking(2, "auto", "auto")).expect("any");
    assert!(ips(&third).iter().flatten().all(|ip| !ips(&first).contains(&Some(*ip)) && !ips(&second).contains(&Some(*ip))));
    let (mut a, mut b) = (containers[0].clone(), containers[1].clone());
    a.learn(&first);
    b.learn(&second);
    ping(&a, &b, Family::V6);
    let of_b = b.run(|| netlink(async |n| n.addresses().await.expect("addresses")));
    assert!(of_b.iter().all(|(_, ip, _)| ip.is_ipv6() || ip.is_loopback()), "{of_b:?}");
    settled(&node);
}

/// Labels decide: who is relabelled has another identity at once, and another policy.
#[test]
fn policy_follows_the_labels() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&policy(
        "web",
        "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n",
    ))
    .expect("policy");
    let mut talks: Vec<_> = Family::BOTH.into_iter().map(|f| Talk::udp(&client, &web, f, 5000)).collect();
    let relabel = |labels: &[&str]| {
        let change = LabelsRequest { add: labels.iter().map(|l| (*l).to_owned()).collect(), delete: Vec::new() };
        node.block_on(node.client().change_labels("name:client", &change)).expect("labels").identity
    };
    let identity = |name: &str| node.block_on(node.client().endpoint(name)).expect("endpoint").identity.id;
    for talk in &mut talks {
        talk.exchange(1).expect("allowed");
    }
    let before = identity("name:client");
    let mut events = node.events(&["drop"]).expect("events");
    let stranger = relabel(&["app=stranger"]);
    assert_ne!(stranger.id, before);
    assert!(stranger.labels.iter().any(|l| l.ends_with("app=stranger")), "{stranger:?}");
    for talk in &mut talks {
        let Talk::Udp(near, far) = talk else { unreachable!() };
        near.send(b"xxxx").expect("send");
        let dropped = events.wait_drop(&client, &web).expect("drop");
        assert_eq!(dropped.source.map(|s| s.identity), Some(stranger.id));
        far.set_nonblocking(true).expect("socket");
        assert!(far.recv(&mut [0; 4]).is_err(), "a stranger is let in");
        far.set_nonblocking(false).expect("socket");
    }
    relabel(&["app=client"]);
    for talk in &mut talks {
        talk.exchange(2).expect("allowed again");
    }
    settled(&node);
}

/// A container ends without a word: its namespace goes, and with it both ends of its device.
#[test]
fn a_container_that_vanished_can_be_deleted() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let other = node.add("other", &[]).expect("other");
    let vanish = |node: &Node, name: &str| {
        let (id, device) = {
            let container = node.add(name, &[]).expect("container");
            ping(&container, &other, Family::V6);
            (container.id, format!("plx{:08x}", container.id))
        };
        until("its device is gone", || match node.links() {
            Ok(links) if !links.contains(&device) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        id
    };
    let problem = |node: &Node, id: u16| {
        let problem = until("the agent says so", || {
            let seen = node.block_on(node.client().endpoint(&id.to_string())).map_err(|e| e.to_string())?;
            if seen.state == "not-ready" { Ok(seen.health) } else { Err(seen.state) }
        });
        assert!(problem.contains(&format!("interface plx{id:08x} is gone")), "{problem}");
        problem
    };
    let id = vanish(&node, "short");
    problem(&node, id);
    assert!(node.delete("short").expect("delete"));
    assert_eq!(settled(&node).len(), 1);
    // The same with an agent that was not there when it happened, and one that looks after it.
    let id = vanish(&node, "short");
    node.kill_agent().expect("kill");
    node.start_agent().expect("start");
    let problem = problem(&node, id);
    assert!(problem.contains("namespace"), "{problem}");
    assert_eq!(node.block_on(node.client().status()).expect("status").state, "degraded");
    assert!(node.delete("short").expect("delete"));
    assert_eq!(settled(&node).len(), 1);
    let again = node.add("short", &[]).expect("the name is free");
    talk(&again, &other, 5000);
}

/// Someone removes an end of a container's interface: it is made whole.
#[test]
fn a_removed_device_comes_back() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let other = node.add("other", &[]).expect("other");
    let back = |before: u32| {
        until("it is back", || {
            let inside = web.run(|| netlink(async |n| n.link_by_name("eth0").await)).map_err(|e| e.to_string())?;
            let ready = node.block_on(node.client().endpoint("name:web")).map_err(|e| e.to_string())?.state == "ready";
            if ready && inside.as_ref().is_some_and(|l| l.index != before) { Ok(()) } else { Err(format!("{inside:?}")) }
        });
        talk(&web, &other, 5000);
        settled(&node);
    };
    let inside = || web.run(|| netlink(async |n| n.link_by_name("eth0").await)).expect("links").expect("eth0").index;
    let index = node.block_on(node.client().endpoint("name:web")).expect("web").interface.index;
    let before = inside();
    assert!(node.run(|| netlink(async |n| n.delete_link(index).await)).expect("delete"));
    back(before);
    let before = inside();
    assert!(web.run(|| netlink(async |n| n.delete_link(before).await)).expect("delete"));
    back(before);
}

#[test]
fn forty_at_once() {
    const MANY: usize = 40;
    let node = Node::start(NodeOptions::default()).expect("node");
    let first = node.add("first", &[]).expect("first");
    let containers: Vec<Container> = std::thread::scope(|scope| {
        let adding: Vec<_> = (0..MANY)
            .map(|n| {
                let node = &node;
                scope.spawn(move || node.add(&format!("c{n}"), &[&format!("group=g{}", n % 5)]).expect("add"))
            })
            .collect();
        adding.into_iter().map(|t| t.join().expect("adding")).collect()
    });
    for family in Family::BOTH {
        containers.iter().for_each(|c| ping(&first, c, family));
        ping(&containers[0], &containers[MANY - 1], family);
    }
    assert_eq!(settled(&node).len(), MANY + 1);
    std::thread::scope(|scope| {
        for c in &containers {
            scope.spawn(|| assert!(node.delete(&c.name).expect("delete")));
        }
    });
    assert_eq!(settled(&node).len(), 1);
}

/// Programs of both kinds in one node, from each to each.
#[test]
fn own_and_shared_builds_talk() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let add = |name: &str, build| node.add_built(name, &["app=any"], Some(build)).expect("container");
    let all = [add("own-1", Build::Own), add("shared-1", Build::Shared), add("own-2", Build::Own), add("shared-2", Build::Shared)];
    for endpoint in settled(&node) {
        assert!(endpoint.name.starts_with(&endpoint.datapath.build), "{endpoint:?}");
    }
    for (n, a) in all.iter().enumerate() {
        for (m, b) in all.iter().enumerate().filter(|(m, _)| *m != n) {
            talk(a, b, 5000 + (4 * n + m) as u16);
        }
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
}

/// A disk without room: what cannot be kept is refused, and is not there; with room it goes on.
#[test]
fn a_full_state_directory_changes_nothing() {
    let mut node = Node::prepare(NodeOptions::default()).expect("node");
    let state = node.path("state");
    let inside = state.clone();
    node.run_inside(move || {
        std::fs::create_dir(&inside).expect("dir");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &inside, Some("tmpfs"), flags, Some("size=8m")).expect("tmpfs");
    })
    .expect("node");
    node.start_agent().expect("agent");
    let web = node.add("web", &["app=web"]).expect("web");
    let other = node.add("other", &["app=other"]).expect("other");
    let rules = "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{}]\n";
    node.import(&policy("web", rules)).expect("policy");
    let before = (settled(&node).len(), node.block_on(node.client().policy(&[])).expect("policy"));
    let filler = state.join("filler");
    let file = filler.clone();
    node.run_inside(move || {
        let mut f = std::fs::File::create(file).expect("file");
        while std::io::Write::write_all(&mut f, &[1; 4096]).is_ok() {}
    })
    .expect("fill");
    // A store may have room left inside its file: one that grows has not.
    let labels: Vec<String> = (0..4000).map(|n| format!("a-label-that-takes-room-{n:0>200}")).collect();
    let container = Container::new("late").expect("container");
    let large = EndpointRequest { labels, ..wish("late", &container) };
    let (status, _, _, message) = refused(&node, &large);
    assert!(status == 500 && message.contains("state directory"), "{status} {message}");
    assert_eq!(settled(&node).len(), before.0, "a refused endpoint is there");
    let text = policy("late", &format!("  description: {}\n  endpointSelector: {{}}\n  ingress: [{{}}]\n", "x".repeat(1 << 20)));
    let import = PolicyImport { documents: vec![PolicyDocument { name: "late.yaml".into(), text }] };
    let refusal = node.block_on(node.client().import_policy(&import)).expect_err("no room");
    assert!(refusal.to_string().contains("state directory"), "{refusal}");
    let rules = node.block_on(node.client().policy(&[])).expect("policy").rules;
    assert_eq!(rules, before.1.rules, "a refused policy is in force");
    talk(&other, &web, 5000);
    node.run_inside(move || std::fs::remove_file(filler)).expect("node").expect("remove");
    let late = until("there is room again", || node.add("late", &[]).map_err(|e| e.to_string()));
    talk(&other, &late, 5000);
    node.kill_agent().expect("kill");
    node.start_agent().expect("start");
    assert_eq!(settled(&node).len(), before.0 + 1);
    assert_eq!(node.block_on(node.client().policy(&[])).expect("policy").rules, before.1.rules);
}

/// Who does not wait for a removal leaves nothing behind all the same, and who asks for the same place gets it when it is free;
/// the agent may end in between.
#[test]
fn removed_without_waiting() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &[]).expect("server");
    let mut both = ["first", "second"].map(|name| Container::new(name).expect("container"));
    let (v6, v4) = {
        let (given, _) = put(&node, &wish("probe", &both[0])).expect("put");
        assert!(node.delete("probe").expect("delete"));
        (given.ipv6.map(|ip| ip.to_string()), given.ipv4.map(|ip| ip.to_string()))
    };
    let request = |container: &Container| EndpointRequest { ipv6: v6.clone(), ipv4: v4.clone(), ..wish("probe", container) };
    let at_once = |node: &Node| node.block_on(node.client().delete_endpoint("name:probe", false)).expect("delete");
    for round in 0..10 {
        let container = &mut both[round / 2 % 2];
        let (model, created) = put(&node, &request(container)).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert!(created && model.ipv6.map(|ip| ip.to_string()) == v6, "round {round}");
        container.learn(&model);
        Family::BOTH.into_iter().for_each(|family| ping(container, &server, family));
        assert!(at_once(&node));
        assert!(!at_once(&node), "round {round}: it is there no more");
        if round % 3 == 2 {
            node.kill_agent().expect("kill");
            node.start_agent().expect("start");
        }
    }
    let only: Vec<String> = settled(&node).into_iter().map(|e| e.name).collect();
    assert_eq!(only, ["server"]);
    until("nothing is left", || {
        let links = node.links().map_err(|e| e.to_string())?;
        let ours = links.iter().filter(|l| l.starts_with("plx")).count();
        if ours == 1 { Ok(()) } else { Err(format!("{links:?}")) }
    });
}
