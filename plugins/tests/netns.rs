// SPDX-License-Identifier: Apache-2.0
//! `pilus-netns` on the running kernel. Needs root.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Stdio;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use pilus_loader::netlink::{Netlink, PairSpec};
use pilus_plugins::netns::{Code, Configure, Done, Failure, LinkRef, Mac, Prefix, Request, Response};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

/// Runs a test in a thread with a network namespace of its own, beside another that is the container's. Both go with the
/// thread, and their devices with them.
fn with_container<F: Future<Output = ()>>(test: impl FnOnce(Netlink, Container) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let result = thread::spawn(move || {
        let ns = thread::spawn(new_netns).join().unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Netlink::new().unwrap(), Container { ns }).await });
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn new_netns() -> File {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    File::open("/proc/thread-self/ns/net").unwrap()
}

struct Container {
    ns: File,
}

impl Container {
    fn path(&self) -> std::path::PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd()).into()
    }

    /// Makes a pair with its peer in the container, our side up.
    async fn pair(&self, nl: &Netlink, name: &str, peer_name: &str) -> u32 {
        let spec = PairSpec {
            name,
            ifindex: None,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            peer_name,
            peer_mac: [2, 0, 0, 0, 0, 99],
            peer_netns: self.ns.as_fd(),
            up: true,
            no_autoconf: true,
        };
        nl.create_veth(spec).await.unwrap()
    }

    fn configure(&self, link: &str, name: &str) -> Request {
        Request::Configure(Box::new(Configure {
            netns: self.path(),
            link: LinkRef::Name(link.into()),
            name: name.into(),
            mac: MAC,
            mtu: 1400,
            addresses: vec!["fd00::5/128".parse().unwrap(), "10.5.0.5/32".parse().unwrap()],
            gateway6: Some("fe80::1".parse().unwrap()),
            gateway4: Some("169.254.1.1".parse().unwrap()),
        }))
    }

    fn inspect(&self, name: &str) -> Result<Done, Failure> {
        ask(&Request::Inspect { netns: self.path(), name: name.into() })
    }

    /// Runs something inside.
    fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let ns = self.ns.try_clone().unwrap();
        thread::spawn(move || {
            #[expect(clippy::disallowed_methods, reason = "a test looks into the namespace that it made, on a thread of its own")]
            nix::sched::setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        })
        .join()
        .unwrap()
    }
}

/// Runs the program; its exit status must agree with its answer.
fn ask_text(request: &str) -> Response {
    #[expect(clippy::disallowed_methods, reason = "a test runs the program")]
    let mut child =
        std::process::Command::new(env!("CARGO_BIN_EXE_pilus-netns")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let response: Response = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(if matches!(response, Response::Ok(_)) { 0 } else { 1 }));
    response
}

fn ask(request: &Request) -> Result<Done, Failure> {
    ask_text(&serde_json::to_string(request).unwrap()).into_result()
}

#[test]
fn configured_twice_and_usable_at_once() {
    with_container(|nl, container| async move {
        let host = container.pair(&nl, "plx1", "plxtmp1").await;
        let first = ask(&container.configure("plxtmp1", "eth0")).unwrap();
        assert!(first.warnings.is_empty(), "{:?}", first.warnings);
        let interface = first.interface.clone().unwrap();
        assert_eq!((interface.name.as_str(), interface.mac, interface.mtu, interface.up), ("eth0", Some(MAC), 1400, true));
        assert_eq!(interface.peer_index, Some(host));
        let mut addresses: Vec<String> = interface.addresses.iter().map(|a| a.address.to_string()).collect();
        addresses.sort();
        assert_eq!(addresses, ["10.5.0.5/32", "fd00::5/128", "fe80::ff:fe00:5/64"]);
        assert!(interface.addresses.iter().all(|a| !a.tentative), "{:?}", interface.addresses);
        let has = |destination: &str, gateway: Option<&str>| {
            let destination: Prefix = destination.parse().unwrap();
            let gateway = gateway.map(|g| g.parse().unwrap());
            interface.routes.iter().any(|r| r.destination == destination && r.gateway == gateway)
        };
        assert!(has("::/0", Some("fe80::1")) && has("fe80::1/128", None), "{:?}", interface.routes);
        assert!(has("0.0.0.0/0", Some("169.254.1.1")) && has("169.254.1.1/32", None), "{:?}", interface.routes);

        // Bound and sent from, at once.
        let (source6, source4, ra) = container.inside(|| {
            let local = |bind: &str, to: &str| {
                let socket = UdpSocket::bind(bind).unwrap();
                socket.connect(to).unwrap();
                socket.local_addr().unwrap().ip().to_string()
            };
            UdpSocket::bind("[fd00::5]:0").unwrap();
            UdpSocket::bind("127.0.0.1:0").unwrap();
            let ra = std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap();
            (local("[::]:0", "[fd00:9::9]:9"), local("0.0.0.0:0", "10.99.0.9:9"), ra)
        });
        assert_eq!((source6.as_str(), source4.as_str(), ra.trim()), ("fd00::5", "10.5.0.5", "0"));

        // Again: the temporary name is gone, the result is the same.
        let again = ask(&container.configure("plxtmp1", "eth0")).unwrap();
        assert_eq!(again, first);
        assert_eq!(container.inspect("eth0").unwrap(), first);
        let Request::Configure(mut by_index) = container.configure("", "eth0") else { unreachable!() };
        by_index.link = LinkRef::Index(interface.index);
        assert_eq!(ask(&Request::Configure(by_index)).unwrap(), first);
    });
}

