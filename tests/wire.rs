//! The wire layer against an independent implementation (pnet): our bytes read by it, its bytes read
//! by us, and properties over random input. Etherparse serves as a second reader.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet::packet::arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket};
use pnet::packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet::packet::icmp::destination_unreachable::{DestinationUnreachablePacket, IcmpCodes};
use pnet::packet::icmp::{IcmpPacket, IcmpTypes};
use pnet::packet::icmpv6::ndp::{
    MutableNdpOptionPacket, MutableNeighborSolicitPacket, NdpOptionTypes, NeighborAdvertFlags,
    NeighborAdvertPacket,
};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::packet::tcp::{MutableTcpPacket, TcpPacket};
use pnet::packet::udp::{MutableUdpPacket, UdpPacket};
use pnet::packet::vlan::VlanPacket;
use pnet::packet::vxlan::{MutableVxlanPacket, VxlanPacket};
use pnet::packet::{Packet, icmp as pnet_icmp, icmpv6 as pnet_icmpv6, ipv4 as pnet_ipv4, tcp, udp};
use pnet::util::MacAddr;
use proptest::prelude::*;
use weft::wire::frame::FrameBuilder;
use weft::wire::inner::{self, Kind};
use weft::wire::{Mac, Vni, arp, ecn, icmp, ipv4, ipv6, l4, ndp, vxlan};

fn mac(m: MacAddr) -> Mac {
    Mac([m.0, m.1, m.2, m.3, m.4, m.5])
}

fn pnet_mac(m: Mac) -> MacAddr {
    let [a, b, c, d, e, f] = m.0;
    MacAddr::new(a, b, c, d, e, f)
}

fn any_mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(|mut m| {
        m[0] = m[0] & 0xfe | 0x02;
        Mac(m)
    })
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..1500)
}

// ---- VXLAN ------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn vxlan_headers_agree_both_ways(value in 1u32..1 << 24, flags: u8, r1: [u8; 3], r2: u8) {
        let ours = vxlan::encode(Vni::new(value).unwrap());
        let read = VxlanPacket::new(&ours).unwrap();
        prop_assert_eq!((read.get_flags(), read.get_vni()), (0x08, value));
        prop_assert_eq!((read.get_reserved1(), read.get_reserved2()), (0, 0));

        let mut theirs = [0u8; 8];
        let mut packet = MutableVxlanPacket::new(&mut theirs).unwrap();
        let reserved1 = u32::from_be_bytes([0, r1[0], r1[1], r1[2]]);
        packet.set_flags(flags | 0x08);
        packet.set_reserved1(reserved1);
        packet.set_vni(value);
        packet.set_reserved2(r2);
        let got = vxlan::decode(&theirs).unwrap();
        let want = u64::from(flags & !0x08) << 56 | u64::from(reserved1) << 32 | u64::from(r2);
        prop_assert_eq!((got.vni, got.reserved_bits), (value, want));
    }
}

// ---- whole frames: built by us, read by pnet and etherparse -------------------------------------

