// SPDX-License-Identifier: Apache-2.0
//! The compiler as a process: found, bounded in time and memory, its words kept.

use crate::diagnostics::{Mapper, Severity};
use crate::error::BuildError;
use crate::key::{Build, Program};
use crate::render::Rendered;
use crate::templates::Templates;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};

/// All that decides the object's bytes beside the sources. Every path is relative to the build's copy of the tree, which is
/// also the working directory, so nothing of where a build ran gets into its object.
pub(crate) const FLAGS: &[&str] = &[
    "-O2",
    "-g",
    "-target",
    "bpf",
    "-mcpu=v3",
    "-std=gnu11",
    "-nostdinc",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wundef",
    "-Werror",
    "-fno-color-diagnostics",
    "-fno-crash-diagnostics",
    "-fdebug-compilation-dir=.",
];

/// Include path, first to last, relative to the build's copy of the tree.
pub(crate) const INCLUDES: &[&str] = &["generated", "rendered", "include", ".", "lib"];

/// Names looked for in PATH: the version that Pilus is tested with, then newer ones, then older ones.
const NAMES: &[&str] =
    &["clang-19", "clang-20", "clang-21", "clang-22", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14", "clang"];

const OBJECT: &str = "out.o";
const MAX_OUTPUT: usize = 1 << 20;

/// A clang to run, and how much it may use.
#[derive(Debug, Clone)]
pub struct Clang {
    /// The program; `None` where there is none, which is an error only once something must be compiled.
    pub path: Option<PathBuf>,
    /// Time for one run.
    pub timeout: Duration,
    /// Address space of one run in bytes. A run takes about 110 MiB beside its libraries.
    pub memory_limit: u64,
}

/// What a successful run gave.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The ELF object.
    pub bytes: Vec<u8>,
    /// Time that clang took.
    pub took: Duration,
}

struct Output {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Default for Clang {
    fn default() -> Self {
        Clang { path: None, timeout: Duration::from_secs(60), memory_limit: 1 << 30 }
    }
}

impl Clang {
    /// The clang named by `PILUS_CLANG`, else the best one in `PATH`. Runs nothing.
    pub fn find() -> Clang {
        Clang::find_in(std::env::var_os("PILUS_CLANG"), &std::env::var_os("PATH").unwrap_or_default())
    }

    /// As [`Clang::find`], with both variables given.
    pub fn find_in(named: Option<OsString>, path: &OsStr) -> Clang {
        let search = |name: &OsStr| std::env::split_paths(path).map(|dir| dir.join(name)).find(|p| is_executable(p));
        let path = match named.filter(|n| !n.is_empty()) {
            // A name that leads nowhere is kept: the error then names it, and no other compiler stands in silently.
            Some(name) if Path::new(&name).components().count() > 1 => Some(PathBuf::from(name)),
            Some(name) => search(&name).or(Some(PathBuf::from(name))),
            None => NAMES.iter().find_map(|name| search(OsStr::new(name))),
        };
        Clang { path, ..Clang::default() }
    }

    /// The clang at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Clang {
        Clang { path: Some(path.into()), ..Clang::default() }
    }

    /// First line of `clang --version`.
    pub async fn version(&self) -> Result<String, BuildError> {
        let out = self.run(Program::Container, Path::new("/"), &["--version".to_owned()]).await?;
        Ok(out.stdout.lines().next().unwrap_or("unknown").trim().to_owned())
    }

