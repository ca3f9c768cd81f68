//! The knobs we own, listed in one table.
//!
//! A namespace's knobs are files below `/proc/sys/net` as a thread inside it sees them, so they are
//! written by a short-lived thread. A knob the kernel lacks (no IPv6, no br_netfilter) is passed over;
//! one that has the value already is not written, so a read-only `/proc/sys` that suits us is fine.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{HostError, faults};
use crate::sys::netns::Netns;

/// Whose knob, and when it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// A network's namespace, before any link is made.
    Network,
    /// The same, if the network has one segment.
    NetworkFlat,
    /// The same, if it has several: its bridges route between them.
    NetworkRouted,
    /// The namespace of a node that lets workloads out.
    Gateway,
    /// A namespace that forwards between legs of networks, before they come.
    Router,
    /// A workload's interface that packets with anybody's address come in by.
    LoosePath,
    /// A bridge with an IPv6 gateway.
    BridgeWithV6,
    /// A bridge without.
    BridgeWithoutV6,
    /// A workload's interface with IPv6 addresses.
    WorkloadWithV6,
    /// One without.
    WorkloadWithoutV6,
}

/// (scope, file below `/proc/sys/net` with `{dev}` for the interface, value)
type Knob = (Scope, &'static str, &'static str);

/// Order counts: `ip_forward` resets other IPv4 knobs.
const KNOBS: &[Knob] = &[
    // New namespaces may inherit the host's IPv4 settings (net.core.devconf_inherit_init_net).
    (Scope::NetworkFlat, "ipv4/ip_forward", "0"),
    (Scope::NetworkFlat, "ipv6/conf/all/forwarding", "0"),
    (Scope::NetworkRouted, "ipv4/ip_forward", "1"),
    (Scope::NetworkRouted, "ipv6/conf/all/forwarding", "1"),
    // br_netfilter would send every bridged frame through iptables, which costs 12 to 23 %.
    (Scope::Network, "bridge/bridge-nf-call-arptables", "0"),
    (Scope::Network, "bridge/bridge-nf-call-iptables", "0"),
    (Scope::Network, "bridge/bridge-nf-call-ip6tables", "0"),
    // IPv6 forwarding is switched on apart, where it is seen to that the node still hears its own routers.
    (Scope::Gateway, "ipv4/ip_forward", "1"),
    (Scope::Router, "ipv4/ip_forward", "1"),
    (Scope::Router, "ipv6/conf/all/forwarding", "1"),
    (Scope::Router, "ipv4/conf/all/rp_filter", "0"),
    (Scope::Router, "ipv4/conf/default/rp_filter", "0"),
    (Scope::Router, "ipv4/conf/all/send_redirects", "0"),
    (Scope::Router, "ipv4/conf/default/send_redirects", "0"),
    (Scope::LoosePath, "ipv4/conf/{dev}/rp_filter", "2"),
    // Several bridges in one namespace: each answers ARP for its own gateway only, and says so.
    (Scope::Network, "ipv4/conf/all/arp_ignore", "1"),
    (Scope::Network, "ipv4/conf/all/arp_announce", "2"),
    (Scope::Network, "ipv4/conf/all/send_redirects", "0"),
    (Scope::Network, "ipv4/conf/default/send_redirects", "0"),
    (Scope::Network, "ipv4/conf/all/rp_filter", "0"),
    (Scope::Network, "ipv4/conf/default/rp_filter", "0"),
    // Links are born without IPv6: no link-local address, no router solicitation, no MLD report may
    // leave by a port or an uplink. Bridges with an IPv6 gateway get it back below.
    (Scope::Network, "ipv6/conf/default/disable_ipv6", "1"),
    (Scope::Network, "ipv6/conf/default/addr_gen_mode", "1"),
    (Scope::Network, "ipv6/conf/default/accept_ra", "0"),
    (Scope::Network, "ipv6/conf/default/accept_dad", "0"),
    (Scope::BridgeWithV6, "ipv6/conf/{dev}/accept_dad", "0"),
    (Scope::BridgeWithV6, "ipv6/conf/{dev}/disable_ipv6", "0"),
    (Scope::BridgeWithoutV6, "ipv6/conf/{dev}/disable_ipv6", "1"),
    // A neighbour that is not known yet is asked for again after a tenth of a second, not a whole one: an endpoint may be
    // attached, and heard of, at that very moment. For three seconds in all, as usual.
    (
        Scope::WorkloadWithV6,
        "ipv4/neigh/{dev}/retrans_time_ms",
        "100",
    ),
    (
        Scope::WorkloadWithV6,
        "ipv4/neigh/{dev}/mcast_solicit",
        "30",
    ),
    (
        Scope::WorkloadWithV6,
        "ipv4/neigh/{dev}/ucast_solicit",
        "30",
    ),
    (
        Scope::WorkloadWithV6,
        "ipv6/neigh/{dev}/retrans_time_ms",
        "100",
    ),
    (
        Scope::WorkloadWithV6,
        "ipv6/neigh/{dev}/mcast_solicit",
        "30",
    ),
    (
        Scope::WorkloadWithV6,
        "ipv6/neigh/{dev}/ucast_solicit",
        "30",
    ),
    (
        Scope::WorkloadWithoutV6,
        "ipv4/neigh/{dev}/retrans_time_ms",
        "100",
    ),
    (
        Scope::WorkloadWithoutV6,
        "ipv4/neigh/{dev}/mcast_solicit",
        "30",
    ),
    (
        Scope::WorkloadWithoutV6,
        "ipv4/neigh/{dev}/ucast_solicit",
        "30",
    ),
    // Addresses are assigned by us: nothing to detect, nothing to learn from routers.
    (Scope::WorkloadWithV6, "ipv6/conf/{dev}/accept_dad", "0"),
    (Scope::WorkloadWithV6, "ipv6/conf/{dev}/accept_ra", "0"),
    (Scope::WorkloadWithV6, "ipv6/conf/{dev}/disable_ipv6", "0"),
    (
        Scope::WorkloadWithoutV6,
        "ipv6/conf/{dev}/disable_ipv6",
        "1",
    ),
];

