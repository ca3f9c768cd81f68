//! weft: container networks across hosts, with the VXLAN tunnel in userspace.
//!
//! The crate is layered, and edges point up the page only (`tests/tidy.rs` holds the walls):
//!
//! | layer | module | what it is |
//! |---|---|---|
//! | L0 | [`wire`] | bytes on the wire: views, builders, checksums; pure |
//! | L0 | [`sys`] | the only `unsafe`: packet sockets, TAP, UDP offloads, epoll, namespaces |
//! | L1 | [`tables`] | FDB, neighbours, flood lists, VTEPs, networks; lock-free readers, one writer |
//! | L1 | [`model`] | networks, subnets, ids and errors, and the rules they obey; pure |
//! | L2 | [`dataplane`] | frames in, verdicts out: encap, decap, split, merge, the forwarding loop |
//! | L3 | [`host`] | kernel plumbing through rtnetlink |
//! | L4 | [`cluster`] | membership, the gossip-fed table, managers; pure but for its runtimes |
//! | L5 | [`services`] | what workloads use without knowing of it: names |
//! | L6 | [`agent`] | where layers meet: networks, endpoints, state, reconciliation |
//! | L7 | [`frontend`] | HTTP API and command line |
//! | L7 | [`lab`] | the network-namespace test harness |
//! | L7 | [`mod@bench`] | throughput and latency against the kernel's VXLAN and others |

// Links to private items help whoever reads the code, and lead nowhere for others.
#![allow(rustdoc::private_intra_doc_links)]

pub mod agent;
pub mod bench;
pub mod cluster;
pub mod dataplane;
pub mod frontend;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod lab;
pub mod model;
pub mod services;
#[allow(unsafe_code)]
pub mod sys;
pub mod tables;
pub mod wire;
