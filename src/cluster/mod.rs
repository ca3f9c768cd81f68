//! How nodes find each other and agree: who is there, who has which endpoint, and what the managers decided.
//!
//! Pure: bytes, time and chance are arguments, and what is to be sent or stored is returned. So a
//! simulation runs this very code with hundreds of nodes in virtual time. The managers' ways out to disk and
//! network are named in `tests/tidy/rules.rs`.

pub mod dice;
pub mod directory;
pub mod endpoint_id;
pub mod gossip;
pub mod ipam;
pub mod manager;
pub mod member;
pub mod node;
pub mod pki;
pub mod runtime;
#[cfg(test)]
mod sample;
pub mod seal;

pub use node::NodeNumber;
