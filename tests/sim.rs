//! The cluster's production code with many nodes in virtual time: seeds for safety and healing, figures for
//! speed and size, and bugs that others had, by name.
//!
//! A failing seed is printed; `WEFT_SIM_SEED=<seed> cargo test --test sim chaos` runs it alone.
//! `WEFT_SIM_SEEDS=<count>` runs more of them, `WEFT_LONG=1` a thousand.

#[path = "sim/authority.rs"]
mod authority;
#[path = "sim/chaos.rs"]
mod chaos;
#[path = "sim/council.rs"]
mod council;
#[path = "sim/detector.rs"]
mod detector;
#[path = "sim/figures.rs"]
mod figures;
#[path = "sim/leases.rs"]
mod leases;
#[path = "sim/membership.rs"]
mod membership;
#[path = "sim/named.rs"]
mod named;
#[path = "sim/network.rs"]
mod network;
#[path = "sim/oracle.rs"]
mod oracle;
#[path = "sim/stolen.rs"]
mod stolen;
#[path = "sim/tenant.rs"]
mod tenant;
#[path = "sim/world.rs"]
mod world;
