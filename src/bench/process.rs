//! Programs the bench starts: tools that run to their end, daemons that live as long as their
//! guard, and helpers of this same binary that answer with lines of JSON.
//!
//! Everything long-lived is started through `weft bench exec` or `enclose`, which asks the kernel to end the
//! program together with the bench, so that even a killed bench leaves no process behind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::enclosed::Enclosed;
use super::interrupt;

/// Runs a tool given as one line split at blanks, and returns what it printed.
///
/// # Errors
/// When the tool is missing or fails; the message holds the line and what it said on stderr.
pub fn tool(line: &str) -> anyhow::Result<String> {
    interrupt::check()?;
    unguarded_tool(line)
}

/// As [`tool`], but also works after an interrupt: for cleaning up.
///
/// # Errors
/// As [`tool`].
pub fn unguarded_tool(line: &str) -> anyhow::Result<String> {
    let words: Vec<&Path> = line.split_whitespace().map(Path::new).collect();
    let (program, args) = words.split_first().context("empty command line")?;
    output_of(program, args)
}

/// Runs `program` with `args` to its end and returns what it printed.
///
/// # Errors
/// As [`tool`].
pub fn output_of(program: &Path, args: &[&Path]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}` (is it installed?)", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let line = line.join(" ");
        bail!(
            "`{} {line}`: {} ({})",
            program.display(),
            said.trim(),
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True when `program` is found in PATH or the usual administrator directories.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// How programs of a run are started: which binary plays the helper.
#[derive(Clone, Debug)]
pub struct Launcher {
    exe: PathBuf,
}

impl Launcher {
    /// Uses `exe`, or the running binary. It must answer to `bench exec` and `bench traffic`.
    ///
    /// # Errors
    /// When the path of the running binary cannot be found.
    pub fn new(exe: Option<PathBuf>) -> anyhow::Result<Self> {
        let exe = match exe {
            Some(exe) => exe,
            None => std::env::current_exe().context("find the path of this binary")?,
        };
        Ok(Self { exe })
    }

    /// The helper binary.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// A command that runs `program` in the namespace `netns` and ends with this process.
    fn command(&self, netns: &str, program: &Path) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(["bench", "exec", "--netns", netns, "--"]);
        command.arg(program).stdin(Stdio::null()).process_group(0);
        command
    }

    /// Starts a daemon in `netns`; what it prints goes to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program not be started.
    pub fn daemon(
        &self,
        netns: &str,
        program: &str,
        args: &[String],
        envs: &[(&str, &Path)],
        log: &Path,
    ) -> anyhow::Result<Daemon> {
        let mut command = self.command(netns, Path::new(program));
        command.args(args).envs(envs.iter().copied());
        Daemon::spawn(command, program, log)
    }

    /// Starts a shell's `script` in `netns` as on a machine of its own; what it prints goes to the file `log`.
    ///
    /// # Errors
    /// As [`Self::daemon`].
    pub fn enclosed(
        &self,
        netns: &str,
        label: &str,
        script: &str,
        log: &Path,
    ) -> anyhow::Result<Enclosed> {
        let mut command = Command::new(&self.exe);
        command.args(["bench", "enclose", "--netns", netns, "--", script]);
        command.stdin(Stdio::null()).process_group(0);
        Daemon::spawn(command, label, log).map(Enclosed::new)
    }

    /// Starts `weft bench <args>` in `netns`, reading its lines.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn helper(&self, netns: &str, args: &[String]) -> anyhow::Result<Helper> {
        interrupt::check()?;
        let mut command = self.command(netns, &self.exe.clone());
        command.env("RUST_BACKTRACE", "0");
        command.arg("bench").args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let label = args.join(" ");
        let mut child = command
            .spawn()
            .with_context(|| format!("start helper `{label}`"))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().context("helper has no stdout")?;
        let stderr = child.stderr.take().context("helper has no stderr")?;
        for stream in [
            Box::new(stdout) as Box<dyn std::io::Read + Send>,
            Box::new(stderr),
        ] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let daemon = Daemon {
            child,
            label,
            log: PathBuf::new(),
        };
        Ok(Helper { daemon, lines })
    }
}

/// A running program; dropping it ends it: SIGTERM, two seconds of patience, SIGKILL.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    label: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, known as `label`; what it prints goes to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program not be started.
    pub fn spawn(mut command: Command, label: &str, log: &Path) -> anyhow::Result<Self> {
        interrupt::check()?;
        let out = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("start {label}"))?;
        Ok(Self {
            child,
            label: label.to_owned(),
            log: log.to_owned(),
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the daemon printed so far, its last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Fails when the program has ended, with the end of its log.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended early ({status}): {}", self.label, self.tail(8));
        }
        Ok(())
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the daemon ends first, or `limit` passes.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        while !ready() {
            self.check_alive()?;
            if Instant::now() > end {
                bail!(
                    "{}: no {what} within {limit:?}: {}",
                    self.label,
                    self.tail(8)
                );
            }
            interrupt::sleep(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Waits for its end, also after an interrupt; false when `limit` passed first.
    pub fn wait_end(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, Signal::SIGTERM);
        if self.wait_end(Duration::from_secs(2)) {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A helper process of this binary. It prints `ready` when it listens, and one line of JSON as its
/// result; anything else it prints is shown when it fails.
#[derive(Debug)]
pub struct Helper {
    daemon: Daemon,
    lines: Receiver<String>,
}

impl Helper {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Waits for the line `ready`.
    ///
    /// # Errors
    /// When the helper ends or says nothing for five seconds.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_line(Duration::from_secs(5), |line| line == "ready")
            .map(drop)
    }

    /// Waits for the result and parses it.
    ///
    /// # Errors
    /// When the helper ends without one, or `limit` passes.
    pub fn result<T: DeserializeOwned>(&mut self, limit: Duration) -> anyhow::Result<T> {
        let line = self.wait_line(limit, |line| line.starts_with('{'))?;
        serde_json::from_str(&line).with_context(|| format!("helper's result `{line}`"))
    }

    fn wait_line(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let end = Instant::now() + limit;
        let mut said = String::new();
        loop {
            interrupt::check()?;
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) => {
                    said.push_str(&line);
                    said.push(' ');
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "helper `{}` ended without a result: {said}",
                        self.daemon.label
                    )
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                    bail!(
                        "helper `{}` gave no result within {limit:?} {said}",
                        self.daemon.label
                    )
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Enters `netns` and becomes `program`: the body of `weft bench exec`. Returns only on failure.
///
/// `ip netns exec` is used, because it also gives the program the namespace's own `/sys`.
///
/// # Errors
/// Always, as success does not return.
pub fn exec_in_netns(netns: &str, program: &[String]) -> anyhow::Result<std::convert::Infallible> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).args(program);
    exec_with_bench(command).with_context(|| format!("run {program:?} in netns {netns}"))
}

/// Becomes `command`, which then ends with the bench. Returns only on failure.
///
/// # Errors
/// Always, as success does not return.
pub fn exec_with_bench(mut command: Command) -> anyhow::Result<std::convert::Infallible> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("ask to end with the bench")?;
    // The bench blocks the signals it waits for, and a mask outlives exec: the program would not hear
    // SIGTERM.
    SigSet::empty()
        .thread_set_mask()
        .context("let signals through")?;
    let failure = command.exec();
    Err(failure).with_context(|| format!("start {}", command.get_program().display()))
}

/// Processor time of a process so far, with all its threads. `None` when the process is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).ok()?;
    clock.now().ok().map(Duration::from)
}

/// Resident memory of a process now and at its peak, in MiB (`VmRSS`, `VmHWM` of
/// `/proc/<pid>/status`). `None` when the process is gone.
pub fn memory_mib(pid: u32) -> Option<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line
            .trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(kib / 1024.0)
    };
    Some((field("VmRSS")?, field("VmHWM")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_tool_says_its_line_and_its_stderr() {
        let error = unguarded_tool("ip link show weft-no-such-link").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("weft-no-such-link"), "{text}");
        assert!(text.contains("does not exist"), "{text}");
    }

    #[test]
    fn own_memory_is_read_in_mib() {
        let (now, peak) = memory_mib(std::process::id()).unwrap();
        assert!(now > 0.5 && peak >= now * 0.5, "{now} {peak}");
    }

    #[test]
    fn own_processor_time_grows_and_that_of_nobody_is_not_there() {
        let before = cpu_time(std::process::id()).unwrap();
        let end = before + Duration::from_millis(5);
        while cpu_time(std::process::id()).unwrap() < end {}
        // Beyond the largest process id Linux gives.
        assert_eq!(cpu_time(1 << 23), None);
    }

    #[test]
    fn missing_programs_are_not_installed() {
        assert!(installed("sh"));
        assert!(!installed("weft-no-such-program"));
    }
}
