//! L3: kernel plumbing. Network namespaces, bridges, veth pairs, addresses, routes and knobs.
//!
//! ```text
//!   network namespace <run-dir>/netns/<12 of network id>        workload namespace
//!  ┌──────────────────────────────────────────────────┐        ┌─────────────────┐
//!  │  up1 (held by the agent) ══ up0 ─┐               │        │                 │
//!  │                                 br0 ── veth1a2b3c4 ══════════ eth0          │
//!  │   or  tap0 (opened by the agent) ┘  gateway      │        │                 │
//!  └──────────────────────────────────────────────────┘        └─────────────────┘
//!   a second IPv4 subnet of the network: br1, up2 / up3 or tap1
//! ```
//!
//! - [`ensure_network`], [`finish_tap`], [`inspect_network`], [`remove_network`]: the namespace of one network.
//! - [`attach`], [`detach`], [`list_endpoints`]: the veth pair of one workload.
//! - [`ensure_gateway`], [`attach_leg`], [`return_routes`]: the node's way out of overlays, and a workload's leg to it.
//! - [`put_rules`], [`RuleWatch`], [`forget_flows`]: nftables rules of ours.
//! - [`sweep()`]: what a killed agent left behind.
//! - [`underlay_device`], [`watch_underlay`]: the device and MTU below the tunnel.
//! - [`write_resolv`], [`remove_resolv`]: which resolver a named namespace asks.
//! - [`jumbo_support`]: what the kernel does with TCP over IPv6 beyond 64 KiB.
//!
//! Every verb is idempotent: a second call with the same arguments repairs. A verb that fails takes
//! back what it did (see `undo.rs`). Dropping the future of a verb half-way does not undo: run verbs
//! in a spawned task, and repair by calling again.
//!
//! Everything made here carries an ownership mark (see [`Mark`]); what carries none is never touched.
//! Must not know: tables, frames, agents, configuration.

mod addr;
mod counters;
mod docker_user;
mod endpoint;
mod error;
#[doc(hidden)]
pub mod faults;
mod gateway;
mod gso;
mod inspect;
mod jumbo;
mod link;
mod mark;
mod neigh;
mod netlink;
mod nft;
mod qdisc;
mod resolv;
mod route;
mod rule;
mod sandbox;
mod sweep;
mod sysctl;
mod underlay;
mod undo;
mod workload;

pub use counters::{RuleCount, RuleCounters};
pub use docker_user::{pass_docker, unpass_docker};
pub use endpoint::{
    AttachedEndpoint, BridgeRef, EndpointSpec, FoundEndpoint, attach, detach, host_ifname,
    list_endpoints,
};
pub use error::HostError;
pub use gateway::{
    EGRESS_MARK, GatewayBridge, GatewaySpec, LegSpec, attach_leg, detach_leg, ensure_gateway,
    ensure_router, find_gateway, list_legs, node_routes, prefixes_in_use, remove_gateway,
    remove_router, return_routes,
};
pub use gso::{GsoSizes, UplinkKind};
pub use inspect::{NetworkFound, inspect_network};
pub use jumbo::{JumboSupport, jumbo_support};
pub use link::{BridgePortFlags, BridgeSpec, Link, VethEnd};
pub use mark::Mark;
pub use netlink::Netlink;
pub use nft::{
    RuleWatch, change_rules, ensure_loopback, forget_flows, put_rules, remove_rules, rules,
};
pub use qdisc::RateLimit;
pub use resolv::{remove_resolv, resolv_mark, sweep_resolv, write_resolv};
pub use route::GatewayRoute;
pub use rule::PolicyRule;
pub use sandbox::{
    NetworkSandbox, NetworkSpec, SegmentLinks, SegmentNames, SegmentSpec, ensure_network,
    finish_tap, remove_network,
};
pub use sweep::{SweepReport, list_networks, sweep};
pub use underlay::{UnderlayDevice, underlay_device, watch_underlay};
pub use workload::{WorkloadRef, workload_alive};
