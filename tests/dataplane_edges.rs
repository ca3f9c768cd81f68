//! Workers over channels at their edges: who may speak for whom, order when marks change, errors that
//! say less than they seem to, and records that are replaced. Beside `tests/dataplane.rs`.

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::dataplane::{
    Pair, arp_request, eth_ipv4_udp, fix_ipv4_checksum, mac_of, record, v6, vni,
};
use weft::dataplane::channel::{Frame, Sent};
use weft::dataplane::verdict::DropReason;
use weft::tables::SegmentPolicy;
use weft::tables::record::Version;
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, VnetHdr, checksum, vxlan};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

fn pair() -> Pair {
    Pair::new(SegmentPolicy::default())
}

/// Gives B a frame as if the VTEP of A had sent it.
fn tunnel(pair: &mut Pair, frame: &[u8]) {
    let bytes = [&vxlan::encode(vni())[..], frame].concat();
    pair.wire.inject(Sent {
        source: SocketAddr::new(pair.a.vtep.ip(), 50000),
        destination: pair.b.vtep,
        tos: 0,
        segment_size: bytes.len(),
        bytes,
    });
    pair.run();
}

/// An ARP reply by which `mac` says that it has `ip`.
fn arp_reply(mac: Mac, ip: Ipv4Addr, hardware: u8) -> Vec<u8> {
    let mut frame = arp_request(ip, A);
    frame[6..12].copy_from_slice(&mac.0);
    frame[15] = hardware;
    frame[21] = 2;
    frame[22..28].copy_from_slice(&mac.0);
    frame
}

/// A neighbour advertisement by which `mac` says that it has `target`.
fn advertisement(source: u16, target: u16, mac: Mac) -> Vec<u8> {
    let mut body = v6(target).octets().to_vec();
    body.extend([2, 1]);
    body.extend(mac.0);
    FrameBuilder::new(mac, mac_of(B))
        .ipv6(v6(source), v6(2))
        .ttl(255)
        .icmp(136, 0, 0x6000_0000)
        .payload(&body)
        .build()
}

#[test]
fn arp_of_another_hardware_type_is_no_way_around_the_check() {
    // Linux takes type 6 (IEEE 802) for Ethernet.
    for hardware in [1, 6, 7] {
        let mut pair = pair();
        let claim = arp_reply(mac_of(A), B, hardware);
        pair.a.port.push(Frame::plain(claim.clone()));
        pair.run();
        assert_eq!(pair.a.counters().dropped(DropReason::SpoofedSourceIp), 1);
        let claim = arp_reply(mac_of(A), Ipv4Addr::new(10, 0, 1, 9), hardware);
        tunnel(&mut pair, &claim);
        assert_eq!(pair.b.counters().dropped(DropReason::InnerSpoofedIp), 1);
        assert!(pair.b.port.take().is_empty());
        pair.check();
    }
}

#[test]
fn the_gateways_mac_speaks_for_the_gateway_alone() {
    let gateway = mac_of(GATEWAY);
    let mut pair = pair();
    tunnel(&mut pair, &arp_reply(gateway, GATEWAY, 1));
    tunnel(&mut pair, &advertisement(0xfe, 0xfe, gateway));
    assert_eq!(pair.b.port.take().len(), 2, "{:?}", pair.b.counters());
    let mut mixed = arp_reply(gateway, GATEWAY, 1);
    mixed[22..28].copy_from_slice(&mac_of(A).0);
    let lies = [
        arp_reply(gateway, A, 1),
        mixed,
        advertisement(0xfe, 2, gateway),
        advertisement(0xfe, 1, gateway),
    ];
    for (number, lie) in lies.iter().enumerate() {
        tunnel(&mut pair, lie);
        let dropped = pair.b.counters().dropped(DropReason::InnerSpoofedIp);
        assert_eq!(dropped, number as u64 + 1, "lie {number}");
    }
    assert!(pair.b.port.take().is_empty());
    pair.check();
}

