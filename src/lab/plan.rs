//! What a lab will consist of, worked out before anything is made: names, addresses, who runs where.
//!
//! Pure. Two labs never share a name of theirs: everything carries the lab's name, and addresses live inside
//! the lab's own namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use super::error::LabError;
use super::lane::{SPLITMIX_STEP, splitmix};
use super::offloads::OffloadProfile;
use crate::wire::{Mac, Vni};

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabOptions {
    /// Name of the lab: 1 to 16 lower-case letters and digits.
    pub name: String,
    /// Nodes with an agent each.
    pub nodes: usize,
    /// How many of them manage the cluster they form; with none every agent stands alone, and the lab tells each
    /// who is where.
    #[serde(default)]
    pub managers: usize,
    /// Workloads on every node, kernel peers included.
    pub workloads: usize,
    /// Nodes with the kernel's own VXLAN device in place of an agent.
    pub kernel_peers: usize,
    /// MTU of the underlay's links, bytes.
    pub underlay_mtu: u32,
    /// VTEPs with IPv6 addresses.
    pub ipv6_underlay: bool,
    /// Offloads of the underlay's links.
    pub offloads: OffloadProfile,
    /// The agents' `--uplink`: auto, packet or tap.
    pub uplink: String,
    /// The overlay network.
    pub network: String,
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Its VNI.
    pub vni: Vni,
    /// Workloads are named `<service>.<number>`.
    pub service: String,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// More arguments for each agent.
    pub agent_args: Vec<String>,
    /// The `weft` binary to run as agent and relay; `None` is the running program.
    pub binary: Option<PathBuf>,
}

impl Default for LabOptions {
    fn default() -> LabOptions {
        LabOptions {
            name: "lab".into(),
            nodes: 3,
            managers: 0,
            workloads: 1,
            kernel_peers: 0,
            underlay_mtu: 1500,
            ipv6_underlay: false,
            offloads: OffloadProfile::Ideal,
            uplink: "auto".into(),
            network: "my-network".into(),
            subnet: DEFAULT_SUBNET,
            gateway: Ipv4Addr::new(10, 0, 1, 254),
            vni: Vni::new(4097).expect("4097 is below 2^24"),
            service: "my-web".into(),
            vxlan_port: 4789,
            agent_args: Vec::new(),
            binary: None,
        }
    }
}

/// What answers VXLAN on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A `weft agent`.
    Agent,
    /// The kernel's `vxlan` device with a static FDB.
    Kernel,
}

/// One node: a network namespace that stands for a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// `n1`, or `k1` for a kernel peer.
    pub name: String,
    /// Who terminates VXLAN.
    pub kind: NodeKind,
    /// Name below `/run/netns`.
    pub netns: String,
    /// Underlay address with its prefix length.
    pub underlay: IpNetwork,
}

impl NodePlan {
    /// The address that terminates VXLAN.
    pub fn vtep(&self) -> IpAddr {
        self.underlay.ip()
    }

    /// The node's end in the underlay's namespace; `eth0` is the other.
    pub fn nic(&self) -> String {
        format!("nic-{}", self.name)
    }
}

/// One workload: a network namespace that stands for a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// `my-web.1`.
    pub name: String,
    /// The node it is on.
    pub node: String,
    /// Name below `/run/netns`.
    pub netns: String,
    /// Address in the overlay.
    pub ip: Ipv4Addr,
    /// `02:42` and the address.
    pub mac: Mac,
}

/// Everything a lab will consist of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What it was made from.
    pub options: LabOptions,
    /// 25-character id of the overlay network, the same on every node.
    pub network_id: String,
    /// Namespace of the underlay's bridge.
    pub switch: String,
    /// Agents first, then kernel peers.
    pub nodes: Vec<NodePlan>,
    /// Numbered across the nodes, round by round.
    pub workloads: Vec<WorkloadPlan>,
}