    /// Compiles in a directory of its own below `work`, which it leaves as it was.
    pub async fn compile(&self, templates: &Templates, rendered: &Rendered, build: Build, work: &Path) -> Result<Compiled, BuildError> {
        self.executable()?;
        let dir = build_dir(templates, rendered, Some(work)).await?;
        let mut args = arguments(build);
        args.extend(["-c", rendered.program.file(), "-o", OBJECT].map(str::to_owned));
        let started = Instant::now();
        let out = self.run(rendered.program, dir.path(), &args).await?;
        let took = started.elapsed();
        if !out.status.success() {
            return Err(self.failure(templates, rendered.program, out));
        }
        let object = dir.path().join(OBJECT);
        let bytes = match std::fs::read(&object) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(BuildError::io(&object))?,
        };
        if !bytes.starts_with(b"\x7fELF") {
            let (status, raw) = ("it wrote no ELF object".to_owned(), out.stderr);
            return Err(BuildError::Crashed { program: rendered.program, status, raw, killed: false });
        }
        Ok(Compiled { bytes, took })
    }

    /// Runs the front end alone. Complaints about the program are the result, not an error.
    pub async fn syntax(&self, templates: &Templates, rendered: &Rendered, build: Build) -> Result<Vec<crate::Diagnostic>, BuildError> {
        self.executable()?;
        let dir = build_dir(templates, rendered, None).await?;
        let mut args = arguments(build);
        args.extend(["-fsyntax-only", rendered.program.file()].map(str::to_owned));
        let out = self.run(rendered.program, dir.path(), &args).await?;
        if out.status.success() {
            return Ok(Mapper { templates, program: rendered.program }.parse(&out.stderr));
        }
        match self.failure(templates, rendered.program, out) {
            BuildError::Compile { diagnostics, .. } => Ok(diagnostics),
            other => Err(other),
        }
    }

    fn executable(&self) -> Result<&Path, BuildError> {
        match &self.path {
            Some(path) if is_executable(path) => Ok(path),
            Some(path) => Err(BuildError::NoCompiler { reason: format!("{} is not an executable file", path.display()) }),
            None => Err(BuildError::NoCompiler { reason: "no clang in PATH".to_owned() }),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts clang")]
    fn command(&self, path: &Path) -> tokio::process::Command {
        // A shell sets the limits because it does so in the child before clang's first instruction, without code of ours
        // between fork and exec; exec keeps the process id, so stopping it stops clang. The processor time limit ends a
        // clang that outlives the agent.
        const LIMITED: &str = r#"ulimit -v "$1" 2>/dev/null; ulimit -t "$2" 2>/dev/null; ulimit -c 0 2>/dev/null; shift 2; exec "$@""#;
        let kibibytes = (self.memory_limit / 1024).to_string();
        let seconds = self.timeout.as_secs().saturating_mul(2).max(1).to_string();
        let mut command = tokio::process::Command::new("/bin/sh");
        command.args(["-c", LIMITED, "sh", &kibibytes, &seconds]).arg(path);
        command
    }

    async fn run(&self, program: Program, dir: &Path, args: &[String]) -> Result<Output, BuildError> {
        let path = self.executable()?;
        let mut command = self.command(path);
        // CPATH and its like would change what is compiled.
        command.args(args).current_dir(dir).env_clear().env("LC_ALL", "C").env("TMPDIR", dir);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(BuildError::io(path))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let finished = tokio::time::timeout(self.timeout, async { tokio::join!(drain(stdout), drain(stderr), child.wait()) }).await;
        match finished {
            Ok((stdout, stderr, status)) => Ok(Output { status: status.map_err(BuildError::io(path))?, stdout, stderr }),
            Err(_) => {
                // The whole group: a wrapper may have children of its own. It may also have just ended.
                if let Some(group) = group {
                    let _ = killpg(group, Signal::SIGKILL);
                }
                child.wait().await.map_err(BuildError::io(path))?;
                Err(BuildError::Timeout { program, after: self.timeout })
            }
        }
    }

    fn failure(&self, templates: &Templates, program: Program, out: Output) -> BuildError {
        const EXHAUSTED: [&str; 4] = ["out of memory", "bad_alloc", "Cannot allocate memory", "failed to map segment"];
        let diagnostics = Mapper { templates, program }.parse(&out.stderr);
        if out.status.code() == Some(1) && diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return BuildError::Compile { program, diagnostics, raw: out.stderr };
        }
        if EXHAUSTED.iter().any(|text| out.stderr.contains(text)) {
            return BuildError::Memory { program, limit: self.memory_limit };
        }
        let killed = matches!(out.status.signal(), Some(libc_signal) if libc_signal == Signal::SIGKILL as i32 || libc_signal == Signal::SIGTERM as i32);
        BuildError::Crashed { program, status: out.status.to_string(), raw: out.stderr, killed }
    }
}

/// Flags of every build and the include path.
fn arguments(build: Build) -> Vec<String> {
    let mut args: Vec<String> = FLAGS.iter().map(|f| (*f).to_owned()).collect();
    args.push(own_flag(build).to_owned());
    args.extend(INCLUDES.iter().map(|dir| format!("-I{dir}")));
    args
}

/// How the C side learns of the kind of build.
pub(crate) fn own_flag(build: Build) -> &'static str {
    match build {
        Build::Shared => "-DCONFIG_OWN=0",
        Build::Own => "-DCONFIG_OWN=1",
    }
}

/// Prefix of build directories, by which one that a crash left behind is known.
pub(crate) const BUILD_PREFIX: &str = ".build-";

async fn build_dir(templates: &Templates, rendered: &Rendered, below: Option<&Path>) -> Result<tempfile::TempDir, BuildError> {
    let (templates, rendered) = (templates.clone(), rendered.clone());
    let below = below.map_or_else(std::env::temp_dir, Path::to_owned);
    let program = rendered.program;
    tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&below).map_err(BuildError::io(&below))?;
        let dir = tempfile::Builder::new().prefix(BUILD_PREFIX).tempdir_in(&below).map_err(BuildError::io(&below))?;
        templates.lay_out(dir.path(), &rendered)?;
        Ok(dir)
    })
    .await
    .unwrap_or(Err(BuildError::Abandoned { program }))
}

/// Reads to the end, keeps the beginning: a compiler that floods its output is still heard out.
async fn drain(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return String::new() };
    let mut chunk = [0; 8192];
    while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_compiler_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["clang-18", "clang-19", "mine"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(dir.path().join("clang-20"), "not executable").unwrap();
        let find = |named: Option<&str>| Clang::find_in(named.map(Into::into), dir.path().as_os_str()).path;
        assert_eq!(find(None), Some(dir.path().join("clang-19")));
        assert_eq!(find(Some("")), Some(dir.path().join("clang-19")));
        assert_eq!(find(Some("mine")), Some(dir.path().join("mine")));
        assert_eq!(find(Some("/nowhere/clang")), Some(PathBuf::from("/nowhere/clang")));
        assert_eq!(find(Some("absent")), Some(PathBuf::from("absent")));
        let elsewhere = Clang::find_in(None, OsStr::new("/nowhere"));
        assert_eq!(elsewhere.path, None);
        assert!(matches!(elsewhere.executable(), Err(BuildError::NoCompiler { .. })));
    }
}
