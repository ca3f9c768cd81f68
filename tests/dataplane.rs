//! Workers over channels with an eavesdropper on the wire: what passes, what ends where, and that
//! every frame is accounted for. The same worker code runs over real sockets in `tests/kernel_*.rs`.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use common::dataplane::{
    Pair, arp_request, eth_ipv4_udp, eth_ipv6_udp, mac_of, neighbour_solicitation, record,
    segment_config, v6, vni,
};
use etherparse::PacketBuilder;
use weft::dataplane::channel::{Frame, Sent};
use weft::dataplane::decap;
use weft::dataplane::verdict::DropReason;
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, Vni, inner, vxlan};

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

#[test]
fn a_frame_ends_at_the_endpoint_that_has_its_destination_address() {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    let policy = SegmentPolicy::default();
    writer
        .add_segment(segment_config(vni().value(), policy))
        .unwrap();
    let here = IpAddr::from([192, 0, 2, 1]);
    writer.upsert_local(&record(1, here)).unwrap();
    writer.upsert_local(&record(2, here)).unwrap();
    let view = tables.view();
    let segment = view.snapshot.segment(SegmentIndex(0)).unwrap();
    let ends_here = |mac, ip, tag: Option<u16>| {
        let frame = FrameBuilder::v6().dst(mac).ipv6(v6(9), ip).tcp(1, 2);
        let frame = tag.into_iter().fold(frame, FrameBuilder::vlan).build();
        let inner = inner::parse(&frame).unwrap();
        decap::ends_here(&view, segment, &frame, &inner)
    };
    assert!(ends_here(mac_of(A), v6(1), None));
    // For its neighbour, for a host behind it, for the gateway to route, on a VLAN of its own.
    assert!(!ends_here(mac_of(A), v6(2), None));
    assert!(!ends_here(mac_of(A), v6(7), None));
    assert!(!ends_here(mac_of([10, 0, 1, 254].into()), v6(1), None));
    assert!(!ends_here(mac_of(A), v6(1), Some(5)));
}

fn pair() -> Pair {
    Pair::new(SegmentPolicy::default())
}

#[test]
fn a_frame_for_a_remote_endpoint_arrives_unchanged_in_one_datagram() {
    let mut pair = pair();
    let frame = eth_ipv4_udp(A, B, b"hello");
    pair.a.port.push(Frame::plain(frame.clone()));
    pair.run();
    let heard = pair.wire.take_heard();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].bytes[..8], vxlan::encode(vni()));
    assert_eq!(heard[0].bytes[8..], frame);
    assert!(heard[0].source.port() >= 49152 && heard[0].destination.port() == 4789);
    let got = pair.b.port.take();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].bytes, frame);
    pair.check();
}

#[test]
fn a_burst_of_equal_packets_is_one_send_and_one_delivery() {
    let mut pair = pair();
    let mut frame = eth_ipv4_udp(A, B, &[7; 64]);
    frame[20] |= 0x40;
    common::dataplane::fix_ipv4_checksum(&mut frame);
    for _ in 0..30 {
        pair.a.port.push(Frame::plain(frame.clone()));
    }
    pair.run();
    assert_eq!(pair.wire.take_heard().len(), 1);
    let got = pair.b.port.take();
    assert_eq!(
        got.len(),
        1,
        "thirty datagrams of one flow are one USO frame"
    );
    assert_eq!(got[0].vnet.gso_size, 64);
    assert_eq!(pair.b.counters().delivered, 30);
    pair.check();
}

#[test]
fn arp_for_a_remote_endpoint_is_answered_from_the_table_and_not_sent_out() {
    let mut pair = pair();
    pair.a.port.push(Frame::plain(arp_request(A, B)));
    pair.run();
    assert!(pair.wire.take_heard().is_empty());
    let got = pair.a.port.take();
    assert_eq!(got.len(), 1);
    let reply = &got[0].bytes;
    assert_eq!(reply[..6], mac_of(A).0, "to the asker");
    assert_eq!(reply[20..22], [0, 2], "an ARP reply");
    assert_eq!(reply[22..28], mac_of(B).0);
    assert_eq!(reply[28..32], B.octets());
    assert_eq!(pair.a.counters().answered, 1);
    pair.check();
}

