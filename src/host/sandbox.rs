//! The namespace of one network: bridges, gateways, uplinks.
//!
//! [`ensure_network`] in order: 1. open or make the namespace  2. mark `lo` with the network's id (from
//! here on the namespace is ours)  3. knobs  4. per segment: bridge, gateways, uplink.
//! Each step looks at what is there first, so the same list creates, adopts and repairs.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::{IpNetwork, Ipv6Network};

use super::link::BridgePortFlags;
use super::sysctl::{self, Scope};
use super::undo::{Step, Undo, blocking, delete_netns};
use super::{BridgeSpec, GsoSizes, HostError, Link, Mark, Netlink, UplinkKind, VethEnd, faults};
use crate::sys::SysError;
use crate::sys::ethtool::Ethtool;
use crate::sys::netns::Netns;
use crate::wire::{Mac, Vni};

/// One VNI of a network: a bridge with its gateways and its uplink.
#[derive(Debug, Clone)]
pub struct SegmentSpec {
    /// Position in the network, counted from zero; part of the link names.
    pub index: usize,
    /// The segment's VNI.
    pub vni: u32,
    /// Gateway addresses with the prefix length of their subnet; may be empty.
    pub gateways: Vec<IpNetwork>,
    /// Inner MTU in bytes.
    pub mtu: u32,
    /// How frames reach the agent.
    pub uplink: UplinkKind,
    /// The kernel takes super-frames of TCP over IPv6 beyond 64 KiB ([`GsoSizes::with_big_ipv6`]).
    pub big_ipv6: bool,
}

impl SegmentSpec {
    /// `02:42` and the first IPv4 gateway, the same on every node; without one, from the VNI.
    pub fn bridge_mac(&self) -> Mac {
        let v4 = self.gateways.iter().find_map(|gateway| match gateway {
            IpNetwork::V4(net) => Some(net.ip()),
            IpNetwork::V6(_) => None,
        });
        match v4 {
            Some(ip) => Mac::from_ipv4(ip),
            None => {
                let vni = self.vni.to_be_bytes();
                Mac([0x02, b'w', 0, vni[1], vni[2], vni[3]])
            }
        }
    }

    /// The super-frame sizes of this segment's links in the network's namespace.
    pub fn gso(&self) -> GsoSizes {
        let sizes = GsoSizes::fit(self.mtu, self.uplink);
        if self.big_ipv6 {
            sizes.with_big_ipv6(self.mtu).for_delivery()
        } else {
            sizes.for_delivery()
        }
    }

    fn has_v6(&self) -> bool {
        self.gateways.iter().any(IpNetwork::is_ipv6)
    }

    /// Addresses of the bridge. With IPv6 it needs a link-local one too, the source of its neighbour
    /// solicitations when it routes (`ndisc_send_ns`). Like the gateway, it is the same on every node.
    pub(super) fn bridge_addresses(&self) -> Vec<IpNetwork> {
        let mut addresses = self.gateways.clone();
        if self.has_v6() {
            addresses.push(link_local());
        }
        addresses
    }
}

/// What a network needs on this node.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    /// The network's id, at most 64 letters and digits.
    pub id: String,
    /// `<run-dir>/netns/<first 12 of the id>`; the directory is made if missing.
    pub netns_path: PathBuf,
    /// One per VNI.
    pub segments: Vec<SegmentSpec>,
    /// Who makes it, a word for people, part of the ownership marks.
    pub owner: String,
}

impl NetworkSpec {
    fn check(&self) -> Result<(), HostError> {
        check_id(&self.id)?;
        if self.segments.is_empty() || self.segments.len() > SEGMENTS_MAX {
            return Err(HostError::Invalid(format!(
                "network {} has {} segments; 1 to {SEGMENTS_MAX} are possible",
                self.id,
                self.segments.len()
            )));
        }
        for segment in &self.segments {
            if segment.index >= SEGMENTS_MAX || Vni::new(segment.vni).is_err() {
                return Err(HostError::Invalid(format!(
                    "segment {} of network {}: VNI {}",
                    segment.index, self.id, segment.vni
                )));
            }
            check_mtu(segment.mtu, segment.has_v6())?;
        }
        Ok(())
    }