proptest! {
    #[test]
    fn our_ipv4_frames_are_read_alike_and_their_checksums_are_right(
        src in any_mac(), dst in any_mac(), from: [u8; 4], to: [u8; 4], ports: (u16, u16),
        tos: u8, id: u16, vlan in proptest::option::of(any::<u16>()), payload in any_payload(),
        is_tcp: bool,
    ) {
        let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
        let mut b = FrameBuilder::new(src, dst).ipv4(from, to).tos(tos).id(id).payload(&payload);
        if let Some(tci) = vlan {
            b = b.vlan(tci);
        }
        b = if is_tcp { b.tcp(ports.0, ports.1) } else { b.udp(ports.0, ports.1) };
        let frame = b.build();
        let ours = inner::parse(&frame).unwrap();

        let ethernet = EthernetPacket::new(&frame).unwrap();
        prop_assert_eq!((mac(ethernet.get_source()), mac(ethernet.get_destination())), (src, dst));
        prop_assert_eq!((ours.src, ours.dst, ours.vlan), (src, dst, vlan));
        let l3 = if let Some(tci) = vlan {
            let tag = VlanPacket::new(ethernet.payload()).unwrap();
            prop_assert_eq!(tag.get_vlan_identifier(), tci & 0xfff);
            tag.payload().to_vec()
        } else {
            ethernet.payload().to_vec()
        };
        let ip = Ipv4Packet::new(&l3).unwrap();
        prop_assert_eq!(ip.get_checksum(), pnet_ipv4::checksum(&ip));
        prop_assert_eq!((ip.get_source(), ip.get_destination()), (from, to));
        prop_assert_eq!(ip.get_dscp() << 2 | ip.get_ecn(), tos);
        prop_assert_eq!((ours.tos, ip.get_identification()), (tos, id));
        prop_assert_eq!(usize::from(ip.get_total_length()), ours.end - usize::from(ours.l3));
        prop_assert_eq!(inner::ports(&frame, &ours), Some(ports));
        if is_tcp {
            let l4 = TcpPacket::new(ip.payload()).unwrap();
            prop_assert_eq!((l4.get_source(), l4.get_destination()), ports);
            prop_assert_eq!(l4.get_checksum(), tcp::ipv4_checksum(&l4, &from, &to));
            prop_assert_eq!(l4.payload(), &payload[..]);
        } else {
            let l4 = UdpPacket::new(ip.payload()).unwrap();
            let want = udp::ipv4_checksum(&l4, &from, &to);
            prop_assert_eq!((l4.get_source(), l4.get_destination()), ports);
            prop_assert_eq!(l4.get_checksum(), if want == 0 { 0xffff } else { want });
            prop_assert_eq!(l4.payload(), &payload[..]);
        }
    }

    #[test]
    fn our_ipv6_frames_are_read_alike_and_their_checksums_are_right(
        from: [u8; 16], to: [u8; 16], ports: (u16, u16), tos: u8, label in 0u32..1 << 20,
        payload in any_payload(), which in 0..3u8,
    ) {
        let (from, to) = (Ipv6Addr::from(from), Ipv6Addr::from(to));
        let b = FrameBuilder::v6().ipv6(from, to).tos(tos).flow_label(label).payload(&payload);
        let frame = match which {
            0 => b.tcp(ports.0, ports.1),
            1 => b.udp(ports.0, ports.1),
            _ => b.icmp_echo(ports.0, ports.1),
        }
        .build();
        let ours = inner::parse(&frame).unwrap();
        let ip = Ipv6Packet::new(&frame[14..]).unwrap();
        prop_assert_eq!((ip.get_source(), ip.get_destination()), (from, to));
        prop_assert_eq!((ip.get_traffic_class(), ip.get_flow_label()), (tos, label));
        prop_assert_eq!((ours.tos, ours.l4), (tos, 54));
        prop_assert_eq!(usize::from(ip.get_payload_length()), ours.end - 54);
        match which {
            0 => {
                let l4 = TcpPacket::new(ip.payload()).unwrap();
                prop_assert_eq!(l4.get_checksum(), tcp::ipv6_checksum(&l4, &from, &to));
            }
            1 => {
                let l4 = UdpPacket::new(ip.payload()).unwrap();
                let want = udp::ipv6_checksum(&l4, &from, &to);
                prop_assert_eq!(l4.get_checksum(), if want == 0 { 0xffff } else { want });
            }
            _ => {
                let l4 = Icmpv6Packet::new(ip.payload()).unwrap();
                prop_assert_eq!(l4.get_icmpv6_type(), Icmpv6Types::EchoRequest);
                prop_assert_eq!(l4.get_checksum(), pnet_icmpv6::checksum(&l4, &from, &to));
            }
        }
    }
}

#[test]
fn etherparse_finds_the_same_headers_in_every_seed_frame() {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    for frame in weft::fuzzing::frame_seeds() {
        let ours = inner::parse(&frame).unwrap();
        let theirs = SlicedPacket::from_ethernet(&frame).unwrap();
        let kind = match &theirs.net {
            Some(NetSlice::Ipv4(_)) => Kind::Ipv4,
            Some(NetSlice::Ipv6(_)) => Kind::Ipv6,
            Some(NetSlice::Arp(_)) => Kind::Arp,
            None => Kind::Other,
        };
        assert_eq!(ours.kind, kind);
        if let Some(payload) = theirs.ip_payload() {
            assert_eq!(
                (ours.proto, ours.fragment),
                (payload.ip_number.0, payload.fragmented)
            );
            if ours.l4 != 0 {
                assert_eq!(&frame[usize::from(ours.l4)..ours.end], payload.payload);
            }
        }
        let ports = match &theirs.transport {
            Some(TransportSlice::Tcp(t)) => Some((t.source_port(), t.destination_port())),
            Some(TransportSlice::Udp(u)) => Some((u.source_port(), u.destination_port())),
            _ => None,
        };
        assert_eq!(inner::ports(&frame, &ours), ports);
    }
}

// ---- whole frames: built by pnet, read by us ----------------------------------------------------

