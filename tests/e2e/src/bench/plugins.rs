// SPDX-License-Identifier: Apache-2.0
//! What a runtime waits for: the CNI plugin beside the reference bridge plugin, and `docker run` beside Docker's own bridge.

use super::{Plan, Row, Skipped, median, progress, quantile};
use crate::node::program;
use crate::runtime::{
    Cgroup, Daemon, IMAGE, containerd, docker, docker_plugin, dockerd, done, image, missing, private_places, tool, wait_dockerd,
};
use crate::{Container, Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

pub const CNI_ROWS: &[&str] = &["cni_add_p50_ms", "cni_add_p99_ms"];
pub const CNI_BRIDGE_ROWS: &[&str] = &["cni_add_over_bridge_plugin"];
pub const DOCKER_ROWS: &[&str] = &["docker_run_over_bridge"];

/// Where Debian keeps the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// Containers of each plugin in a round.
const ADDS: usize = 10;
/// `docker run` of each network in a round.
const RUNS: usize = 8;

fn needs(tools: &[&'static str]) -> Result<()> {
    missing(tools).map_or(Ok(()), |tool| Err(Skipped(format!("{tool} is not installed")).into()))
}

/// A plugin with its configuration, as a runtime runs it.
struct Plugin {
    path: PathBuf,
    conf: Value,
}

impl Plugin {
    fn call(&self, node: &Node, verb: &str, container: &Container) -> Result<Value> {
        let mut command = tool(&self.path);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &container.name).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", container.path()).env("CNI_PATH", REFERENCE).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let conf = self.conf.to_string();
        let output = node.run_inside(move || {
            let mut child = command.spawn()?;
            child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(conf.as_bytes()))?;
            child.wait_with_output()
        })??;
        ensure!(output.status.success(), "{}: {}", self.path.display(), String::from_utf8_lossy(&output.stdout));
        if output.stdout.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&output.stdout)?) }
    }

    /// Connects a new container: ms, and the container with its addresses checked.
    fn add(&self, node: &Node, name: &str) -> Result<(f64, Container)> {
        let container = Container::new(name)?;
        let since = Instant::now();
        let result = self.call(node, "ADD", &container)?;
        let took = since.elapsed().as_secs_f64() * 1000.0;
        let ips = result["ips"].as_array().map_or(0, Vec::len);
        ensure!(ips == 2, "{}: {ips} addresses, not one of each family", self.path.display());
        Ok((took, container))
    }
}

fn ours(node: &Node) -> Plugin {
    let conf = json!({ "cniVersion": "1.0.0", "name": "pilus", "type": "pilus-cni", "socket": node.socket() });
    Plugin { path: program("pilus-cni"), conf }
}

