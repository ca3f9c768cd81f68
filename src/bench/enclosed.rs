//! A daemon enclosed as on a machine of its own: mounts, host name and process numbers apart, in the network
//! namespace of one of the hosts. All its processes end together, whatever they started, and with them
//! goes what they mounted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::{self, Daemon};

/// Patience with processes that were killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Enters `netns` and becomes what [`command`] says: the body of `weft bench enclose`. Returns only on
/// failure.
///
/// # Errors
/// Always, as success does not return.
pub fn exec_enclosed(netns: &str, script: &str) -> anyhow::Result<std::convert::Infallible> {
    process::exec_with_bench(command(netns, script))
        .with_context(|| format!("enclose a program in netns {netns}"))
}

/// Runs a shell's `script` in `netns` as the first process of its own small world.
///
/// Not by `ip netns exec`, which hides the control groups. `unshare` stays as the parent: when it is killed,
/// so is the script, and the kernel then ends all that the script started.
fn command(netns: &str, script: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}"));
    command.args(["unshare", "--mount", "--propagation", "slave", "--uts"]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-euc", script]);
    command
}

/// A running one; dropping it ends all its processes before it returns.
#[derive(Debug)]
pub struct Enclosed(Daemon);

impl Enclosed {
    /// Takes over what runs [`exec_enclosed`].
    pub fn new(daemon: Daemon) -> Self {
        Self(daemon)
    }

    /// Where its file `path` is for others. A symbolic link on the way would lead out of it.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.0.pid()))
    }

    /// Its processes in the order they were numbered, the script's own first; not those of containers.
    pub fn processes(&self) -> Vec<u32> {
        let world = |pid: &str, kind: &str| world(Path::new("/proc").join(pid), kind);
        let ours = world("self", "pid_for_children");
        let theirs = world(&self.0.pid().to_string(), "pid_for_children");
        // Until it has a world of its own, it names that of the bench.
        let Some(theirs) = theirs.filter(|theirs| Some(theirs) != ours.as_ref()) else {
            return Vec::new();
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let inside = names.filter(|name| world(name, "pid").as_ref() == Some(&theirs));
        let mut found: Vec<(u32, u32)> = inside
            .filter_map(|name| Some((inner_pid(&name)?, name.parse().ok()?)))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Fails when it has ended, with the end of its log.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        self.0.check_alive()
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When it ends first, or `limit` passes.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        self.0.wait_until(what, limit, ready)
    }
}

impl Drop for Enclosed {
    fn drop(&mut self) {
        if self.0.check_alive().is_err() {
            return;
        }
        // The first process can be waited for only after all others are gone.
        let first = self.processes().first().copied();
        if let Some(first) = first.filter(|first| inner_pid(&first.to_string()) == Some(1)) {
            let _ended_meanwhile = kill(Pid::from_raw(first as i32), Signal::SIGKILL);
            self.0.wait_end(END_LIMIT);
        }
    }
}

/// What tells one namespace from another, of a process by its directory.
fn world(process: PathBuf, kind: &str) -> Option<OsString> {
    let link = std::fs::read_link(process.join("ns").join(kind)).ok()?;
    Some(link.into_os_string())
}

/// A process's number in its own namespace: the last of `NSpid`.
fn inner_pid(pid: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::offload::Profile;
    use crate::bench::topology::{Shape, Topology};

    #[test]
    fn whatever_was_started_inside_ends_with_it() {
        let shape = Shape {
            mtu: 1500,
            inner_ipv6: false,
            underlay_ipv6: false,
            one_host: true,
        };
        let topology = Topology::build(shape, Profile::Ideal).unwrap();
        let script = "mount -t tmpfs x /opt; echo inside >/opt/x; setsid sleep 1000 & setsid sleep 1000 & exec sleep 1000";
        let command = command(topology.sides[0].host.name(), script);
        let log = topology.scratch.path().join("log");
        let mut enclosed = Enclosed::new(Daemon::spawn(command, "sh", &log).unwrap());
        let sleeps = |name: &str| std::fs::read_to_string(name).is_ok_and(|name| name == "sleep\n");
        let pids = loop {
            enclosed.check_alive().unwrap();
            let pids = enclosed.processes();
            if pids
                .iter()
                .filter(|pid| sleeps(&format!("/proc/{pid}/comm")))
                .count()
                == 3
            {
                break pids;
            }
        };
        assert_eq!(inner_pid(&pids[0].to_string()), Some(1));
        let written = std::fs::read_to_string(enclosed.file("/opt/x")).unwrap();
        assert_eq!(
            (written.as_str(), Path::new("/opt/x").exists()),
            ("inside\n", false)
        );
        drop(enclosed);
        let alive = |pid: &&u32| Path::new(&format!("/proc/{pid}")).exists();
        assert_eq!(pids.iter().find(alive), None);
    }

    #[test]
    fn a_script_that_fails_says_so() {
        let shape = Shape {
            mtu: 1500,
            inner_ipv6: false,
            underlay_ipv6: false,
            one_host: true,
        };
        let topology = Topology::build(shape, Profile::Ideal).unwrap();
        let command = command(
            topology.sides[0].host.name(),
            "echo no luck; false; sleep 9",
        );
        let log = topology.scratch.path().join("log");
        let mut enclosed = Enclosed::new(Daemon::spawn(command, "sh", &log).unwrap());
        let failed = enclosed.wait_until("luck", END_LIMIT, || false);
        let said = failed.unwrap_err().to_string();
        assert!(said.contains("no luck"), "{said}");
    }
}
