//! The lab.

pub mod error;
pub mod impair;
pub mod lane;
pub mod offloads;
pub mod pcapng;
pub mod plan;
pub mod process;
pub mod relay;
pub mod space;
pub mod state;
