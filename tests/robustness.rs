//! A million random and mutated frames at the uplink and at the UDP port: no panic, each one counted.

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::dataplane::{
    Pair, arp_request, eth_ipv4_udp, eth_ipv6_udp, mac_of, neighbour_solicitation, v6, vni,
};
use weft::dataplane::channel::{Frame, Sent};
use weft::tables::SegmentPolicy;
use weft::wire::frame::FrameBuilder;
use weft::wire::{VnetHdr, vxlan};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FRAMES: u64 = 500_000;

/// SplitMix64: deterministic, so that a failure can be replayed by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Flips bytes, cuts or extends.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(frame.len().min(80));
            if let Some(byte) = frame.get_mut(at) {
                *byte = self.next() as u8;
            }
        }
        match self.below(6) {
            0 => frame.truncate(self.below(frame.len() + 1)),
            1 => {
                let extra = self.below(100);
                frame.extend(self.bytes(extra));
            }
            _ => {}
        }
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

fn random_vnet(random: &mut Random) -> VnetHdr {
    VnetHdr {
        flags: random.below(4) as u8,
        gso_type: [0, 1, 3, 4, 5, 0x81, 0x20, 255][random.below(8)],
        hdr_len: random.below(300) as u16,
        gso_size: [0, 1, 100, 1400, 65535][random.below(5)],
        csum_start: random.below(120) as u16,
        csum_offset: random.below(40) as u16,
    }
}

#[test]
fn half_a_million_hostile_frames_at_the_uplink_are_all_accounted_for() {
    let mut random = Random(1);
    let seeds = seeds();
    let mut pair = Pair::new(SegmentPolicy {
        bum_rate: 0,
        ..SegmentPolicy::default()
    });
    for index in 0..FRAMES {
        let (mut vnet, mut bytes) = seeds[random.below(seeds.len())].clone();
        if random.below(10) == 0 {
            let len = random.below(200);
            bytes = random.bytes(len);
        } else {
            random.mutate(&mut bytes);
        }
        if random.below(3) == 0 {
            vnet = random_vnet(&mut random);
        }
        let vlan = (random.below(20) == 0).then(|| (random.next() as u16, 0x8100));
        pair.a.port.push(Frame { vnet, bytes, vlan });
        if index % 50 == 0 {
            pair.run();
            pair.a.port.take();
            pair.b.port.take();
            pair.wire.take_heard();
        }
    }
    pair.run();
    assert!(pair.a.counters().encap_frames >= FRAMES);
    assert!(
        pair.a.counters().forwarded > 1000,
        "{:?}",
        pair.a.counters()
    );
    pair.check();
}

#[test]
fn half_a_million_hostile_datagrams_are_all_accounted_for() {
    let mut random = Random(2);
    let seeds = seeds();
    let mut pair = Pair::new(SegmentPolicy::default());
    let mut sent = 0;
    for index in 0..FRAMES {
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
            random.mutate(&mut bytes);
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
