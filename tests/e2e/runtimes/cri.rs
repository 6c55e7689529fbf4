// SPDX-License-Identifier: Apache-2.0
//! containerd through its CRI, as a kubelet drives it: sandboxes that get their network from the plugin, containers in them.

use crate::support::{Talk, policy, rounds, settled, talk, until};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxPodSandboxConfig, ListImagesRequest,
    ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};
use nix::sys::signal::Signal;
use pilus_e2e::node::program;
use pilus_e2e::runtime::{Cgroup, Daemon, IMAGE, container, containerd, done, image, private_places, skipped, tool};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

const NEEDED: &[&str] = &["containerd", "ctr", "runc", "busybox"];
/// containerd calls it beside every configuration of its own.
const LOOPBACK: &str = "/usr/lib/cni/loopback";
/// How many sandboxes are made or removed at one time.
const AT_A_TIME: usize = 16;

/// A pod: its sandbox and the one container in it.
#[derive(Clone)]
struct Pod {
    name: String,
    sandbox: String,
    container: String,
}

/// The requests of a kubelet.
#[derive(Clone)]
struct Client {
    cgroup: String,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

type Answer<T> = Result<T, tonic::Status>;

impl Client {
    fn new(socket: &Path, cgroup: &Cgroup) -> Self {
        let channel = Endpoint::try_from(format!("unix://{}", socket.display())).expect("address").connect_lazy();
        let runtime = RuntimeServiceClient::new(channel.clone());
        Self { cgroup: cgroup.0.clone(), runtime, images: ImageServiceClient::new(channel) }
    }

    fn pod(&self, name: &str) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata { name: name.into(), uid: format!("uid-{name}"), namespace: "prod".into(), attempt: 0 };
        let linux = LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), ..Default::default() };
        PodSandboxConfig { metadata: Some(metadata), hostname: name.into(), linux: Some(linux), ..Default::default() }
    }

    async fn sandbox(&mut self, config: &PodSandboxConfig) -> Answer<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    async fn run(&mut self, name: &str) -> Answer<Pod> {
        let config = self.pod(name);
        let sandbox = self.sandbox(&config).await?;
        let wanted = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
            ..Default::default()
        };
        let request = CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(wanted), sandbox_config: Some(config) };
        let container = self.runtime.create_container(request).await?.into_inner().container_id;
        self.runtime.start_container(StartContainerRequest { container_id: container.clone() }).await?;
        Ok(Pod { name: name.into(), sandbox, container })
    }

    /// What containerd says about a sandbox: its addresses, and the process that holds its namespace.
    async fn status(&mut self, sandbox: &str) -> Answer<(Vec<String>, u64)> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
        let answer = self.runtime.pod_sandbox_status(request).await?.into_inner();
        let network = answer.status.and_then(|s| s.network).unwrap_or_default();
        let addresses = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect();
        let info: Value = serde_json::from_str(answer.info.get("info").map_or("", String::as_str)).unwrap_or_default();
        Ok((addresses, info["pid"].as_u64().unwrap_or_default()))
    }

    async fn exec(&mut self, pod: &Pod, command: &[&str]) -> Answer<(i32, String)> {
        let cmd = command.iter().map(|c| (*c).to_owned()).collect();
        let answer = self.runtime.exec_sync(ExecSyncRequest { container_id: pod.container.clone(), cmd, timeout: 20 }).await?.into_inner();
        Ok((answer.exit_code, String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned()))
    }

    async fn stop(&mut self, sandbox: &str) -> Answer<()> {
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.into() }).await?;
        Ok(())
    }

    async fn remove(&mut self, sandbox: &str) -> Answer<()> {
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() }).await?;
        Ok(())
    }

    async fn sandboxes(&mut self) -> Answer<Vec<String>> {
        let answer = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner();
        Ok(answer.items.into_iter().map(|s| s.id).collect())
    }

    /// Whether containerd and its network are ready, and the image is there.
    async fn ready(&mut self) -> Answer<bool> {
        let answer = self.runtime.status(StatusRequest::default()).await?.into_inner();
        let images = self.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
        let conditions = answer.status.map(|s| s.conditions).unwrap_or_default();
        Ok(conditions.len() >= 2 && conditions.iter().all(|c| c.status) && images.iter().any(|i| i.repo_tags.iter().any(|t| t == IMAGE)))
    }
}

struct Cri {
    containerd: Option<Daemon>,
    socket: PathBuf,
    config: String,
    client: Client,
    node: Node,
    cgroup: Cgroup,
}

