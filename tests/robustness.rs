//! Random and mutated frames at the uplink and at the UDP port of workers in memory, a million each with
//! `WEFT_LONG=1`: no panic, each one counted.

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::dataplane::{
    Pair, arp_request, eth_ipv4_udp, eth_ipv6_udp, mac_of, neighbour_solicitation, v6, vni,
};
use common::random::{Random, frames_in};
use common::skip::long;
use weft::dataplane::channel::{Frame, Sent};
use weft::tables::SegmentPolicy;
use weft::wire::frame::FrameBuilder;
use weft::wire::{VnetHdr, vxlan};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// By each way.
fn frames() -> u64 {
    if long("a million frames in memory") {
        1_000_000
    } else {
        100_000
    }
}

fn seeds() -> Vec<(VnetHdr, Vec<u8>)> {
    let tcp = |v4: bool, len: usize| {
        let builder = if v4 {
            FrameBuilder::v4().ipv4(A, B)
        } else {
            FrameBuilder::v6().ipv6(v6(1), v6(2))
        };
        builder
            .src(mac_of(A))
            .dst(mac_of(B))
            .tcp(1, 2)
            .payload_len(len)
            .partial_checksum()
            .build()
    };
    let gso = |gso_type, csum_start| VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type,
        hdr_len: 54,
        gso_size: 1000,
        csum_start,
        csum_offset: 16,
    };
    vec![
        (VnetHdr::default(), eth_ipv4_udp(A, B, &[1; 30])),
        (
            VnetHdr::default(),
            eth_ipv6_udp(v6(1), v6(2), mac_of(A), mac_of(B), &[1; 30]),
        ),
        (VnetHdr::default(), arp_request(A, B)),
        (
            VnetHdr::default(),
            neighbour_solicitation(v6(1), v6(2), mac_of(A)),
        ),
        (gso(VnetHdr::GSO_TCPV4, 34), tcp(true, 3000)),
        (gso(VnetHdr::GSO_TCPV6, 54), tcp(false, 3000)),
    ]
}

#[test]
fn hostile_frames_at_the_uplink_are_all_accounted_for() {
    let mut random = Random(1);
    let seeds = seeds();
    let mut pair = Pair::new(SegmentPolicy {
        bum_rate: 0,
        ..SegmentPolicy::default()
    });
    let mut made = 0;
    for index in 0..frames() {
        let (mut vnet, mut bytes) = seeds[random.below(seeds.len())].clone();
        if random.below(10) == 0 {
            let len = random.below(200);
            bytes = random.bytes(len);
        } else {
            random.mutate(&mut bytes, 80);
        }
        if random.below(3) == 0 {
            vnet = random.vnet();
        }
        let vlan = (random.below(20) == 0).then(|| (random.next() as u16, 0x8100));
        made += frames_in(vnet, &bytes, vlan);
        pair.a.port.push(Frame { vnet, bytes, vlan });
        if index % 50 == 0 {
            pair.run();
            pair.a.port.take();
            pair.b.port.take();
            pair.wire.take_heard();
        }
    }
    pair.run();
    assert_eq!(pair.a.counters().encap_frames, made);
    assert!(
        pair.a.counters().forwarded > 1000,
        "{:?}",
        pair.a.counters()
    );
    pair.check();
}

#[test]
fn hostile_datagrams_are_all_accounted_for() {
    let mut random = Random(2);
    let seeds = seeds();
    let mut pair = Pair::new(SegmentPolicy::default());
    let mut sent = 0;
    for index in 0..frames() {
        let mut bytes = vxlan::encode(vni()).to_vec();
        let (_, mut inner) = seeds[random.below(4)].clone();
        if inner.len() > 12 && random.below(3) > 0 {
            let (from, to) = (mac_of(A).0, mac_of(B).0);
            inner[..6].copy_from_slice(&to);
            inner[6..12].copy_from_slice(&from);
        }
        bytes.extend(inner);
        if random.below(10) == 0 {
            let len = random.below(300);
            bytes = random.bytes(len);
        } else {
            random.mutate(&mut bytes, 80);
        }
        let segment_size = if random.below(4) == 0 {
            1 + random.below(bytes.len())
        } else {
            bytes.len()
        };
        let known = random.below(20) > 0;
        let source = SocketAddr::from(([192, 0, 2, if known { 1 } else { 77 }], 50000));
        pair.wire.inject(Sent {
            source,
            destination: pair.b.vtep,
            tos: random.next() as u8,
            bytes,
            segment_size: segment_size.max(1),
        });
        sent += 1;
        if index % 50 == 0 {
            pair.run();
            pair.b.port.take();
        }
    }
    pair.run();
    assert!(pair.b.counters().decap_datagrams >= sent);
    assert!(
        pair.b.counters().delivered > 1000,
        "{:?}",
        pair.b.counters()
    );
    pair.check();
}
