//! L1: pure state. Who is where: FDB, neighbours, flood lists, VTEPs, networks.
//!
//! One writer (the control plane), many readers (dataplane workers) that take no lock:
//!
//! | table | key → value | how readers see it |
//! |---|---|---|
//! | [`fdb`] | (segment, MAC) → local, gateway or VTEP | [`atomic_map`], exact match in place |
//! | [`neigh`] | (segment, IP) → MAC | [`atomic_map`], exact match in place |
//! | [`network`] | VNI → [`network::Segment`]: policy, members, flood list | immutable [`snapshot::Snapshot`], swapped whole |
//!
//! [`store::TableWriter`] keeps the three consistent. Time is an argument; nothing here reads a
//! clock or opens a socket.

pub mod atomic_map;
pub mod fdb;
pub mod neigh;
pub mod network;
pub mod record;
pub mod snapshot;
pub mod store;

pub use network::{Segment, SegmentIndex, SegmentPolicy};
pub use record::EndpointRecord;
pub use snapshot::{Snapshot, Tables, View};
pub use store::{SegmentConfig, TableError, TableWriter};
