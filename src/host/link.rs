//! Links: what one looks like, and one short method per kernel operation on it.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};

use super::{GsoSizes, HostError, Mark, Netlink};
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Plain name.
    pub name: String,
    /// `IFLA_INFO_KIND`: "veth", "bridge", "tun"; `None` for `lo` and hardware.
    pub kind: Option<String>,
    /// Hardware address, where it has a six-byte one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up and with carrier.
    pub running: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFF_NOARP`.
    pub noarp: bool,
    /// Asked to be promiscuous (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// Of a veth: index of the other end in its namespace.
    pub peer: Option<u32>,
    /// Link group.
    pub group: u32,
    /// Transmit queue length in packets.
    pub tx_queue_len: u32,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// Super-frame sizes. `ipv4_max_size` is zero on kernels before 6.3, which have none.
    pub gso: GsoSizes,
    /// Of a bridge port: its flags.
    pub port: Option<BridgePortFlags>,
    /// Of a bridge port: it passes frames.
    pub forwarding: bool,
}

impl Link {
    /// The ownership mark, if it carries one.
    pub fn mark(&self) -> Option<Mark> {
        self.altnames.iter().find_map(|name| Mark::parse(name))
    }

    /// Made by us: the group is set in the same request that makes a link, the mark in the next.
    pub(super) fn in_our_group(&self) -> bool {
        self.group == GROUP
    }

    fn parse(message: LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running | LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            noarp: flags.contains(LinkFlags::Noarp),
            promiscuous: flags.contains(LinkFlags::Promisc),
            bridge: None,
            peer: None,
            group: 0,
            tx_queue_len: 0,
            altnames: Vec::new(),
            gso: GsoSizes {
                max_segs: 0,
                max_size: 0,
                ipv4_max_size: 0,
            },
            port: None,
            forwarding: false,
        };
        for attribute in message.attributes {
            link.take(attribute);
        }
        link
    }

    fn take(&mut self, attribute: LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::Address(bytes) => self.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => self.mtu = mtu,
            LinkAttribute::Controller(index) => self.bridge = Some(index),
            LinkAttribute::Link(index) => self.peer = Some(index),
            LinkAttribute::Group(group) => self.group = group,
            LinkAttribute::TxQueueLen(len) => self.tx_queue_len = len,
            LinkAttribute::GsoMaxSegs(segs) => self.gso.max_segs = segs,
            LinkAttribute::GsoMaxSize(size) => self.gso.max_size = size,
            LinkAttribute::GsoIpv4MaxSize(size) => self.gso.ipv4_max_size = size,
            LinkAttribute::PropList(props) => self.altnames.extend(altnames(props)),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|i| self.take_info(i)),
            _ => {}
        }
    }

    fn take_info(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                self.port = Some(BridgePortFlags::parse(&settings));
                self.forwarding =
                    settings.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
            }
            _ => {}
        }
    }
}

fn altnames(props: Vec<Prop>) -> impl Iterator<Item = String> {
    props.into_iter().filter_map(|prop| match prop {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    })
}

/// What decides a bridge port's forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePortFlags {
    /// The bridge learns source addresses seen here.
    pub learning: bool,
    /// Frames from a source address that is not in the FDB for this very port are dropped.
    pub locked: bool,
    /// Isolated ports do not reach each other.
    pub isolated: bool,
    /// Frames to unknown unicast addresses leave here.
    pub flood: bool,
    /// Broadcast and unregistered multicast leave here.
    pub flood_group: bool,
}

impl BridgePortFlags {
    /// The uplink: the way to everything that is not local, and never a teacher.
    pub const UPLINK: BridgePortFlags = BridgePortFlags {
        learning: false,
        locked: false,
        isolated: false,
        flood: true,
        flood_group: true,
    };
    /// A workload that may use any source address.
    pub const WORKLOAD: BridgePortFlags = BridgePortFlags {
        learning: true,
        ..BridgePortFlags::UPLINK
    };
    /// A workload held to the source addresses in the FDB. It is reached by those only, so nothing
    /// unknown needs to be flooded to it.
    pub const LOCKED: BridgePortFlags = BridgePortFlags {
        learning: false,
        locked: true,
        flood: false,
        ..BridgePortFlags::UPLINK
    };

    fn attributes(self) -> Vec<InfoBridgePort> {
        vec![
            InfoBridgePort::Learning(self.learning),
            InfoBridgePort::Locked(self.locked),
            InfoBridgePort::Isolated(self.isolated),
            InfoBridgePort::UnicastFlood(self.flood),
            InfoBridgePort::MulticastFlood(self.flood_group),
            InfoBridgePort::BroadcastFlood(self.flood_group),
            InfoBridgePort::NeighSupress(false),
            InfoBridgePort::HairpinMode(false),
        ]
    }

    fn parse(settings: &[InfoBridgePort]) -> BridgePortFlags {
        let mut flags = BridgePortFlags {
            learning: false,
            locked: false,
            isolated: false,
            flood: false,
            flood_group: false,
        };
        for setting in settings {
            match setting {
                InfoBridgePort::Learning(on) => flags.learning = *on,
                InfoBridgePort::Locked(on) => flags.locked = *on,
                InfoBridgePort::Isolated(on) => flags.isolated = *on,
                InfoBridgePort::UnicastFlood(on) => flags.flood = *on,
                InfoBridgePort::BroadcastFlood(on) => flags.flood_group = *on,
                _ => {}
            }
        }
        flags
    }
}

/// A bridge as we make it: no spanning tree, no VLANs, no multicast snooping, no netfilter.
#[derive(Debug, Clone)]
pub struct BridgeSpec {
    /// Plain name.
    pub name: String,
    /// Hardware address, fixed so that it does not follow the ports.
    pub mac: Mac,
    /// MTU in bytes, fixed so that it does not follow the ports.
    pub mtu: u32,
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub struct VethEnd<'a> {
    /// Plain name. `eth%d` lets the kernel take the first free number.
    pub name: String,
    /// Hardware address; random if `None`.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Super-frame sizes.
    pub gso: GsoSizes,
    /// Transmit queue length in packets; the kernel's default if `None`.
    pub tx_queue_len: Option<u32>,
    /// Bridge to be a port of, by index in the same namespace.
    pub bridge: Option<u32>,
    /// Without ARP, promiscuous: held through a packet socket, not used by a stack.
    pub raw: bool,
    /// Born here instead of the connection's namespace.
    pub netns: Option<&'a Netns>,
    /// Carries the group our network namespaces' links have.
    pub grouped: bool,
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.raw {
            set_flags(&mut message, RAW_FLAGS);
        }
        message.attributes = vec![
            LinkAttribute::IfName(self.name.clone()),
            LinkAttribute::Mtu(self.mtu),
        ];
        let attributes = &mut message.attributes;
        attributes.extend(gso_attributes(self.gso));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.tx_queue_len.map(LinkAttribute::TxQueueLen));
        attributes.extend(self.bridge.map(LinkAttribute::Controller));
        attributes.extend(self.grouped.then_some(LinkAttribute::Group(GROUP)));
        attributes.extend(
            self.netns
                .map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())),
        );
        message
    }
}

impl Netlink {
    /// All links of the namespace, by index.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let replies = self.list("list links".into(), request).await?;
        Ok(replies.into_iter().filter_map(as_link).collect())
    }

    /// The link with this plain name, if there is one.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, HostError> {
        let request = RouteNetlinkMessage::GetLink(named(name));
        let reply = self.look_up(format!("look up link {name}"), request).await;
        Ok(reply?.and_then(as_link))
    }

    /// The link with this index, if there is one.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, HostError> {
        let request = RouteNetlinkMessage::GetLink(indexed(index));
        let reply = self.look_up(format!("look up link {index}"), request).await;
        Ok(reply?.and_then(as_link))
    }

    /// Makes the bridge, or sets an existing one of that name to `spec`; up either way. Its super-frame
    /// sizes are for later: without ports a bridge takes 64 KiB at most (`br_set_gso_limits`).
    pub async fn put_bridge(&self, spec: &BridgeSpec) -> Result<(), HostError> {
        let there = self.link_by_name(&spec.name).await?;
        let mut message = named(&spec.name);
        set_flags(&mut message, LinkFlags::Up);
        message
            .attributes
            .extend(new_address(there.as_ref(), spec.mac));
        message.attributes.extend([
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Group(GROUP),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(bridge_settings())),
            ]),
        ]);
        let operation = format!("put bridge {}", spec.name);
        self.new_link(operation, message, NLM_F_CREATE).await
    }

    /// Makes a veth pair in one request, down: `veth_newlink` cannot bring the peer up, and sets a bridge
    /// for `end` alone. Both names must be free.
    pub async fn add_veth(&self, end: &VethEnd<'_>, peer: &VethEnd<'_>) -> Result<(), HostError> {
        let mut message = end.message();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.message()))),
        ]));
        let operation = format!("add veth {} with peer {}", end.name, peer.name);
        self.new_link(operation, message, NLM_F_CREATE | NLM_F_EXCL)
            .await
    }

    /// Sets an existing veth end to `end`; its name, namespace and group stay.
    pub async fn set_veth(&self, link: &Link, end: &VethEnd<'_>) -> Result<(), HostError> {
        let mut message = end.message();
        message.header.index = link.index;
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                LinkAttribute::IfName(_)
                    | LinkAttribute::NetNsFd(_)
                    | LinkAttribute::Group(_)
                    | LinkAttribute::Address(_)
            )
        });
        let address = end.mac.and_then(|mac| new_address(Some(link), mac));
        message.attributes.extend(address);
        let operation = format!("set veth {}", end.name);
        self.new_link(operation, message, 0).await
    }

    /// Makes an existing device a port of a bridge, with these sizes, in our group.
    pub(super) async fn enslave_device(
        &self,
        link: &Link,
        bridge: u32,
        mtu: u32,
        gso: GsoSizes,
        tx_queue_len: u32,
    ) -> Result<(), HostError> {
        let mut message = indexed(link.index);
        message.attributes = vec![
            LinkAttribute::Mtu(mtu),
            LinkAttribute::TxQueueLen(tx_queue_len),
            LinkAttribute::Group(GROUP),
            LinkAttribute::Controller(bridge),
        ];
        message.attributes.extend(gso_attributes(gso));
        let operation = format!("add port {} to bridge {bridge}", link.name);
        self.new_link(operation, message, 0).await
    }

    /// Sets the forwarding flags of a bridge port, then brings it up.
    pub async fn set_port(&self, name: &str, flags: BridgePortFlags) -> Result<(), HostError> {
        let mut message = named(name);
        set_flags(&mut message, LinkFlags::Up);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags.attributes())),
        ]));
        let operation = format!("set bridge port {name}");
        self.new_link(operation, message, 0).await
    }

    /// Brings a link up.
    pub async fn set_up(&self, name: &str) -> Result<(), HostError> {
        let mut message = named(name);
        set_flags(&mut message, LinkFlags::Up);
        let operation = format!("bring up link {name}");
        self.new_link(operation, message, 0).await
    }

    /// Waits until a link passes frames, for 0.2 s at most.
    ///
    /// A link that came up before its peer has a carrier, and as a bridge port forwards, only once the
    /// kernel's link watch has run; until then it drops frames, and a lost ARP request costs a second.
    /// Since Linux 6.8 the look itself makes the link watch run (`linkwatch_sync_dev`), so the first one
    /// usually finds it done. A bridge follows its ports: settle those first.
    pub(super) async fn settle(&self, name: &str) -> Result<(), HostError> {
        for _ in 0..SETTLE_TRIES {
            match self.link_by_name(name).await? {
                Some(link) if link.running && link.forwarding == link.bridge.is_some() => break,
                _ => tokio::time::sleep(SETTLE_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Sets the super-frame sizes of a link.
    pub async fn set_gso(&self, index: u32, sizes: GsoSizes) -> Result<(), HostError> {
        let mut message = indexed(index);
        message.attributes.extend(gso_attributes(sizes));
        let operation = format!("set gso sizes of link {index}");
        self.new_link(operation, message, 0).await
    }

    /// Puts an ownership mark on a link that carries none.
    pub async fn mark_link(&self, name: &str, mark: &Mark) -> Result<(), HostError> {
        let mut message = named(name);
        let prop = Prop::AltIfName(mark.to_string());
        message.attributes.push(LinkAttribute::PropList(vec![prop]));
        let request = RouteNetlinkMessage::NewLinkProp(message);
        let operation = format!("mark link {name} as {mark}");
        self.change(operation, request, NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND)
            .await
    }

    /// Removes a link (and the other end of a veth); fine if it is gone already.
    pub async fn delete_link(&self, name: &str) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::DelLink(named(name));
        let result = self.change(format!("delete link {name}"), request, 0).await;
        gone_is_fine(result)
    }

    /// Removes all links of our group in one request; fine if there are none.
    pub(super) async fn delete_our_group(&self) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(GROUP));
        let request = RouteNetlinkMessage::DelLink(message);
        let operation = format!("delete links of group {GROUP:#x}");
        gone_is_fine(self.change(operation, request, 0).await)
    }

    async fn new_link(
        &self,
        operation: String,
        message: LinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        self.change(operation, RouteNetlinkMessage::NewLink(message), flags)
            .await
    }
}

fn gone_is_fine(result: Result<(), HostError>) -> Result<(), HostError> {
    match result {
        Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV) => Ok(()),
        other => other,
    }
}

fn as_link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::parse(link)),
        _ => None,
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn set_flags(message: &mut LinkMessage, flags: LinkFlags) {
    message.header.flags = flags;
    message.header.change_mask = flags;
}

/// The hardware address, unless the link has it: being told the same one again, the kernel forgets all neighbours that
/// are known there (`neigh_changeaddr`), with the packets that wait for them.
fn new_address(link: Option<&Link>, mac: Mac) -> Option<LinkAttribute> {
    let has_it = link.is_some_and(|link| link.mac == Some(mac));
    (!has_it).then(|| LinkAttribute::Address(mac.0.to_vec()))
}

/// The order counts: a `gso_max_size` of up to 64 KiB also sets `gso_ipv4_max_size`
/// (`netif_set_gso_max_size`), and the kernel takes them in this order.
fn gso_attributes(sizes: GsoSizes) -> [LinkAttribute; 3] {
    [
        LinkAttribute::GsoMaxSize(sizes.max_size),
        LinkAttribute::GsoMaxSegs(sizes.max_segs),
        LinkAttribute::GsoIpv4MaxSize(sizes.ipv4_max_size),
    ]
}

/// A default VLAN of 0 spares an FDB entry per VLAN and port: we filter none. Filtering is off by default
/// and is not mentioned, since kernels built without it refuse even that (`EOPNOTSUPP`).
fn bridge_settings() -> Vec<InfoBridge> {
    vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::VlanDefaultPvid(0),
        InfoBridge::MulticastSnooping(false),
        InfoBridge::MulticastQuerier(false),
        InfoBridge::NfCallIpTables(false),
        InfoBridge::NfCallIp6Tables(false),
        InfoBridge::NfCallArpTables(false),
    ]
}

const RAW_FLAGS: LinkFlags = LinkFlags::Noarp.union(LinkFlags::Promisc);
/// "weft" in ASCII.
const GROUP: u32 = 0x7765_6674;
const SETTLE_TRIES: u32 = 100;
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_a_link_are_read_and_others_passed_over() {
        let mut message = indexed(7);
        message.header.flags = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("veth1a2b3c4".into()),
            LinkAttribute::Address(vec![2, 0x42, 10, 0, 1, 2]),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(9),
            LinkAttribute::NumTxQueues(4),
            LinkAttribute::GsoIpv4MaxSize(190_000),
            LinkAttribute::PropList(vec![
                Prop::AltIfName("x".into()),
                Prop::AltIfName("weft:id:eth0:node".into()),
            ]),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::PortData(InfoPortData::BridgePort(
                    BridgePortFlags::LOCKED.attributes(),
                )),
            ]),
        ];
        let link = Link::parse(message);
        assert_eq!((link.index, link.bridge, link.peer), (7, Some(3), Some(9)));
        assert!(link.up && link.running && !link.noarp);
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.mac, Some(Mac([2, 0x42, 10, 0, 1, 2])));
        assert_eq!(link.gso.ipv4_max_size, 190_000);
        assert_eq!(link.port, Some(BridgePortFlags::LOCKED));
        assert_eq!(link.mark(), Some(Mark::new("id", "eth0", "node")));
    }
}
