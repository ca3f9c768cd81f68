//! What can go wrong while changing the kernel's state.
//!
//! Every error says the operation, the object and the kernel's reason:
//! "add veth veth1a2b3c4 in netns 4026532: EEXIST: File exists".

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::sys::SysError;

/// A failed host operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The kernel refused a netlink request.
    #[error("{operation} in netns {netns}: {errno}{}", suffix(.detail))]
    Kernel {
        /// Verb and object, such as "add veth veth1a2b3c4".
        operation: String,
        /// Inode number of the namespace the request was sent in.
        netns: u64,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own sentence (extended acknowledgement), where it gave one.
        detail: Option<String>,
    },
    /// A namespace operation failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A file or socket operation failed.
    #[error("{operation}: {source}")]
    Io {
        /// Verb and object, such as "set /proc/sys/net/ipv4/ip_forward to 1".
        operation: String,
        /// The reason.
        source: io::Error,
    },
    /// The netlink connection ended before the kernel answered.
    #[error("{operation} in netns {netns}: the netlink connection was closed")]
    Closed {
        /// Verb and object.
        operation: String,
        /// Inode number of the namespace.
        netns: u64,
    },
    /// A listing was interrupted by changes each time it was tried.
    #[error("{operation} in netns {netns}: interrupted by changes {tries} times in a row")]
    Unsettled {
        /// Verb and object.
        operation: String,
        /// Inode number of the namespace.
        netns: u64,
        /// How often it was tried.
        tries: u32,
    },
    /// The request makes no sense; nothing was changed.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The network's namespace or one of its links is not there.
    #[error("{0} does not exist: the network has to be created on this node first")]
    NoNetwork(String),
    /// The workload's namespace does not exist: the workload is gone or was never there.
    #[error("workload {workload} is not there: {source}")]
    NoWorkload {
        /// How the workload was named.
        workload: String,
        /// The file that was tried and the reason.
        source: SysError,
    },
    /// The workload's name or process id leads to another namespace than it did; nothing was changed.
    #[error("workload {workload} is in netns {found} by now, not {expected} as before")]
    OtherWorkload {
        /// How the workload was named.
        workload: String,
        /// Inode number of the namespace it was in.
        expected: u64,
        /// Inode number of the namespace that was found.
        found: u64,
    },
    /// The interface name asked for is in use in the workload.
    #[error("interface {ifname} already exists in netns {netns} and belongs to someone else")]
    NameTaken {
        /// The name.
        ifname: String,
        /// Inode number of the namespace.
        netns: u64,
    },
    /// Something in the way carries no ownership mark, or another one.
    #[error("{what} is not ours: expected the mark {expected}, found {found}")]
    Foreign {
        /// The object in the way.
        what: String,
        /// The mark that would have allowed the change.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A program weft needs is not installed.
    #[error("the program {program} is not installed: apt install {}", package(.program))]
    NoProgram {
        /// Its name.
        program: &'static str,
    },
    /// `nft` or `conntrack` refused what it was told.
    #[error("{program} refused: {said}")]
    Rules {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// No interface of this host has the VTEP address.
    #[error(
        "no interface in this network namespace has the VTEP address {vtep}: \
         assign it to the underlay interface or choose one of the host's own addresses"
    )]
    NoUnderlay {
        /// The address looked for.
        vtep: IpAddr,
    },
    /// An operation failed and so did parts of taking it back.
    #[error("{cause}; and undoing it left something behind: {}", list(.left))]
    Undo {
        /// The first failure.
        cause: Box<HostError>,
        /// What could not be undone.
        left: Vec<HostError>,
    },
    /// Parts of a teardown failed; the others were done.
    #[error("teardown incomplete: {}", list(.0))]
    Teardown(Vec<HostError>),
}

/// The Debian package a program comes in.
fn package(program: &str) -> &str {
    match program {
        "nft" => "nftables",
        other => other,
    }
}

impl HostError {
    /// The kernel's error number at the root of this error, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            HostError::Kernel { errno, .. } => Some(*errno),
            HostError::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            HostError::Sys(source) | HostError::NoWorkload { source, .. } => {
                source.errno().map(Errno::from_raw)
            }
            HostError::Undo { cause, .. } => cause.errno(),
            _ => None,
        }
    }

    pub(super) fn io(operation: impl Into<String>, source: io::Error) -> HostError {
        HostError::Io {
            operation: operation.into(),
            source,
        }
    }

    /// Nothing, or the collected errors of a teardown.
    pub(super) fn collect(mut errors: Vec<HostError>) -> Result<(), HostError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(HostError::Teardown(errors)),
        }
    }
}

fn suffix(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

fn list(errors: &[HostError]) -> String {
    let texts: Vec<String> = errors.iter().map(HostError::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(errno: Errno, detail: Option<&str>) -> HostError {
        HostError::Kernel {
            operation: "add veth veth1a2b3c4".into(),
            netns: 4026532,
            errno,
            detail: detail.map(str::to_owned),
        }
    }

    #[test]
    fn errors_name_operation_object_and_reason() {
        assert_eq!(
            kernel(Errno::EEXIST, None).to_string(),
            "add veth veth1a2b3c4 in netns 4026532: EEXIST: File exists"
        );
        assert_eq!(
            kernel(Errno::EINVAL, Some("too big gso_max_size")).to_string(),
            "add veth veth1a2b3c4 in netns 4026532: EINVAL: Invalid argument (too big gso_max_size)"
        );
    }

    #[test]
    fn the_first_failure_is_the_root_of_a_failed_undo() {
        let undo = HostError::Undo {
            cause: Box::new(kernel(Errno::EPERM, None)),
            left: vec![kernel(Errno::EBUSY, None)],
        };
        assert_eq!(undo.errno(), Some(Errno::EPERM));
        assert!(undo.to_string().contains("EBUSY"));
    }

    #[test]
    fn a_teardown_with_one_error_is_that_error() {
        assert!(HostError::collect(Vec::new()).is_ok());
        let one = HostError::collect(vec![kernel(Errno::EPERM, None)]).unwrap_err();
        assert!(matches!(one, HostError::Kernel { .. }));
        let two = vec![kernel(Errno::EPERM, None), kernel(Errno::EBUSY, None)];
        assert!(matches!(
            HostError::collect(two),
            Err(HostError::Teardown(errors)) if errors.len() == 2
        ));
    }
}