#[test]
fn neighbour_solicitation_is_answered_from_the_table() {
    let mut pair = pair();
    let (a6, b6) = (common::dataplane::v6(1), common::dataplane::v6(2));
    pair.a
        .port
        .push(Frame::plain(neighbour_solicitation(a6, b6, mac_of(A))));
    pair.run();
    assert!(pair.wire.take_heard().is_empty());
    let got = pair.a.port.take();
    assert_eq!(got.len(), 1);
    let reply = &got[0].bytes;
    assert_eq!(reply[14 + 40], 136, "a neighbour advertisement");
    assert_eq!(reply[14 + 48..14 + 64], b6.octets());
    assert_eq!(
        reply[14 + 66..14 + 72],
        mac_of(B).0,
        "target link-layer address"
    );
    pair.check();
}

#[test]
fn ipv6_passes_like_ipv4() {
    let mut pair = pair();
    let frame = eth_ipv6_udp(
        common::dataplane::v6(1),
        common::dataplane::v6(2),
        mac_of(A),
        mac_of(B),
        b"six",
    );
    pair.a.port.push(Frame::plain(frame.clone()));
    pair.run();
    assert_eq!(pair.b.port.take()[0].bytes, frame);
    pair.check();
}

/// One frame of workload A that must end with `reason`.
fn ends_out(policy: SegmentPolicy, frame: Frame, reason: DropReason) {
    let mut pair = Pair::new(policy);
    pair.a.port.push(frame);
    pair.run();
    assert_eq!(
        pair.a.counters().dropped(reason),
        1,
        "{reason:?}: {:?}",
        pair.a.counters()
    );
    assert!(pair.wire.take_heard().is_empty() && pair.b.port.take().is_empty());
    pair.check();
}

