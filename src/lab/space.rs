//! Namespaces of a lab by name, and whether this process may make any.
//!
//! They are plain files below `/run/netns`, so `ip netns` lists them and `ip netns exec` enters them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{AccessFlags, access};

use super::error::{Context, LabError};
use super::plan::{LABS_DIR, NETNS_DIR, netns_prefix};
use crate::sys::netns::Netns;

/// Makes the directories labs live in. Returns a note for the user when something unusual was needed.
///
/// Without root's own power, inside `unshare -Urnm`, the directories are made on a small file system mounted
/// on `/run`, which nobody outside of that mount namespace sees.
///
/// # Errors
/// [`LabError::Privilege`] with what to do, when this process may not make namespaces at all.
pub fn prepare() -> Result<Option<String>, LabError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::Privilege(NOT_ROOT.into()));
    }
    // Another lab that ends may take the empty directory away in between.
    let made = (0..MAKE_TRIES).map(|_| make_directories());
    let mut made = made.skip_while(is_missing);
    match made.next().unwrap_or_else(make_directories) {
        Ok(()) => return Ok(None),
        Err(error) if !in_user_namespace() => {
            return Err(error).context(|| format!("make {LABS_DIR} and {NETNS_DIR}"));
        }
        Err(_) => {}
    }
    let mounted = mount(
        Some("tmpfs"),
        RUN_DIR,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755"),
    );
    mounted.map_err(|_| LabError::Privilege(NO_MOUNT_NAMESPACE.into()))?;
    make_directories().context(|| format!("make {LABS_DIR} and {NETNS_DIR}"))?;
    Ok(Some(format!(
        "no root here: mounted a private {RUN_DIR}, seen in this mount namespace only"
    )))
}

/// Path of a namespace by name.
pub fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Opens a namespace by name.
///
/// # Errors
/// [`LabError::Io`] naming it.
pub fn open(name: &str) -> Result<Netns, LabError> {
    Netns::open(netns_path(name))
        .map_err(io::Error::from)
        .context(|| format!("open netns {name}"))
}

/// Makes a namespace by name, its loopback up.
///
/// # Errors
/// [`LabError::Io`] naming it.
pub fn create(name: &str) -> Result<Netns, LabError> {
    Netns::create(netns_path(name))
        .map_err(io::Error::from)
        .context(|| format!("create netns {name}"))
}

/// Names below `/run/netns` that belong to the lab.
pub fn of_lab(lab: &str) -> Vec<String> {
    let prefix = netns_prefix(lab);
    let mut names = names_in(Path::new(NETNS_DIR));
    names.retain(|name| name.starts_with(&prefix));
    names
}

/// Everything mounted at or below `dir`, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table.lines().filter_map(mount_point).collect();
    found.retain(|path| path.starts_with(dir));
    found.sort();
    found.reverse();
    found
}

/// Removes the lab's namespaces by name. What is in them vanishes once no process holds them.
///
/// # Errors
/// [`LabError::Io`] naming the first that would not go; the others are removed all the same.
pub fn remove_all(lab: &str) -> Result<(), LabError> {
    let remove = |name: String| {
        let path = netns_path(&name);
        detach(&path)
            .and_then(|()| gone(fs::remove_file(&path)))
            .context(|| format!("remove netns {name}"))
    };
    first_error(of_lab(lab).into_iter().map(remove))
}

/// Removes a directory and what is mounted in it.
///
/// # Errors
/// [`LabError::Io`].
pub fn remove_tree(dir: &Path) -> Result<(), LabError> {
    let unmount = |path: PathBuf| detach(&path).context(|| format!("unmount {}", path.display()));
    first_error(mounts_below(dir).into_iter().map(unmount))?;
    gone(fs::remove_dir_all(dir)).context(|| format!("remove {}", dir.display()))
}

/// File names in a directory, sorted; none when it is not there.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Writes a knob below `/proc/sys/net` as seen in the namespace; one that the kernel lacks is passed over.
///
/// # Errors
/// [`LabError::Io`] naming it.
pub fn set_knob(netns: &Netns, knob: &str, value: &str) -> Result<(), LabError> {
    let path = format!("/proc/sys/net/{knob}");
    let written = netns
        .run_in(|| fs::write(&path, value))
        .map_err(io::Error::from);
    gone(written.and_then(|inner| inner)).context(|| format!("set {knob} to {value}"))
}

const MAKE_TRIES: usize = 10;

fn is_missing(made: &io::Result<()>) -> bool {
    made.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn make_directories() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    fs::create_dir_all(LABS_DIR)?;
    // Made by others perhaps, and not for us to write in.
    for dir in [NETNS_DIR, LABS_DIR] {
        access(dir, AccessFlags::W_OK)?;
    }
    Ok(())
}

/// The first user namespace maps every user to itself (`user_namespaces(7)`).
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}

fn mount_point(line: &str) -> Option<PathBuf> {
    // Field 5; a space in it is written as \040 (proc_pid_mountinfo(5)).
    Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " ")))
}

fn detach(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount point, or not there: a run that was cut off in the middle.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Goes through all of them, whatever happens on the way.
fn first_error(results: impl Iterator<Item = Result<(), LabError>>) -> Result<(), LabError> {
    let failed: Vec<LabError> = results.filter_map(Result::err).collect();
    failed.into_iter().next().map_or(Ok(()), Err)
}

const RUN_DIR: &str = "/run";
const NOT_ROOT: &str = "a lab needs the right to make network namespaces: run it as root (sudo weft lab …), \
    or, where the host allows it, without root by `unshare -Urnm weft lab demo` \
    (for several commands on one lab: `unshare -Urnm` first, then weft in that shell)";
const NO_MOUNT_NAMESPACE: &str = "/run cannot be written here, and this user namespace has no mount \
    namespace of its own to cover it: start with `unshare -Urnm`, all four letters";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_field_five_with_spaces_restored() {
        let line = r"36 35 0:4 net:[4026532] /run/a\040b rw shared:1 - nsfs nsfs rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/run/a b")));
        assert_eq!(mount_point("36"), None);
    }

    #[test]
    fn removing_what_is_not_there_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        remove_tree(&dir.path().join("nothing")).unwrap();
        assert!(names_in(&dir.path().join("nothing")).is_empty());
        remove_all("nosuchlab").unwrap();
    }

    #[test]
    fn a_tree_goes_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "x").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
