// SPDX-License-Identifier: Apache-2.0
//! Runtimes as processes of a node, and an image made of what the machine has.

use crate::container::PATIENCE;
use crate::node::program;
use crate::{Container, Node, until};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

/// The image's name. Its containers wait to be removed.
pub const IMAGE: &str = "localhost/pilus-test:1";

/// A program of the system.
pub fn tool(name: impl AsRef<std::ffi::OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "tests start runtimes")]
    Command::new(name)
}

/// The first of these that is not installed: reason to skip a test.
pub fn missing(tools: &[&'static str]) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools.iter().copied().find(|tool| !std::env::split_paths(&path).any(|d| d.join(tool).exists()))
}

/// Says why a test does not run.
pub fn skipped(tools: &[&'static str]) -> bool {
    let missing = missing(tools);
    if let Some(tool) = missing {
        println!("skipped: {tool} is not installed");
    }
    missing.is_some()
}

/// Output of a command that must succeed.
pub fn done(command: &mut Command) -> String {
    succeeded(command.stdin(Stdio::null()).output(), command)
}

/// What a command that must fail says.
pub fn refused(command: &mut Command) -> String {
    failed(command.stdin(Stdio::null()).output(), command)
}

/// The same in the node's namespaces, as an administrator of the node would.
pub fn done_in(node: &Node, command: Command) -> String {
    let (output, command) = run_in(node, command);
    succeeded(output, &command)
}

pub fn refused_in(node: &Node, command: Command) -> String {
    let (output, command) = run_in(node, command);
    failed(output, &command)
}

fn run_in(node: &Node, mut command: Command) -> (io::Result<Output>, Command) {
    node.run_inside(move || (command.stdin(Stdio::null()).output(), command)).expect("node")
}

fn succeeded(output: io::Result<Output>, command: &Command) -> String {
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn failed(output: io::Result<Output>, command: &Command) -> String {
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A process of the node, which does not outlive it.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(node: &Node, log: &str, command: &Command) -> Self {
        let mut whole = tool("setpriv");
        whole.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        whole.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let log = File::options().create(true).append(true).open(node.path(log)).expect("log");
        whole.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        Self(node.run_inside(move || whole.spawn()).expect("node").expect("start"))
    }

    pub fn signal(mut self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("signal");
        self.0.wait().expect("end");
    }

    /// Until it ends by itself.
    pub fn wait(mut self) {
        self.0.wait().expect("end");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// The control group that a node's containers are in. Runtimes leave it behind.
pub struct Cgroup(pub String);

impl Cgroup {
    pub fn of(node: &Node) -> Self {
        Self(format!("/{}", node.path("").file_name().expect("a name").display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fn remove(dir: &Path) -> io::Result<()> {
            for entry in std::fs::read_dir(dir)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                remove(&entry.path())?;
            }
            std::fs::remove_dir(dir)
        }
        // One hierarchy, or one of each controller.
        let root = PathBuf::from("/sys/fs/cgroup");
        let below = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.path());
        let groups = below.chain([root]).map(|r| r.join(self.0.trim_start_matches('/'))).filter(|g| g.is_dir());
        let since = Instant::now();
        for group in groups {
            // Its last process may still be ending.
            while remove(&group).is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) && since.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
        }
    }
}

/// Places of the node's own, where runtimes keep sockets, namespaces, locks and results.
pub fn private_places(node: &Node) {
    for place in ["/run", "/dev/shm", "/var/lib"] {
        let mounted = node.run_inside(move || mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>));
        mounted.expect("node").unwrap_or_else(|e| panic!("mount {place}: {e}"));
    }
}

/// An image of busybox alone, in the form that `docker load` and `ctr images import` read.
pub fn image(node: &Node) -> PathBuf {
    let dir = node.path("image");
    let bin = dir.join("root/bin");
    std::fs::create_dir_all(&bin).expect("directory");
    let busybox = std::fs::canonicalize("/bin/busybox").expect("busybox");
    std::fs::copy(busybox, bin.join("busybox")).expect("busybox");
    for applet in ["sh", "sleep", "ping", "nslookup", "ip"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("link");
    }
    let tar = |out: &Path, root: &Path, what: &[&str]| done(tool("tar").arg("-C").arg(root).arg("-cf").arg(out).args(what));
    tar(&dir.join("layer.tar"), &dir.join("root"), &["."]);
    let sum = done(tool("sha256sum").arg(dir.join("layer.tar")));
    let layer = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [layer] },
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] } });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    for (name, value) in [("config.json", config), ("manifest.json", manifest)] {
        std::fs::write(dir.join(name), value.to_string()).expect("file");
    }
    let archive = dir.join("image.tar");
    tar(&archive, &dir, &["manifest.json", "config.json", "layer.tar"]);
    archive
}

