//! L7: `weft bench`, the throughput and latency instrument.
//!
//! Owns: a two-host [`topology`] in namespaces, the [`subject`]s that tunnel across it, [`traffic`]
//! programs of its own, the alternating order of a [`run`], and reports. It must not know how any
//! tunnel works inside: it starts them, measures between the workloads, and compares.
//!
//! `docs/perf.md` says how to use it and what the figures can and cannot tell.

pub mod baseline;
pub mod cgroup;
pub mod cli;
pub mod enclosed;
pub mod interrupt;
pub mod machine;
pub mod measure;
pub mod offload;
pub mod plan;
pub mod process;
pub mod render;
pub mod results;
pub mod run;
pub mod stats;
pub mod subject;
pub mod svg;
pub mod topology;
pub mod traffic;
