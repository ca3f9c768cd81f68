//! TODO
pub mod merge;
pub mod split;
