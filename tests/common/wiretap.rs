//! Ears and mouths on real links: packet sockets that listen and inject, a raw VTEP, and an
//! independent reading of what is on the underlay (by pnet, which knows nothing of this crate).

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherTypes, EthernetPacket};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{self, Ipv4Flags, Ipv4Packet};
use pnet::packet::ipv6::Ipv6Packet;
use pnet::packet::udp::{self, UdpPacket};
use pnet::packet::vxlan::VxlanPacket;

use weft::sys::link;
use weft::sys::packet::{PacketOptions, PacketSocket, VNET_HEADER_LEN};
use weft::sys::udp::{Destination, PathMtuDiscovery, UdpOptions, UdpSocket};
use weft::wire::vxlan;

use super::hosts::{Hosts, named, sh};

/// Longest wait for something that should come at once; generous, as machines may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long to look for one too many after all that should come have come.
const SETTLE: Duration = Duration::from_millis(25);

/// A packet socket on one link: hears what arrives there, and sends.
pub struct Ear {
    socket: PacketSocket,
    place: String,
}

impl Ear {
    /// Listens on a link of a named namespace.
    pub fn on(namespace: &str, name: &str) -> Ear {
        let options = PacketOptions {
            rcvbuf: 8 << 20,
            sndbuf: 1 << 20,
            ..PacketOptions::default()
        };
        let open = || PacketSocket::open(link::index_of(name).unwrap(), &options).unwrap();
        Ear {
            socket: named(namespace).run_in(open).unwrap(),
            place: format!("{name} of {namespace}"),
        }
    }

    /// On the workload of a host.
    pub fn workload(hosts: &Hosts, index: u8) -> Ear {
        Ear::on(&hosts.host(index).workload, "eth0")
    }

    /// On the hub's side of a host's underlay link: everything the host sends.
    pub fn underlay(hosts: &Hosts, index: u8) -> Ear {
        Ear::on(&format!("{}hub", hosts.prefix), &format!("p{index}"))
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        let vnet = [0; VNET_HEADER_LEN];
        self.socket
            .send(&[IoSlice::new(&vnet), IoSlice::new(frame)])
            .unwrap_or_else(|error| panic!("send on {}: {error}", self.place));
    }

    /// Takes one frame, its outermost VLAN tag put back.
    fn take(&self) -> Option<Vec<u8>> {
        let mut buf = vec![0; 70_000];
        let meta = self.socket.recv(&mut buf).ok()??;
        let mut frame = buf[VNET_HEADER_LEN..meta.len].to_vec();
        if let Some(tag) = meta.vlan {
            let bytes = [tag.tpid.to_be_bytes(), tag.tci.to_be_bytes()].concat();
            frame.splice(12..12, bytes);
        }
        Some(frame)
    }

