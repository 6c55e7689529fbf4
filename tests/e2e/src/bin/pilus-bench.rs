// SPDX-License-Identifier: Apache-2.0
//! Measures the datapath and the agent on this machine, in namespaces of its own.

use anyhow::{Context, Result, bail};
use pilus_e2e::bench::{GROUPS, Goals, Plan, Report, relax_limits, run};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: pilus-bench [--rows PATTERN[,PATTERN]] [--rounds N] [--json PATH] [--check] [--list]

  --rows PATTERN  only rows whose name contains it
  --rounds N      paired rounds of the traffic rows [11]
  --json PATH     where the rows are written [target/bench.json]
  --check         exit 1 if a goal is missed
  --list          print the rows and exit";

struct Options {
    plan: Plan,
    json: PathBuf,
    check: bool,
    list: bool,
}

fn options() -> Result<Option<Options>> {
    let mut o = Options { plan: Plan { rows: Vec::new(), rounds: 11 }, json: "target/bench.json".into(), check: false, list: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let mut value = || inline.clone().or_else(|| args.next()).with_context(|| format!("{name} takes a value"));
        match name.as_str() {
            "--rows" => o.plan.rows.extend(value()?.split(',').map(str::to_owned)),
            "--rounds" => o.plan.rounds = value()?.parse().ok().filter(|n| *n > 0).context("--rounds takes a number from 1")?,
            "--json" => o.json = value()?.into(),
            "--check" => o.check = true,
            "--list" => o.list = true,
            // For itself: the engine alone.
            "--policy-scale" => {
                pilus_e2e::bench::scale::run();
                std::process::exit(0);
            }
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    if !GROUPS.iter().flat_map(|g| g.rows).any(|r| o.plan.wants(r)) {
        bail!("no row is called so; see --list");
    }
    Ok(Some(o))
}

fn first_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

/// Conditions under which the numbers arose.
fn header() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").unwrap_or_else(|| "none".into());
    let kernel = first_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = first_line("/proc/loadavg").unwrap_or_default();
    let jit = first_line("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    format!(
        "{cores} x {}, Linux {kernel}, governor {governor}, BPF JIT {jit}, load average {load}",
        model.unwrap_or_else(|| std::env::consts::ARCH.into())
    )
}

/// Interrupted: agents do not belong to the terminal's process group and would go on.
fn on_signal(dir: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        anyhow::Ok(())
    })?;
    for task in std::fs::read_dir("/proc/self/task")?.flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|p| p.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = std::fs::remove_dir_all(dir);
    std::process::exit(130);
}

fn bench(o: &Options) -> Result<bool> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "needs root");
    relax_limits()?;
    let mut report = Report::new(Goals::read()?);
    // All that is made lies in here, so that an interrupted run leaves nothing either.
    let dir = tempfile::Builder::new().prefix("pilus-bench-").tempdir()?;
    let root: &'static Path = Box::leak(dir.path().to_owned().into_boxed_path());
    if tempfile::env::override_temp_dir(root).is_err() {
        bail!("the directory of temporary files is set already");
    }
    std::thread::spawn(move || on_signal(root.to_owned()));
    let header = header();
    eprintln!("{header}");
    run(&o.plan, &mut report);
    println!("{header}\n{}", report.table());
    report.write(&o.json)?;
    println!("written to {}", o.json.display());
    Ok(report.all_ok())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("pilus-bench: {e:#}");
            return ExitCode::from(2);
        }
    };
    if options.list {
        GROUPS.iter().flat_map(|g| g.rows).filter(|r| options.plan.wants(r)).for_each(|r| println!("{r}"));
        return ExitCode::SUCCESS;
    }
    match bench(&options) {
        Ok(ok) => ExitCode::from(u8::from(options.check && !ok)),
        Err(e) => {
            eprintln!("pilus-bench: {e:#}");
            ExitCode::from(2)
        }
    }
}
