// SPDX-License-Identifier: Apache-2.0
//! containerd calls the CNI plugin for `ctr run --cni`, with a configuration in its usual place.

use crate::support::{settled, talk, until};
use nix::mount::{MsFlags, mount};
use pilus_e2e::node::program;
use pilus_e2e::runtime::{Cgroup, Daemon, IMAGE, container, containerd, done_in, image, private_places, skipped, tool};
use pilus_e2e::{Container, Node, NodeOptions};
use serde_json::json;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// containerd's client in the node: it runs the plugin itself.
struct Ctr {
    running: Vec<Daemon>,
    _containerd: Daemon,
    socket: PathBuf,
    node: Node,
    cgroup: Cgroup,
}

impl Drop for Ctr {
    fn drop(&mut self) {
        let kill = |name: &str| drop(self.command(&["tasks", "kill", "-s", "SIGKILL", name]).output());
        ["web", "client"].iter().for_each(|name| kill(name));
    }
}

impl Ctr {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = tool("ctr");
        command.arg("-a").arg(&self.socket).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        done_in(&self.node, self.command(args))
    }

    fn container(&self, name: &str) -> Container {
        let reference = format!("container-id:default-{name}");
        let model =
            until("the container is connected", || self.node.block_on(self.node.client().endpoint(&reference)).map_err(|e| e.to_string()));
        let pid = until("the container runs", || {
            let tasks = self.run(&["tasks", "ls"]);
            let line = tasks
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>())
                .find(|l| l.first() == Some(&name) && l.get(2) == Some(&"RUNNING"));
            line.and_then(|l| l.get(1)?.parse().ok()).ok_or(tasks)
        });
        let mut container = container(name, pid, &json!(model.ipv4), &json!(model.ipv6));
        container.learn(&model);
        container
    }
}

#[test]
fn containers_of_ctr_talk() {
    if skipped(&["containerd", "ctr", "runc", "busybox"]) {
        return;
    }
    if !std::path::Path::new("/etc/cni").exists() {
        return println!("skipped: there is no directory /etc/cni to put a configuration over");
    }
    let node = Node::start(NodeOptions::default()).expect("node");
    private_places(&node);
    // ctr reads one fixed directory, and looks for plugins in another.
    let conf = node.path("cni");
    std::fs::create_dir_all(conf.join("net.d")).expect("directory");
    let config = json!({ "cniVersion": "1.0.0", "name": "pilus", "plugins": [{ "type": "pilus-cni", "socket": node.socket() }] });
    std::fs::write(conf.join("net.d/10-pilus.conflist"), config.to_string()).expect("configuration");
    let prepared = node.run_inside(move || {
        mount(Some(&conf), "/etc/cni", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        mount(Some("tmpfs"), "/opt", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        std::fs::create_dir_all("/opt/cni/bin")?;
        std::fs::copy(program("pilus-cni"), "/opt/cni/bin/pilus-cni")
    });
    prepared.expect("node").expect("prepare");
    let (daemon, socket) = containerd(&node, None);
    let cgroup = Cgroup::of(&node);
    let mut ctr = Ctr { running: Vec::new(), _containerd: daemon, socket, node, cgroup };
    let archive = image(&ctr.node).display().to_string();
    ctr.run(&["images", "import", &archive]);
    for _ in 0..2 {
        for name in ["web", "client"] {
            let command = ctr.command(&["run", "--rm", "--cni", "--cgroup", &format!("{}/{name}", ctr.cgroup.0), IMAGE, name]);
            ctr.running.push(Daemon::start(&ctr.node, "ctr.log", &command));
        }
        talk(&ctr.container("client"), &ctr.container("web"), 8080);
        for name in ["web", "client"] {
            ctr.run(&["tasks", "kill", "-s", "SIGKILL", name]);
        }
        ctr.running.drain(..).for_each(Daemon::wait);
        assert_eq!(settled(&ctr.node), []);
    }
}