impl Cri {
    /// None where something is missing; says what.
    fn start(args: &[&str]) -> Option<Self> {
        if skipped(NEEDED) {
            return None;
        }
        if !Path::new(LOOPBACK).exists() {
            println!("skipped: there is no {LOOPBACK}");
            return None;
        }
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let node = Node::start(NodeOptions { args, ..NodeOptions::default() }).expect("node");
        private_places(&node);
        let [conf, bin] = ["cni/net.d", "cni/bin"].map(|name| node.path(name));
        [&conf, &bin].into_iter().for_each(|dir| std::fs::create_dir_all(dir).expect("directory"));
        for (from, name) in [(program("pilus-cni"), "pilus-cni"), (LOOPBACK.into(), "loopback")] {
            std::os::unix::fs::symlink(from, bin.join(name)).expect("link");
        }
        let plugin = json!({ "type": "pilus-cni", "socket": node.socket(), "capabilities": { "portMappings": true } });
        let list = json!({ "cniVersion": "1.0.0", "name": "pilus", "plugins": [plugin] });
        std::fs::write(conf.join("10-pilus.conflist"), list.to_string()).expect("configuration");
        // The machine's root may be one that cannot lower a process' badness.
        let config = format!(
            "sandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\nrestrict_oom_score_adj = true\ncni = {{ bin_dir = \"{}\", conf_dir = \"{}\" }}\n",
            bin.display(),
            conf.display()
        );
        let (daemon, socket) = containerd(&node, Some(&config));
        done(tool("ctr").arg("-a").arg(&socket).args(["-n", "k8s.io", "images", "import"]).arg(image(&node)));
        let cgroup = Cgroup::of(&node);
        let client = node.block_on(async { Client::new(&socket, &cgroup) });
        let cri = Self { containerd: Some(daemon), socket, config, client, node, cgroup };
        cri.ready();
        Some(cri)
    }

