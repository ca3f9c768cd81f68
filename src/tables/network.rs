//! A segment: one VNI with its addresses, policy and member VTEPs.
//!
//! A network has one segment per IPv4 subnet, as Docker gives one VNI per subnet.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnetwork::IpNetwork;

use crate::wire::{Mac, Vni};

/// Dense number of a segment on this node, used as table key and port number. Reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentIndex(pub u16);

/// What a segment lets pass. The default is the strict, gossip-fed overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPolicy {
    /// A workload's frame must carry the MAC and IP the agent gave it, and a tunnelled frame those of
    /// its VTEP's endpoints. Also keeps router advertisements and DHCP servers of workloads in.
    pub spoof_check: bool,
    /// Interop: unknown unicast and unknown neighbours are flooded instead of dropped.
    pub flood_unknown: bool,
    /// Interop: learn stations from tunnelled frames.
    pub learning: bool,
    /// Drop frames with reserved VXLAN header bits set, as the kernel does (RFC 7348 §5 says ignore).
    pub strict_reserved_bits: bool,
    /// Carry 802.1Q tags of workloads (RFC 7348 §6.1 has tagged frames discarded unless configured).
    pub carry_vlan: bool,
    /// Copy the inner DSCP to the outer header (`tos inherit`); ECN is always handled (RFC 6040).
    pub inherit_dscp: bool,
    /// Broadcast and multicast frames per second, per worker; 0 for no limit.
    pub bum_rate: u32,
    /// The ingress network: frames of nodes' own legs ([`Mac::is_ingress_leg`](crate::wire::Mac::is_ingress_leg)) carry
    /// addresses of clients outside.
    pub client_addresses: bool,
}

impl Default for SegmentPolicy {
    fn default() -> SegmentPolicy {
        SegmentPolicy {
            spoof_check: true,
            flood_unknown: false,
            learning: false,
            strict_reserved_bits: true,
            carry_vlan: true,
            inherit_dscp: false,
            bum_rate: 1000,
            client_addresses: false,
        }
    }
}

impl SegmentPolicy {
    /// For talking to foreign VTEPs that no control plane describes: flood and learn, believe all.
    pub fn interop() -> SegmentPolicy {
        SegmentPolicy {
            spoof_check: false,
            flood_unknown: true,
            learning: true,
            ..SegmentPolicy::default()
        }
    }
}

/// A VTEP of another node.
#[derive(Clone, Debug)]
pub struct Vtep {
    /// Underlay address.
    pub addr: IpAddr,
    /// UDP destination port.
    pub port: u16,
    /// Path MTU in underlay bytes if smaller than the device's, 0 when unknown. Written by workers.
    pub path_mtu: Arc<AtomicU32>,
}

impl Vtep {
    /// The learned path MTU.
    pub fn path_mtu(&self) -> Option<u32> {
        match self.path_mtu.load(Ordering::Relaxed) {
            0 => None,
            mtu => Some(mtu),
        }
    }
}

/// A set of VTEP indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VtepSet(Vec<u64>);

impl VtepSet {
    /// Whether the VTEP belongs to the set. HOT PATH.
    #[inline]
    pub fn contains(&self, vtep: u32) -> bool {
        self.0
            .get(vtep as usize / 64)
            .is_some_and(|word| word >> (vtep % 64) & 1 == 1)
    }

    /// Adds a VTEP.
    pub fn insert(&mut self, vtep: u32) {
        let word = vtep as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (vtep % 64);
    }
}

/// One VNI as the workers see it; immutable, replaced whole.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its number.
    pub index: SegmentIndex,
    /// Its VNI.
    pub vni: Vni,
    /// Network id.
    pub network: String,
    /// Inner MTU: largest layer-3 packet, bytes.
    pub mtu: u32,
    /// Prefixes of the segment.
    pub subnets: Vec<IpNetwork>,
    /// Gateway addresses, on the bridge of every node.
    pub gateways: Vec<IpAddr>,
    /// MAC of the gateway on every node.
    pub gateway_mac: Mac,
    /// What may pass.
    pub policy: SegmentPolicy,
    /// Other segments of the same network, routed to by the gateway.
    pub siblings: Vec<SegmentIndex>,
    /// VTEPs that may send to this VNI.
    pub members: VtepSet,
    /// VTEPs that get a copy of each flooded frame (head-end replication): all members.
    pub flood: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vtep_set_holds_what_was_inserted() {
        let mut set = VtepSet::default();
        for vtep in [0, 63, 64, 1000] {
            assert!(!set.contains(vtep));
            set.insert(vtep);
            assert!(set.contains(vtep));
        }
        assert!(!set.contains(65) && !set.contains(u32::MAX));
    }
}
