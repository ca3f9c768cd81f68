//! Processes of a lab: started inside a namespace, known by pid and start time, ended by exactly that.
//!
//! Every process carries the lab's name in its environment ([`MARK_VAR`]), and so does whatever it starts: a
//! lab whose state file was lost can still be found and ended. A pid alone is never trusted, since
//! the kernel gives it to somebody else once its owner is gone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::{Context, LabError};
use super::plan::lab_dir;
use crate::sys::netns::Netns;

/// The environment variable that marks a lab's processes; its value is the lab's name.
pub const MARK_VAR: &str = "WEFTLAB";

/// A process, so named that another one with the same pid is not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// When it started, clock ticks after boot (`proc_pid_stat(5)`, field 22).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of_pid(pid: u32) -> Option<ProcessId> {
        let stat = Stat::read(pid)?;
        Some(ProcessId {
            pid,
            started: stat.started,
        })
    }

    /// Whether it still runs. One that has ended but was not waited for yet does not.
    pub fn alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started && !stat.over)
    }

    /// Sends a signal, if the pid still belongs to this process. Fine if it has ended.
    ///
    /// # Errors
    /// `EPERM` when it is another user's.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(self.nix(), signal) {
            // It ended between the look and the signal.
            Err(Errno::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Whether it ended within `limit`.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            if !self.alive() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    fn nix(&self) -> Pid {
        Pid::from_raw(self.pid as i32)
    }
}

/// Ends processes together: asks first, and after `grace` insists. Returns those that had to be killed.
///
/// # Errors
/// `EPERM` when one is another user's; the others are ended all the same.
pub fn end_all(processes: &[ProcessId], grace: Duration) -> nix::Result<Vec<ProcessId>> {
    let mut refused = Ok(());
    for process in processes {
        refused = refused.and(process.signal(Signal::SIGTERM));
        // A stopped process only hears once it runs again.
        refused = refused.and(process.signal(Signal::SIGCONT));
    }
    let end = Instant::now() + grace;
    let left =
        |process: &&ProcessId| !process.ended_within(end.saturating_duration_since(Instant::now()));
    let stubborn: Vec<ProcessId> = processes.iter().filter(left).copied().collect();
    for process in &stubborn {
        refused = refused.and(process.signal(Signal::SIGKILL));
    }
    for process in &stubborn {
        process.ended_within(Duration::from_secs(5));
    }
    refused.map(|()| stubborn)
}

/// What to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The lab it belongs to.
    pub lab: &'a str,
    /// The namespace it runs in.
    pub netns: &'a Netns,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Where its output goes, appended.
    pub log: &'a Path,
}

/// Starts a process that outlives this one: no terminal, a process group of its own, no setting of
/// weft's inherited from the environment.
///
/// # Errors
/// [`LabError::Io`] when the namespace cannot be entered or the program not started.
pub fn spawn(spawn: &Spawn<'_>) -> Result<ProcessId, LabError> {
    let what = || format!("start {} {}", spawn.program.display(), spawn.args.join(" "));
    let log = File::options().create(true).append(true).open(spawn.log);
    let log = log.context(|| format!("open {}", spawn.log.display()))?;
    let errors = log.try_clone().context(what)?;
    let mut command = Command::new(spawn.program);
    command
        .args(spawn.args)
        .env(MARK_VAR, spawn.lab)
        .process_group(0);
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WEFT_") {
            command.env_remove(name);
        }
    }
    // A child is in the namespace of the thread that starts it.
    let child = spawn
        .netns
        .run_in(|| command.spawn())
        .map_err(io::Error::from);
    let mut child = child.and_then(|child| child).context(what)?;
    // Nobody but us can have waited for it, so the pid is its own.
    let process = ProcessId::of_pid(child.id());
    wait_for_mark(child.id());
    // Waited for as soon as it ends, so that it leaves no zombie while this program runs on.
    thread::spawn(move || child.wait());
    process.ok_or_else(|| LabError::Ended {
        what: what(),
        log: log_tail(spawn.log),
    })
}

/// Every process that carries the lab's mark, except this one and those it runs under.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn marked(lab: &str) -> io::Result<Vec<ProcessId>> {
    let mut found = marked_any()?;
    found.retain(|(_, owner)| owner == lab);
    Ok(found.into_iter().map(|(process, _)| process).collect())
}

/// Every process that carries the mark of a lab of this mount namespace, with the lab's name, except this one and those it runs under.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn marked_any() -> io::Result<Vec<(ProcessId, String)>> {
    let own = ancestry();
    let mut found: Vec<(ProcessId, String)> = pids()?
        .filter(|pid| !own.contains(pid))
        .filter_map(|pid| Some((ProcessId::of_pid(pid)?, mark_of(pid)?)))
        .filter(|(process, lab)| process.alive() && sees_our_lab(process.pid, lab))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The command line of a process, for people.
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// The last lines of a log, on one line.
pub fn log_tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(3)..].join(" | ");
    match tail.is_empty() {
        true => format!("{} is empty", log.display()),
        false => tail,
    }
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