#[test]
fn workload_frames_that_must_not_leave_end_with_their_own_reason() {
    let default = SegmentPolicy::default();
    let good = eth_ipv4_udp(A, B, b"x");
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        Frame::plain(frame)
    };
    ends_out(
        default,
        Frame::plain(good[..10].to_vec()),
        DropReason::FrameMalformed,
    );
    ends_out(default, with(14, &[0x41]), DropReason::FrameMalformed);
    ends_out(default, with(16, &[0x40, 0]), DropReason::FrameMalformed);
    ends_out(
        default,
        with(0, &[1, 0x80, 0xc2, 0, 0, 0]),
        DropReason::LinkLocalControl,
    );
    ends_out(
        default,
        with(6, &[2, 9, 9, 9, 9, 9]),
        DropReason::SpoofedSourceMac,
    );
    ends_out(
        default,
        with(26, &[10, 0, 1, 99]),
        DropReason::SpoofedSourceIp,
    );
    ends_out(
        default,
        Frame::plain(arp_request(Ipv4Addr::new(10, 0, 1, 99), B)),
        DropReason::SpoofedSourceIp,
    );
    ends_out(
        default,
        with(0, &[2, 9, 9, 9, 9, 9]),
        DropReason::UnknownUnicast,
    );
    ends_out(default, with(0, &mac_of(A).0), DropReason::LocalDestination);
    ends_out(
        default,
        Frame::plain(arp_request(A, A)),
        DropReason::NeighbourLocal,
    );
    ends_out(
        default,
        Frame::plain(arp_request(A, Ipv4Addr::new(10, 0, 1, 254))),
        DropReason::NeighbourLocal,
    );
    ends_out(
        default,
        Frame::plain(arp_request(A, Ipv4Addr::new(10, 0, 1, 77))),
        DropReason::NeighbourUnknown,
    );
    let no_tags = SegmentPolicy {
        carry_vlan: false,
        ..default
    };
    let tagged = Frame {
        vlan: Some((5, 0x8100)),
        ..Frame::plain(good.clone())
    };
    ends_out(no_tags, tagged, DropReason::TaggedFrame);
    let mut dhcp = Vec::new();
    PacketBuilder::ethernet2(mac_of(A).0, mac_of(B).0)
        .ipv4(A.octets(), B.octets(), 64)
        .udp(67, 68)
        .write(&mut dhcp, b"offer")
        .unwrap();
    ends_out(default, Frame::plain(dhcp), DropReason::RogueDhcp);
    let mut advertisement = Vec::new();
    PacketBuilder::ethernet2(mac_of(A).0, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(
            common::dataplane::v6(1).octets(),
            [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            255,
        )
        .icmpv6_raw(134, 0, [64, 0, 7, 8])
        .write(&mut advertisement, &[0; 8])
        .unwrap();
    ends_out(
        default,
        Frame::plain(advertisement),
        DropReason::RogueRouter,
    );
    let mut lying = Frame::plain(good.clone());
    lying.vnet.flags = 1;
    lying.vnet.csum_start = 9000;
    ends_out(default, lying, DropReason::OffloadMalformed);
    ends_out(
        default,
        Frame::plain([good.clone(), vec![0; 300_000]].concat()),
        DropReason::FrameTruncated,
    );
}

#[test]
fn a_tagged_frame_passes_with_its_tag_back_in_place() {
    let mut pair = pair();
    let frame = eth_ipv4_udp(A, B, b"tagged");
    pair.a.port.push(Frame {
        vlan: Some((0x2005, 0x8100)),
        ..Frame::plain(frame.clone())
    });
    pair.run();
    let got = &pair.b.port.take()[0].bytes;
    assert_eq!(got[12..16], [0x81, 0, 0x20, 5]);
    assert_eq!((&got[..12], &got[16..]), (&frame[..12], &frame[12..]));
    pair.check();
}

#[test]
fn broadcast_reaches_each_vtep_exactly_once_and_obeys_the_rate() {
    let mut pair = Pair::new(SegmentPolicy {
        bum_rate: 10,
        ..SegmentPolicy::default()
    });
    let third: IpAddr = "192.0.2.3".parse().unwrap();
    pair.a
        .writer
        .set_vteps(vni(), &[pair.b.vtep.ip(), third])
        .unwrap();
    let mut frame = eth_ipv4_udp(A, B, b"to all");
    frame[..6].copy_from_slice(&Mac::BROADCAST.0);
    for _ in 0..25 {
        pair.a.port.push(Frame::plain(frame.clone()));
    }
    pair.run();
    let heard = pair.wire.take_heard();
    let to = |ip: IpAddr| {
        heard
            .iter()
            .filter(|s| s.destination.ip() == ip)
            .map(|s| s.datagrams().count())
            .sum::<usize>()
    };
    assert_eq!((to(pair.b.vtep.ip()), to(third)), (10, 10));
    assert_eq!(pair.a.counters().flooded, 10);
    assert_eq!(pair.a.counters().dropped(DropReason::BumRate), 15);
    pair.check();
}

#[test]
fn broadcast_without_any_vtep_is_counted() {
    let mut pair = pair();
    pair.a.forget_remote();
    let mut frame = eth_ipv4_udp(A, B, b"alone");
    frame[..6].copy_from_slice(&Mac::BROADCAST.0);
    pair.a.port.push(Frame::plain(frame));
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::NoVtep), 1);
    pair.check();
}

/// One datagram from the underlay that must end at B with `reason`.
fn ends_in(policy: SegmentPolicy, source: SocketAddr, bytes: Vec<u8>, tos: u8, reason: DropReason) {
    let mut pair = Pair::new(policy);
    let segment_size = bytes.len();
    pair.wire.inject(Sent {
        source,
        destination: pair.b.vtep,
        tos,
        bytes,
        segment_size,
    });
    pair.run();
    assert_eq!(
        pair.b.counters().dropped(reason),
        1,
        "{reason:?}: {:?}",
        pair.b.counters()
    );
    assert!(pair.b.port.take().is_empty());
    pair.check();
}