    fn segment(&self, index: usize) -> Result<&SegmentSpec, HostError> {
        let found = self.segments.iter().find(|s| s.index == index);
        found.ok_or_else(|| {
            HostError::Invalid(format!("network {} has no segment {index}", self.id))
        })
    }

    fn mark(&self, link: &str) -> Mark {
        Mark::new(&self.id, link, &self.owner)
    }
}

/// Names of a segment's links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentNames {
    /// `br0`, `br1`, …
    pub bridge: String,
    /// The uplink pair's bridge port: `up0`, `up2`, …
    pub uplink_port: String,
    /// The uplink pair's other end, held by the agent: `up1`, `up3`, …
    pub uplink_held: String,
    /// The TAP: `tap0`, `tap1`, …
    pub tap: String,
}

impl SegmentNames {
    /// The names of the segment at `index`.
    pub fn of(index: usize) -> SegmentNames {
        SegmentNames {
            bridge: format!("br{index}"),
            uplink_port: format!("up{}", 2 * index),
            uplink_held: format!("up{}", 2 * index + 1),
            tap: format!("tap{index}"),
        }
    }
}

/// A segment's links as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentLinks {
    /// Position in the network.
    pub index: usize,
    /// The bridge.
    pub bridge: String,
    /// The bridge port that leads to the agent: `up0`, or the TAP itself.
    pub port: String,
    /// What the agent reads and writes: `up1` or `tap0`.
    pub held: String,
    /// Index of `held`; `None` for a TAP that nobody has opened yet.
    pub held_ifindex: Option<u32>,
}

/// A network's namespace, ready for endpoints.
#[derive(Debug)]
pub struct NetworkSandbox {
    /// The namespace, held open.
    pub netns: Netns,
    /// Its segments in the order of the specification.
    pub segments: Vec<SegmentLinks>,
}

/// Creates the network's namespace with everything in it but the TAP, or adopts and repairs the one
/// that is there. A segment with a TAP needs [`finish_tap`] once the agent has opened it.
///
/// # Errors
/// [`HostError::Foreign`] if the path or a link name is taken by something without our mark; anything
/// else with the kernel's reason. What this call made is removed again.
pub async fn ensure_network(spec: &NetworkSpec) -> Result<NetworkSandbox, HostError> {
    spec.check()?;
    let mut undo = Undo::default();
    match build(spec, &mut undo).await {
        Ok(sandbox) => Ok(sandbox),
        Err(cause) => Err(undo.roll_back(cause).await),
    }
}

/// Makes the TAP that the agent opened in the network's namespace a port of its bridge and brings it
/// up; returns its index. Idempotent.
///
/// # Errors
/// [`HostError::NoNetwork`] if the namespace, the bridge or the TAP is missing.
pub async fn finish_tap(spec: &NetworkSpec, segment_index: usize) -> Result<u32, HostError> {
    let segment = spec.segment(segment_index)?;
    let names = SegmentNames::of(segment_index);
    let netlink = open_network(&spec.netns_path)?.1;
    let links = netlink.links().await?;
    let bridge = wanted(&links, &names.bridge, &spec.netns_path)?;
    let tap = wanted(&links, &names.tap, &spec.netns_path)?;
    netlink
        .enslave_device(
            tap,
            bridge.index,
            segment.mtu,
            segment.gso(),
            HELD_QUEUE_LEN,
        )
        .await?;
    mark_if_bare(&netlink, &links, &names.tap, spec).await?;
    netlink
        .set_port(&names.tap, BridgePortFlags::UPLINK)
        .await?;
    netlink.settle(&names.tap).await?;
    Ok(tap.index)
}

