//! L7: the ways in. HTTP on a unix socket, the command line that speaks it, the CNI plugin, and
//! the daemon that serves it.
//!
//! Front ends parse, call and render; they know the agent through [`crate::agent::api`] only.

pub mod cli;
pub mod client;
pub mod cni;
pub mod daemon;
pub mod docker;
pub mod http;
pub mod template;