    fn ready(&self) {
        until("containerd is ready", || match self.ask(async |mut c| c.ready().await) {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    fn ask<T>(&self, work: impl AsyncFnOnce(Client) -> Answer<T>) -> Answer<T> {
        self.node.block_on(work(self.client.clone()))
    }

    fn run(&self, name: &str) -> (Pod, Container) {
        let pod = self.ask(async |mut c| c.run(name).await).expect("pod");
        let found = self.container(&pod);
        (pod, found)
    }

    /// A pod's namespace, and what containerd and the agent say about it.
    fn container(&self, pod: &Pod) -> Container {
        let (addresses, pid) = self.ask(async |mut c| c.status(&pod.sandbox).await).expect("status");
        let model = self.node.block_on(self.node.client().endpoint(&format!("pod-name:prod/{}", pod.name))).expect("endpoint");
        let mut found = container(&pod.name, pid, &json!(model.ipv4), &json!(model.ipv6));
        found.learn(&model);
        let shown: BTreeSet<String> = addresses.into_iter().collect();
        assert_eq!(shown, Family::BOTH.map(|f| found.ip(f).to_string()).into());
        found
    }

    /// Several at a time: whatever `work` does with a number below `count`.
    fn all<T: Send + 'static, F: Future<Output = Answer<T>> + Send>(
        &self,
        count: usize,
        work: impl Fn(Client, usize) -> F + Clone + Send + Sync + 'static,
    ) -> Vec<T> {
        self.node.block_on(async {
            let next = Arc::new(AtomicUsize::new(0));
            let mut workers = JoinSet::new();
            for _ in 0..AT_A_TIME {
                let (next, work, client) = (Arc::clone(&next), work.clone(), self.client.clone());
                workers.spawn(async move {
                    let mut made = Vec::new();
                    while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count) {
                        made.push(work(client.clone(), n).await);
                    }
                    made
                });
            }
            workers.join_all().await.into_iter().flatten().map(|made| made.expect("containerd")).collect()
        })
    }

    fn remove(&self, pods: Vec<Pod>) {
        let pods = Arc::new(pods);
        self.all(pods.len(), move |mut c, n| {
            let sandbox = pods[n].sandbox.clone();
            async move {
                c.stop(&sandbox).await?;
                c.remove(&sandbox).await
            }
        });
    }

    /// Nothing is left of any pod: neither with us nor with containerd.
    fn nothing_left(&self) {
        assert_eq!(settled(&self.node).into_iter().map(|e| e.name).collect::<Vec<_>>(), Vec::<String>::new());
        assert_eq!(self.ask(async |mut c| c.sandboxes().await).expect("list"), Vec::<String>::new());
        let namespaces = self.node.run_inside(|| std::fs::read_dir("/run/netns").map_or(0, Iterator::count)).expect("node");
        assert_eq!(namespaces, 0);
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = std::fs::read_to_string(self.node.path("containerd.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(40).collect();
            eprintln!("containerd.log:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        // Containers outlive their daemon: none is left behind.
        for sandbox in self.ask(async |mut c| c.sandboxes().await).unwrap_or_default() {
            let _ = self.ask(async |mut c| {
                c.stop(&sandbox).await?;
                c.remove(&sandbox).await
            });
        }
    }
}

#[test]
fn pods_talk_as_policy_says() {
    let Some(mut cri) = Cri::start(&[]) else { return };
    let [(web, web_ns), (client, client_ns), (stranger, stranger_ns)] = ["web", "client", "stranger"].map(|name| cri.run(name));
    let model = cri.node.block_on(cri.node.client().endpoint("pod-name:prod/web")).expect("endpoint");
    assert_eq!(model.labels, ["k8s:io.kubernetes.pod.name=web", "k8s:io.kubernetes.pod.namespace=prod"]);
    assert_eq!(model.container_id.as_deref(), Some(web.sandbox.as_str()));
    let ping = |from: &Pod, to: &Container, family: Family| {
        let ip = to.ip(family).to_string();
        cri.ask(async |mut c| c.exec(from, &["ping", "-c", "1", "-W", "20", &ip]).await).expect("exec")
    };
    for family in Family::BOTH {
        for (from, to) in [(&client, &web_ns), (&stranger, &web_ns), (&web, &client_ns)] {
            let (code, text) = ping(from, to, family);
            assert_eq!(code, 0, "{} to {} {family:?}: {text}", from.name, to.name);
        }
    }
    talk(&client_ns, &web_ns, 8080);
    let names = "{\"k8s:io.kubernetes.pod.namespace\": prod, \"k8s:io.kubernetes.pod.name\": ";
    let rule =
        format!("  endpointSelector: {{matchLabels: {names}web}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {names}client}}}}]\n");
    let rule = policy("web", &rule).replace("metadata: {name: web}", "metadata: {name: web, namespace: prod}");
    cri.node.import(&rule).expect("policy");
    talk(&client_ns, &web_ns, 8081);
    for family in Family::BOTH {
        assert_eq!(ping(&client, &web_ns, family).0, 0);
        let mut events = cri.node.events(&["drop"]).expect("events");
        let _attempt = stranger_ns.connect_start(SocketAddr::new(web_ns.ip(family), 8080)).expect("socket");
        events.wait_drop(&stranger_ns, &web_ns).expect("drop");
    }
    // A container is nothing without its daemon, but its connections are.
    let mut talks: Vec<Talk> = Family::BOTH.into_iter().map(|f| Talk::tcp(&client_ns, &web_ns, f, 8082)).collect();
    cri.containerd.take().expect("containerd").signal(Signal::SIGKILL);
    let (daemon, _) = containerd(&cri.node, Some(&cri.config));
    cri.containerd = Some(daemon);
    cri.client = cri.node.block_on(async { Client::new(&cri.socket, &cri.cgroup) });
    cri.ready();
    talks.iter_mut().for_each(|t| t.exchange(1).expect("the connection stays"));
    drop((talks, web_ns, client_ns, stranger_ns));
    // Stopped twice, as a kubelet does that lost the answer; then removed.
    cri.ask(async |mut c| {
        c.stop(&web.sandbox).await?;
        c.stop(&web.sandbox).await
    })
    .expect("stop");
    cri.remove(vec![web, client, stranger]);
    cri.nothing_left();
}

/// What the plugin refuses fails the sandbox, in the plugin's own words, and leaves nothing.
#[test]
fn refused_sandboxes_leave_nothing() {
    let Some(cri) = Cri::start(&[]) else { return };
    let mut config = cri.client.pod("published");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
    for _ in 0..2 {
        let why = cri.ask(async |mut c| c.sandbox(&config).await).expect_err("published port");
        assert!(why.message().contains("runtimeConfig.portMappings is not supported"), "{why}");
        cri.nothing_left();
    }
    // A port that only the container has is fine.
    config.port_mappings[0].host_port = 0;
    let sandbox = cri.ask(async |mut c| c.sandbox(&config).await).expect("sandbox");
    assert_eq!(settled(&cri.node).len(), 1);
    cri.ask(async |mut c| {
        c.stop(&sandbox).await?;
        c.remove(&sandbox).await
    })
    .expect("remove");
    cri.nothing_left();
}

/// Many, some at a time, twice in a range that has not enough addresses for both rounds: none is lost.
#[test]
fn many_pods_come_and_go() {
    let (count, range) = (rounds(16, 250), if rounds(0, 1) == 0 { "10.202.0.0/27" } else { "10.202.0.0/24" });
    let Some(cri) = Cri::start(&["--ipv4-range", range]) else { return };
    for round in 0..2 {
        let pods = cri.all(count, move |mut c, n| async move { c.run(&format!("pod-{round}-{n}")).await });
        assert_eq!(settled(&cri.node).len(), count);
        let ends = [&pods[0], &pods[count - 1]].map(|pod| cri.container(pod));
        talk(&ends[0], &ends[1], 8080);
        drop(ends);
        cri.remove(pods);
        cri.nothing_left();
    }
}