/// Removes the namespace of the network with this id and every link in it, workloads' interfaces
/// included. Fine if it is gone already.
///
/// # Errors
/// [`HostError::Foreign`] if the namespace carries no mark of ours, or another network's, and then
/// nothing is changed; otherwise all errors met, after doing everything that could be done.
pub async fn remove_network(netns_path: &Path, id: &str) -> Result<(), HostError> {
    let (_netns, netlink) = match open_network(netns_path) {
        Ok(opened) => opened,
        Err(HostError::NoNetwork(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let links = netlink.links().await?;
    let ours = match network_mark(&links) {
        Some(mark) => mark.id == id,
        // A creation that was killed before it set the mark.
        None => links.iter().all(|link| link.loopback),
    };
    if !ours {
        return Err(foreign_netns(netns_path, id, &links));
    }
    let mut errors = Vec::new();
    errors.extend(delete_links(&netlink).await.err());
    errors.extend(delete_netns(netns_path.to_owned()).await.err());
    HostError::collect(errors)
}

/// One request for all links of ours, which is many times faster than one by one; then the rest.
async fn delete_links(netlink: &Netlink) -> Result<(), HostError> {
    let bulk = netlink.delete_our_group().await;
    let mut errors = Vec::new();
    for link in netlink.links().await?.iter().filter(|link| !link.loopback) {
        errors.extend(netlink.delete_link(&link.name).await.err());
    }
    match HostError::collect(errors) {
        Ok(()) => Ok(()),
        Err(rest) => HostError::collect(bulk.err().into_iter().chain([rest]).collect()),
    }
}

async fn build(spec: &NetworkSpec, undo: &mut Undo) -> Result<NetworkSandbox, HostError> {
    let netns = open_or_create(&spec.netns_path, undo).await?;
    let netlink = Arc::new(Netlink::open(&netns)?);
    let links = netlink.links().await?;
    claim(&netlink, &links, spec).await?;
    let forwarding = match spec.segments.len() {
        1 => Scope::NetworkFlat,
        _ => Scope::NetworkRouted,
    };
    sysctl::set(&netns, &[(forwarding, ""), (Scope::Network, "")])?;
    for segment in &spec.segments {
        let builder = SegmentBuilder {
            spec,
            segment,
            names: SegmentNames::of(segment.index),
            netns: &netns,
            netlink: &netlink,
            links: &links,
        };
        builder.build(undo).await?;
    }
    let links = netlink.links().await?;
    let segments = spec.segments.iter().map(|s| segment_links(s, &links));
    Ok(NetworkSandbox {
        segments: segments.collect(),
        netns,
    })
}

fn segment_links(segment: &SegmentSpec, links: &[Link]) -> SegmentLinks {
    let names = SegmentNames::of(segment.index);
    let (port, held) = match segment.uplink {
        UplinkKind::Packet => (names.uplink_port, names.uplink_held),
        UplinkKind::Tap => (names.tap.clone(), names.tap),
    };
    SegmentLinks {
        index: segment.index,
        bridge: names.bridge,
        port,
        held_ifindex: find(links, &held).map(|link| link.index),
        held,
    }
}

/// Makes one segment; lives for the duration of one [`ensure_network`].
struct SegmentBuilder<'a> {
    spec: &'a NetworkSpec,
    segment: &'a SegmentSpec,
    names: SegmentNames,
    netns: &'a Netns,
    netlink: &'a Arc<Netlink>,
    /// The links there were at the start.
    links: &'a [Link],
}

impl SegmentBuilder<'_> {
    async fn build(&self, undo: &mut Undo) -> Result<(), HostError> {
        let bridge = self.bridge(undo).await?;
        self.addresses(bridge, undo).await?;
        match self.segment.uplink {
            UplinkKind::Packet => self.uplink_pair(bridge, undo).await?,
            UplinkKind::Tap => self.uplink_tap().await?,
        }
        self.netlink.set_gso(bridge, self.segment.gso()).await
    }

    /// The TAP of another time, if there is one, is made a port again.
    async fn uplink_tap(&self) -> Result<(), HostError> {
        self.delete_found(&self.names.uplink_port).await?;
        match self.found(&self.names.tap) {
            Some(_) => finish_tap(self.spec, self.segment.index).await.map(drop),
            None => Ok(()),
        }
    }

    /// Returns the bridge's index.
    async fn bridge(&self, undo: &mut Undo) -> Result<u32, HostError> {
        let name = &self.names.bridge;
        self.refuse_other_kind(name, "bridge")?;
        let bridge = BridgeSpec {
            name: name.clone(),
            mac: self.segment.bridge_mac(),
            mtu: self.segment.mtu,
        };
        self.netlink.put_bridge(&bridge).await?;
        self.note_link(name, undo);
        mark_if_bare(self.netlink, self.links, name, self.spec).await?;
        let v6 = match self.segment.has_v6() {
            true => Scope::BridgeWithV6,
            false => Scope::BridgeWithoutV6,
        };
        sysctl::set(self.netns, &[(v6, name)])?;
        match self.netlink.link_by_name(name).await? {
            Some(link) => Ok(link.index),
            None => Err(missing(name, &self.spec.netns_path)),
        }
    }

    /// Brings the bridge's addresses in line with the gateways.
    async fn addresses(&self, bridge: u32, undo: &mut Undo) -> Result<(), HostError> {
        let wanted = self.segment.bridge_addresses();
        let mut present = Vec::new();
        if self.found(&self.names.bridge).is_some() {
            present = self.netlink.addresses().await?;
            present.retain(|(index, _)| *index == bridge);
        }
        for (_, stale) in present.iter().filter(|(_, a)| !wanted.contains(a)) {
            self.netlink.delete_address(bridge, *stale).await?;
        }
        for address in wanted {
            if !present.contains(&(bridge, address)) {
                self.netlink.put_address(bridge, address).await?;
                undo.push(Step::Address(self.netlink.clone(), bridge, address));
            }
        }
        Ok(())
    }

    async fn uplink_pair(&self, bridge: u32, undo: &mut Undo) -> Result<(), HostError> {
        self.delete_found(&self.names.tap).await?;
        let (port, held) = (self.uplink_end(Some(bridge)), self.uplink_end(None));
        self.refuse_other_kind(&port.name, "veth")?;
        self.refuse_other_kind(&held.name, "veth")?;
        match (self.found(&port.name), self.found(&held.name)) {
            (Some(port_link), Some(held_link)) => {
                self.netlink.set_veth(port_link, &port).await?;
                self.netlink.set_veth(held_link, &held).await?;
            }
            _ => {
                self.netlink.add_veth(&port, &held).await?;
                self.note_link(&port.name, undo);
            }
        }
        mark_if_bare(self.netlink, self.links, &port.name, self.spec).await?;
        mark_if_bare(self.netlink, self.links, &held.name, self.spec).await?;
        self.netlink
            .set_port(&port.name, BridgePortFlags::UPLINK)
            .await?;
        self.refuse_unread_superframes(&port.name)?;
        self.netlink.set_up(&held.name).await?;
        for name in [&port.name, &held.name, &self.names.bridge] {
            self.netlink.settle(name).await?;
        }
        Ok(())
    }

    /// A veth takes super-frames of any kind, also those of a workload's own tunnels and of SCTP, for
    /// which a virtio header has no name. Without these features of its the kernel cuts them
    /// before they get here.
    fn refuse_unread_superframes(&self, port: &str) -> Result<(), HostError> {
        let port = port.to_owned();
        let switch = move || {
            let ethtool = Ethtool::open(&port)?;
            let features = ethtool.features()?;
            let on = features.iter().filter(|feature| {
                feature.requested && feature.changeable && UNREAD.contains(&feature.name.as_str())
            });
            let off: Vec<(&str, bool)> = on.map(|feature| (feature.name.as_str(), false)).collect();
            if off.is_empty() {
                return Ok(());
            }
            ethtool.set(&off)
        };
        let outcome: Result<Result<(), SysError>, _> = self.netns.run_in(switch);
        Ok(outcome??)
    }

    fn uplink_end(&self, bridge: Option<u32>) -> VethEnd<'static> {
        VethEnd {
            name: match bridge {
                Some(_) => self.names.uplink_port.clone(),
                None => self.names.uplink_held.clone(),
            },
            mac: None,
            mtu: self.segment.mtu,
            gso: self.segment.gso(),
            tx_queue_len: Some(HELD_QUEUE_LEN),
            raw: bridge.is_none(),
            bridge,
            netns: None,
            grouped: true,
        }
    }

    fn found(&self, name: &str) -> Option<&Link> {
        find(self.links, name)
    }

    /// Removes the uplink of the other kind.
    async fn delete_found(&self, name: &str) -> Result<(), HostError> {
        match self.found(name) {
            Some(link) => self.netlink.delete_link(&link.name).await,
            None => Ok(()),
        }
    }

    /// Notes a link as made by this call, unless it was there at the start.
    fn note_link(&self, name: &str, undo: &mut Undo) {
        if self.found(name).is_none() {
            undo.push(Step::Link(self.netlink.clone(), name.to_owned()));
        }
    }

    fn refuse_other_kind(&self, name: &str, kind: &str) -> Result<(), HostError> {
        match self.found(name) {
            Some(link) if link.kind.as_deref() != Some(kind) => Err(HostError::Foreign {
                what: format!("link {name} in {}", self.spec.netns_path.display()),
                expected: format!("{kind} {}", self.spec.mark(name)),
                found: link.kind.clone().unwrap_or_else(|| "device".into()),
            }),
            _ => Ok(()),
        }
    }
}

