//! What can go wrong with a lab. Each variant's text names the object and, where there is one, the remedy.

use std::io;

use crate::host::HostError;

/// A lab operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Options(String),
    /// This process may not do that.
    #[error("{0}")]
    Privilege(String),
    /// The lab is not in the condition for that.
    #[error("{0}")]
    Condition(String),
    /// There is no lab of this name.
    #[error(
        "there is no lab \"{0}\"; `weft lab ls` lists the labs, `weft lab up --name {0}` makes one"
    )]
    NoLab(String),
    /// The lab exists already.
    #[error("lab \"{0}\" exists already; `weft lab down {0}` removes it, --name makes another")]
    Exists(String),
    /// The lab has nothing of this name.
    #[error("lab \"{lab}\" has no {what} \"{name}\"; it has {have}")]
    NoPlace {
        /// The lab.
        lab: String,
        /// "node" or "node or workload".
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        have: String,
    },
    /// A file, namespace, socket or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A link operation failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A command of the system failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A process of the lab ended when it should not have.
    #[error("{what} ended early: {log}")]
    Ended {
        /// Which.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// An agent refused a request.
    #[error("agent {node}: {message}")]
    Agent {
        /// The node.
        node: String,
        /// The agent's words.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s{detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// More to know, or nothing.
        detail: String,
    },
    /// Bytes that were sent and bytes that came differ.
    #[error("{0}")]
    Corrupt(String),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// Puts the operation and its object before an I/O error.
pub trait Context<T> {
    /// See [`LabError::Io`].
    ///
    /// # Errors
    /// The error, with `what` in front.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| match source.into() {
            source if source.kind() == io::ErrorKind::PermissionDenied => {
                LabError::Privilege(format!(
                    "{}: {source}; do it as the user who made the lab, or as root (sudo)",
                    what()
                ))
            }
            source => LabError::Io {
                what: what(),
                source,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_rights_is_told_with_what_to_do() {
        for errno in [nix::errno::Errno::EPERM, nix::errno::Errno::EACCES] {
            let error = Err::<(), _>(errno).context(|| "open it".into());
            let Err(LabError::Privilege(text)) = error else {
                panic!("{error:?}");
            };
            assert!(text.contains("open it") && text.contains("sudo"), "{text}");
        }
        let other = Err::<(), _>(nix::errno::Errno::EIO).context(|| "open it".into());
        assert!(matches!(other, Err(LabError::Io { .. })));
    }
}
