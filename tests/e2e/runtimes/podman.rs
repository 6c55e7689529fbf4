// SPDX-License-Identifier: Apache-2.0
//! podman with CNI, with everything of its own.

use crate::support::{policy, settled, talk};
use pilus_e2e::node::program;
use pilus_e2e::runtime::{Cgroup, IMAGE, container, done_in, image, private_places, refused_in, skipped, tool};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Command;

struct Podman {
    node: Node,
    cgroup: Cgroup,
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut command = self.command(&["rm", "-af", "-t", "0"]);
        let _ = self.node.run_inside(move || command.output());
    }
}

impl Podman {
    fn start() -> Self {
        let node = Node::start(NodeOptions::default()).expect("node");
        private_places(&node);
        let conf = node.path("cni");
        std::fs::create_dir_all(&conf).expect("directory");
        let config = json!({ "cniVersion": "1.0.0", "name": "pilus", "plugins": [
            { "type": "pilus-cni", "socket": node.socket(), "capabilities": { "portMappings": true, "ips": true, "mac": true } }] });
        std::fs::write(conf.join("10-pilus.conflist"), config.to_string()).expect("configuration");
        let plugins = program("pilus-cni").parent().expect("directory").display().to_string();
        let settings = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{plugins}\"]\nnetwork_config_dir = \"{}\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
            conf.display()
        );
        std::fs::write(node.path("containers.conf"), settings).expect("configuration");
        let podman = Self { cgroup: Cgroup::of(&node), node };
        let archive = image(&podman.node).display().to_string();
        podman.done(&["load", "-q", "-i", &archive]);
        podman
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tool("podman");
        let at = |name: &str| self.node.path(name);
        command.env("CONTAINERS_CONF", at("containers.conf"));
        command.arg("--root").arg(at("podman")).arg("--runroot").arg(at("podman-run")).arg("--tmpdir").arg(at("podman-tmp"));
        command.args(args);
        command
    }

    fn done(&self, args: &[&str]) -> String {
        done_in(&self.node, self.command(args))
    }

    fn refused(&self, args: &[&str]) -> String {
        refused_in(&self.node, self.command(args))
    }

    /// Its own limits are more than root may have everywhere.
    fn run_args<'a>(&'a self, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--cgroup-parent", &self.cgroup.0];
        [&["run", "-d", "--name", name, "--net", "pilus"], &limits[..], more, &[IMAGE]].concat()
    }

    /// A running container, as podman shows it.
    fn run(&self, name: &str, more: &[&str]) -> Container {
        let id = self.done(&self.run_args(name, more));
        let seen: Value = serde_json::from_str(&self.done(&["inspect", name])).expect("JSON");
        let (seen, settings) = (&seen[0], &seen[0]["NetworkSettings"]["Networks"]["pilus"]);
        let model = self.node.block_on(self.node.client().endpoint(&format!("container-id:{id}"))).expect("endpoint");
        let mut found =
            container(name, seen["State"]["Pid"].as_u64().expect("pid"), &settings["IPAddress"], &settings["GlobalIPv6Address"]);
        found.learn(&model);
        assert_eq!(settings["IPAddress"], found.ip(Family::V4).to_string());
        assert_eq!(settings["GlobalIPv6Address"], found.ip(Family::V6).to_string());
        assert_eq!(settings["MacAddress"], model.interface.mac);
        found
    }
}

#[test]
fn containers_of_podman_talk() {
    if skipped(&["podman", "conmon", "busybox"]) {
        return;
    }
    let podman = Podman::start();
    let web = podman.run("web", &[]);
    let client = podman.run("client", &["--mac-address", "02:11:22:33:44:66"]);
    let stranger = podman.run("stranger", &[]);
    assert_eq!(client.mac, [2, 0x11, 0x22, 0x33, 0x44, 0x66]);
    let named = |name: &str| format!("[{{matchLabels: {{\"k8s:io.kubernetes.pod.name\": {name}}}}}]");
    let rule = "  endpointSelector: {matchLabels: {\"k8s:io.kubernetes.pod.name\": web}}\n  ingress:\n  - fromEndpoints: ";
    podman.node.import(&policy("web", &format!("{rule}{}\n", named("client")))).expect("policy");
    talk(&client, &web, 8080);
    for family in Family::BOTH {
        let ping = |from: &str| ["exec", from, "ping", "-c", "1", "-W", "1"].map(str::to_owned).to_vec();
        let ip = web.ip(family).to_string();
        let command = [ping("client"), vec![ip]].concat();
        podman.done(&command.iter().map(String::as_str).collect::<Vec<_>>());
        let mut events = podman.node.events(&["drop"]).expect("events");
        let _attempt = stranger.connect_start(SocketAddr::new(web.ip(family), 8080)).expect("socket");
        events.wait_drop(&stranger, &web).expect("drop");
    }
    // Refused, and nothing is left of it.
    for _ in 0..2 {
        let why = podman.refused(&podman.run_args("bad", &["-p", "8080:80"]));
        assert!(why.contains("runtimeConfig.portMappings is not supported"), "{why}");
        podman.done(&["rm", "bad"]);
        let taken = web.ip(Family::V4).to_string();
        let why = podman.refused(&podman.run_args("bad", &["--ip", &taken]));
        assert!(why.contains("taken"), "{why}");
        podman.done(&["rm", "bad"]);
    }
    assert_eq!(settled(&podman.node).len(), 3);
    // Stopped and started again.
    podman.done(&["restart", "-t", "0", "stranger"]);
    assert_eq!(settled(&podman.node).len(), 3);
    drop((web, client, stranger));
    podman.done(&["rm", "-af", "-t", "0"]);
    assert_eq!(settled(&podman.node), []);
}
