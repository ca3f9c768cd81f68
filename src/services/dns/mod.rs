//! Names: a DNS server for each network, on the network's gateway addresses and nowhere else.
//!
//! | file | owns |
//! |---|---|
//! | [`zone`] | one network's names and addresses, and which of them answer; pure |
//! | [`message`] | a query's bytes in, an answer's bytes out or a wish to forward; pure |
//! | [`cache`] | what upstreams said, for as long as they said it holds; pure |
//! | [`resolv`] | the format of resolv.conf, in both directions; pure |
//! | [`forward`] | asking the host's resolvers, from the host's namespace |
//! | [`server`] | the sockets inside the network's namespace, and the limits on who uses them |
//! | [`fuzzing`] | the body of a fuzz target |
//! | [`counters`] | what became of queries, and how long it took |
//!
//! ```text
//!  workload ──UDP/TCP 53──► gateway (br0, network's namespace) ── message ── zone      known: answered at once
//!                                                                  │
//!                                                                  └─ cache ── forward ──► resolvers of the host
//! ```
//! A zone is replaced whole, so that a lookup takes no lock and sees one state.

pub mod cache;
pub mod counters;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod message;
pub mod resolv;
pub mod server;
pub mod zone;
