//! L6: where layers meet. Networks, endpoints, state and reconciliation of one node.
//!
//! | file | owns |
//! |---|---|
//! | [`api`] | request and reply types, the [`Agent`] handle: the front ends' only door |
//! | [`config`] | settings: keys, layers, checks |
//! | [`endpoint`], [`records`] | the model of one node and its rules, pure; networks are in [`crate::model`] |
//! | [`state`], [`disk`] | what is remembered over a restart, and how it lies on disk |
//! | [`plumbing`] | the seam to kernel, tables and dataplane, with its fake |
//! | [`handle`], `verbs` | the live state; what can be asked of it |
//! | [`engine`] | what container engines have been given |
//! | [`cluster`] | the node's part in a cluster |
//! | [`edge`] | workloads' way out, virtual addresses, published ports |
//! | `names` | the node's name servers, and what workloads are told of them |
//! | [`reconcile`] | what should be against what is |
//! | [`events`], [`metrics`], [`task`] | what happened, how much, and what runs |
//! | [`fuzzing`] | a node without a kernel, for a fuzz target |

pub mod api;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod edge;
pub mod endpoint;
pub mod engine;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod handle;
pub mod ident;
pub mod metrics;
mod names;
pub mod plumbing;
pub mod preflight;
pub mod reconcile;
pub mod records;
pub mod state;
pub mod task;
mod verbs;

pub use crate::model::{error, network, suggest};
pub use handle::Agent;
