//! L0: bytes and nothing else. Views, builders and checksums of every header weft reads or writes.
//!
//! Imports nothing of weft's. No sockets, clocks, threads or randomness.

pub mod checksum;
pub mod flow;
pub mod inner;
pub mod mac;
pub mod vnet;
pub mod vni;
pub mod vxlan;

pub use inner::{Inner, Kind, Malformed};
pub use mac::Mac;
pub use vnet::VnetHdr;
pub use vni::Vni;