#[test]
fn packets_reach_the_other_end_and_come_back() {
    with_container(|nl, container| async move {
        let host = container.pair(&nl, "plx1", "plxtmp1").await;
        ask(&container.configure("plxtmp1", "eth0")).unwrap();
        // We stand in for the program that answers for the gateway.
        for (address, plen) in [("fe80::1", 64), ("fd00:9::9", 128)] {
            let address: std::net::IpAddr = address.parse().unwrap();
            nl.add_address(host, address, plen).await.unwrap();
        }
        nl.route_replace(&pilus_loader::netlink::RouteSpec::new("fd00::5".parse().unwrap(), 128, host)).await.unwrap();
        // Our side was up before the other: the kernel notices its carrier late when it is busy, and drops what we answer
        // meanwhile; asking makes it look.
        nl.link_by_index(host).await.unwrap();
        let server = UdpSocket::bind("[fd00:9::9]:7").unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let client = thread::spawn(move || {
            container.inside(|| {
                let socket = UdpSocket::bind("[fd00::5]:0").unwrap();
                socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
                socket.send_to(b"there", "[fd00:9::9]:7").unwrap();
                let mut buffer = [0; 16];
                let n = socket.recv(&mut buffer).unwrap();
                buffer[..n].to_vec()
            })
        });
        let mut buffer = [0; 16];
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..n], from.ip()), (b"there".as_slice(), "fd00::5".parse::<Ipv6Addr>().unwrap().into()));
        server.send_to(b"and back", from).unwrap();
        assert_eq!(client.join().unwrap(), b"and back");
    });
}

#[test]
fn taken_name_changes_nothing() {
    with_container(|nl, container| async move {
        container.pair(&nl, "plx1", "eth0").await;
        container.pair(&nl, "plx2", "plxtmp2").await;
        let (theirs, ours) = (container.inspect("eth0").unwrap(), container.inspect("plxtmp2").unwrap());
        let failure = ask(&container.configure("plxtmp2", "eth0")).unwrap_err();
        assert_eq!((failure.code, failure.errno), (Code::NameTaken, Some(libc::EEXIST)));
        assert_eq!(container.inspect("eth0").unwrap(), theirs);
        assert_eq!(container.inspect("plxtmp2").unwrap(), ours);
    });
}

#[test]
fn deleted_twice() {
    with_container(|nl, container| async move {
        let host = container.pair(&nl, "plx1", "eth0").await;
        let delete = Request::Delete { netns: container.path(), name: "eth0".into() };
        assert_eq!(ask(&delete).unwrap().deleted, Some(true));
        assert_eq!(ask(&delete).unwrap().deleted, Some(false));
        assert!(nl.link_by_index(host).await.unwrap().is_none());
        assert_eq!(container.inspect("eth0").unwrap_err().code, Code::NoLink);
        assert_eq!(ask(&container.configure("plxtmp1", "eth0")).unwrap_err().code, Code::NoLink);
    });
}

#[test]
fn ipv6_switched_off_by_the_runtime_is_switched_on() {
    with_container(|nl, container| async move {
        container.pair(&nl, "plx1", "plxtmp1").await;
        container.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        let done = ask(&container.configure("plxtmp1", "eth0")).unwrap();
        assert!(done.interface.unwrap().addresses.iter().any(|a| a.address.to_string() == "fd00::5/128"));
    });
}

#[test]
fn what_is_no_namespace_is_refused() {
    for (netns, errno) in [("/dev/null", libc::EINVAL), ("/nowhere/at/all", libc::ENOENT)] {
        let failure = ask(&Request::Inspect { netns: netns.into(), name: "eth0".into() }).unwrap_err();
        assert_eq!((failure.code, failure.errno), (Code::NoNetns, Some(errno)));
    }
    assert_eq!(ask_text("no json").into_result().unwrap_err().code, Code::BadRequest);
}
