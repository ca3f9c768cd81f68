//! Network namespaces: open, create, delete, and run code or programs in one.
//!
//! Owns descriptors of namespaces and the mounts that keep them. Must not know what is inside.
//!
//! A namespace belongs to a *thread*. Nothing here moves the calling thread except [`Netns::enter_this_thread`], so
//! the pool threads of an async runtime keep theirs. Inside [`Netns::run_in`], `/proc/sys/net` is that of the
//! namespace; `/proc/net` is **not** (it follows the main thread): read `/proc/thread-self/net`.

use std::any::Any;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs::FsType;

use super::SysError;
use super::error::Context;

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NS_GET_NSTYPE` of `linux/nsfs.h`: the `CLONE_NEW*` flag of a namespace descriptor.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `linux/magic.h`: the file system of namespace files.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// Opens a namespace by file: a mount made by [`Self::create`] or `ip netns`, or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// `ENOENT`; `EACCES` for a foreign process; `InvalidInput` when the file is no network namespace, as a mount point
    /// that lost its mount.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SysError> {
        let path = path.as_ref();
        let object = || path.display().to_string();
        let file = open_nsfs(path).context("open network namespace", object)?;
        check_kind(&file).context("open network namespace", object)?;
        Ok(Self { fd: file.into() })
    }

    /// Opens the namespace of a process, by the id it has in this process's pid namespace.
    ///
    /// # Errors
    /// `ENOENT`: no such process. `EACCES`: not allowed to look into it.
    pub fn of_pid(pid: u32) -> Result<Self, SysError> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Opens the calling thread's namespace.
    ///
    /// # Errors
    /// `ENOENT` without a mounted `/proc`.
    pub fn current() -> Result<Self, SysError> {
        Self::open(OWN)
    }

    /// Makes a namespace and keeps it by a mount at `path`, so that it outlives this process. Missing directories are
    /// made with mode 0755. An empty file left at `path` by an interrupted creation is used.
    ///
    /// Works without privilege in a user namespace that owns the mount namespace. The mount is visible where mounts
    /// propagate to from the caller's mount namespace.
    ///
    /// # Errors
    /// `EEXIST`: there is something at `path`. `EPERM`: no CAP_SYS_ADMIN. On failure nothing is left but directories.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, SysError> {
        let path = path.as_ref();
        let object = || path.display().to_string();
        let made = make_mount_point(path).context("make mount point", object)?;
        let netns = on_own_thread("create network namespace", || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .context("create network namespace", object)?;
            nix::mount::mount(
                Some(OWN),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .context("mount network namespace at", object)?;
            Self::current()
        });
        if netns.is_err() && made {
            // The error of the creation is the one to report.
            let _ = fs::remove_file(path);
        }
        netns
    }

    /// Makes a namespace that nothing but this value (and what runs in it) keeps alive.
    ///
    /// # Errors
    /// `EPERM`: no CAP_SYS_ADMIN.
    pub fn create_unnamed() -> Result<Self, SysError> {
        on_own_thread("create network namespace", || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .context("create network namespace", || "without name")?;
            Self::current()
        })
    }

    /// Takes the mounts away from `path` and removes the file. The namespace itself ends with its last user. Returns
    /// whether there was anything to delete.
    ///
    /// # Errors
    /// `EPERM`: no CAP_SYS_ADMIN. `ENOTEMPTY`, `EISDIR`: `path` is a directory.
    pub fn delete(path: impl AsRef<Path>) -> Result<bool, SysError> {
        let path = path.as_ref();
        let object = || path.display().to_string();
        loop {
            match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Mounts stack; take off each.
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(errno).context("unmount network namespace", object),
            }
        }
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("remove mount point", object),
        }
    }

    /// Returns device and inode number, which name a namespace on this machine as long as it exists.
    ///
    /// # Errors
    /// The kernel's error, not expected.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let metadata = File::from(self.fd.try_clone()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Runs `work` in this namespace, on a thread of its own that ends with it, and returns what it returned. Sockets
    /// opened by `work` stay in this namespace wherever they are used.
    ///
    /// # Errors
    /// `EPERM`: no CAP_SYS_ADMIN over the namespace or over the caller's user namespace. A panic of `work` is an error
    /// of kind `Other` that carries its message.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, SysError> {
        on_own_thread("run in network namespace", || {
            self.enter_this_thread()?;
            Ok(work())
        })
    }

    /// Moves the calling thread to this namespace for good. For threads the caller owns; never for a thread of a pool.
    ///
    /// # Errors
    /// As [`Self::run_in`].
    pub fn enter_this_thread(&self) -> Result<(), SysError> {
        nix::sched::setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .context("enter network namespace", || self.describe())
    }

    /// Prepares a program that starts in this namespace. Only its network namespace differs; `/sys` shows the
    /// devices of the namespace it was mounted in.
    ///
    /// # Errors
    /// `EMFILE`: no descriptor left for the command's own reference.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, SysError> {
        let mut command = Command::new(program);
        self.enter_on_spawn(&mut command)?;
        Ok(command)
    }

    /// Lets a command made elsewhere start in this namespace. The command keeps the namespace alive.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub fn enter_on_spawn(&self, command: &mut Command) -> Result<(), SysError> {
        let fd = self
            .fd
            .try_clone()
            .context("duplicate network namespace", || self.describe())?;
        let enter = move || Ok(nix::sched::setns(&fd, CloneFlags::CLONE_NEWNET)?);
        // JUSTIFICATION: std has no other way to change a child between fork and exec.
        // SAFETY: the closure makes one system call on a descriptor it owns; it neither allocates nor locks, and its
        // error is a plain error number.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    fn describe(&self) -> String {
        self.id()
            .map_or_else(|_| "?".to_owned(), |(_, inode)| format!("net:[{inode}]"))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the directories and an empty file. Tells whether the file is new.
fn make_mount_point(path: &Path) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
    {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_leftover(path)? => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Tells whether `path` is an empty regular file and no mount.
fn is_leftover(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok(metadata.is_file() && metadata.len() == 0 && metadata.dev() == fs::metadata(parent)?.dev())
}

/// Opens a file of the kernel's namespace file system. Another one is looked at, not opened: opening a FIFO waits for
/// a writer, and opening a device can do anything.
fn open_nsfs(path: &Path) -> io::Result<File> {
    let seen = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if nix::sys::statfs::fstatfs(&seen)?.filesystem_type() != NSFS_MAGIC {
        return Err(no_netns());
    }
    // The very file that was looked at, whatever the path leads to by now.
    File::open(format!("/proc/self/fd/{}", seen.as_raw_fd()))
}

fn no_netns() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "not a network namespace (is its mount gone?)",
    )
}

/// Refuses files that are not network namespaces.
fn check_kind(file: &File) -> io::Result<()> {
    // JUSTIFICATION: neither std nor nix has this call; without it a stale mount point fails much later and unclearly.
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory; on other files it fails with ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind == libc::CLONE_NEWNET {
        return Ok(());
    }
    Err(no_netns())
}

/// Runs `work` on a fresh thread and waits for it; a panic becomes an error.
fn on_own_thread<T: Send>(
    op: &'static str,
    work: impl FnOnce() -> Result<T, SysError> + Send,
) -> Result<T, SysError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .context("start thread to", || op)?;
        thread.join().unwrap_or_else(|panic| {
            let reason = io::Error::other(format!("panicked: {}", panic_message(&*panic)));
            Err(SysError::new(op, "on its own thread", reason))
        })
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        for path in ["/dev/null", "/proc/self/ns/uts", "/proc/self/status"] {
            let error = Netns::open(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = Netns::open(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }

    #[test]
    fn the_own_namespace_is_that_of_the_own_pid() {
        let current = Netns::current().unwrap();
        assert_eq!(
            current.id().unwrap(),
            Netns::of_pid(std::process::id()).unwrap().id().unwrap()
        );
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let error = on_own_thread::<()>("try", || panic!("boom {}", 7)).unwrap_err();
        assert!(error.to_string().contains("boom 7"), "{error}");
    }
}
