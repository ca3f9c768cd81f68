//! Two nodes over channels, and the frames their workloads send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crossbeam_channel::Receiver;
use etherparse::PacketBuilder;
use weft::dataplane::channel::{ChannelPort, ChannelUnderlay, ChannelWire};
use weft::dataplane::counters::{CounterSnapshot, Counters};
use weft::dataplane::forwarder::{LearnEvent, Worker, WorkerConfig};
use weft::tables::record::{Backing, EndpointRecord, Version};
use weft::tables::{SegmentConfig, SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::{Mac, Vni, checksum};

/// A node: one worker, one uplink, its tables.
pub struct Node {
    pub writer: TableWriter,
    pub worker: Worker<ChannelPort, ChannelUnderlay>,
    pub port: ChannelPort,
    pub counters: Arc<CachePadded<Counters>>,
    pub vtep: SocketAddr,
    pub learned: Receiver<LearnEvent>,
}

/// Two nodes with one endpoint each: 10.0.1.1 on A, 10.0.1.2 on B.
pub struct Pair {
    pub wire: ChannelWire,
    pub a: Node,
    pub b: Node,
    now_ns: u64,
}

pub fn vni() -> Vni {
    Vni::FIRST_USER
}

pub fn mac_of(ip: Ipv4Addr) -> Mac {
    Mac::from_ipv4(ip)
}

pub fn v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host)
}

pub fn segment_config(vni: u32, policy: SegmentPolicy) -> SegmentConfig {
    let gateway = Ipv4Addr::new(10, 0, 1, 254);
    SegmentConfig {
        vni: Vni::new(vni).unwrap(),
        network: format!("network{vni}"),
        mtu: 1450,
        subnets: vec!["10.0.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        gateways: vec![gateway.into(), v6(0xfe).into()],
        gateway_mac: mac_of(gateway),
        policy,
    }
}

pub fn record(host: u8, vtep: IpAddr) -> EndpointRecord {
    let ip = Ipv4Addr::new(10, 0, 1, host);
    EndpointRecord {
        network: "network4097".into(),
        vni: vni(),
        endpoint: format!("endpoint{host}"),
        mac: mac_of(ip),
        ips: vec![ip.into(), v6(u16::from(host)).into()],
        vtep,
        node: String::new(),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version {
            epoch: 1,
            counter: 1,
        },
    }
}

impl Node {
    fn new(wire: &ChannelWire, host: u8, policy: SegmentPolicy) -> Node {
        let vtep = SocketAddr::from(([192, 0, 2, host], 4789));
        let (mut writer, tables) = TableWriter::new(4789, 1);
        writer
            .add_segment(segment_config(vni().value(), policy))
            .unwrap();
        let other = 3 - host;
        writer.upsert_local(&record(host, vtep.ip())).unwrap();
        writer
            .upsert_remote(&record(other, IpAddr::from([192, 0, 2, other])))
            .unwrap();
        let counters = Arc::new(CachePadded::new(Counters::default()));
        let (learn, learned) = crossbeam_channel::bounded(64);
        let mut worker = Worker::new(
            WorkerConfig::default(),
            tables,
            Arc::clone(&counters),
            wire.attach(vtep),
            Some(learn),
        );
        let port = ChannelPort::new();
        worker.add_port(SegmentIndex(0), port.clone());
        Node {
            writer,
            worker,
            port,
            counters,
            vtep,
            learned,
        }
    }

    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// Another network with nobody in it.
    pub fn add_network(&mut self, vni: u32, policy: SegmentPolicy) {
        self.writer
            .add_segment(segment_config(vni, policy))
            .unwrap();
    }

    /// Forgets the other node's endpoint, and with it the VTEP.
    pub fn forget_remote(&mut self) {
        let other = 3 - match self.vtep.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!("test VTEPs are IPv4"),
        };
        self.writer
            .remove(vni(), &format!("endpoint{other}"))
            .unwrap();
    }

    pub fn remove_port(&mut self) {
        self.worker.remove_port(SegmentIndex(0));
    }
}

impl Pair {
    pub fn new(policy: SegmentPolicy) -> Pair {
        let wire = ChannelWire::new();
        let (a, b) = (Node::new(&wire, 1, policy), Node::new(&wire, 2, policy));
        Pair {
            wire,
            a,
            b,
            now_ns: 10_000_000_000,
        }
    }

    /// Runs both workers until nothing moves.
    pub fn run(&mut self) {
        loop {
            self.now_ns += 1000;
            let mut done = 0;
            for node in [&mut self.a, &mut self.b] {
                done += node.worker.encap_burst(SegmentIndex(0), self.now_ns);
                done += node.worker.decap_burst(self.now_ns);
            }
            if done == 0 {
                return;
            }
        }
    }

    /// Every frame is accounted for.
    pub fn check(&self) {
        for node in [&self.a, &self.b] {
            node.counters().check_conservation().unwrap();
        }
    }
}

pub fn eth_ipv4_udp(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac_of(src).0, mac_of(dst).0)
        .ipv4(src.octets(), dst.octets(), 64)
        .udp(4000, 5000)
        .write(&mut frame, payload)
        .unwrap();
    // The builder sets DF; without it the packet may be fragmented.
    frame[20] &= !0x40;
    fix_ipv4_checksum(&mut frame);
    frame
}

pub fn eth_ipv6_udp(src: Ipv6Addr, dst: Ipv6Addr, from: Mac, to: Mac, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv6(src.octets(), dst.octets(), 64)
        .udp(4000, 5000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum::finish(checksum::sum(&frame[14..34], 0));
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
}

pub fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(Mac::BROADCAST.0);
    frame.extend(mac_of(Ipv4Addr::new(10, 0, 1, 1)).0);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(mac_of(Ipv4Addr::new(10, 0, 1, 1)).0);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

pub fn neighbour_solicitation(src: Ipv6Addr, target: Ipv6Addr, from: Mac) -> Vec<u8> {
    let t = target.octets();
    let group = [
        0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, t[13], t[14], t[15],
    ];
    let mut body = t.to_vec();
    body.extend([1, 1]);
    body.extend(from.0);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, [0x33, 0x33, 0xff, t[13], t[14], t[15]])
        .ipv6(src.octets(), group, 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &body)
        .unwrap();
    frame
}
