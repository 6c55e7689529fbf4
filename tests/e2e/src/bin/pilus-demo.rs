// SPDX-License-Identifier: Apache-2.0
//! The main job on real containers, step by step. Every line that says something was checked; the exit code is 1 if a
//! step does not hold.

use anyhow::{Context, Result, ensure};
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;

const POLICY: &str = include_str!("../../../../examples/policies/web-from-client.yaml");

struct Demo {
    step: u32,
}

impl Demo {
    fn step(&mut self, what: &str) {
        self.step += 1;
        println!("\n== {}. {what}", self.step);
    }
}

fn say(line: impl std::fmt::Display) {
    println!("   {line}");
}

/// Runs the client as a person would and prints what it printed.
fn pilus(node: &Node, args: &[&str]) -> Result<String> {
    say(format_args!("$ pilus {}", args.join(" ")));
    let (code, out, err) = node.pilus(args)?;
    out.lines().chain(err.lines()).for_each(say);
    ensure!(code == 0, "pilus {} ended with {code}", args.join(" "));
    Ok(out)
}

/// A web server of one thread: answers each request with the same page, keeps connections open.
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
}

fn answer(stream: TcpStream) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n")?;
        }
    }
    Ok(())
}

fn get(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    let mut buffer = [0; 512];
    let n = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).lines().next().unwrap_or_default().to_owned())
}

fn curl(from: &Container, to: &Container, family: Family) -> Result<()> {
    let at = SocketAddr::new(to.ip(family), 80);
    let mut stream = from.connect(at)?;
    let line = get(&mut stream)?;
    say(format_args!("{} GET http://{at}/: {line}", from.name));
    ensure!(line == "HTTP/1.1 200 OK", "{line}");
    Ok(())
}

fn ping(from: &Container, to: &Container, family: Family) -> Result<()> {
    let raw = Raw::new(from, family)?;
    raw.echo(to.ip(family), 0x1234, 1)?;
    let reply = icmp::echo_types(family).1;
    raw.receive(|m| m.kind == reply && m.body.starts_with(&[0x12, 0x34]))?;
    say(format_args!("{} ping {}: answered", from.name, to.ip(family)));
    Ok(())
}

