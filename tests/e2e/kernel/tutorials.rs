// SPDX-License-Identifier: Apache-2.0
//! The tutorials' scripts run, and their pages show what they print. `PILUS_BLESS=1` writes that into the pages.

use pilus_e2e::{Node, NodeOptions, node::program};
use regex::Regex;
use std::path::{Path, PathBuf};

/// Runs a script on a node of its own: its output in blocks.
fn run(script: &Path) -> Vec<String> {
    let args = ["--trace-interval", "0", "--ipv4-range", "10.77.0.0/16", "--ipv6-range", "fd00:77::/64"];
    let node = Node::start(NodeOptions { attach: "tc", args: args.map(str::to_owned).into(), ..NodeOptions::default() }).expect("node");
    let programs = program("pilus").parent().expect("a directory").to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let (socket, named) = (node.socket(), script.to_owned());
    let names = node.path("netns");
    std::fs::create_dir(&names).expect("directory");
    let run = move || {
        // Named namespaces of this node alone, and its BPF file system where people look for it.
        std::fs::create_dir_all("/run/netns")?;
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&names), "/run/netns", None::<&str>, bind, None::<&str>)?;
        nix::mount::mount(None::<&str>, "/run/netns", None::<&str>, nix::mount::MsFlags::MS_SHARED, None::<&str>)?;
        #[expect(clippy::disallowed_methods, reason = "as a person would")]
        std::process::Command::new(named).env("PATH", path).env("PILUS_SOCKET", socket).env("LC_ALL", "C").output()
    };
    let output = node.run_inside(run).expect("node").expect("script");
    let (out, err) = (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success() && err.is_empty(), "{}: {}\n{out}\n{err}", script.display(), output.status);
    out.split("----\n").map(normal).collect()
}

/// What differs from run to run, made alike and as long as it was, so that tables stay tables.
fn normal(text: &str) -> String {
    let rules = [
        (r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "0a:aa:aa:aa:aa:aa"),
        (r"(MAC, \{ )0x[0-9a-f]{2}(, 0x[0-9a-f]{2}){5}", "${1}0x0a, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa"),
        (r"\bfe80::[0-9a-f:]+/64", "fe80::8aa:aaff:feaa:aaaa/64"),
        (r"\b\d{2}:\d{2}:\d{2}\.\d{3}\b", "10:32:08.123"),
        (r"(shapeKey: )[0-9a-f]+", "${1}0123456789abcdef"),
        (r"((?:[0-9a-f]*:){2,}[0-9a-f]+|\d+\.\d+\.\d+\.\d+)(\]?[.: ])[3-6]\d{4}\b", "${1}${2}40000"),
        (r"\b(seq|ack|win|wscale) \d+", "${1} 7"),
        (r"eth0@if\d+", "eth0@if655360256"),
        (r"REASON +DIRECTION +PACKETS", "REASON     DIRECTION  PACKETS"),
        (r"Forwarded +egress +\d+ +\d+", "Forwarded  egress     12       1240"),
        (r"Forwarded +ingress +\d+ +\d+", "Forwarded  ingress    3        226"),
        (r"(\(CiliumNetworkPolicy \S+\)) +[1-9]\d* +\d+", "${1}  12       1320"),
        (r"(rule \d+: \S+  allow +)[1-9]\d*", "${1}24"),
        (r"(denied  deny +)\d+s +\d+s +\d+/\d+", "${1}1s    59s      1/94"),
    ];
    rules.iter().fold(text.to_owned(), |text, (find, put)| Regex::new(find).expect("a rule").replace_all(&text, *put).into_owned())
}

/// The page with other blocks.
fn filled(page: &str, blocks: &[String]) -> String {
    let mut blocks = blocks.iter();
    let parts = Regex::new("(?s)```console\n.*?```").expect("a rule");
    let new = parts.replace_all(page, |_: &regex::Captures<'_>| {
        let block = blocks.next().unwrap_or_else(|| panic!("the page has more blocks than the script"));
        format!("```console\n{}\n```", block.trim_end())
    });
    let left = blocks.count();
    assert_eq!(left, 0, "the script prints {left} blocks more than the page has");
    new.into_owned()
}

fn tutorial(name: &str) {
    let base = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/tutorials")).join(name);
    let page_path = base.with_extension("md");
    let page = std::fs::read_to_string(&page_path).expect("the page");
    let new = filled(&page, &run(&base.with_extension("sh")));
    if std::env::var_os("PILUS_BLESS").is_some() {
        std::fs::write(&page_path, new).expect("the page");
        return;
    }
    for (n, (is, should)) in page.lines().zip(new.lines()).enumerate() {
        assert_eq!(is, should, "{}, line {}: is not what the script prints (PILUS_BLESS=1 writes it)", page_path.display(), n + 1);
    }
    assert_eq!(page, new);
}

#[test]
fn tutorial_networks_and_policies() {
    tutorial("1-networks-and-policies");
}

#[test]
fn tutorial_debugging_connectivity() {
    tutorial("2-debugging-connectivity");
}

#[test]
fn tutorial_examining_a_container() {
    tutorial("3-examining-a-container");
}
