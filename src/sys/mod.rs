//! Layer 0: the kernel, made safe. The only `unsafe` of the crate lives below this line.
//!
//! Owns: file descriptors and the system calls on them (packet sockets, TAP queues, UDP with segmentation offload,
//! epoll, network namespaces, ethtool features). Must not know: frames, tables, networks, policy. It imports `libc`,
//! `nix` and `std`, nothing of ours.
//!
//! Two kinds of failure:
//! - **set-up calls** (open, bind, create) return [`SysError`]: operation, object and the kernel's reason;
//! - **hot-path calls** (`recv`, `send`, `wait`) return plain [`std::io::Result`], so that nothing is allocated; a
//!   receive that would block is `Ok(None)`.
//!
//! Every descriptor is non-blocking and close-on-exec. Closing the last one frees its port or device at once, unless
//! another thread is just starting a child: the child holds a copy of everything until it executes its program.
//! No call allocates after its object was built, except where its documentation says so.

pub mod affinity;
pub mod caps;
pub mod clock;
mod error;
pub mod ethtool;
pub mod inherit;
pub mod limits;
pub mod link;
pub mod memory;
mod message;
pub mod netns;
pub mod packet;
pub mod poll;
mod socket;
pub mod steer;
pub mod tap;
pub mod udp;

pub use error::SysError;
