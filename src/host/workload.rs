//! How a workload's network namespace is named.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use super::HostError;
use super::netlink::netns_id_of;
use crate::sys::SysError;
use crate::sys::netns::Netns;

/// A workload's network namespace: by name, path or process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkloadRef {
    /// `/run/netns/NAME`, as `ip netns` makes them.
    Name(String),
    /// A namespace file, such as `/proc/4242/ns/net` or a container runtime's sandbox key.
    Path(PathBuf),
    /// The namespace a process is in now.
    Pid(u32),
}

impl WorkloadRef {
    /// The namespace file.
    pub fn path(&self) -> PathBuf {
        match self {
            WorkloadRef::Name(name) => PathBuf::from(NAMED_DIR).join(name),
            WorkloadRef::Path(path) => path.clone(),
            WorkloadRef::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// Opens the namespace; while it is open it cannot vanish.
    ///
    /// # Errors
    /// [`HostError::NoWorkload`] if there is no such file or it is no network namespace,
    /// [`HostError::Invalid`] for a name that is not a plain file name, [`HostError::Sys`] if it could not
    /// be looked at, which tells nothing about the workload.
    pub fn open(&self) -> Result<Netns, HostError> {
        if let WorkloadRef::Name(name) = self
            && (name.is_empty() || name.contains('/') || name == "." || name == "..")
        {
            return Err(HostError::Invalid(format!(
                "{name:?} is not the name of a network namespace"
            )));
        }
        Netns::open(self.path()).map_err(|source| match is_gone(&source) {
            true => HostError::NoWorkload {
                workload: self.to_string(),
                source,
            },
            false => HostError::Sys(source),
        })
    }
}

/// No such file or process, or a file that is no namespace; not a lack of descriptors, memory or rights.
fn is_gone(error: &SysError) -> bool {
    error.errno() == Some(libc::ESRCH)
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
        )
}

impl FromStr for WorkloadRef {
    type Err = Infallible;

    /// Digits are a process id, anything with a slash is a path, the rest a name.
    fn from_str(text: &str) -> Result<WorkloadRef, Infallible> {
        Ok(match text.parse::<u32>() {
            Ok(pid) => WorkloadRef::Pid(pid),
            Err(_) if text.contains('/') => WorkloadRef::Path(PathBuf::from(text)),
            Err(_) => WorkloadRef::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkloadRef::Name(name) => f.write_str(name),
            WorkloadRef::Path(path) => path.display().fmt(f),
            WorkloadRef::Pid(pid) => pid.fmt(f),
        }
    }
}

/// Whether the workload still has the namespace `netns_id` it was attached with (see
/// [`AttachedEndpoint::netns_id`](super::AttachedEndpoint::netns_id)); a reused process id or name
/// has another one.
///
/// # Errors
/// Those of [`WorkloadRef::open`] but [`HostError::NoWorkload`]: it cannot be told.
pub fn workload_alive(workload: &WorkloadRef, netns_id: u64) -> Result<bool, HostError> {
    match workload.open() {
        Ok(netns) => Ok(netns_id_of(&netns)? == netns_id),
        Err(HostError::NoWorkload { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

const NAMED_DIR: &str = "/run/netns";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_a_process_a_path_or_a_namespace() {
        let parse = |text: &str| text.parse::<WorkloadRef>().unwrap();
        assert_eq!(parse("4242"), WorkloadRef::Pid(4242));
        assert_eq!(parse("./c1"), WorkloadRef::Path("./c1".into()));
        assert_eq!(parse("c1"), WorkloadRef::Name("c1".into()));
        assert_eq!(parse("c1").path(), PathBuf::from("/run/netns/c1"));
        assert_eq!(parse("7").path(), PathBuf::from("/proc/7/ns/net"));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", "..", "../x"] {
            let error = WorkloadRef::Name(name.into()).open().unwrap_err();
            assert!(matches!(error, HostError::Invalid(_)), "{name}");
        }
    }

    #[test]
    fn a_missing_namespace_and_an_ordinary_file_are_no_workload() {
        for path in ["/nonexistent/netns", "/etc/passwd"] {
            let error = WorkloadRef::Path(path.into()).open().unwrap_err();
            assert!(matches!(error, HostError::NoWorkload { .. }), "{path}");
            assert!(!workload_alive(&WorkloadRef::Path(path.into()), 1).unwrap());
        }
    }

    #[test]
    fn a_process_is_alive_while_it_keeps_its_namespace() {
        let own = WorkloadRef::Pid(std::process::id());
        let id = netns_id_of(&own.open().unwrap()).unwrap();
        assert!(workload_alive(&own, id).unwrap());
        assert!(!workload_alive(&own, id + 1).unwrap());
    }

    #[test]
    fn a_namespace_that_cannot_be_looked_at_is_not_taken_for_gone() {
        let long = WorkloadRef::Path(format!("/{}", "x".repeat(300)).into());
        let error = workload_alive(&long, 1).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENAMETOOLONG));
    }
}
