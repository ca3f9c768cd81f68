//! The tunnels under test. Each takes a bare [`Topology`] and joins the two workloads; dropping
//! what [`Kind::start`] returns ends its processes (links go with the namespaces).

use std::fmt;
use std::str::FromStr;

use super::process::{Launcher, installed};
use super::topology::{Shape, Topology};

mod docker;
mod kernel;
mod naive;
mod ovs;
mod weft;

/// Which tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two agents of this binary.
    Weft,
    /// The kernel's vxlan device on a bridge, bridge netfilter hooks off.
    Kernel,
    /// The same with the hooks on, as on most container hosts.
    KernelNetfilter,
    /// Open vSwitch's userspace datapath.
    Ovs,
    /// The overlay of Docker's own engines.
    Docker,
    /// The naive loop over the `tun-tap` crate.
    TunTap,
    /// No tunnel: the underlay bridged to the workloads.
    Veth,
}

/// A started tunnel.
pub trait Running {
    /// Processes of the tunnel, for what they cost, per host: first the one whose memory is told.
    fn processes(&self) -> Vec<Vec<u32>> {
        Vec::new()
    }

    /// Fails when a process of the tunnel has ended.
    ///
    /// # Errors
    /// With the end of its log.
    fn check(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Kind {
    /// All, in the order of the help text.
    pub const ALL: [Self; 7] = [
        Self::Weft,
        Self::Kernel,
        Self::KernelNetfilter,
        Self::Ovs,
        Self::Docker,
        Self::TunTap,
        Self::Veth,
    ];

    /// Name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Kernel => "kernel",
            Self::KernelNetfilter => "kernel+nf",
            Self::Ovs => "ovs",
            Self::Docker => "docker",
            Self::TunTap => "tun-tap",
            Self::Veth => "veth",
        }
    }

    /// Whether its throughput is believed only after the integrity test. The others are scale marks, some of
    /// them slow enough to make that test last longer than the rest.
    pub fn verified_first(self) -> bool {
        matches!(
            self,
            Self::Weft | Self::Kernel | Self::KernelNetfilter | Self::Docker
        )
    }

    /// Why this machine cannot run it, with what to do; `None` when it can.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Ovs if !installed("ovs-vswitchd") => {
                Some("Open vSwitch is not installed (apt install openvswitch-switch)".to_owned())
            }
            Self::Docker if !(installed("dockerd") && installed("docker")) => {
                Some("Docker is not installed (apt install docker.io)".to_owned())
            }
            Self::Docker if !(installed("nsenter") && installed("unshare")) => {
                Some("nsenter and unshare are not installed (apt install util-linux)".to_owned())
            }
            Self::KernelNetfilter if !std::path::Path::new("/proc/sys/net/bridge").exists() => {
                Some("br_netfilter is not loaded (modprobe br_netfilter)".to_owned())
            }
            Self::TunTap | Self::Ovs if !std::path::Path::new("/dev/net/tun").exists() => {
                Some("/dev/net/tun does not exist (modprobe tun)".to_owned())
            }
            _ => None,
        }
    }

    /// Why it cannot join workloads of this shape, as the end of a sentence; `None` when it can.
    pub fn unfit(self, shape: &Shape) -> Option<&'static str> {
        match self {
            Self::Ovs | Self::TunTap if shape.one_host => {
                Some("is set up between two hosts only: leave it or --one-host out")
            }
            Self::Veth if shape.one_host => {
                Some("on one host is what kernel is: leave it or --one-host out")
            }
            Self::Docker if shape.inner_ipv6 => {
                Some("carries no IPv6 on a swarm's networks: leave it or --ipv6-inner out")
            }
            Self::Docker if shape.underlay_ipv6 => {
                Some("has no overlay over IPv6: leave it or --ipv6-underlay out")
            }
            _ => None,
        }
    }

    /// Joins the workloads of `topology`. `workers` is for weft's agents; absent, they decide.
    ///
    /// # Errors
    /// When a tool or the kernel refuses, or a process ends or does not come up.
    pub fn start(
        self,
        topology: &Topology,
        launcher: &Launcher,
        workers: Option<u16>,
    ) -> anyhow::Result<Box<dyn Running>> {
        Ok(match self {
            Self::Weft => Box::new(weft::start(topology, launcher, workers)?),
            Self::Kernel => Box::new(kernel::start(topology, false)?),
            Self::KernelNetfilter => Box::new(kernel::start(topology, true)?),
            Self::Ovs => Box::new(ovs::start(topology, launcher)?),
            Self::Docker => Box::new(docker::start(topology, launcher)?),
            Self::TunTap => Box::new(naive::start(topology, launcher)?),
            Self::Veth => Box::new(kernel::start_without_tunnel(topology)?),
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
                format!("unknown subject `{name}` (one of {})", names.join(", "))
            })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("fast".parse::<Kind>().unwrap_err().contains("tun-tap"));
    }
}
