//! L1: what an operator may ask for and the rules it obeys. Networks, subnets, VNIs, ids, errors.
//!
//! A single node and a cluster's managers keep the same rules, so they share this code. Pure: a plan is a
//! function of what exists, of the wish, and of ids and a time that the caller brings.

pub mod error;
pub mod ident;
pub mod network;
pub mod request;
pub mod service;
pub mod suggest;