impl Plan {
    /// Works a lab out.
    ///
    /// # Errors
    /// [`LabError::Options`] naming the option and what it allows.
    pub fn new(options: LabOptions) -> Result<Plan, LabError> {
        check(&options)?;
        let nodes: Vec<NodePlan> = node_kinds(&options)
            .enumerate()
            .map(|(index, (name, kind))| NodePlan {
                netns: netns_name(&options.name, &name),
                underlay: underlay_address(index, options.ipv6_underlay),
                name,
                kind,
            })
            .collect();
        let mut addresses = host_addresses(options.subnet, options.gateway);
        let workloads = (0..options.workloads)
            .flat_map(|_| nodes.iter())
            .zip(1..)
            .map(|(node, number)| {
                let ip = addresses.next().ok_or_else(|| too_many(&options))?;
                let name = format!("{}.{number}", options.service);
                Ok(WorkloadPlan {
                    netns: netns_name(&options.name, &name),
                    node: node.name.clone(),
                    mac: Mac::from_ipv4(ip),
                    name,
                    ip,
                })
            })
            .collect::<Result<_, LabError>>()?;
        Ok(Plan {
            network_id: network_id(&options.name, &options.network),
            switch: netns_name(&options.name, "net"),
            nodes,
            workloads,
            options,
        })
    }

    /// Workloads on `node`.
    pub fn workloads_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a WorkloadPlan> {
        self.workloads
            .iter()
            .filter(move |workload| workload.node == node)
    }

    /// Workloads that `node` reaches through the tunnel, each with its node.
    pub fn remote_workloads<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a WorkloadPlan, &'a NodePlan)> {
        let elsewhere = self
            .workloads
            .iter()
            .filter(move |workload| workload.node != node);
        elsewhere.filter_map(|workload| Some((workload, self.node(&workload.node)?)))
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// A workload by name.
    pub fn workload(&self, name: &str) -> Option<&WorkloadPlan> {
        self.workloads.iter().find(|workload| workload.name == name)
    }

    /// VTEPs of every node but `node`.
    pub fn other_vteps(&self, node: &str) -> Vec<IpAddr> {
        let others = self.nodes.iter().filter(|other| other.name != node);
        others.map(NodePlan::vtep).collect()
    }

    /// Largest frame payload that fits the tunnel: the underlay's MTU less 50 bytes, 70 with IPv6.
    pub fn overlay_mtu(&self) -> u32 {
        self.options.underlay_mtu - tunnel_overhead(self.options.ipv6_underlay)
    }
}

/// `weft-<lab>-<what>`: the name of a namespace of a lab.
pub fn netns_name(lab: &str, what: &str) -> String {
    format!("{}{what}", netns_prefix(lab))
}

/// What every namespace of the lab begins with. Lab names have no dash, so that no lab's prefix is the
/// beginning of another's.
pub fn netns_prefix(lab: &str) -> String {
    format!("weft-{lab}-")
}

/// Directory with the state of a lab.
pub fn lab_dir(lab: &str) -> PathBuf {
    Path::new(LABS_DIR).join(lab)
}

/// Refuses names that would not do as part of a file or namespace name.
///
/// # Errors
/// [`LabError::Options`].
pub fn check_name(name: &str) -> Result<(), LabError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(fits) {
        return Err(LabError::Options(format!(
            "a lab's name has 1 to {NAME_LEN_MAX} lower-case letters and digits, unlike \"{name}\""
        )));
    }
    Ok(())
}