/// Opens the namespace file, or makes it. An empty file without a mount is left over from a creation that
/// was killed half-way, and is used.
async fn open_or_create(path: &Path, undo: &mut Undo) -> Result<Netns, HostError> {
    match Netns::open(path) {
        Ok(netns) => return Ok(netns),
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error.into()),
    }
    faults::check().map_err(|e| SysError::new("create network namespace", "", e))?;
    let target = path.to_owned();
    let netns = blocking(move || Netns::create(target)).await?;
    undo.push(Step::Netns(path.to_owned()));
    Ok(netns)
}

/// No file, or one that is no namespace.
fn is_absent(error: &SysError) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}

/// Opens an existing network's namespace.
pub(super) fn open_network(path: &Path) -> Result<(Netns, Netlink), HostError> {
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(error) if is_absent(&error) => {
            return Err(HostError::NoNetwork(format!("netns {}", path.display())));
        }
        Err(error) => return Err(error.into()),
    };
    let netlink = Netlink::open(&netns)?;
    Ok((netns, netlink))
}

/// Makes the namespace ours by marking `lo`, if it is ours or holds nothing yet.
async fn claim(netlink: &Netlink, links: &[Link], spec: &NetworkSpec) -> Result<(), HostError> {
    let bare = links.iter().all(|link| link.loopback);
    match network_mark(links) {
        Some(mark) if mark.id == spec.id => {}
        None if bare => netlink.mark_link(LOOPBACK, &spec.mark(LOOPBACK)).await?,
        _ => return Err(foreign_netns(&spec.netns_path, &spec.id, links)),
    }
    match links.iter().find(|link| link.loopback) {
        Some(lo) if !lo.up => netlink.set_up(&lo.name).await,
        _ => Ok(()),
    }
}