#[test]
fn datagrams_that_must_not_enter_end_with_their_own_reason() {
    let default = SegmentPolicy::default();
    let vtep_a: SocketAddr = "192.0.2.1:50000".parse().unwrap();
    let inner = eth_ipv4_udp(A, B, b"x");
    let wrap = |vni: Vni, inner: &[u8]| [&vxlan::encode(vni)[..], inner].concat();
    let good = wrap(vni(), &inner);
    let with = |at: usize, bytes: &[u8]| {
        let mut datagram = good.clone();
        datagram[at..at + bytes.len()].copy_from_slice(bytes);
        datagram
    };
    ends_in(
        default,
        "192.0.2.9:1".parse().unwrap(),
        good.clone(),
        0,
        DropReason::UnknownVtep,
    );
    ends_in(
        default,
        vtep_a,
        good[..7].to_vec(),
        0,
        DropReason::VxlanShort,
    );
    ends_in(
        default,
        vtep_a,
        good[..20].to_vec(),
        0,
        DropReason::VxlanShort,
    );
    ends_in(default, vtep_a, with(0, &[0]), 0, DropReason::VxlanNoVni);
    for (byte, bit) in (0..8).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let reserved = !((4..7).contains(&byte) || byte == 0 && bit == 3);
        if reserved {
            let flags = good[byte] | 1 << bit;
            ends_in(
                default,
                vtep_a,
                with(byte, &[flags]),
                0,
                DropReason::VxlanReservedBits,
            );
        }
    }
    ends_in(
        default,
        vtep_a,
        wrap(Vni::new(9999).unwrap(), &inner),
        0,
        DropReason::UnknownVni,
    );
    ends_in(
        default,
        vtep_a,
        with(8 + 14, &[0x41]),
        0,
        DropReason::InnerMalformed,
    );
    ends_in(
        default,
        vtep_a,
        with(8 + 6, &[2, 9, 9, 9, 9, 9]),
        0,
        DropReason::InnerSpoofedMac,
    );
    ends_in(
        default,
        vtep_a,
        with(8 + 6, &mac_of(B).0),
        0,
        DropReason::InnerSpoofedMac,
    );
    ends_in(
        default,
        vtep_a,
        with(8 + 26, &[10, 0, 1, 99]),
        0,
        DropReason::InnerSpoofedIp,
    );
    ends_in(
        default,
        vtep_a,
        with(8, &mac_of(A).0),
        0,
        DropReason::SplitHorizon,
    );
    ends_in(
        default,
        vtep_a,
        with(8, &[2, 9, 9, 9, 9, 9]),
        0,
        DropReason::NotLocal,
    );
    ends_in(
        default,
        vtep_a,
        with(8, &[1, 0x80, 0xc2, 0, 0, 2]),
        0,
        DropReason::InnerLinkLocalControl,
    );
    let mut tagged = good[..20].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&good[20..]);
    let no_tags = SegmentPolicy {
        carry_vlan: false,
        ..default
    };
    ends_in(no_tags, vtep_a, tagged, 0, DropReason::InnerTaggedFrame);
    ends_in(default, vtep_a, good.clone(), 3, DropReason::EcnCongestion);
}

#[test]
fn a_member_of_one_network_cannot_reach_another() {
    let mut pair = pair();
    pair.b.add_network(4098, SegmentPolicy::default());
    let inner = eth_ipv4_udp(A, B, b"x");
    let bytes = [&vxlan::encode(Vni::new(4098).unwrap())[..], &inner].concat();
    let segment_size = bytes.len();
    let source = SocketAddr::new(pair.a.vtep.ip(), 50000);
    pair.wire.inject(Sent {
        source,
        destination: pair.b.vtep,
        tos: 0,
        bytes,
        segment_size,
    });
    pair.run();
    assert_eq!(pair.b.counters().dropped(DropReason::NotMember), 1);
    pair.check();
}

#[test]
fn reserved_bits_pass_where_the_network_tolerates_them() {
    let mut pair = Pair::new(SegmentPolicy {
        strict_reserved_bits: false,
        ..SegmentPolicy::default()
    });
    let mut bytes = [&vxlan::encode(vni())[..], &eth_ipv4_udp(A, B, b"x")].concat();
    bytes[0] |= 0x80;
    let segment_size = bytes.len();
    let source = SocketAddr::new(pair.a.vtep.ip(), 50000);
    pair.wire.inject(Sent {
        source,
        destination: pair.b.vtep,
        tos: 0,
        bytes,
        segment_size,
    });
    pair.run();
    assert_eq!(pair.b.port.take().len(), 1);
    pair.check();
}

#[test]
fn a_full_or_missing_uplink_is_a_named_drop() {
    let mut pair = pair();
    pair.b.port.set_full(true);
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    pair.run();
    assert_eq!(pair.b.counters().dropped(DropReason::UplinkFull), 1);
    pair.b.port.fail_with(libc::ENETDOWN);
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    pair.run();
    assert_eq!(pair.b.counters().dropped(DropReason::UplinkRefused), 1);
    pair.b.port.set_full(false);
    pair.b.remove_port();
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    pair.run();
    assert_eq!(pair.b.counters().dropped(DropReason::UplinkGone), 1);
    pair.check();
}