    /// Waits for `want` frames that hold `marker`, then a little for more; returns all of them.
    pub fn hear(&self, want: usize, marker: &[u8]) -> Vec<Vec<u8>> {
        let (start, mut heard, mut complete) = (Instant::now(), Vec::new(), None);
        loop {
            while let Some(frame) = self.take() {
                if contains(&frame, marker) {
                    heard.push(frame);
                }
            }
            if heard.len() >= want && complete.is_none() {
                complete = Some(Instant::now());
            }
            let done = complete.is_some_and(|since| since.elapsed() > SETTLE);
            if done || start.elapsed() > PATIENCE {
                return heard;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes everything that came so far.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Forgets what came so far.
    pub fn clear(&self) {
        self.drain();
    }
}

/// Whether `bytes` holds `marker`.
pub fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

/// A UDP socket in a host's underlay namespace that speaks VXLAN byte by byte.
pub struct RawVtep {
    socket: UdpSocket,
    address: IpAddr,
}

impl RawVtep {
    /// In the namespace of a host that runs no tunnel.
    pub fn on(hosts: &Hosts, index: u8) -> RawVtep {
        let address = hosts.host(index).vtep;
        let options = UdpOptions {
            path_mtu_discovery: PathMtuDiscovery::Do,
            recv_errors: false,
            ..UdpOptions::default()
        };
        let open = || UdpSocket::bind(SocketAddr::new(address, 0), &options).unwrap();
        let socket = named(&hosts.host(index).ns).run_in(open).unwrap();
        RawVtep { socket, address }
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Sends a VXLAN header and a frame to a VTEP, with an outer TOS.
    pub fn send(&self, to: SocketAddr, header: u64, frame: &[u8], tos: u8) {
        let header = header.to_be_bytes();
        let pieces = [IoSlice::new(&header), IoSlice::new(frame)];
        let sent = self.socket.send(&pieces, &Destination::new(to), None, tos);
        assert_eq!(sent.unwrap(), 8 + frame.len());
    }
}

/// The VXLAN header for a VNI as a number.
pub fn header(vni: u32) -> u64 {
    u64::from(vxlan::FLAG_VNI) << 56 | u64::from(vni) << 8
}

/// An underlay packet read by pnet.
#[derive(Clone, Debug)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DF is set; IPv6 has no other way.
    pub dont_fragment: bool,
    /// It is a fragment of a packet.
    pub fragment: bool,
    /// The IPv4 header's checksum is right.
    pub ip_checksum_ok: bool,
    pub source_port: u16,
    pub destination_port: u16,
    /// As on the wire.
    pub udp_checksum: u16,
    /// As it should be.
    pub udp_checksum_right: u16,
    /// Flags, reserved fields and VNI.
    pub vxlan: (u8, u32, u32, u8),
    /// The inner frame.
    pub inner: Vec<u8>,
}

/// Reads a VXLAN packet from an underlay frame; none if it is something else.
pub fn dissect(frame: &[u8], port: u16) -> Option<Outer> {
    let ethernet = EthernetPacket::new(frame)?;
    let mut outer = match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => dissect_ipv4(ethernet.payload())?,
        EtherTypes::Ipv6 => dissect_ipv6(ethernet.payload())?,
        _ => return None,
    };
    let datagram = std::mem::take(&mut outer.inner);
    let vxlan = VxlanPacket::new(&datagram)?;
    outer.vxlan = (
        vxlan.get_flags(),
        vxlan.get_reserved1(),
        vxlan.get_vni(),
        vxlan.get_reserved2(),
    );
    outer.inner = vxlan.payload().to_vec();
    (outer.destination_port == port).then_some(outer)
}

fn dissect_ipv4(bytes: &[u8]) -> Option<Outer> {
    let ip = Ipv4Packet::new(bytes)?;
    if ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let (source, destination) = (ip.get_source(), ip.get_destination());
    let udp = UdpPacket::new(ip.payload())?;
    let more = ip.get_flags() & Ipv4Flags::MoreFragments != 0;
    Some(Outer {
        source: source.into(),
        destination: destination.into(),
        tos: ip.get_dscp() << 2 | ip.get_ecn(),
        ttl: ip.get_ttl(),
        dont_fragment: ip.get_flags() & Ipv4Flags::DontFragment != 0,
        fragment: more || ip.get_fragment_offset() != 0,
        ip_checksum_ok: ip.get_checksum() == ipv4::checksum(&ip),
        source_port: udp.get_source(),
        destination_port: udp.get_destination(),
        udp_checksum: udp.get_checksum(),
        udp_checksum_right: never_zero(udp::ipv4_checksum(&udp, &source, &destination)),
        vxlan: (0, 0, 0, 0),
        inner: udp.payload().to_vec(),
    })
}

fn dissect_ipv6(bytes: &[u8]) -> Option<Outer> {
    let ip = Ipv6Packet::new(bytes)?;
    if ip.get_next_header() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let (source, destination) = (ip.get_source(), ip.get_destination());
    let udp = UdpPacket::new(ip.payload())?;
    Some(Outer {
        source: source.into(),
        destination: destination.into(),
        tos: ip.get_traffic_class(),
        ttl: ip.get_hop_limit(),
        dont_fragment: true,
        fragment: false,
        ip_checksum_ok: true,
        source_port: udp.get_source(),
        destination_port: udp.get_destination(),
        udp_checksum: udp.get_checksum(),
        udp_checksum_right: never_zero(udp::ipv6_checksum(&udp, &source, &destination)),
        vxlan: (0, 0, 0, 0),
        inner: udp.payload().to_vec(),
    })
}

/// A sum of zero is sent as all ones (RFC 768), which pnet leaves to its caller.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

impl Outer {
    /// What every packet of a VTEP of ours must be on the wire (RFC 7348 §5 and §4.3).
    pub fn check(&self, source: IpAddr, vni: u32) {
        assert_eq!(self.source, source);
        assert_eq!(self.ttl, 64, "TTL");
        assert!(self.dont_fragment && !self.fragment, "{self:?}");
        assert!(self.ip_checksum_ok, "IP checksum");
        assert!(self.source_port >= 49152, "port {}", self.source_port);
        assert_ne!(self.udp_checksum, 0, "the outer checksum is on");
        assert_eq!(self.udp_checksum, self.udp_checksum_right, "UDP checksum");
        assert_eq!(self.vxlan, (8, 0, vni, 0), "VXLAN header");
    }
}

/// Makes a link send packets as they would be on a wire: no super-frames, no unfinished checksums.
pub fn wire_like(namespace: &str, name: &str) {
    sh(&format!(
        "ip netns exec {namespace} ethtool -K {name} tx off sg off tso off gso off >/dev/null"
    ));
}
