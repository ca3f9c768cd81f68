//! What the underlay's link can do for a tunnel: profiles that switch veth's offloads off step by
//! step, until it behaves like the network cards people really have.
//!
//! A veth claims every offload and performs none: a 64 KiB tunnel super-frame crosses it whole and
//! unchecksummed. That flatters whoever lets the "card" do the work, the kernel's VXLAN above all.

use anyhow::Context;
use clap::ValueEnum;

use super::topology::Netns;

/// Offload settings of both underlay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Everything veth offers: tunnel and UDP segmentation, checksums.
    Ideal,
    /// No segmentation inside tunnels; UDP segmentation and GRO stay. Most server and cloud cards
    NoTunnelOffload,
    /// Also no UDP segmentation; receive-side GRO on, with UDP forwarding. Older and virtual cards
    NoSegmentationOffload,
    /// Also no GRO.
    NoSegmentationNoGro,
    /// No checksum, no segmentation, no GRO at all.
    None,
}

const NO_TUNNEL: &str = "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";

impl Profile {
    /// Name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ideal => "ideal",
            Self::NoTunnelOffload => "no-tunnel-offload",
            Self::NoSegmentationOffload => "no-segmentation-offload",
            Self::NoSegmentationNoGro => "no-segmentation-no-gro",
            Self::None => "none",
        }
    }

    /// What it stands for, in a line.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ideal => "veth as it is: flatters kernel VXLAN",
            Self::NoTunnelOffload => "no tunnel segmentation, as most network cards",
            Self::NoSegmentationOffload => "no tunnel, no UDP segmentation; GRO on",
            Self::NoSegmentationNoGro => "no tunnel, no UDP segmentation, no GRO",
            Self::None => "no checksum, no segmentation, no GRO",
        }
    }

    /// Arguments of `ethtool -K`.
    fn settings(self) -> Option<String> {
        match self {
            Self::Ideal => None,
            Self::NoTunnelOffload => Some(NO_TUNNEL.to_owned()),
            Self::NoSegmentationOffload => Some(format!(
                "{NO_TUNNEL} tx-udp-segmentation off gro on rx-udp-gro-forwarding on"
            )),
            Self::NoSegmentationNoGro => {
                Some(format!("{NO_TUNNEL} tx-udp-segmentation off gro off"))
            }
            Self::None => Some("tx off tso off gso off gro off".to_owned()),
        }
    }

    /// Applies the profile to one link.
    ///
    /// # Errors
    /// When ethtool is missing or refuses a setting.
    pub fn apply(self, host: &Netns, link: &str) -> anyhow::Result<()> {
        if let Some(settings) = self.settings() {
            host.tool(&format!("ethtool -K {link} {settings}"))
                .with_context(|| format!("offload profile {}", self.name()))?;
        }
        Ok(())
    }
}

/// Features worth printing beside a result.
const SHOWN: [&str; 9] = [
    "tx-checksumming",
    "scatter-gather",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
    "rx-udp-gro-forwarding",
];

/// The settings a link really has now, `feature: on|off`. Empty when ethtool is not installed.
///
/// # Errors
/// When ethtool is there and fails.
pub fn read(host: &Netns, link: &str) -> anyhow::Result<Vec<String>> {
    if !super::process::installed("ethtool") {
        return Ok(Vec::new());
    }
    let text = host.tool(&format!("ethtool -k {link}"))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<String> {
    let shown = |line: &&str| {
        SHOWN.iter().any(|name| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(':'))
        })
    };
    text.lines()
        .map(str::trim)
        .filter(shown)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_features_that_matter_are_shown() {
        let text = "Features for u1:\nrx-checksumming: on\ntx-checksumming: on\n\ttx-checksum-ipv4: off [fixed]\ntx-udp_tnl-segmentation: off\n";
        assert_eq!(
            parse(text),
            ["tx-checksumming: on", "tx-udp_tnl-segmentation: off"]
        );
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for profile in Profile::value_variants() {
            assert_eq!(Profile::from_str(profile.name(), false), Ok(*profile));
        }
    }
}