#[test]
fn no_vtep_plays_router_or_dhcp_server() {
    let mut pair = pair();
    let router = FrameBuilder::new(mac_of(A), Mac([0x33, 0x33, 0, 0, 0, 1]))
        .ipv6(v6(1), "ff02::1".parse().unwrap())
        .ttl(255)
        .icmp(134, 0, 0x4000_0708)
        .payload(&[0; 8])
        .build();
    let gateway = FrameBuilder::new(mac_of(GATEWAY), Mac([0x33, 0x33, 0, 0, 0, 1]))
        .ipv6("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap())
        .ttl(255)
        .icmp(134, 0, 0x4000_0708)
        .payload(&[0; 8])
        .build();
    let offer = FrameBuilder::new(mac_of(A), mac_of(B)).ipv4(A, B);
    let offer = offer.udp(67, 68).payload(&[2; 240]).build();
    for (number, frame) in [router, gateway, offer].iter().enumerate() {
        tunnel(&mut pair, frame);
        let dropped = pair.b.counters().dropped(DropReason::InnerRogue);
        assert_eq!(dropped, number as u64 + 1);
    }
    assert!(pair.b.port.take().is_empty());
    pair.check();
}

#[test]
fn an_unfinished_checksum_does_not_hide_a_neighbour_claim() {
    let mut pair = pair();
    let mut body = v6(2).octets().to_vec();
    body.extend([2, 1]);
    body.extend(mac_of(A).0);
    let claim = FrameBuilder::new(mac_of(A), mac_of(B))
        .ipv6(v6(1), v6(2))
        .ttl(255)
        .icmp(136, 0, 0x6000_0000)
        .payload(&body);
    let mut frame = Frame::plain(claim.build());
    // The kernel leaves the sum of the pseudo-header there.
    let len = frame.bytes.len() as u32 - 54;
    let sum = checksum::fold(checksum::pseudo_v6(v6(1), v6(2), 58, len));
    frame.bytes[56..58].copy_from_slice(&sum.to_ne_bytes());
    frame.vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: 14 + 40,
        csum_offset: 2,
        ..VnetHdr::default()
    };
    pair.a.port.push(frame);
    pair.run();
    let counters = pair.a.counters();
    let dropped = counters.dropped(DropReason::SpoofedSourceIp);
    assert_eq!(dropped, 1, "{counters:?}");
    assert!(pair.wire.take_heard().is_empty());
    pair.check();
}

#[test]
fn a_flow_whose_marks_change_keeps_its_order() {
    let mut pair = pair();
    // Data with ECT(0), a mark on the way, a bare acknowledgement: one flow, three TOS values in turn.
    for number in 0..60_u8 {
        let mut frame = eth_ipv4_udp(A, B, &[number; 200]);
        frame[15] = [2, 3, 2, 0][usize::from(number) % 4];
        fix_ipv4_checksum(&mut frame);
        pair.a.port.push(Frame::plain(frame));
    }
    pair.run();
    let numbers = |sent: &Sent| -> Vec<u8> { sent.datagrams().map(|d| d[8 + 42]).collect() };
    let heard: Vec<u8> = pair.wire.take_heard().iter().flat_map(numbers).collect();
    assert_eq!(heard, (0..60).collect::<Vec<u8>>());
    pair.check();
}

#[test]
fn a_vtep_that_cannot_be_reached_does_not_end_segmentation() {
    let mut pair = pair();
    // A blackhole route answers EINVAL to whatever is sent.
    pair.wire.fail_next([libc::EINVAL; 6]);
    let burst = |pair: &mut Pair| {
        for _ in 0..5 {
            pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
        }
        pair.run();
    };
    burst(&mut pair);
    assert_eq!(pair.a.counters().dropped(DropReason::UnderlayRefused), 5);
    burst(&mut pair);
    assert_eq!(pair.wire.take_heard().len(), 1, "five in one send");
    pair.check();
}

#[test]
fn a_kernel_that_takes_64_datagrams_gets_64() {
    let mut pair = pair();
    let burst = |pair: &mut Pair, count| {
        for _ in 0..count {
            pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
        }
        pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"")));
        pair.run();
        pair.wire.take_heard().len()
    };
    // A worker reads 64 frames a burst, so only super-frames fill a group beyond; two of 50 here.
    let mut super_frame = Frame::plain(eth_ipv4_udp(A, B, &[7; 500]));
    super_frame.vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_UDP_L4,
        gso_size: 10,
        hdr_len: 42,
        csum_start: 34,
        csum_offset: 6,
    };
    pair.wire.fail_next([libc::EINVAL]);
    pair.a.port.push(super_frame.clone());
    pair.a.port.push(super_frame);
    pair.run();
    let heard = pair.wire.take_heard();
    let counts: Vec<usize> = heard.iter().map(|sent| sent.datagrams().count()).collect();
    assert_eq!(counts, [64, 36]);
    assert_eq!(burst(&mut pair, 40), 1, "segmentation goes on");
    pair.check();
}

