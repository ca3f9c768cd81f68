//! Fuzz bodies of the whole forwarding loop over channels: whatever comes, no panic and every frame
//! accounted for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::channel::{ChannelPort, ChannelUnderlay, ChannelWire, Frame, Sent};
use super::counters::Counters;
use super::forwarder::{Worker, WorkerConfig};
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::tables::{SegmentConfig, SegmentIndex, SegmentPolicy, TableWriter};
use crate::wire::frame::FrameBuilder;
use crate::wire::{Mac, VnetHdr, Vni, vxlan};

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4789);
const THERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 4789);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

struct Node {
    wire: ChannelWire,
    port: ChannelPort,
    worker: Worker<ChannelPort, ChannelUnderlay>,
    counters: Arc<CachePadded<Counters>>,
}

fn ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, host)
}

fn record(host: u8, vtep: SocketAddr) -> EndpointRecord {
    EndpointRecord {
        network: "fuzz".into(),
        vni: Vni::FIRST_USER,
        endpoint: format!("endpoint{host}"),
        mac: Mac::from_ipv4(ip(host)),
        ips: vec![ip(host).into()],
        vtep: vtep.ip(),
        node: String::new(),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

fn node(policy: SegmentPolicy) -> Option<Node> {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    let config = SegmentConfig {
        vni: Vni::FIRST_USER,
        network: "fuzz".into(),
        mtu: 1450,
        subnets: Vec::new(),
        gateways: vec![GATEWAY.into()],
        gateway_mac: Mac::from_ipv4(GATEWAY),
        policy,
    };
    let index = writer.add_segment(config).ok()?;
    writer.upsert_local(&record(1, HERE)).ok()?;
    writer.upsert_remote(&record(2, THERE)).ok()?;
    let wire = ChannelWire::new();
    let counters = Arc::new(CachePadded::new(Counters::default()));
    let port = ChannelPort::new();
    let underlay = wire.attach(HERE);
    let mut worker = Worker::new(
        WorkerConfig::default(),
        tables,
        Arc::clone(&counters),
        underlay,
        None,
    );
    worker.add_port(index, port.clone());
    Some(Node {
        wire,
        port,
        worker,
        counters,
    })
}

fn policy(byte: u8) -> SegmentPolicy {
    if byte & 1 == 0 {
        SegmentPolicy::default()
    } else {
        SegmentPolicy::interop()
    }
}

/// A workload sends: policy, tag flag, TCI, path MTU, virtio header, frame.
///
/// # Panics
/// When a frame is not accounted for, or something that is no VXLAN datagram goes out.
pub fn encap(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<18>() else {
        return;
    };
    let Some(mut node) = node(policy(head[0])) else {
        return;
    };
    let vlan = (head[1] & 1 == 1).then(|| (u16::from_be_bytes([head[2], head[3]]), 0x8100));
    let mtu = u16::from_be_bytes([head[4], head[5]]);
    if mtu > 0 {
        node.wire.set_path_mtu(THERE, u32::from(mtu));
    }
    for _ in 0..2 {
        let frame = Frame {
            vnet: VnetHdr::parse(&head[6..]),
            bytes: rest.to_vec(),
            vlan,
        };
        node.port.push(frame);
        node.worker.encap_burst(SegmentIndex(0), 1_000_000_000);
    }
    for sent in node.wire.take_heard() {
        assert_eq!(sent.destination, THERE);
        for datagram in sent.datagrams() {
            let header = vxlan::decode(datagram).expect("a VXLAN header");
            assert_eq!(
                (header.vni, header.reserved_bits),
                (Vni::FIRST_USER.value(), 0)
            );
        }
    }
    node.counters
        .snapshot()
        .check_conservation()
        .expect("every frame accounted for");
}

/// The underlay brings datagrams: policy, sender flag, TOS, length of each, then the bytes.
///
/// # Panics
/// When a datagram is not accounted for, or one is sent back to the underlay.
pub fn decap(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<5>() else {
        return;
    };
    let Some(mut node) = node(policy(head[0])) else {
        return;
    };
    node.worker.underlay_mut().coalesced = head[0] & 2 == 0;
    let host = if head[1] & 1 == 0 {
        THERE.ip()
    } else {
        [192, 0, 2, 77].into()
    };
    let stride = usize::from(u16::from_be_bytes([head[3], head[4]]));
    let segment_size = if stride == 0 { rest.len() } else { stride };
    node.wire.inject(Sent {
        source: SocketAddr::new(host, 50000),
        destination: HERE,
        tos: head[2],
        bytes: rest.to_vec(),
        segment_size: segment_size.max(1),
    });
    node.worker.decap_burst(1_000_000_000);
    assert!(node.wire.take_heard().is_empty(), "split horizon");
    node.counters
        .snapshot()
        .check_conservation()
        .expect("every datagram accounted for");
}

fn builders(from: u8, to: u8) -> Vec<FrameBuilder> {
    let at = |builder: FrameBuilder| {
        builder
            .src(Mac::from_ipv4(ip(from)))
            .dst(Mac::from_ipv4(ip(to)))
            .ipv4(ip(from), ip(to))
    };
    vec![
        at(FrameBuilder::v4()).udp(4000, 5000).payload_len(40),
        at(FrameBuilder::v4())
            .dont_fragment()
            .tcp(4000, 5000)
            .payload_len(3000),
        at(FrameBuilder::v4()).icmp_echo(1, 1).payload_len(56),
    ]
}

/// Frames that pass, for [`encap`].
pub fn encap_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (index, builder) in builders(1, 2).into_iter().enumerate() {
        let gso = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            gso_type: VnetHdr::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1398,
            csum_start: 34,
            csum_offset: 16,
        };
        let tcp = index == 1;
        let vnet = if tcp { gso } else { VnetHdr::default() };
        let frame = if tcp {
            builder.partial_checksum().build()
        } else {
            builder.build()
        };
        let mut seed = vec![0, u8::from(index == 2), 0, 5, 0x05, 0xdc];
        seed.extend(vnet.to_bytes());
        seed.extend(frame);
        seeds.push(seed);
    }
    seeds
}

/// Datagrams that pass, for [`decap`].
pub fn decap_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for builder in builders(2, 1) {
        let datagram = [&vxlan::encode(Vni::FIRST_USER)[..], &builder.build()].concat();
        let len = (datagram.len() as u16).to_be_bytes();
        seeds.push([&[0, 0, 1, len[0], len[1]], &datagram.repeat(3)[..]].concat());
    }
    seeds
}