/// The mark that says which network a namespace belongs to.
pub(super) fn network_mark(links: &[Link]) -> Option<Mark> {
    links.iter().find(|link| link.loopback)?.mark()
}

fn foreign_netns(path: &Path, expected: &str, links: &[Link]) -> HostError {
    HostError::Foreign {
        what: format!("netns {}", path.display()),
        expected: expected.to_owned(),
        found: match network_mark(links) {
            Some(mark) => mark.to_string(),
            None => format!("{} links and no mark", links.len()),
        },
    }
}

async fn mark_if_bare(
    netlink: &Netlink,
    links: &[Link],
    name: &str,
    spec: &NetworkSpec,
) -> Result<(), HostError> {
    match find(links, name).and_then(Link::mark) {
        Some(_) => Ok(()),
        None => netlink.mark_link(name, &spec.mark(name)).await,
    }
}

pub(super) fn find<'a>(links: &'a [Link], name: &str) -> Option<&'a Link> {
    links.iter().find(|link| link.name == name)
}

fn wanted<'a>(links: &'a [Link], name: &str, netns_path: &Path) -> Result<&'a Link, HostError> {
    find(links, name).ok_or_else(|| missing(name, netns_path))
}

pub(super) fn missing(name: &str, netns_path: &Path) -> HostError {
    HostError::NoNetwork(format!("link {name} in netns {}", netns_path.display()))
}