#[test]
fn frames_that_fit_pass_where_others_of_their_group_do_not() {
    let mut pair = pair();
    pair.wire.set_path_mtu(pair.b.vtep, 1400);
    for len in [1390, 1390, 300] {
        let mut frame = eth_ipv4_udp(A, B, &vec![1; len]);
        frame[20] |= 0x40;
        fix_ipv4_checksum(&mut frame);
        pair.a.port.push(Frame::plain(frame));
    }
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::PathTooSmall), 2);
    assert_eq!(pair.b.port.take().len(), 1);
    pair.check();
}

#[test]
fn each_segment_of_a_flooded_super_frame_counts_against_the_rate() {
    let mut pair = Pair::new(SegmentPolicy {
        bum_rate: 60,
        ..SegmentPolicy::default()
    });
    let mut frame = Frame::plain(eth_ipv4_udp(A, Ipv4Addr::new(224, 1, 1, 1), &[7; 500]));
    frame.bytes[..6].copy_from_slice(&[1, 0, 0x5e, 1, 1, 1]);
    frame.vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_UDP_L4,
        gso_size: 10,
        hdr_len: 42,
        csum_start: 34,
        csum_offset: 6,
    };
    pair.a.port.push(frame.clone());
    pair.a.port.push(frame);
    pair.run();
    let counters = pair.a.counters();
    assert_eq!(counters.flooded, 50);
    assert_eq!(counters.dropped(DropReason::BumRate), 50);
    pair.check();
}

#[test]
fn an_answer_nobody_took_is_a_named_drop() {
    let mut pair = pair();
    pair.a.port.fail_with(libc::ENOBUFS);
    pair.a.port.push(Frame::plain(arp_request(A, B)));
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::AnswerLost), 1);
    assert_eq!(pair.a.counters().answered, 0);
    pair.check();
}

#[test]
fn a_newer_record_of_an_endpoint_never_takes_its_vtep_away() {
    let mut pair = pair();
    let view = pair.a.writer.tables().view();
    let vtep = view.snapshot.vtep_by_addr[&pair.b.vtep.ip()];
    for counter in 2..20 {
        let mut newer = record(2, pair.b.vtep.ip());
        newer.version = Version { epoch: 1, counter };
        newer.name = format!("web-{counter}");
        let before = pair.a.writer.tables().view();
        pair.a.writer.upsert_remote(&newer).unwrap();
        let after = pair.a.writer.tables().view();
        let index = weft::tables::SegmentIndex(0);
        let segment = |view: &weft::tables::View| {
            std::sync::Arc::as_ptr(
                &view.snapshot.segments[usize::from(index.0)]
                    .clone()
                    .unwrap(),
            )
        };
        assert_eq!(segment(&before), segment(&after), "nothing to publish");
        assert_eq!(
            after.fdb.find(index, mac_of(B)).and_then(|s| s.vtep()),
            Some(vtep)
        );
    }
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    pair.run();
    assert_eq!(pair.b.port.take().len(), 1);
    pair.check();
}

#[test]
fn single_datagrams_are_received_many_at_a_time_and_joined() {
    let mut pair = pair();
    let mut frame = eth_ipv4_udp(A, B, &[7; 1000]);
    frame[20] |= 0x40;
    fix_ipv4_checksum(&mut frame);
    let single = |source: SocketAddr, vtep: SocketAddr| {
        let bytes = [&vxlan::encode(vni())[..], &frame].concat();
        Sent {
            source,
            destination: vtep,
            tos: 0,
            segment_size: bytes.len(),
            bytes,
        }
    };
    let member = SocketAddr::new(pair.a.vtep.ip(), 50000);
    let stranger = SocketAddr::from(([192, 0, 2, 77], 50000));
    let vtep = pair.b.vtep;
    for number in 0..320 {
        // Between those of a member, in the same call: what holds for one sender must not hold for the other.
        let source = if number % 10 == 9 { stranger } else { member };
        pair.wire.inject(single(source, vtep));
    }
    // A burst ends at its budget; the rest waits for the next.
    let bursts: usize = (0..2)
        .map(|_| pair.b.worker.decap_burst(20_000_000_000))
        .sum();
    assert!(bursts <= 32, "{bursts}");
    let counters = pair.b.counters();
    assert_eq!(counters.dropped(DropReason::UnknownVtep), 32);
    assert_eq!(counters.delivered, 288);
    assert!(counters.receives <= 24, "{}", counters.receives);
    // 64 datagrams are one super-frame at most.
    assert!(counters.deliveries <= 10, "{}", counters.deliveries);
    let joined: usize = pair.b.port.take().iter().map(|f| f.bytes.len() - 42).sum();
    assert_eq!(joined, 288 * 1000);
    pair.check();
}
