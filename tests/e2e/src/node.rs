// SPDX-License-Identifier: Apache-2.0
//! A node: namespaces, a bpffs and an agent process, all gone when it is dropped.

use crate::Container;
use crate::container::{PATIENCE, enter};
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pilus_api::client::{Client, PolicyScope};
use pilus_api::flows::FlowFilter;
use pilus_api::types::{Build, EndpointRequest, FlowEvent, PolicyDocument, PolicyImport};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Kind of containers' devices.
    pub devices: &'static str,
    pub attach: &'static str,
    pub build: &'static str,
    pub args: Vec<String>,
    /// What the agent logs goes into a file, for [`Node::complaints`].
    pub keep_log: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { devices: "veth", attach: "auto", build: "shared", args: Vec::new(), keep_log: false }
    }
}

type Job = Box<dyn FnOnce() + Send>;

pub struct Node {
    dir: tempfile::TempDir,
    options: NodeOptions,
    runtime: Runtime,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    netns: File,
    agent: Option<Child>,
    compiler: bool,
    agent_program: Option<PathBuf>,
}

/// Longer than any request to the agent may take: what hangs is told, and does not hold up every other test.
const FOREVER: Duration = Duration::from_secs(300);

/// How often an agent that starts is asked whether it serves, unless it ends.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// What a program said when it ends. One that does not is killed.
fn ended(child: Child, what: &str) -> Result<std::process::Output> {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    if let Ok(output) = output.recv_timeout(FOREVER) {
        return Ok(output?);
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    bail!("{what}: it does not end")
}

/// A program of this build: beside the running one, or one directory up (tests).
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    let dirs = exe.ancestors().skip(1).take(3);
    dirs.map(|d| d.join(name)).find(|p| p.exists()).unwrap_or_else(|| panic!("{name} is not built: cargo build --workspace --bins"))
}

/// A tool of the system, by its whole path: the agent's PATH may be another one.
fn in_path(tool: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|d| d.join(tool)).find(|p| p.exists()).unwrap_or_else(|| tool.into())
}

#[expect(clippy::disallowed_methods, reason = "the harness starts agents")]
pub fn command(name: &str) -> Command {
    Command::new(program(name))
}

impl Node {
    /// Namespaces and bpffs, and an agent that answers.
    pub fn start(options: NodeOptions) -> Result<Self> {
        let mut node = Self::prepare(options)?;
        node.start_agent()?;
        Ok(node)
    }

