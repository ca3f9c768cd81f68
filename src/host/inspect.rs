//! What of a network's namespace is not as it was made.
//!
//! Looks only; [`ensure_network`](super::ensure_network) repairs what is found here. Knobs, bridge port
//! flags and sizes of super-frames are not looked at: they are set again with every repair.

use ipnetwork::IpNetwork;

use super::sandbox::{NetworkSpec, SegmentNames, SegmentSpec, find, network_mark, open_network};
use super::{HostError, Link, UplinkKind};

/// A network as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFound {
    /// What is missing or changed, in words; empty if nothing is.
    pub faults: Vec<String>,
    /// Per segment in the order of the specification: inode number of the namespace and index of the
    /// link that the agent holds there.
    pub held: Vec<Option<(u64, u32)>>,
}

/// Compares a network's namespace with what it should hold.
///
/// # Errors
/// [`HostError::NoNetwork`] if the namespace is gone; the kernel's reason otherwise.
pub async fn inspect_network(spec: &NetworkSpec) -> Result<NetworkFound, HostError> {
    let (_, netlink) = open_network(&spec.netns_path)?;
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let mut found = NetworkFound {
        faults: Vec::new(),
        held: Vec::new(),
    };
    if network_mark(&links).is_none_or(|mark| mark.id != spec.id) {
        found
            .faults
            .push("the namespace lacks the network's mark".into());
    }
    for segment in &spec.segments {
        found
            .faults
            .extend(segment_faults(segment, &links, &addresses));
        let held = find(&links, &uplink(segment).1).map(|link| (netlink.netns_id(), link.index));
        found.held.push(held);
    }
    Ok(found)
}

/// Bridge port and what the agent holds; of a TAP both are one.
fn uplink(segment: &SegmentSpec) -> (String, String) {
    let names = SegmentNames::of(segment.index);
    match segment.uplink {
        UplinkKind::Packet => (names.uplink_port, names.uplink_held),
        UplinkKind::Tap => (names.tap.clone(), names.tap),
    }
}

fn segment_faults(
    segment: &SegmentSpec,
    links: &[Link],
    addresses: &[(u32, IpNetwork)],
) -> Vec<String> {
    let mut faults = Vec::new();
    let (port, held) = uplink(segment);
    let bridge_name = SegmentNames::of(segment.index).bridge;
    let bridge = find(links, &bridge_name);
    for name in [&bridge_name, &port, &held] {
        match find(links, name) {
            None => faults.push(format!("{name} is missing")),
            Some(link) if !link.up => faults.push(format!("{name} is down")),
            Some(link) if link.mtu != segment.mtu => faults.push(format!(
                "{name} has an MTU of {}, not {}",
                link.mtu, segment.mtu
            )),
            Some(_) => {}
        }
    }
    let Some(bridge) = bridge else {
        return faults;
    };
    if find(links, &port).is_some_and(|port| port.bridge != Some(bridge.index)) {
        faults.push(format!("{port} is no port of {bridge_name}"));
    }
    for address in segment.bridge_addresses() {
        if !addresses.contains(&(bridge.index, address)) {
            faults.push(format!("{bridge_name} lacks {address}"));
        }
    }
    faults.dedup();
    faults
}