fn bridge(node: &Node) -> Plugin {
    let ipam = json!({ "type": "host-local", "dataDir": node.path("ipam"), "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        "ranges": [[{ "subnet": "10.199.0.0/16" }], [{ "subnet": "fd99::/64" }]] });
    let conf =
        json!({ "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "reference0", "isGateway": true, "ipam": ipam });
    Plugin { path: Path::new(REFERENCE).join("bridge"), conf }
}

/// Connected one after the other, and none goes before all are there.
pub fn cni(plan: &Plan) -> Result<Vec<Row>> {
    let node = Node::start(NodeOptions::default())?;
    let plugin = ours(&node);
    let (mut took, mut all) = (Vec::new(), Vec::new());
    for n in 0..plan.rounds * ADDS {
        let (ms, container) = plugin.add(&node, &format!("c{n}"))?;
        took.push(ms);
        all.push(container);
    }
    all.iter().try_for_each(|c| plugin.call(&node, "DEL", c).map(drop))?;
    let note = format!("{} in sequence, process included, until the plugin answers", took.len());
    Ok(vec![
        Row::new(CNI_ROWS[0], "ms", vec![median(&took)]).note(note),
        Row::new(CNI_ROWS[1], "ms", vec![quantile(&took, 0.99)]).note(format!("slowest {:.1}", quantile(&took, 1.0))),
    ])
}

pub fn cni_bridge(plan: &Plan) -> Result<Vec<Row>> {
    if !Path::new(REFERENCE).join("bridge").exists() {
        return Err(Skipped(format!("there is no {REFERENCE}/bridge (containernetworking-plugins)")).into());
    }
    let node = Node::start(NodeOptions::default())?;
    let plugins = [ours(&node), bridge(&node)];
    let mut rounds: [Vec<f64>; 2] = Default::default();
    // The first, which finds everything cold, does not count.
    for round in 0..=plan.rounds {
        let mut took: [Vec<f64>; 2] = Default::default();
        let mut all: [Vec<Container>; 2] = Default::default();
        for n in 0..2 * ADDS {
            let which = (n + round) % 2;
            let (ms, container) = plugins[which].add(&node, &format!("c{round}-{n}"))?;
            took[which].push(ms);
            all[which].push(container);
        }
        if round > 0 {
            rounds.iter_mut().zip(took).for_each(|(all, one)| all.push(median(&one)));
        }
        // The bridge plugin becomes slower with every port of its bridge.
        for (plugin, containers) in plugins.iter().zip(&all) {
            containers.iter().try_for_each(|c| plugin.call(&node, "DEL", c).map(drop))?;
        }
    }
    let [samples, baseline] = rounds;
    let note = format!("median of {ADDS} a round, by turns; the bridge plugin with host-local, both families");
    Ok(vec![Row { baseline, ..Row::new(CNI_BRIDGE_ROWS[0], "ms", samples).note(note) }])
}

/// Ended in this order.
struct Docker {
    _plugin: Daemon,
    _daemon: Daemon,
    _containerd: Daemon,
    node: Node,
    _cgroup: Cgroup,
}

impl Docker {
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        private_places(&node);
        let cgroup = Cgroup::of(&node);
        let (containerd, socket) = containerd(&node, None);
        let plugin = docker_plugin(&node, "docker.sock", "warn");
        let daemon = dockerd(&node, &socket, &cgroup, &["--bip=10.198.0.1/24", "--ipv6", "--fixed-cidr-v6=fd98::/64"]);
        wait_dockerd(&node);
        done(docker(&node, &["load", "-q", "-i"]).arg(image(&node)));
        done(&mut docker(&node, &["network", "create", "-d", "pilus", "--ipam-driver", "pilus", "--ipv6", "net"]));
        let ranges = ["--subnet", "10.197.0.0/24", "--subnet", "fd97::/64"];
        done(docker(&node, &["network", "create", "-d", "bridge", "--ipv6"]).args(ranges).arg("own"));
        Ok(Self { _plugin: plugin, _daemon: daemon, _containerd: containerd, node, _cgroup: cgroup })
    }

    /// A container that ends at once: ms until it is gone again.
    fn run(&self, network: &str) -> f64 {
        let since = Instant::now();
        // What it prints shows that it had its interface.
        let seen = done(&mut docker(&self.node, &["run", "--rm", "--net", network, IMAGE, "/bin/ip", "-o", "addr", "show", "eth0"]));
        let took = since.elapsed().as_secs_f64() * 1000.0;
        assert!(seen.contains("inet ") && seen.contains("inet6 "), "{network}: {seen}");
        took
    }
}

/// A network of ours, one that somebody made with Docker's own driver, and the one that Docker begins with, which has no names.
const NETWORKS: [&str; 3] = ["net", "own", "bridge"];

pub fn docker_run(plan: &Plan) -> Result<Vec<Row>> {
    needs(&["dockerd", "docker", "containerd", "runc", "ctr", "busybox"])?;
    let docker = Docker::start().context("start Docker")?;
    let mut rounds: [Vec<f64>; 3] = Default::default();
    progress("  docker run, by turns");
    for round in 0..=plan.rounds {
        let mut took: [Vec<f64>; 3] = Default::default();
        for n in 0..3 * RUNS {
            let which = (n + round) % 3;
            took[which].push(docker.run(NETWORKS[which]));
        }
        if round > 0 {
            rounds.iter_mut().zip(took).for_each(|(all, one)| all.push(median(&one)));
        }
    }
    let [samples, own, baseline] = rounds;
    let note =
        format!("median of {RUNS} `docker run --rm` a round, by turns; a network of one's own with the bridge driver: {:.0}", median(&own));
    Ok(vec![Row { baseline, ..Row::new(DOCKER_ROWS[0], "ms", samples).note(note) }])
}
