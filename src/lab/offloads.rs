//! The underlay's offload profiles: which help the links between the nodes give.
//!
//! Links in namespaces flatter the kernel's VXLAN: its super-frames pass whole and without checksums. The
//! other profiles behave like network cards that can do less.

use serde::{Deserialize, Serialize};

/// What the links between nodes can do for a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OffloadProfile {
    /// All that a veth pair offers.
    #[default]
    Ideal,
    /// No segmentation of tunnelled super-frames, as most network cards.
    NoTunnelOffload,
    /// Nor of UDP super-frames; the receiver joins datagrams (GRO).
    NoSegmentationOffload,
    /// No offload at all, checksums included.
    None,
}

impl OffloadProfile {
    /// What is changed at both ends of a link, by the names `ethtool -K` uses; `gro` is a device's short name.
    pub fn changes(self) -> &'static [(&'static str, bool)] {
        match self {
            OffloadProfile::Ideal => &[],
            OffloadProfile::NoTunnelOffload => &NO_TUNNEL,
            OffloadProfile::NoSegmentationOffload => &NO_SEGMENTATION,
            OffloadProfile::None => &NOTHING,
        }
    }
}

const NO_TUNNEL: [(&str, bool); 2] = [
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
];

const NO_SEGMENTATION: [(&str, bool); 5] = [
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
    ("tx-udp-segmentation", false),
    ("gro", true),
    ("rx-udp-gro-forwarding", true),
];

const NOTHING: [(&str, bool); 3] = [("tx", false), ("tso", false), ("gso", false)];