    /// The same without an agent.
    pub fn prepare(options: NodeOptions) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "needs root");
        let dir = tempfile::Builder::new().prefix("pilus-node-").tempdir()?;
        let bpf = dir.path().join("bpf");
        std::fs::create_dir(&bpf)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        // A thread that is the node: what it starts is in its namespaces.
        let thread = std::thread::Builder::new().name("node".into()).spawn(move || {
            let enter = || -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
                pilus_loader::bpffs::mount(&bpf)?;
                Ok(File::open("/proc/thread-self/ns/net")?)
            };
            let result = enter();
            let go_on = result.is_ok();
            let _ = ready.send(result);
            if go_on {
                queue.iter().for_each(|job| job());
            }
        })?;
        let netns = started.recv()??;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let node =
            Self { dir, options, runtime, jobs: Some(jobs), thread: Some(thread), netns, agent: None, compiler: true, agent_program: None };
        node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { pilus_loader::netlink::Netlink::new()?.set_up(1).await })?;
            Ok::<_, anyhow::Error>(())
        })?;
        Ok(node)
    }

    /// Runs `f` in the node's own namespaces.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        enter(&self.netns, f)
    }

    /// Runs `f` in the node's thread, so in its mount namespace too.
    pub fn run_inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(answer.send(f())));
        self.jobs.as_ref().context("node ended")?.send(job).ok().context("node ended")?;
        Ok(result.recv()?)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/pilus.sock")
    }

    fn agent_command(&self) -> Command {
        // An agent does not outlive the test that started it, however that ends.
        #[expect(clippy::disallowed_methods, reason = "the harness starts agents")]
        let mut c = Command::new(in_path("setpriv"));
        c.args(["--pdeathsig", "KILL", "--"]).arg(self.agent_program.clone().unwrap_or_else(|| program("pilus-agent")));
        c.arg("--state-dir").arg(self.path("state")).arg("--run-dir").arg(self.path("run")).arg("--bpf-root").arg(self.path("bpf"));
        c.args(["--datapath-mode", self.options.devices, "--attach-mode", self.options.attach]);
        c.args(["--endpoint-build", self.options.build]);
        c.args(["--flow-table-size", "16384", "--log-level", &std::env::var("PILUS_TEST_LOG").unwrap_or_else(|_| "warn".into())]);
        c.args(&self.options.args);
        for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("PILUS_") && k != "PILUS_CLANG") {
            c.env_remove(key);
        }
        if !self.compiler {
            c.env("PATH", "/nowhere").env_remove("PILUS_CLANG");
        }
        // Not into the terminal's process group: the node decides when its agent ends.
        c.process_group(0).stdin(Stdio::null());
        c
    }

    /// Agents from now on are this program, not the one of this build.
    pub fn set_agent(&mut self, path: PathBuf) {
        self.agent_program = Some(path);
    }

    /// Agents from now on are started with these options.
    pub fn set_args(&mut self, args: Vec<String>) {
        self.options.args = args;
    }

    /// Agents from now on find no compiler.
    pub fn without_compiler(&mut self) {
        self.compiler = false;
    }

    /// Starts the agent and waits until it serves; the socket appears when it does.
    pub fn start_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs");
        let _ = std::fs::remove_file(self.socket());
        let mut command = self.agent_command();
        if let Ok(level) = std::env::var("PILUS_TEST_LOG") {
            eprintln!("agent with log level {level} in {}", self.dir.path().display());
        }
        if self.options.keep_log {
            command.stderr(File::options().create(true).append(true).open(self.path("agent.log"))?);
        }
        let child = self.run_inside(move || command.spawn())??;
        self.agent = Some(child);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let since = Instant::now();
        let client = self.client();
        let mut child_ended = self.block_on(async { signal(SignalKind::child()) })?;
        loop {
            if let Some(status) = self.agent.as_mut().and_then(|a| a.try_wait().transpose()) {
                self.agent = None;
                bail!("the agent ended: {}", status?);
            }
            if self.block_on(client.status()).is_ok() {
                return Ok(());
            }
            // One that ends is seen above; in a virtual machine beside others it may take its time.
            ensure!(since.elapsed() < FOREVER, "the agent does not answer");
            // Asking all the time would take the processor that it starts on.
            let _ = self.block_on(async { tokio::time::timeout(ASK_AGAIN, child_ended.recv()).await });
        }
    }

    /// Runs the agent to its end with other arguments: exit code, output, errors. One that does not end is killed.
    pub fn agent_once(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = self.agent_command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.run_inside(move || command.spawn())??;
        let output = ended(child, &format!("pilus-agent {}", args.join(" ")))?;
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// Warnings and errors in the log that is kept.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(self.path("agent.log"))?;
        Ok(log.lines().filter(|l| l.contains(" WARN ") || l.contains(" ERROR ")).map(str::to_owned).collect())
    }

    /// Runs the client program: exit code, output, errors.
    pub fn pilus(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = command("pilus");
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ended(command.spawn()?, &format!("pilus {}", args.join(" ")))?;
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// SIGKILL, at once.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut child = self.agent.take().context("no agent runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its exit code.
    pub fn stop_agent(&mut self) -> Result<i32> {
        let child = self.agent.take().context("no agent runs")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)?;
        Ok(ended(child, "the agent after SIGTERM")?.status.code().unwrap_or(-1))
    }

    /// The exit code of an agent that ends by itself.
    pub fn wait_agent(&mut self) -> Result<i32> {
        let child = self.agent.take().context("no agent runs")?;
        Ok(ended(child, "the agent")?.status.code().unwrap_or(-1))
    }

    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket()).with_timeout(FOREVER)
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A new container, connected.
    pub fn add(&self, name: &str, labels: &[&str]) -> Result<Container> {
        self.add_built(name, labels, None)
    }

    pub fn add_built(&self, name: &str, labels: &[&str], build: Option<Build>) -> Result<Container> {
        let mut container = Container::new(name)?;
        self.connect(&mut container, labels, build)?;
        Ok(container)
    }

    pub fn connect(&self, container: &mut Container, labels: &[&str], build: Option<Build>) -> Result<()> {
        let request = EndpointRequest {
            name: container.name.clone(),
            netns: container.path(),
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            build,
            ..EndpointRequest::default()
        };
        let put = self.block_on(self.client().put_endpoint(&request, true))?;
        container.learn(&put.endpoint);
        Ok(())
    }

    pub fn delete(&self, name: &str) -> Result<bool> {
        Ok(self.block_on(self.client().delete_endpoint(&format!("name:{name}"), true))?)
    }

    /// Imports a document and waits until every endpoint enforces it.
    pub fn import(&self, text: &str) -> Result<u64> {
        let import = PolicyImport { documents: vec![PolicyDocument { name: "test.yaml".into(), text: text.into() }] };
        let revision = self.block_on(self.client().import_policy(&import))?.revision;
        self.wait_policy(revision)?;
        Ok(revision)
    }

    /// Deletes all rules and waits until no endpoint enforces any.
    pub fn forget_policy(&self) -> Result<u64> {
        let revision = self.block_on(self.client().delete_policy(&PolicyScope::All))?.revision;
        self.wait_policy(revision)?;
        Ok(revision)
    }

    pub fn wait_policy(&self, revision: u64) -> Result<()> {
        let waited = self.block_on(self.client().wait_policy(revision, PATIENCE))?;
        ensure!(waited.realised, "revision {revision} is not realised by {:?}", waited.waiting);
        Ok(())
    }

    /// Subscribes to events. What happens after this returns is seen.
    pub fn events(&self, types: &[&str]) -> Result<Events<'_>> {
        let filter = FlowFilter { types: types.iter().map(|t| (*t).to_owned()).collect(), ..FlowFilter::default() };
        let flows = self.block_on(self.client().flows(&filter))?;
        Ok(Events { node: self, flows })
    }

    /// Packets counted under a reason, both directions.
    pub fn metric(&self, reason: &str) -> Result<u64> {
        let map = self.block_on(self.client().map("metrics"))?;
        Ok(map.rows.iter().filter(|r| r[0] == reason).filter_map(|r| r[2].parse::<u64>().ok()).sum())
    }

    /// Rows of one of the agent's tables.
    pub fn rows(&self, table: &str) -> Result<Vec<Vec<String>>> {
        Ok(self.block_on(self.client().map(table))?.rows)
    }

    /// Links of the node that are ours.
    pub fn links(&self) -> Result<Vec<String>> {
        let links = self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok::<_, anyhow::Error>(runtime.block_on(async { pilus_loader::netlink::Netlink::new()?.links().await })?)
        })?;
        Ok(links.into_iter().map(|l| l.name).filter(|n| n.starts_with("pl") || n.starts_with("pilus")).collect())
    }

    /// The sysctls that a router is tempted to change, as they are in the node's namespace.
    pub fn sysctls(&self) -> Vec<String> {
        let names = [
            "ipv4/ip_forward",
            "ipv4/conf/all/forwarding",
            "ipv4/conf/all/rp_filter",
            "ipv4/conf/default/rp_filter",
            "ipv4/conf/all/arp_ignore",
            "ipv6/conf/all/forwarding",
            "ipv6/conf/default/forwarding",
            "ipv6/conf/all/accept_ra",
            "core/bpf_jit_enable",
            "core/bpf_jit_harden",
        ];
        let read = |name: &&str| {
            let value = std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap_or_default();
            format!("{name}={}", value.trim())
        };
        self.run(|| names.iter().map(read).collect())
    }

    /// Every setting of the network, as it is in the node's namespace.
    pub fn all_sysctls(&self) -> BTreeMap<PathBuf, String> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, found);
                } else if let Ok(value) = std::fs::read_to_string(&path) {
                    found.insert(path, value);
                }
            }
        }
        self.run(|| {
            let mut found = BTreeMap::new();
            walk(Path::new("/proc/sys/net"), &mut found);
            found
        })
    }

    /// Routes of the node that are ours.
    pub fn routes(&self) -> Result<Vec<String>> {
        let routes = self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok::<_, anyhow::Error>(runtime.block_on(async { pilus_loader::netlink::Netlink::new()?.all_routes().await })?)
        })?;
        let ours = routes.into_iter().filter(|r| r.protocol == pilus_loader::netlink::ROUTE_PROTOCOL);
        Ok(ours.map(|r| format!("{}/{}", r.dst, r.plen)).collect())
    }

    /// Every pin below the node's bpffs.
    pub fn pins(&self) -> Result<Vec<String>> {
        let root = self.path("bpf");
        self.run_inside(move || {
            fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
                for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path.is_dir() {
                        walk(&path, root, found);
                    } else if let Ok(name) = path.strip_prefix(root) {
                        found.push(name.display().to_string());
                    }
                }
            }
            let mut found = Vec::new();
            walk(&root, &root, &mut found);
            found.retain(|n| !n.ends_with(".debug"));
            found.sort();
            found
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A subscription to the agent's events.
pub struct Events<'a> {
    node: &'a Node,
    flows: pilus_api::flows::Flows,
}