/// containerd, with everything of its own in the node's directory. `cri` is the configuration of that plugin; without one it
/// is off.
pub fn containerd(node: &Node, cri: Option<&str>) -> (Daemon, PathBuf) {
    const CRI: &str = "io.containerd.grpc.v1.cri";
    let dir = node.path("containerd");
    std::fs::create_dir_all(&dir).expect("directory");
    let socket = dir.join("sock");
    let at = |name: &str| dir.join(name).display().to_string();
    let [root, state] = ["lib", "run"].map(at);
    let plugin = cri.map_or_else(String::new, |text| format!("[plugins.\"{CRI}\"]\n{text}"));
    let off = if cri.is_none() { format!("\"{CRI}\"") } else { String::new() };
    let config = format!(
        "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [{off}]\n[grpc]\naddress = \"{}\"\n{plugin}",
        socket.display()
    );
    std::fs::write(dir.join("config.toml"), config).expect("config");
    let daemon = Daemon::start(node, "containerd.log", tool("containerd").arg("-c").arg(dir.join("config.toml")));
    until("containerd answers", || {
        let out = tool("ctr").arg("-a").arg(&socket).arg("version").stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    (daemon, socket)
}

/// Docker's client for the node's dockerd.
pub fn docker(node: &Node, args: &[&str]) -> Command {
    let mut command = tool("docker");
    command.arg("-H").arg(format!("unix://{}", node.path("docker.sock").display())).args(args);
    command.env("DOCKER_CONFIG", node.path("docker-config"));
    command
}

/// dockerd, with everything of its own in the node's directory. It does not answer yet.
pub fn dockerd(node: &Node, containerd: &Path, cgroup: &Cgroup, more: &[&str]) -> Daemon {
    let mut command = tool("dockerd");
    command.arg("--data-root").arg(node.path("docker")).arg("--exec-root").arg(node.path("docker-run"));
    command.arg("-p").arg(node.path("docker.pid")).arg("-H").arg(format!("unix://{}", node.path("docker.sock").display()));
    command.arg("--containerd").arg(containerd);
    command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &cgroup.0]).args(more);
    let _ = std::fs::remove_file(node.path("docker.pid"));
    Daemon::start(node, "dockerd.log", &command)
}

pub fn wait_dockerd(node: &Node) {
    until("dockerd answers", || {
        let output = docker(node, &["version"]).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        let log = || std::fs::read_to_string(node.path("dockerd.log")).unwrap_or_default();
        if output.status.success() { Ok(()) } else { Err(log()) }
    });
}

/// The driver beside a node's dockerd.
pub fn docker_plugin(node: &Node, docker_socket: &str, log_level: &str) -> Daemon {
    let mut command = tool(program("pilus-docker"));
    command.arg("--socket").arg(node.socket()).arg("--docker-socket").arg(node.path(docker_socket));
    Daemon::start(node, "plugin.log", command.args(["--log-level", log_level]))
}

/// A process' namespace as a container of the harness, with the addresses that its runtime says.
pub fn container(name: &str, pid: u64, ipv4: &Value, ipv6: &Value) -> Container {
    let file = File::open(format!("/proc/{pid}/ns/net")).expect("namespace");
    let mut container = Container::of(name, file).expect("container");
    container.ipv4 = ipv4.as_str().and_then(|ip| ip.parse().ok());
    container.ipv6 = ipv6.as_str().and_then(|ip| ip.parse().ok()).expect("an IPv6 address");
    container
}