fn pnet_ethernet(
    src: Mac,
    dst: Mac,
    ethertype: pnet::packet::ethernet::EtherType,
    l3: &[u8],
) -> Vec<u8> {
    let mut frame = vec![0; 14 + l3.len()];
    let mut packet = MutableEthernetPacket::new(&mut frame).unwrap();
    packet.set_source(pnet_mac(src));
    packet.set_destination(pnet_mac(dst));
    packet.set_ethertype(ethertype);
    packet.set_payload(l3);
    frame
}

proptest! {
    #[test]
    fn frames_of_pnet_are_read_and_their_checksums_accepted(
        src in any_mac(), dst in any_mac(), from: [u8; 4], to: [u8; 4], ports: (u16, u16),
        payload in any_payload(), is_tcp: bool,
    ) {
        let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
        let mut l4 = vec![0; if is_tcp { 20 } else { 8 } + payload.len()];
        if is_tcp {
            let mut p = MutableTcpPacket::new(&mut l4).unwrap();
            p.set_source(ports.0);
            p.set_destination(ports.1);
            p.set_data_offset(5);
            p.set_payload(&payload);
            p.set_checksum(tcp::ipv4_checksum(&p.to_immutable(), &from, &to));
        } else {
            let mut p = MutableUdpPacket::new(&mut l4).unwrap();
            p.set_source(ports.0);
            p.set_destination(ports.1);
            p.set_length((8 + payload.len()) as u16);
            p.set_payload(&payload);
            let check = udp::ipv4_checksum(&p.to_immutable(), &from, &to);
            p.set_checksum(if check == 0 { 0xffff } else { check });
        }
        let mut l3 = vec![0; 20 + l4.len()];
        let mut ip = MutableIpv4Packet::new(&mut l3).unwrap();
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_total_length((20 + l4.len()) as u16);
        ip.set_flags(Ipv4Flags::DontFragment);
        let proto = if is_tcp { IpNextHeaderProtocols::Tcp } else { IpNextHeaderProtocols::Udp };
        ip.set_next_level_protocol(proto);
        ip.set_source(from);
        ip.set_destination(to);
        ip.set_payload(&l4);
        ip.set_checksum(pnet_ipv4::checksum(&ip.to_immutable()));
        let frame = pnet_ethernet(src, dst, EtherTypes::Ipv4, &l3);

        let got = inner::parse(&frame).unwrap();
        prop_assert_eq!((got.src, got.dst, got.kind, got.l4), (src, dst, Kind::Ipv4, 34));
        prop_assert_eq!(inner::src_ip(&frame, &got), Some(IpAddr::V4(from)));
        prop_assert_eq!(inner::dst_ip(&frame, &got), Some(IpAddr::V4(to)));
        prop_assert_eq!(inner::ports(&frame, &got), Some(ports));
        prop_assert_eq!(l4::verify(&frame, &got), Some(true));
        let view = ipv4::Ipv4::of(&frame, &got).unwrap();
        prop_assert!(view.checksum_ok() && view.dont_fragment() && !got.fragment);

        let mut marked = frame.clone();
        ecn::set(&mut marked, &got, ecn::Ecn::Ce);
        let ip = Ipv4Packet::new(&marked[14..]).unwrap();
        prop_assert_eq!((ip.get_ecn(), ip.get_checksum()), (3, pnet_ipv4::checksum(&ip)));
    }
}

// ---- ARP and neighbour discovery ----------------------------------------------------------------

