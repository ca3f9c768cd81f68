//! Control groups that a subject's containers were put into: where they are, and how they go away.
//!
//! A group stays when its processes have ended, and holds groups of its own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Patience with a group whose processes have been killed.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// A group named by the bench, wherever something made it; dropping this removes it.
#[derive(Debug)]
pub struct Cgroup(String);

impl Cgroup {
    /// Takes charge of the group `name`, directly below the root of each hierarchy.
    pub fn new(name: String) -> Self {
        Self(name)
    }

    /// Its path within a hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in hierarchies().iter().map(|root| root.join(&self.0)) {
            if let Err(error) = remove(&path) {
                eprintln!("clean up: remove {}: {error}", path.display());
            }
        }
    }
}

/// The roots of all hierarchies: the one of version 2, or one per controller.
pub fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut found = vec![root.clone()];
    found.extend(directories(&root));
    found
}

/// Removes a group with the groups in it. One that is not there is removed already.
///
/// # Errors
/// When a process is left in one of them.
pub fn remove(group: &Path) -> std::io::Result<()> {
    // Files in it are the kernel's and go with it.
    for below in directories(group) {
        remove(&below)?;
    }
    let end = Instant::now() + BUSY_LIMIT;
    loop {
        match std::fs::remove_dir(group) {
            // Processes that were killed count until somebody has asked how they ended.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_with_the_groups_in_it() {
        let top = tempfile::tempdir().unwrap();
        let group = top.path().join("group");
        std::fs::create_dir_all(group.join("a/b")).unwrap();
        std::fs::create_dir_all(group.join("c")).unwrap();
        remove(&group).unwrap();
        assert!(!group.exists());
        remove(&group).unwrap();
    }
}
