//! The underlay's offload profiles: which help the links between the nodes give.
//!
//! Links in namespaces flatter the kernel's VXLAN: its super-frames pass whole and without checksums. The
//! other profiles behave like network cards that can do less. Features go by the kernel's own names, which
//! `ethtool -k` prints too.

use std::io;

use serde::{Deserialize, Serialize};

use super::error::{Context, LabError};
use crate::sys::ethtool::Ethtool;
use crate::sys::netns::Netns;

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
    /// The features this profile switches, at both ends of a link.
    pub fn switches(self) -> &'static [Switch<'static>] {
        match self {
            OffloadProfile::Ideal => &[],
            OffloadProfile::NoTunnelOffload => &NO_TUNNEL,
            OffloadProfile::NoSegmentationOffload => &NO_SEGMENTATION,
            OffloadProfile::None => &NOTHING,
        }
    }

    /// The word the command line uses.
    pub fn word(self) -> &'static str {
        match self {
            OffloadProfile::Ideal => "ideal",
            OffloadProfile::NoTunnelOffload => "no-tunnel-offload",
            OffloadProfile::NoSegmentationOffload => "no-segmentation-offload",
            OffloadProfile::None => "none",
        }
    }
}

/// A feature's name and whether it is to be on.
pub type Switch<'a> = (&'a str, bool);

/// What makes a link carry frames as a wire does: one at a time, none larger than the MTU. Checksums may
/// still be left open.
pub const WIRE_SIZE: [Switch<'static>; 9] = [
    ("tx-tcp-segmentation", false),
    ("tx-tcp-ecn-segmentation", false),
    ("tx-tcp-mangleid-segmentation", false),
    ("tx-tcp6-segmentation", false),
    ("tx-tcp-accecn-segmentation", false),
    ("tx-udp-segmentation", false),
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
    ("rx-gro", false),
];

/// Switches features of a link and returns those that were otherwise before, to be given to
/// [`switch`] again one day. Features the kernel or link does not have are passed over.
///
/// # Errors
/// [`LabError::Io`] naming the link.
pub fn switch(
    netns: &Netns,
    link: &str,
    wanted: &[Switch<'_>],
) -> Result<Vec<(String, bool)>, LabError> {
    let switched = netns.run_in(|| switch_here(link, wanted));
    let switched = switched.map_err(io::Error::from).and_then(|inner| inner);
    switched.context(|| format!("switch offloads of {link}"))
}

fn switch_here(link: &str, wanted: &[Switch<'_>]) -> io::Result<Vec<(String, bool)>> {
    let ethtool = Ethtool::open(link)?;
    let features = ethtool.features()?;
    let differs = |(name, on): &&Switch<'_>| {
        let found = features.iter().find(|feature| feature.name == *name);
        found.is_some_and(|feature| feature.requested != *on && feature.changeable)
    };
    let changes: Vec<Switch<'_>> = wanted.iter().filter(differs).copied().collect();
    ethtool.set(&changes)?;
    Ok(changes
        .into_iter()
        .map(|(name, on)| (name.to_owned(), !on))
        .collect())
}

const NO_TUNNEL: [Switch<'static>; 2] = [
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
];

const NO_SEGMENTATION: [Switch<'static>; 5] = [
    ("tx-udp_tnl-segmentation", false),
    ("tx-udp_tnl-csum-segmentation", false),
    ("tx-udp-segmentation", false),
    ("rx-gro", true),
    ("rx-udp-gro-forwarding", true),
];

/// `tx off tso off gso off`.
const NOTHING: [Switch<'static>; 10] = [
    ("tx-checksum-ipv4", false),
    ("tx-checksum-ip-generic", false),
    ("tx-checksum-ipv6", false),
    ("tx-checksum-sctp", false),
    ("tx-tcp-segmentation", false),
    ("tx-tcp-ecn-segmentation", false),
    ("tx-tcp-mangleid-segmentation", false),
    ("tx-tcp6-segmentation", false),
    ("tx-tcp-accecn-segmentation", false),
    ("tx-generic-segmentation", false),
];