fn check(options: &LabOptions) -> Result<(), LabError> {
    let refuse = |text: String| Err(LabError::Options(text));
    if options.managers > options.nodes {
        return refuse(format!(
            "{} managers are more than the {} nodes",
            options.managers, options.nodes
        ));
    }
    if options.managers > 0 && options.kernel_peers > 0 {
        return refuse(
            "kernel peers are in no cluster: with them, every agent stands alone (--managers 0)"
                .into(),
        );
    }
    check_name(&options.name)?;
    if options.nodes + options.kernel_peers == 0 || options.nodes + options.kernel_peers > NODES_MAX
    {
        return refuse(format!(
            "a lab has 1 to {NODES_MAX} nodes, kernel peers included"
        ));
    }
    if !(UNDERLAY_MTU_MIN..=UNDERLAY_MTU_MAX).contains(&options.underlay_mtu) {
        return refuse(format!(
            "--underlay-mtu {} is not within {UNDERLAY_MTU_MIN} to {UNDERLAY_MTU_MAX}",
            options.underlay_mtu
        ));
    }
    if options.subnet.ip() != options.subnet.network() {
        return refuse(format!(
            "{} has bits set beyond its length: {}/{} is the subnet",
            options.subnet,
            options.subnet.network(),
            options.subnet.prefix()
        ));
    }
    if !SUBNET_PREFIXES.contains(&options.subnet.prefix()) {
        return refuse(format!(
            "{}: a lab's subnet has a prefix length from {} to {}",
            options.subnet,
            SUBNET_PREFIXES.start(),
            SUBNET_PREFIXES.end()
        ));
    }
    if [options.subnet.network(), options.subnet.broadcast()].contains(&options.gateway) {
        return refuse(format!(
            "gateway {} is the network or broadcast address of {}",
            options.gateway, options.subnet
        ));
    }
    if !options.subnet.contains(options.gateway) {
        return refuse(format!(
            "gateway {} is not in {}",
            options.gateway, options.subnet
        ));
    }
    if options.subnet.overlaps(UNDERLAY_V4) {
        return refuse(format!(
            "{} overlaps the lab's underlay {UNDERLAY_V4}",
            options.subnet
        ));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if options.service.is_empty() || !options.service.chars().all(plain) {
        return refuse(format!(
            "\"{}\" does not do as a service name",
            options.service
        ));
    }
    Ok(())
}

fn too_many(options: &LabOptions) -> LabError {
    let nodes = options.nodes + options.kernel_peers;
    LabError::Options(format!(
        "{} has no room for {} workloads on each of {nodes} nodes",
        options.subnet, options.workloads
    ))
}

fn node_kinds(options: &LabOptions) -> impl Iterator<Item = (String, NodeKind)> {
    let agents = (1..=options.nodes).map(|n| (format!("n{n}"), NodeKind::Agent));
    agents.chain((1..=options.kernel_peers).map(|k| (format!("k{k}"), NodeKind::Kernel)))
}

fn underlay_address(index: usize, ipv6: bool) -> IpNetwork {
    let host = index as u8 + 1;
    if ipv6 {
        let address = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, host.into());
        return IpNetwork::new(address.into(), 64).expect("64 is a prefix length");
    }
    let [a, b, c, _] = UNDERLAY_V4.network().octets();
    let address = Ipv4Addr::new(a, b, c, host);
    IpNetwork::new(address.into(), UNDERLAY_V4.prefix()).expect("24 is a prefix length")
}

fn host_addresses(subnet: Ipv4Network, gateway: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
    let ends = [subnet.network(), subnet.broadcast(), gateway];
    subnet.iter().filter(move |ip| !ends.contains(ip))
}

fn tunnel_overhead(ipv6: bool) -> u32 {
    if ipv6 { 70 } else { 50 }
}

/// 25 characters of base 36, as Docker's ids of swarm networks, from a hash of the names (FNV-1a, then one
/// round of SplitMix64 per character): the same lab has the same id each time, two labs have two.
fn network_id(lab: &str, network: &str) -> String {
    let bytes = lab.bytes().chain([0]).chain(network.bytes());
    let seed = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let character = |round: u64| {
        let roll = splitmix(seed.wrapping_add(round.wrapping_mul(SPLITMIX_STEP)));
        char::from_digit((roll % 36) as u32, 36).expect("a remainder of 36")
    };
    (1..=25).map(character).collect()
}

