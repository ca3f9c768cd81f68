//! The resolv.conf of named namespaces: `/etc/netns/<name>/resolv.conf`, which `ip netns exec` puts in the place of
//! `/etc/resolv.conf` (ip-netns(8)).
//!
//! The first line of a file of ours is its mark. A file without it is somebody else's and is never touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::HostError;

/// Where `ip netns` looks for files of a namespace.
const DIR: &str = "/etc/netns";
const FILE: &str = "resolv.conf";
const MARK: &str = "# weft:";

/// The first line of the files of the agent with that run directory.
pub fn resolv_mark(run_dir: &Path) -> String {
    format!("{MARK}{}", run_dir.display())
}

/// Writes a namespace's file, unless there is one of somebody else. Tells whether it is ours. `text` begins with
/// the mark.
///
/// # Errors
/// The kernel's reason.
pub fn write_resolv(name: &str, text: &str) -> Result<bool, HostError> {
    write_in(Path::new(DIR), name, text)
}

/// Removes a namespace's file if it is this agent's.
///
/// # Errors
/// The kernel's reason.
pub fn remove_resolv(name: &str, run_dir: &Path) -> Result<(), HostError> {
    remove_in(Path::new(DIR), name, |owner| owner == run_dir)
}

/// Removes every file of agents whose run directory is `run_dir` or, with `below`, within it, but those of `keep`. Tells what
/// was removed.
///
/// # Errors
/// The kernel's reason; what comes after is left.
pub fn sweep_resolv(
    run_dir: &Path,
    below: bool,
    keep: &BTreeSet<String>,
) -> Result<Vec<PathBuf>, HostError> {
    sweep_in(Path::new(DIR), keep, |owner| match below {
        true => owner.starts_with(run_dir),
        false => owner == run_dir,
    })
}

fn write_in(dir: &Path, name: &str, text: &str) -> Result<bool, HostError> {
    let dir = dir.join(name);
    let path = dir.join(FILE);
    let failed = |error| HostError::io(format!("write {}", path.display()), error);
    match first_line(&path).map_err(failed)? {
        Some(line) if owner_of(&line).is_none() => return Ok(false),
        _ => {}
    }
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(true);
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(&dir).map_err(failed)?;
    // A workload that reads it meanwhile has the old one or the new one; the file itself may be mounted somewhere, and
    // that mount keeps the old one until it goes.
    let fresh = dir.join(".resolv.conf.weft");
    fs::write(&fresh, text).map_err(failed)?;
    fs::rename(&fresh, &path).map_err(failed)?;
    Ok(true)
}

fn remove_in(dir: &Path, name: &str, mine: impl Fn(&Path) -> bool) -> Result<(), HostError> {
    let dir = dir.join(name);
    let path = dir.join(FILE);
    let failed = |error| HostError::io(format!("remove {}", path.display()), error);
    let line = first_line(&path).map_err(failed)?;
    if line.is_none_or(|line| !owner_of(&line).is_some_and(&mine)) {
        return Ok(());
    }
    fs::remove_file(&path).map_err(failed)?;
    // Fails when somebody else has files there, as it should.
    let _ = fs::remove_dir(&dir);
    Ok(())
}

fn sweep_in(
    dir: &Path,
    keep: &BTreeSet<String>,
    mine: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, HostError> {
    let failed = |error| HostError::io(format!("list {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str().filter(|name| !keep.contains(*name)) else {
            continue;
        };
        let path = dir.join(name).join(FILE);
        let line = first_line(&path);
        if line.is_ok_and(|line| line.is_some_and(|line| owner_of(&line).is_some_and(&mine))) {
            remove_in(dir, name, &mine)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// The run directory of the agent that wrote a file with this first line.
fn owner_of(line: &str) -> Option<&Path> {
    line.strip_prefix(MARK).map(Path::new)
}

/// The first line, or what there is of it; none without a file.
fn first_line(path: &Path) -> io::Result<Option<String>> {
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    let file = match fs::File::open(path) {
        Err(error) if gone(&error) => return Ok(None),
        file => file?,
    };
    let mut start = Vec::new();
    file.take(LINE_MAX).read_to_end(&mut start)?;
    let text = String::from_utf8_lossy(&start);
    Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
}

const LINE_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "/run/weft";

    fn text(server: &str) -> String {
        format!("{}\nnameserver {server}\n", resolv_mark(Path::new(RUN)))
    }

    fn remove(dir: &Path, name: &str, run: &str) {
        remove_in(dir, name, |owner| owner == Path::new(run)).unwrap();
    }

    #[test]
    fn a_file_comes_changes_and_goes_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web").join(FILE);
        assert!(write_in(dir.path(), "web", &text("10.0.1.1")).unwrap());
        assert!(write_in(dir.path(), "web", &text("10.0.2.1")).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), text("10.0.2.1"));
        remove(dir.path(), "web", "/run/other");
        assert!(path.exists());
        remove(dir.path(), "web", RUN);
        assert!(!path.parent().unwrap().exists());
        remove(dir.path(), "web", RUN);
    }

    #[test]
    fn what_somebody_else_wrote_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web").join(FILE);
        fs::create_dir(path.parent().unwrap()).unwrap();
        for theirs in ["nameserver 192.0.2.1\n", "", "\n# weft:/run/weft\n"] {
            fs::write(&path, theirs).unwrap();
            assert!(!write_in(dir.path(), "web", &text("10.0.1.1")).unwrap());
            remove(dir.path(), "web", RUN);
            assert_eq!(
                sweep_in(dir.path(), &BTreeSet::new(), |_| true).unwrap(),
                [] as [PathBuf; 0]
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        }
    }

    #[test]
    fn a_sweep_takes_what_is_this_agents_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            write_in(dir.path(), name, &text("10.0.1.1")).unwrap();
        }
        let other = format!("{}\n", resolv_mark(Path::new("/run/weft2")));
        write_in(dir.path(), "c", &other).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let keep = BTreeSet::from(["b".to_owned()]);
        let swept = sweep_in(dir.path(), &keep, |owner| owner == Path::new(RUN)).unwrap();
        assert_eq!(swept, [dir.path().join("a").join(FILE)]);
        assert!(dir.path().join("c").join(FILE).exists());
        assert!(
            sweep_in(&dir.path().join("nowhere"), &keep, |_| true)
                .unwrap()
                .is_empty()
        );
    }
}
