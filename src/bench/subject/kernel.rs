//! What needs no process of ours: the kernel's vxlan device, and no tunnel at all.

use super::Running;
use crate::bench::topology::{Topology, VNI};

/// Lives in the namespaces alone.
#[derive(Debug)]
pub struct InKernel;

impl Running for InKernel {}

/// A vxlan device per host as a port of the workload's bridge, unicast to the other host. The outer
/// UDP checksum stays on, which is the device's default and lets the offloads work. On one host the
/// bridge alone.
pub fn start(topology: &Topology, netfilter: bool) -> anyhow::Result<InKernel> {
    topology.bridge_workloads(netfilter)?;
    if topology.shape.one_host {
        return Ok(InKernel);
    }
    let mtu = topology.shape.mtu_inner();
    for (side, other) in topology.sides.iter().zip(topology.sides.iter().rev()) {
        side.host.ip(&format!(
            "link add vx0 type vxlan id {VNI} dstport 4789 local {} remote {} nolearning",
            side.vtep, other.vtep
        ))?;
        side.host
            .ip(&format!("link set vx0 mtu {mtu} master br0 up"))?;
    }
    Ok(InKernel)
}

/// The underlay link itself becomes a port of the bridge: the upper bound.
pub fn start_without_tunnel(topology: &Topology) -> anyhow::Result<InKernel> {
    topology.bridge_workloads(false)?;
    for side in &topology.sides {
        side.host
            .ip(&format!("link set {} master br0", side.underlay_link))?;
    }
    Ok(InKernel)
}