/// Where labs keep their state.
pub const LABS_DIR: &str = "/run/weft-lab";
/// Where `ip netns` looks for namespaces.
pub const NETNS_DIR: &str = "/run/netns";
const DEFAULT_SUBNET: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 1, 0), 24) {
    Some(network) => network,
    None => panic!("24 is a prefix length"),
};
const UNDERLAY_V4: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(10, 99, 0, 0), 24) {
    Some(network) => network,
    None => panic!("24 is a prefix length"),
};
const NAME_LEN_MAX: usize = 16;
const NODES_MAX: usize = 100;
/// As the agent takes them.
const SUBNET_PREFIXES: std::ops::RangeInclusive<u8> = 4..=30;
/// IPv6 needs 1280 bytes inside the tunnel.
const UNDERLAY_MTU_MIN: u32 = 1350;
const UNDERLAY_MTU_MAX: u32 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut LabOptions)) -> Result<Plan, LabError> {
        let mut options = LabOptions::default();
        change(&mut options);
        Plan::new(options)
    }

    #[test]
    fn three_nodes_get_a_workload_each() {
        let plan = plan(|_| {}).unwrap();
        let rows: Vec<_> = plan
            .workloads
            .iter()
            .map(|w| format!("{} {} {} {} {}", w.name, w.node, w.netns, w.ip, w.mac))
            .collect();
        assert_eq!(
            rows,
            [
                "my-web.1 n1 weft-lab-my-web.1 10.0.1.1 02:42:0a:00:01:01",
                "my-web.2 n2 weft-lab-my-web.2 10.0.1.2 02:42:0a:00:01:02",
                "my-web.3 n3 weft-lab-my-web.3 10.0.1.3 02:42:0a:00:01:03",
            ]
        );
        assert_eq!(plan.nodes[2].underlay.to_string(), "10.99.0.3/24");
        assert_eq!(plan.other_vteps("n2").len(), 2);
        assert_eq!(plan.overlay_mtu(), 1450);
    }

    #[test]
    fn kernel_peers_come_after_the_agents_and_have_workloads_too() {
        let plan = plan(|o| {
            o.nodes = 1;
            o.kernel_peers = 1;
            o.workloads = 2;
            o.ipv6_underlay = true;
        })
        .unwrap();
        let kinds: Vec<_> = plan
            .nodes
            .iter()
            .map(|n| (n.name.as_str(), n.kind))
            .collect();
        assert_eq!(kinds, [("n1", NodeKind::Agent), ("k1", NodeKind::Kernel)]);
        let on: Vec<_> = plan.workloads.iter().map(|w| w.node.as_str()).collect();
        assert_eq!(on, ["n1", "k1", "n1", "k1"]);
        let remote: Vec<_> = plan
            .remote_workloads("n1")
            .map(|(w, _)| w.name.as_str())
            .collect();
        assert_eq!(remote, ["my-web.2", "my-web.4"]);
        assert_eq!(plan.nodes[1].vtep().to_string(), "fd99::2");
        assert_eq!(plan.overlay_mtu(), 1430);
    }

    #[test]
    fn the_gateway_is_nobodys_address() {
        let plan = plan(|o| o.gateway = Ipv4Addr::new(10, 0, 1, 2)).unwrap();
        let ips: Vec<_> = plan.workloads.iter().map(|w| w.ip.octets()[3]).collect();
        assert_eq!(ips, [1, 3, 4]);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let refused = |change: fn(&mut LabOptions), word: &str| {
            let text = plan(change).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        };
        refused(|o| o.name = "A b".into(), "A b");
        refused(|o| o.name = "a-b".into(), "a-b");
        refused(|o| o.nodes = 0, "nodes");
        refused(|o| o.nodes = 101, "nodes");
        refused(|o| o.underlay_mtu = 900, "900");
        refused(|o| o.gateway = Ipv4Addr::new(10, 0, 2, 254), "10.0.2.254");
        refused(
            |o| o.subnet = "10.99.0.0/16".parse().unwrap(),
            "10.99.0.0/16",
        );
        refused(|o| o.subnet = "0.0.0.0/32".parse().unwrap(), "length");
        refused(|o| o.subnet = "10.0.1.7/24".parse().unwrap(), "10.0.1.0/24");
        refused(|o| o.gateway = Ipv4Addr::new(10, 0, 1, 255), "broadcast");
        refused(|o| o.gateway = Ipv4Addr::new(10, 0, 1, 0), "network");
        refused(|o| o.service = "../x".into(), "../x");
        refused(|o| o.workloads = 100, "room");
    }

    #[test]
    fn network_ids_have_dockers_shape_and_differ_between_labs() {
        let ids: Vec<_> = ["a", "b", "c"]
            .map(|lab| network_id(lab, "my-network"))
            .into();
        for id in &ids {
            assert_eq!(id.len(), 25);
            assert!(
                id.bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            );
        }
        assert_ne!(ids[0], ids[1]);
        assert_ne!(ids[0][..12], ids[2][..12]);
        assert_eq!(network_id("a", "my-network"), ids[0]);
    }
}