#[test]
fn send_errors_are_named_and_segmentation_is_given_up_once() {
    for (error, reason) in [
        (libc::ENETUNREACH, DropReason::UnderlayUnreachable),
        (libc::EPERM, DropReason::UnderlayUnreachable),
        (libc::ENOMEM, DropReason::UnderlayRefused),
    ] {
        let mut pair = pair();
        pair.wire.fail_next([error]);
        pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
        pair.run();
        assert_eq!(pair.a.counters().dropped(reason), 1, "{error}");
        pair.check();
    }
    let mut pair = pair();
    pair.wire.fail_next([libc::EAGAIN, libc::EAGAIN]);
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::UnderlayFull), 1);
    pair.wire.fail_next([libc::EIO]);
    for _ in 0..5 {
        pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"x")));
    }
    pair.run();
    assert_eq!(
        pair.wire.take_heard().len(),
        5,
        "one by one after the refusal"
    );
    assert_eq!(pair.b.counters().delivered, 5);
    pair.check();
}

#[test]
fn a_path_that_shrank_is_learned_and_the_sender_told() {
    let mut pair = pair();
    pair.wire.set_path_mtu(pair.b.vtep, 1400);
    let mut frame = eth_ipv4_udp(A, B, &[1; 1400]);
    frame[20] |= 0x40;
    common::dataplane::fix_ipv4_checksum(&mut frame);
    pair.a.port.push(Frame::plain(frame.clone()));
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::PathTooSmall), 1);
    let told = pair.a.port.take();
    assert_eq!(told.len(), 1);
    let icmp = &told[0].bytes;
    assert_eq!(icmp[26..30], [10, 0, 1, 254], "from the gateway");
    assert_eq!(icmp[34..36], [3, 4], "fragmentation needed");
    assert_eq!(
        u16::from_be_bytes([icmp[40], icmp[41]]),
        1350,
        "1400 less 50"
    );
    // Now the path is known: the next one is told without being sent.
    pair.a.port.push(Frame::plain(frame));
    pair.run();
    assert_eq!(pair.a.counters().dropped(DropReason::TooBig), 1);
    assert_eq!(pair.a.port.take().len(), 1);
    // Without DF it is fragmented inside.
    pair.a
        .port
        .push(Frame::plain(eth_ipv4_udp(A, B, &[1; 1400])));
    pair.run();
    assert_eq!(pair.b.port.take().len(), 2);
    assert_eq!(pair.a.counters().fragmented, 1);
    pair.check();
}

#[test]
fn inner_ecn_goes_out_and_congestion_comes_in() {
    for inner in 0..4u8 {
        let mut pair = pair();
        let mut frame = eth_ipv4_udp(A, B, b"ecn");
        frame[15] = inner;
        common::dataplane::fix_ipv4_checksum(&mut frame);
        pair.a.port.push(Frame::plain(frame.clone()));
        pair.run();
        assert_eq!(pair.wire.take_heard()[0].tos, inner);
        pair.b.port.take();
        let bytes = [&vxlan::encode(vni())[..], &frame].concat();
        let segment_size = bytes.len();
        let source = SocketAddr::new(pair.a.vtep.ip(), 50000);
        pair.wire.inject(Sent {
            source,
            destination: pair.b.vtep,
            tos: 3,
            bytes,
            segment_size,
        });
        pair.run();
        let got = pair.b.port.take();
        if inner == 0 {
            assert!(got.is_empty());
        } else {
            assert_eq!(got[0].bytes[15], 3, "congestion experienced");
        }
        pair.check();
    }
}

#[test]
fn an_interop_network_floods_the_unknown_and_learns() {
    let mut pair = Pair::new(SegmentPolicy::interop());
    let stranger = Mac([2, 9, 9, 9, 9, 9]);
    let mut frame = eth_ipv4_udp(A, B, b"who");
    frame[..6].copy_from_slice(&stranger.0);
    pair.a.port.push(Frame::plain(frame));
    pair.run();
    assert_eq!(pair.a.counters().flooded, 1);
    let mut from = eth_ipv4_udp(A, B, b"me");
    from[6..12].copy_from_slice(&stranger.0);
    let bytes = [&vxlan::encode(vni())[..], &from].concat();
    let segment_size = bytes.len();
    let source = SocketAddr::new(pair.a.vtep.ip(), 50000);
    pair.wire.inject(Sent {
        source,
        destination: pair.b.vtep,
        tos: 0,
        bytes,
        segment_size,
    });
    pair.run();
    let learned: Vec<_> = pair.b.learned.try_iter().collect();
    assert!(learned.iter().any(|e| e.mac == stranger), "{learned:?}");
    pair.check();
}

