//! The list of steps that can be undone.
//!
//! A verb pushes a step right after the kernel accepted the change; if a later change fails the steps
//! are taken back in reverse order. What was there before the verb has no step and stays.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{HostError, Netlink};
use crate::sys::SysError;
use crate::sys::netns::Netns;

/// Changes made so far by one verb.
#[derive(Debug, Default)]
pub(super) struct Undo {
    steps: Vec<Step>,
}

/// One change, with what it takes to reverse it.
#[derive(Debug)]
pub(super) enum Step {
    /// A namespace was made at this path.
    Netns(PathBuf),
    /// A link of this name was made.
    Link(Arc<Netlink>, String),
    /// An address was given to a link.
    Address(Arc<Netlink>, u32, IpNetwork),
}

impl Undo {
    /// Notes a change that was made.
    pub(super) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Takes everything back and returns the error to report: the cause, with what is left behind.
    pub(super) async fn roll_back(self, cause: HostError) -> HostError {
        let mut left = Vec::new();
        for step in self.steps.into_iter().rev() {
            if let Err(error) = step.reverse().await {
                left.push(error);
            }
        }
        if left.is_empty() {
            return cause;
        }
        HostError::Undo {
            cause: Box::new(cause),
            left,
        }
    }
}

impl Step {
    async fn reverse(self) -> Result<(), HostError> {
        match self {
            Step::Netns(path) => delete_netns(path).await,
            Step::Link(netlink, name) => netlink.delete_link(&name).await,
            Step::Address(netlink, index, address) => netlink.delete_address(index, address).await,
        }
    }
}

/// Unmounts and removes a namespace file; fine if it is gone already.
pub(super) async fn delete_netns(path: PathBuf) -> Result<(), HostError> {
    blocking(move || Netns::delete(path)).await.map(drop)
}

/// Runs a call that waits for the kernel (mounts, new namespaces) off the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, SysError> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => Ok(result?),
        Err(stopped) => Err(HostError::io(
            "wait for the kernel",
            io::Error::other(stopped),
        )),
    }
}