fn mark_of(pid: u32) -> Option<String> {
    // Processes of other users cannot be read, and are not ours.
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut entries = environment.split(|byte| *byte == 0);
    let value =
        entries.find_map(|entry| entry.strip_prefix(MARK_VAR.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Whether a process sees the same directory of its lab as we do, or neither sees one. In another mount
/// namespace there may be another lab of this name.
fn sees_our_lab(pid: u32, lab: &str) -> bool {
    let seen_from = |root: &Path| {
        let dir = lab_dir(lab);
        let dir = root.join(dir.strip_prefix("/").unwrap_or(&dir));
        fs::metadata(dir).ok().map(|dir| (dir.dev(), dir.ino()))
    };
    seen_from(Path::new("/")) == seen_from(Path::new(&format!("/proc/{pid}/root")))
}

/// Waits until a process just started can be found by its mark, or is over. `spawn` returns when the
/// child has let go of our memory, which the kernel does a moment before it lays out the new
/// environment (`begin_new_exec`, then `create_elf_tables`).
fn wait_for_mark(pid: u32) {
    let end = Instant::now() + Duration::from_secs(1);
    let over = || Stat::read(pid).is_none_or(|stat| stat.over);
    while mark_of(pid).is_none() && !over() && Instant::now() < end {
        thread::sleep(Duration::from_micros(100));
    }
}

fn ancestry() -> Vec<u32> {
    let mut chain = vec![std::process::id()];
    while let Some(parent) = chain
        .last()
        .and_then(|pid| Stat::read(*pid))
        .map(|stat| stat.parent)
    {
        if parent == 0 {
            break;
        }
        chain.push(parent);
    }
    chain
}

struct Stat {
    over: bool,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command's name stands in parentheses and may contain any character, so fields count from the
    /// last closing one: state is field 3, the parent 4, the number of threads 20, the start time 22. A
    /// process may be a zombie in name while other threads of it still hold its files.
    fn parse(text: &str) -> Option<Stat> {
        let fields: Vec<&str> = text[text.rfind(')')? + 1..]
            .split_ascii_whitespace()
            .collect();
        Some(Stat {
            over: matches!(*fields.first()?, "Z" | "X")
                && fields.get(17)?.parse::<u32>().ok()? <= 1,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

const POLL: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(lab: &str) -> (ProcessId, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::current().unwrap();
        let process = spawn(&Spawn {
            lab,
            netns: &netns,
            program: Path::new("sleep"),
            args: &["60".into()],
            log: &dir.path().join("log"),
        });
        (process.unwrap(), dir)
    }

    fn unique(what: &str) -> String {
        format!("{what}{}", std::process::id())
    }

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read_right() {
        let line = "7 (a) S 1 (b) R 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 4242 22 23";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.parent, stat.started, stat.over), (3, 4242, false));
        assert!(Stat::parse("7 (a").is_none());
        let line = line.replace(" R ", " Z ");
        assert!(
            !Stat::parse(&line).unwrap().over,
            "19 threads are still there"
        );
        assert!(
            Stat::parse(&line.replace(" 19 20 ", " 1 20 "))
                .unwrap()
                .over
        );
    }

    #[test]
    fn a_marked_process_is_found_and_ended() {
        let lab = unique("found");
        let (process, _dir) = sleeper(&lab);
        assert_eq!(marked(&lab).unwrap(), [process]);
        assert!(command_line(process.pid).contains("sleep 60"));
        assert!(
            end_all(&[process], Duration::from_secs(5))
                .unwrap()
                .is_empty()
        );
        assert!(!process.alive());
        assert_eq!(marked(&lab).unwrap(), []);
    }

    #[test]
    fn a_lab_of_the_same_name_elsewhere_is_left_alone() {
        let lab = unique("twin");
        let script =
            format!("mount -t tmpfs none /run && mkdir -p /run/weft-lab/{lab} && exec sleep 60");
        let mut other = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .env(MARK_VAR, &lab)
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !command_line(other.id()).starts_with("sleep") && Instant::now() < end {
            thread::sleep(POLL);
        }
        let seen = mark_of(other.id());
        let found = marked(&lab);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(seen, Some(lab));
        assert_eq!(found.unwrap(), []);
    }

    #[test]
    fn a_process_that_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::current().unwrap();
        let log = dir.path().join("log");
        let script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
        let process = spawn(&Spawn {
            lab: &unique("deaf"),
            netns: &netns,
            program: Path::new("/bin/sh"),
            args: &["-c".into(), script.into()],
            log: &log,
        })
        .unwrap();
        while fs::read_to_string(&log).unwrap() != "deaf\n" {
            thread::sleep(POLL);
        }
        assert_eq!(
            end_all(&[process], Duration::from_millis(100)),
            Ok(vec![process])
        );
        assert!(!process.alive());
        assert_eq!(log_tail(&log), "deaf");
    }

    #[test]
    fn another_process_with_the_same_pid_is_left_alone() {
        let (process, _dir) = sleeper(&unique("other"));
        let impostor = ProcessId {
            started: process.started + 1,
            ..process
        };
        assert!(!impostor.alive());
        impostor.signal(Signal::SIGKILL).unwrap();
        end_all(&[impostor], Duration::ZERO).unwrap();
        assert!(process.alive());
        end_all(&[process], Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn this_process_is_never_among_the_marked() {
        let own = Stat::read(std::process::id()).unwrap();
        assert!(ancestry().contains(&std::process::id()));
        assert!(ancestry().contains(&own.parent));
    }
}
