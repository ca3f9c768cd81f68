//! The lab.

pub mod error;
pub mod impair;
pub mod lane;
pub mod offloads;
pub mod plan;
pub mod process;
pub mod space;
pub mod state;
