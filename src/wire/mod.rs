//! L0: bytes and nothing else. Views, builders and checksums of every header weft reads or writes.
//!
//! Imports nothing of weft's. No sockets, clocks, threads or randomness.
//!
//! The hot path needs [`inner`], [`vxlan`], [`flow`], [`checksum`], [`vnet`] and [`ecn`]; the rest
//! answers or inspects single frames.

pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod flow;
pub mod frame;
pub mod guard;
pub mod icmp;
pub mod inner;
pub mod ipv4;
pub mod ipv6;
pub mod l4;
pub mod mac;
pub mod ndp;
pub mod tcp;
pub mod udp;
pub mod vlan;
pub mod vnet;
pub mod vni;
pub mod vxlan;

pub use inner::{Inner, Kind, Malformed};
pub use mac::Mac;
pub use vnet::VnetHdr;
pub use vni::Vni;