/// Sets the knobs of these scopes in `netns`; the names go where a knob says `{dev}`.
pub(super) fn set(netns: &Netns, wanted: &[(Scope, &str)]) -> Result<(), HostError> {
    faults::check().map_err(|errno| HostError::io("set sysctls", errno.into()))?;
    netns.run_in(|| {
        wanted
            .iter()
            .try_for_each(|(scope, device)| set_scope(*scope, device))
    })?
}

/// Lets the node forward IPv6. Interfaces that learn from routers (`accept_ra` 1) would stop to, so they are set to learn
/// all the same (2), as Docker does.
pub(super) fn forward_v6(netns: &Netns) -> Result<(), HostError> {
    netns.run_in(|| {
        let forwarding = PathBuf::from(ROOT).join("ipv6/conf/all/forwarding");
        let error = |what: &str, e| HostError::io(format!("set {what}"), e);
        match fs::read_to_string(&forwarding) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(on) if on.trim_end() == "1" => return Ok(()),
            _ => {}
        }
        let interfaces = fs::read_dir(PathBuf::from(ROOT).join("ipv6/conf"));
        for interface in interfaces.map_err(|e| error("accept_ra", e))?.flatten() {
            let knob = interface.path().join("accept_ra");
            if fs::read_to_string(&knob).is_ok_and(|value| value.trim_end() == "1") {
                set_file(&knob, "2").map_err(|e| error(&knob.display().to_string(), e))?;
            }
        }
        set_file(&forwarding, "1").map_err(|e| error(&forwarding.display().to_string(), e))
    })?
}

fn set_scope(scope: Scope, device: &str) -> Result<(), HostError> {
    for (_, file, value) in KNOBS.iter().filter(|(of, _, _)| *of == scope) {
        let path = PathBuf::from(ROOT).join(file.replace("{dev}", device));
        set_file(&path, value)
            .map_err(|error| HostError::io(format!("set {} to {value}", path.display()), error))?;
    }
    Ok(())
}

fn set_file(path: &PathBuf, value: &str) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(now) if now.trim_end() == value => Ok(()),
        Ok(_) => fs::write(path, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

const ROOT: &str = "/proc/sys/net";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_appears_once_per_scope() {
        for (index, (scope, file, _)) in KNOBS.iter().enumerate() {
            let again = KNOBS[index + 1..]
                .iter()
                .any(|(s, f, _)| s == scope && f == file);
            assert!(!again, "{file} is listed twice for {scope:?}");
        }
    }

    #[test]
    fn a_missing_knob_is_passed_over_and_a_set_one_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let knob = dir.path().join("knob");
        set_file(&knob, "1").unwrap();
        assert!(!knob.exists());
        fs::write(&knob, "0\n").unwrap();
        set_file(&knob, "0").unwrap();
        assert_eq!(fs::read_to_string(&knob).unwrap(), "0\n");
        set_file(&knob, "1").unwrap();
        assert_eq!(fs::read_to_string(&knob).unwrap(), "1");
    }
}
