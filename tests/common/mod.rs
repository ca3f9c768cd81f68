//! What several test programs share. Each uses a part of it.
#![allow(dead_code)]

pub mod cases;
pub mod counts;
pub mod dataplane;
pub mod hosts;
pub mod probe;
pub mod random;
pub mod replay;
pub mod skip;
pub mod traffic;
pub mod transfer;
pub mod wiretap;