proptest! {
    #[test]
    fn an_arp_request_of_pnet_gets_a_reply_pnet_understands(
        asker in any_mac(), owner in any_mac(), from: [u8; 4], target: [u8; 4],
    ) {
        let (from, target) = (Ipv4Addr::from(from), Ipv4Addr::from(target));
        let mut l3 = [0; 28];
        let mut ask = MutableArpPacket::new(&mut l3).unwrap();
        ask.set_hardware_type(ArpHardwareTypes::Ethernet);
        ask.set_protocol_type(EtherTypes::Ipv4);
        ask.set_hw_addr_len(6);
        ask.set_proto_addr_len(4);
        ask.set_operation(ArpOperations::Request);
        ask.set_sender_hw_addr(pnet_mac(asker));
        ask.set_sender_proto_addr(from);
        ask.set_target_proto_addr(target);
        let frame = pnet_ethernet(asker, Mac::BROADCAST, EtherTypes::Arp, &l3);
        prop_assert_eq!(&frame, &arp::request(asker, from, target));

        let reply = arp::reply(&frame, &inner::parse(&frame).unwrap(), owner).unwrap();
        let ethernet = EthernetPacket::new(&reply).unwrap();
        prop_assert_eq!(ethernet.get_ethertype(), EtherTypes::Arp);
        prop_assert_eq!((mac(ethernet.get_source()), mac(ethernet.get_destination())), (owner, asker));
        let said = ArpPacket::new(ethernet.payload()).unwrap();
        prop_assert_eq!(said.get_operation(), ArpOperations::Reply);
        prop_assert_eq!((mac(said.get_sender_hw_addr()), said.get_sender_proto_addr()), (owner, target));
        prop_assert_eq!((mac(said.get_target_hw_addr()), said.get_target_proto_addr()), (asker, from));
    }

    #[test]
    fn a_solicitation_of_pnet_gets_an_advertisement_pnet_understands(
        asker in any_mac(), owner in any_mac(), low: (u16, u16), router: bool,
    ) {
        let from = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, low.0);
        let target = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, low.1);
        let group = ipv6::solicited_node(target);
        let mut body = [0; 32];
        let mut ask = MutableNeighborSolicitPacket::new(&mut body).unwrap();
        ask.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
        ask.set_target_addr(target);
        let mut option = MutableNdpOptionPacket::new(ask.get_options_raw_mut()).unwrap();
        option.set_option_type(NdpOptionTypes::SourceLLAddr);
        option.set_length(1);
        option.set_data(&asker.0);
        let check = pnet_icmpv6::checksum(&Icmpv6Packet::new(&body).unwrap(), &from, &group);
        body[2..4].copy_from_slice(&check.to_be_bytes());
        let mut l3 = vec![0; 72];
        let mut ip = MutableIpv6Packet::new(&mut l3).unwrap();
        ip.set_version(6);
        ip.set_payload_length(32);
        ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
        ip.set_hop_limit(255);
        ip.set_source(from);
        ip.set_destination(group);
        ip.set_payload(&body);
        let frame = pnet_ethernet(asker, ipv6::multicast_mac(group), EtherTypes::Ipv6, &l3);

        let parsed = inner::parse(&frame).unwrap();
        let want = ndp::Solicitation { source: from, target, source_mac: Some(asker) };
        prop_assert_eq!(ndp::parse(&frame, &parsed), Ok(ndp::Neighbour::Solicitation(want)));
        let reply = ndp::advertise(&frame, &parsed, owner, router).unwrap();
        let ethernet = EthernetPacket::new(&reply).unwrap();
        prop_assert_eq!((mac(ethernet.get_source()), mac(ethernet.get_destination())), (owner, asker));
        let ip = Ipv6Packet::new(ethernet.payload()).unwrap();
        prop_assert_eq!((ip.get_source(), ip.get_destination()), (target, from));
        prop_assert_eq!(ip.get_hop_limit(), 255);
        let icmp = Icmpv6Packet::new(ip.payload()).unwrap();
        prop_assert_eq!(icmp.get_checksum(), pnet_icmpv6::checksum(&icmp, &target, &from));
        let said = NeighborAdvertPacket::new(ip.payload()).unwrap();
        prop_assert_eq!(said.get_target_addr(), target);
        let flags = NeighborAdvertFlags::Solicited | NeighborAdvertFlags::Override;
        let flags = flags | if router { NeighborAdvertFlags::Router } else { 0 };
        prop_assert_eq!(said.get_flags(), flags);
        let options = said.get_options();
        prop_assert_eq!(options.len(), 1);
        prop_assert_eq!(options[0].option_type, NdpOptionTypes::TargetLLAddr);
        prop_assert_eq!(&options[0].data, &owner.0);
    }
}

// ---- "too big" and fragments --------------------------------------------------------------------