fn run() -> Result<()> {
    let mut demo = Demo { step: 0 };

    demo.step("An agent in network and mount namespaces of its own, with the embedded store");
    let mut node = Node::prepare(NodeOptions::default())?;
    let sysctls = node.sysctls();
    node.start_agent()?;
    let status = pilus(&node, &["status", "--brief"])?;
    ensure!(status.contains("ok"), "{status}");

    demo.step("Three containers, each with an IPv6 and an IPv4 address");
    let web = node.add("web", &["app=web"])?;
    let client = node.add("client", &["app=client"])?;
    let other = node.add("other", &["app=other"])?;
    pilus(&node, &["endpoint", "list"])?;
    for family in Family::BOTH {
        serve(web.listen(family, 80)?);
    }

    demo.step("Without policy everyone reaches the web server, over both families");
    for family in Family::BOTH {
        for from in [&client, &other] {
            ping(from, &web, family)?;
            curl(from, &web, family)?;
        }
    }

    demo.step("The header that was rendered for one container");
    let header = pilus(&node, &["endpoint", "header", "web"])?;
    ensure!(header.contains("EP_IPV6"), "no address in the header");

    demo.step("The program that it became, built both ways");
    for build in ["shared", "own"] {
        node.pilus(&["endpoint", "config", "web", &format!("Build={build}")])?;
        let model = node.block_on(node.client().endpoint("name:web"))?;
        ensure!(model.datapath.build == build, "{:?}", model.datapath);
        for p in &model.datapath.programs {
            say(format_args!(
                "{build}: {} — {} instructions, {} bytes of machine code, {} looked at by the verifier",
                p.name, p.instructions, p.jited_bytes, p.verified_instructions
            ));
            ensure!(p.instructions > 0 && p.verified_instructions > 0);
        }
        curl(&client, &web, Family::V6)?;
    }
    node.pilus(&["endpoint", "config", "web", "Build=shared"])?;

    demo.step("A policy by labels: only the client may reach the web server's port 80");
    let file = node.path("web-from-client.yaml");
    std::fs::write(&file, POLICY)?;
    POLICY.lines().filter(|l| !l.starts_with('#')).for_each(say);
    let mut events = node.events(&["drop"])?;
    pilus(&node, &["policy", "import", "--wait", &file.display().to_string()])?;
    for family in Family::BOTH {
        curl(&client, &web, family)?;
    }

    demo.step("The other one is dropped, and pilus monitor says why");
    for family in Family::BOTH {
        let mut monitor = pilus_e2e::node::command("pilus")
            .arg("--socket")
            .arg(node.socket())
            .args(["--color", "never", "monitor", "-t", "drop"])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        // It is listening when the agent counts one listener beside our own.
        while node.block_on(node.client().status())?.monitor.listeners < 2 {
            ensure!(monitor.try_wait()?.is_none(), "the monitor ended");
            std::thread::yield_now();
        }
        let refused = other.connect_start(SocketAddr::new(web.ip(family), 80))?;
        let drop = events.wait_drop(&other, &web)?;
        ensure!(drop.reason == "Policy denied", "{drop:?}");
        // Farewells of the connections that were open before are dropped too.
        let wanted = ["tcp SYN", "Policy denied", "other", "app=other", "app=web"];
        let mut lines = BufReader::new(monitor.stdout.take().context("monitor output")?).lines();
        loop {
            let line = lines.next().context("the monitor ended")??;
            if wanted.iter().all(|part| line.contains(part)) {
                say(line);
                break;
            }
        }
        monitor.kill()?;
        monitor.wait()?;
        while node.block_on(node.client().status())?.monitor.listeners > 1 {
            std::thread::yield_now();
        }
        std::mem::drop(refused);
    }

    demo.step("The policy is revoked under a live connection, which stops");
    let mut live = client.connect(SocketAddr::new(web.ip(Family::V6), 80))?;
    ensure!(get(&mut live)?.contains("200"));
    say("client has a connection open and is served");
    let deny = node.path("deny.yaml");
    std::fs::write(&deny, POLICY.replace("app: client", "app: nobody"))?;
    pilus(&node, &["policy", "import", "--wait", &deny.display().to_string()])?;
    live.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    let drop = events.wait_drop(&client, &web)?;
    say(format_args!("its next packet: {} ({})", drop.reason, drop.summary));
    live.set_nonblocking(true)?;
    ensure!(live.read(&mut [0; 16]).is_err(), "the revoked connection was answered");
    live.set_nonblocking(false)?;
    pilus(&node, &["policy", "import", "--wait", &file.display().to_string()])?;
    let mut buffer = [0; 64];
    let n = live.read(&mut buffer)?;
    ensure!(buffer[..n].starts_with(b"HTTP/1.1 200"), "not served again");
    say("allowed again: the same connection is served");

    demo.step("A template is edited and applied while traffic flows: no packet is lost");
    pilus(&node, &["policy", "delete", "--all"])?;
    let traffic = ClosedLoop::start(&client, &other, Family::V6, 200_000)?;
    let hook = node.path("state/templates/custom/container.c");
    std::fs::write(&hook, include_str!("../../../../examples/templates/pass.c"))?;
    pilus(&node, &["template", "status"])?;
    pilus(&node, &["template", "apply"])?;
    std::fs::remove_file(&hook)?;
    pilus(&node, &["template", "apply"])?;
    let result = traffic.join();
    say(format_args!("{} packets sent, {} answered", result.sent, result.received));
    ensure!(result.sent == result.received, "packets were lost");

    demo.step("A template that does not compile changes nothing and says why");
    std::fs::write(&hook, "static __always_inline int custom_from_container(struct __sk_buff *ctx)\n{\n\treturn oops;\n}\n")?;
    let (code, out, err) = node.pilus(&["template", "apply"])?;
    out.lines().chain(err.lines()).for_each(say);
    ensure!(code == 1, "a broken template was accepted");
    ensure!(format!("{out}{err}").contains("custom/container.c:3"), "no place in the message");
    curl(&client, &web, Family::V6)?;
    std::fs::remove_file(&hook)?;

    demo.step("Clean-up leaves no link, map, program, route, sysctl or file");
    let programs: Vec<u32> = node
        .block_on(node.client().endpoints())?
        .iter()
        .flat_map(|e| e.datapath.programs.iter().map(|p| p.id).collect::<Vec<_>>())
        .collect();
    ensure!(!programs.is_empty(), "no program is loaded");
    pilus(&node, &["cleanup", "--yes"])?;
    // The kernel frees a program a moment after its last user is gone.
    let since = std::time::Instant::now();
    for id in programs {
        while pilus_loader::collection::Program::by_id(id)?.is_some() {
            ensure!(since.elapsed() < pilus_e2e::container::PATIENCE, "program {id} is left");
            std::thread::yield_now();
        }
    }
    ensure!(node.sysctls() == sysctls, "a sysctl changed");
    let (links, pins) = (node.links()?, node.pins()?);
    ensure!(links.is_empty(), "links left: {links:?}");
    ensure!(pins.is_empty(), "pins left: {pins:?}");
    let routes = node.routes()?;
    ensure!(routes.is_empty(), "routes left: {routes:?}");
    for dir in ["state", "run"] {
        ensure!(!node.path(dir).exists(), "{dir} is left");
    }
    say("nothing is left");
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => {
            println!("\nEvery step held.");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("\nThis step does not hold: {e:#}");
            ExitCode::FAILURE
        }
    }
}
