//! Every way a frame can end.

use crate::wire::Mac;

/// Declares the drop reasons once: variant, name for counters and metrics, and what it means with
/// what to do (shown by `weft status` and in docs/operations.md).
macro_rules! drop_reasons {
    ($($variant:ident $name:literal $help:literal,)*) => {
        /// Why a frame was dropped. Each has a counter of this name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $help] $variant,)*
        }

        impl DropReason {
            /// All reasons, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = DropReason::ALL.len();

            /// The word used in counters, metrics, logs and docs.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }

            /// What happened and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(DropReason::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    // Encap: a frame of a workload, read from the uplink.
    FrameTruncated "frame_truncated" "A frame larger than the read buffer (256 KiB) came from the uplink. Check the gso sizes of workload links.",
    FrameMalformed "frame_malformed" "A workload's frame has lying or impossible headers (short, IHL below 5, length beyond the frame).",
    OffloadMalformed "offload_malformed" "A workload's super-frame or unfinished checksum does not fit its own headers.",
    LinkLocalControl "link_local_control" "STP, LLDP, pause and other 01:80:c2:00:00:0X frames are never forwarded.",
    SpoofedSourceMac "spoofed_source_mac" "A workload sent with a MAC address that no local endpoint of the network has.",
    SpoofedSourceIp "spoofed_source_ip" "A workload sent with an IP address (or ARP/ND claim) that is not its endpoint's.",
    RogueRouter "rogue_router" "A workload sent a router advertisement or a redirect.",
    RogueDhcp "rogue_dhcp" "A workload answered as a DHCP server.",
    LocalDestination "local_destination" "The bridge flooded a frame for a local endpoint; the endpoint got it from the bridge.",
    NeighbourLocal "neighbour_local" "An ARP or ND request for a local endpoint or the gateway, which answer themselves.",
    NeighbourUnknown "neighbour_unknown" "An ARP or ND request for an address no record has.",
    UnknownUnicast "unknown_unicast" "A frame to a MAC address no record has.",
    NoVtep "no_vtep" "A broadcast or multicast frame on a network without any other VTEP.",
    BumRate "bum_rate" "More broadcast and multicast than the network's rate limit.",
    TaggedFrame "tagged_frame" "An 802.1Q tagged frame on a network that does not carry tags.",
    AnswerLost "answer_lost" "An ARP or ND request whose answer the workload's side did not take, or that nobody can be answered about.",
    TooBig "too_big" "A frame larger than the path can carry; the sender was told by ICMP where that is allowed.",
    // Send: datagrams to the underlay.
    UnderlayFull "underlay_full" "The underlay's send queue stayed full.",
    UnderlayUnreachable "underlay_unreachable" "The kernel has no way to the VTEP (no route, refused, firewall).",
    PathTooSmall "path_too_small" "A datagram exceeded the path MTU, which was just learned; the sender was told by ICMP where that is allowed.",
    UnderlayRefused "underlay_refused" "The kernel refused a datagram for another reason; see the agent's log.",
    // Decap: a datagram from the underlay.
    DatagramTruncated "datagram_truncated" "A datagram larger than the receive buffer.",
    UnknownVtep "unknown_vtep" "A VXLAN datagram from an address that is no VTEP of any network.",
    NotMember "not_member" "A VTEP sent to a network it is not a member of.",
    VxlanShort "vxlan_short" "A datagram too short for a VXLAN header and an Ethernet header.",
    VxlanNoVni "vxlan_no_vni" "A VXLAN header without the I flag (RFC 7348 section 5).",
    VxlanReservedBits "vxlan_reserved_bits" "A VXLAN header with reserved bits set, on a network that is strict about them.",
    UnknownVni "unknown_vni" "A VXLAN datagram for a VNI this node has no endpoint in.",
    InnerMalformed "inner_malformed" "A tunnelled frame has lying or impossible headers.",
    InnerSpoofedMac "inner_spoofed_mac" "A tunnelled frame's source MAC belongs to no endpoint of the VTEP that sent it.",
    InnerSpoofedIp "inner_spoofed_ip" "A tunnelled frame's source IP belongs to no endpoint of the VTEP that sent it.",
    SplitHorizon "split_horizon" "A tunnelled frame for an endpoint of another node: never sent on.",
    NotLocal "not_local" "A tunnelled frame for a MAC address that no endpoint here has.",
    InnerLinkLocalControl "inner_link_local_control" "A tunnelled STP, LLDP or pause frame; these are never forwarded.",
    InnerTaggedFrame "inner_tagged_frame" "A tunnelled 802.1Q tagged frame on a network that does not carry tags (RFC 7348 section 6.1).",
    InnerRogue "inner_rogue" "A tunnelled router advertisement, redirect or DHCP server message, on a network that checks its senders.",
    EcnCongestion "ecn_congestion" "The underlay marked congestion on a packet whose sender cannot understand the mark (RFC 6040).",
    // Delivery: frames to the bridge.
    UplinkFull "uplink_full" "The bridge's uplink took no more frames.",
    UplinkRefused "uplink_refused" "The kernel refused a frame at the uplink (too large, link down).",
    UplinkGone "uplink_gone" "The network's uplink was removed while the frame was on its way.",
}

/// What to answer in place of forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An ARP reply: the asked address is at this MAC.
    Arp(Mac),
    /// A neighbour advertisement: the asked address is at this MAC.
    NeighbourAdvertisement(Mac),
}

/// The fate of a workload's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncapVerdict {
    /// To one VTEP.
    Forward(u32),
    /// To all VTEPs of the segment (head-end replication).
    Flood,
    /// Answered from the table.
    Answer(Answer),
    /// Ended here.
    Drop(DropReason),
}

/// The fate of a tunnelled frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecapVerdict {
    /// To the bridge of the segment.
    Deliver,
    /// Ended here.
    Drop(DropReason),
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_a_sentence() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.help().ends_with('.'), "{}", reason.name());
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
        }
    }
}