proptest! {
    #[test]
    fn fragmentation_needed_is_understood_by_pnet(len in 0usize..3000, mtu: u16) {
        let frame = FrameBuilder::v4().dont_fragment().udp(5, 6).payload_len(len).build();
        let from = Ipv4Addr::new(10, 0, 1, 1);
        let gateway = Mac::from_ipv4(from);
        let parsed = inner::parse(&frame).unwrap();
        let reply = icmp::fragmentation_needed(&frame, &parsed, mtu, from, gateway).unwrap();
        let ip = Ipv4Packet::new(&reply[14..]).unwrap();
        prop_assert_eq!(ip.get_checksum(), pnet_ipv4::checksum(&ip));
        prop_assert_eq!((ip.get_source(), ip.get_destination().octets()), (from, [10, 0, 1, 2]));
        let any = IcmpPacket::new(ip.payload()).unwrap();
        prop_assert_eq!(any.get_icmp_type(), IcmpTypes::DestinationUnreachable);
        prop_assert_eq!(any.get_checksum(), pnet_icmp::checksum(&any));
        let said = DestinationUnreachablePacket::new(ip.payload()).unwrap();
        prop_assert_eq!(said.get_icmp_code(), IcmpCodes::FragmentationRequiredAndDFFlagSet);
        prop_assert_eq!(said.get_next_hop_mtu(), mtu);
        prop_assert_eq!(said.payload(), &frame[14..frame.len().min(14 + 548)]);
    }

    #[test]
    fn packet_too_big_is_understood_by_pnet(len in 0usize..3000, mtu: u32) {
        let frame = FrameBuilder::v6().udp(5, 6).payload_len(len).build();
        let from = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let gateway = Mac([2, 0x42, 10, 0, 1, 1]);
        let parsed = inner::parse(&frame).unwrap();
        let reply = icmp::packet_too_big(&frame, &parsed, mtu, from, gateway).unwrap();
        let ip = Ipv6Packet::new(&reply[14..]).unwrap();
        prop_assert!(reply.len() <= 14 + 1280);
        let said = Icmpv6Packet::new(ip.payload()).unwrap();
        prop_assert_eq!(said.get_icmpv6_type(), Icmpv6Types::PacketTooBig);
        let (src, dst) = (ip.get_source(), ip.get_destination());
        prop_assert_eq!(said.get_checksum(), pnet_icmpv6::checksum(&said, &src, &dst));
        prop_assert_eq!(&ip.payload()[4..8], &mtu.to_be_bytes());
        prop_assert!(frame[14..].starts_with(&ip.payload()[8..]));
    }

    #[test]
    fn fragments_are_sound_to_pnet_and_carry_the_whole_payload(
        len in 0usize..4000, mtu in 68usize..1500,
    ) {
        let frame = FrameBuilder::v4().id(9).udp(5, 6).payload_len(len).build();
        let pieces = ipv4::fragment(&frame, &inner::parse(&frame).unwrap(), mtu).unwrap();
        let mut whole = vec![0u8; 8 + len];
        for piece in &pieces {
            let ip = Ipv4Packet::new(&piece[14..]).unwrap();
            prop_assert!(usize::from(ip.get_total_length()) <= mtu);
            prop_assert_eq!(ip.get_checksum(), pnet_ipv4::checksum(&ip));
            prop_assert_eq!(ip.get_identification(), 9);
            let at = usize::from(ip.get_fragment_offset()) * 8;
            whole[at..at + ip.payload().len()].copy_from_slice(ip.payload());
            let ends = at + ip.payload().len() == whole.len();
            prop_assert_eq!(ip.get_flags() & Ipv4Flags::MoreFragments == 0, ends);
        }
        prop_assert_eq!(&whole, &frame[34..]);
    }
}

// ---- no input panics ----------------------------------------------------------------------------

/// Bytes that look enough like a frame to get past the first checks.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop_oneof![
        Just([0x08, 0x00]),
        Just([0x86, 0xdd]),
        Just([0x08, 0x06]),
        Just([0x81, 0x00]),
        any::<[u8; 2]>()
    ];
    let first = prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()];
    let next = prop_oneof![
        Just(0u8),
        Just(6),
        Just(17),
        Just(44),
        Just(58),
        any::<u8>()
    ];
    let rest = proptest::collection::vec(any::<u8>(), 0..160);
    (ethertype, first, next, any::<bool>(), rest).prop_map(|(e, first, next, honest, mut data)| {
        let len = data.len();
        if len > 14 {
            data[12..14].copy_from_slice(&e);
            data[14] = first;
        }
        if honest && len > 54 {
            let v6 = first == 0x60;
            let (field, value, proto) = if v6 {
                (18, len - 54, 20)
            } else {
                (16, len - 14, 23)
            };
            data[field..field + 2].copy_from_slice(&(value as u16).to_be_bytes());
            data[proto] = next;
        }
        data
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn no_parser_panics_on_random_bytes(data in frame_like()) {
        for target in weft::fuzzing::TARGETS {
            if ["inner", "vxlan", "arp_ndp", "icmp_reply", "fragment"].contains(&target.name) {
                (target.run)(&data);
            }
        }
    }

    #[test]
    fn no_parser_panics_on_bytes_behind_an_mtu(data in frame_like(), mtu in 0u16..200) {
        let data = [&mtu.to_be_bytes()[..], &data].concat();
        weft::fuzzing::icmp_reply(&data);
        weft::fuzzing::fragment(&data);
    }
}