#[test]
fn a_udp_super_frame_of_a_kernel_peer_keeps_its_segment_size() {
    use weft::wire::frame::FrameBuilder;
    for v6 in [false, true] {
        let mut pair = pair();
        let inner = FrameBuilder::new(mac_of(A), mac_of(B));
        let inner = if v6 {
            inner.ipv6(common::dataplane::v6(1), common::dataplane::v6(2))
        } else {
            inner.ipv4(A, B)
        };
        let inner = inner.udp(4000, 5000).payload(&[9; 5000]);
        let frame = inner.partial_checksum().build();
        // Across veth the kernel tells the inner segment size as the size of datagrams.
        pair.wire.inject(Sent {
            source: SocketAddr::new(pair.a.vtep.ip(), 50000),
            destination: pair.b.vtep,
            tos: 0,
            bytes: [&vxlan::encode(vni())[..], &frame].concat(),
            segment_size: 1200,
        });
        pair.run();
        let got = pair.b.port.take();
        assert_eq!(got.len(), 1, "{:?}", pair.b.counters());
        assert_eq!(got[0].bytes, frame);
        assert_eq!(got[0].vnet.gso_type, weft::wire::VnetHdr::GSO_UDP_L4);
        assert_eq!(got[0].vnet.gso_size, 1200);
        assert!(got[0].vnet.needs_csum());
        pair.check();
    }
}

#[test]
fn a_removed_network_takes_no_more_frames() {
    let mut pair = pair();
    pair.b.writer.remove_segment(vni());
    pair.a.port.push(Frame::plain(eth_ipv4_udp(A, B, b"late")));
    pair.run();
    assert_eq!(pair.b.counters().dropped(DropReason::UnknownVni), 1);
    pair.check();
}

#[test]
fn a_nodes_own_leg_on_ingress_brings_addresses_of_clients_and_no_workload_does() {
    let ingress = SegmentPolicy {
        client_addresses: true,
        ..SegmentPolicy::default()
    };
    let client = Ipv4Addr::new(198, 51, 100, 7);
    let leg = Mac::ingress_leg(A);
    // A frame of A's endpoint under the MAC of a leg, or as the endpoint has it.
    let frame = |mac: Mac, source: Ipv4Addr| {
        let mut frame = eth_ipv4_udp(source, B, b"hello");
        frame[6..12].copy_from_slice(&mac.0);
        frame
    };
    // With a sender that checks nothing, the receiver has to.
    let arrives_from = |lax: bool, policy: SegmentPolicy, mac: Mac, source: Ipv4Addr| {
        let mut pair = Pair::new(policy);
        if lax {
            let unchecked = SegmentPolicy {
                spoof_check: false,
                ..policy
            };
            pair.a
                .writer
                .update_segment(vni(), 1450, unchecked)
                .unwrap();
        }
        for (node, own) in [(&mut pair.a, true), (&mut pair.b, false)] {
            let mut record = record(1, "192.0.2.1".parse().unwrap());
            record.mac = mac;
            record.version.counter = 2;
            match own {
                true => node.writer.upsert_local(&record).unwrap(),
                false => node.writer.upsert_remote(&record).unwrap(),
            };
        }
        pair.a.port.push(Frame::plain(frame(mac, source)));
        pair.run();
        pair.check();
        pair.b.port.take().len() == 1
    };
    let arrives = |policy: SegmentPolicy, mac: Mac, source: Ipv4Addr| {
        let both = [false, true].map(|lax| arrives_from(lax, policy, mac, source));
        assert_eq!(both[0], both[1], "sender and receiver agree");
        both[0]
    };
    assert!(arrives(ingress, leg, client), "a client through a leg");
    assert!(arrives(ingress, leg, A), "the leg itself");
    assert!(
        !arrives(ingress, leg, Ipv4Addr::new(10, 0, 1, 77)),
        "an address of the network is no client's"
    );
    assert!(!arrives(ingress, mac_of(A), client), "a backend is no leg");
    assert!(
        !arrives(SegmentPolicy::default(), leg, client),
        "on other networks nobody may"
    );
}