/// Refuses ids that could not be read back from a mark.
pub(super) fn check_id(id: &str) -> Result<(), HostError> {
    if id.is_empty() || id.len() > ID_LEN_MAX || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(HostError::Invalid(format!(
            "{id:?} is no id: 1 to {ID_LEN_MAX} letters and digits are expected"
        )));
    }
    Ok(())
}

/// RFC 791 asks every link to carry 68 bytes, RFC 8200 §5 1280 for IPv6; a veth takes up to 65535.
pub(super) fn check_mtu(mtu: u32, has_v6: bool) -> Result<(), HostError> {
    let least = if has_v6 { 1280 } else { 68 };
    if !(least..=65535).contains(&mtu) {
        return Err(HostError::Invalid(format!(
            "MTU {mtu} is out of range: {least} to 65535 bytes are possible"
        )));
    }
    Ok(())
}

fn link_local() -> IpNetwork {
    let ip = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    Ipv6Network::new(ip, 64).map_or(IpNetwork::from(IpAddr::V6(ip)), IpNetwork::V6)
}

const LOOPBACK: &str = "lo";
/// Frames the kernel may queue towards the agent while it restarts.
const HELD_QUEUE_LEN: u32 = 10_000;
const ID_LEN_MAX: usize = 64;
/// Of the VNIs a network may have; a Linux bridge's limits are far above.
const SEGMENTS_MAX: usize = 64;

/// Segmentation features of a veth (`NETIF_F_GSO_ENCAP_ALL` and others) whose super-frames AF_PACKET either
/// hides the tunnel of or cannot describe at all (`virtio_net_hdr_from_skb`).
const UNREAD: [&str; 9] = [
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-tunnel-remcsum-segmentation",
    "tx-sctp-segmentation",
    "tx-gso-list",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(gateways: &[&str]) -> SegmentSpec {
        SegmentSpec {
            index: 0,
            vni: 4097,
            gateways: gateways.iter().map(|g| g.parse().unwrap()).collect(),
            mtu: 1450,
            uplink: UplinkKind::Packet,
            big_ipv6: true,
        }
    }

    #[test]
    fn the_gateway_mac_is_the_same_on_every_node() {
        let v4 = segment(&["fd00::1/64", "10.0.1.254/24"]);
        assert_eq!(v4.bridge_mac().to_string(), "02:42:0a:00:01:fe");
        let none = segment(&["fd00::1/64"]);
        assert_eq!(none.bridge_mac().to_string(), "02:77:00:00:10:01");
        assert!(none.bridge_mac().is_station());
    }

    #[test]
    fn a_bridge_with_an_ipv6_gateway_has_a_link_local_address_too() {
        assert_eq!(segment(&["10.0.1.254/24"]).bridge_addresses().len(), 1);
        let addresses = segment(&["fd00::1/64"]).bridge_addresses();
        assert!(addresses.contains(&"fe80::1/64".parse().unwrap()));
    }

    #[test]
    fn link_names_follow_the_segment() {
        let names = SegmentNames::of(1);
        assert_eq!(
            [
                names.bridge,
                names.uplink_port,
                names.uplink_held,
                names.tap
            ],
            ["br1", "up2", "up3", "tap1"]
        );
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_changed() {
        let good = NetworkSpec {
            id: "zmq0dp2jpu1tz4mfk8zl1p0a2".into(),
            netns_path: "/nonexistent/n".into(),
            segments: vec![segment(&["10.0.1.254/24"])],
            owner: "node".into(),
        };
        assert!(good.check().is_ok());
        let change = |f: fn(&mut NetworkSpec)| {
            let mut spec = good.clone();
            f(&mut spec);
            spec.check()
        };
        for result in [
            change(|s| s.id.clear()),
            change(|s| s.id.push(':')),
            change(|s| s.segments.clear()),
            change(|s| s.segments[0].vni = 0),
            change(|s| s.segments[0].vni = 1 << 24),
            change(|s| s.segments[0].mtu = 67),
            change(|s| s.segments[0].index = SEGMENTS_MAX),
            change(|s| {
                s.segments[0].mtu = 1000;
                s.segments[0].gateways = vec!["fd00::1/64".parse().unwrap()];
            }),
        ] {
            assert!(matches!(result, Err(HostError::Invalid(_))), "{result:?}");
        }
    }
}