impl Events<'_> {
    /// The next event that `wanted` accepts; others are passed over.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&FlowEvent) -> bool) -> Result<FlowEvent> {
        let flows = &mut self.flows;
        let looked = async {
            loop {
                let event = flows.next().await?.context("the stream ended")?;
                if wanted(&event) {
                    return Ok(event);
                }
            }
        };
        self.node.block_on(async { tokio::time::timeout(PATIENCE, looked).await }).with_context(|| format!("no event: {what}"))?
    }

    /// An event that is there, or comes at once.
    pub fn poll(&mut self) -> Result<Option<FlowEvent>> {
        let flows = &mut self.flows;
        self.node.block_on(async {
            match tokio::time::timeout(Duration::from_millis(1), flows.next()).await {
                Ok(event) => Ok(Some(event?.context("the stream ended")?)),
                Err(_) => Ok(None),
            }
        })
    }

    /// A drop from one container to another.
    pub fn wait_drop(&mut self, from: &Container, to: &Container) -> Result<FlowEvent> {
        let is = |p: &Option<pilus_api::types::PeerModel>, c: &Container| p.as_ref().is_some_and(|p| p.endpoint == c.id);
        self.wait(&format!("drop {} -> {}", from.name, to.name), |e| e.kind == "drop" && is(&e.source, from) && is(&e.destination, to))
    }
}
