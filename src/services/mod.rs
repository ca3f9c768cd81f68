//! L5: what workloads use without knowing of it. Names, so far.

pub mod dns;
