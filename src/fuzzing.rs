//! The bodies of the fuzz targets, so that `cargo fuzz run` and plain `cargo test` run the same code.
//!
//! A body takes any bytes and panics when a property breaks. To add a target:
//! 1. write its body and seeds here (or beside the code, as `pub fn`) and a line in [`TARGETS`];
//! 2. copy any file of `fuzz/fuzz_targets/` and a `[[bin]]` of `fuzz/Cargo.toml` to its name;
//! 3. `WEFT_WRITE_SEEDS=1 cargo test --test fuzz_corpus` writes `fuzz/corpus/<name>/seed-*`.
//!
//! `tests/fuzz_corpus.rs` replays the corpora and fails when one of these steps was forgotten.

pub mod api;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cluster::gossip::fuzzing as gossip;
use crate::dataplane::{self, merge, split};
use crate::services::dns::fuzzing as dns;
use crate::wire::frame::FrameBuilder;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{Ipv6, multicast_mac, solicited_node};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::{
    Inner, Mac, Vni, arp, ecn, flow, guard, icmp, inner as frames, l4, ndp, vlan, vxlan,
};

/// One fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of the file, the binary and the corpus.
    pub name: &'static str,
    /// Its body.
    pub run: fn(&[u8]),
    /// Inputs to start from, made by code.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target there is.
pub const TARGETS: &[Target] = &[
    Target {
        name: "inner",
        run: inner,
        seeds: frame_seeds,
    },
    Target {
        name: "vxlan",
        run: vxlan,
        seeds: vxlan_seeds,
    },
    Target {
        name: "arp_ndp",
        run: arp_ndp,
        seeds: arp_ndp_seeds,
    },
    Target {
        name: "icmp_reply",
        run: icmp_reply,
        seeds: mtu_and_frame_seeds,
    },
    Target {
        name: "fragment",
        run: fragment,
        seeds: mtu_and_frame_seeds,
    },
    Target {
        name: "split",
        run: split::fuzzing::run,
        seeds: split::fuzzing::seeds,
    },
    Target {
        name: "merge",
        run: merge::fuzzing::run,
        seeds: merge::fuzzing::seeds,
    },
    Target {
        name: "encap",
        run: dataplane::fuzzing::encap,
        seeds: dataplane::fuzzing::encap_seeds,
    },
    Target {
        name: "decap",
        run: dataplane::fuzzing::decap,
        seeds: dataplane::fuzzing::decap_seeds,
    },
    Target {
        name: "api",
        run: api::run,
        seeds: api::seeds,
    },
    Target {
        name: "gossip",
        run: gossip::run,
        seeds: gossip::seeds,
    },
    Target {
        name: "seal",
        run: gossip::run_seal,
        seeds: gossip::seal_seeds,
    },
    Target {
        name: "dns",
        run: dns::run,
        seeds: dns::seeds,
    },
];

/// Parsing of an inner frame and everything that follows offsets into it.
pub fn inner(data: &[u8]) {
    let wire = frames::parse(data);
    let offloaded = frames::parse_super(data);
    if data.len() <= 0xffff {
        assert_eq!(wire, offloaded);
    }
    for parsed in [wire, offloaded].into_iter().flatten() {
        offsets_are_inside(data, &parsed);
        readers_do_not_panic(data, &parsed);
        writers_keep_checksums(data, &parsed);
    }
    let mut tagged = data.to_vec();
    let had_tag = vlan::outer(data).is_some();
    let stripped = vlan::strip(&mut tagged).len();
    assert_eq!(stripped, data.len() - if had_tag { 4 } else { 0 });
}

fn offsets_are_inside(data: &[u8], inner: &Inner) {
    assert!(usize::from(inner.l3) <= inner.end && inner.end <= data.len());
    assert!(inner.l4 == 0 || inner.l3 < inner.l4 && usize::from(inner.l4) < inner.end);
    let ip = matches!(inner.kind, frames::Kind::Ipv4 | frames::Kind::Ipv6);
    assert_eq!(frames::src_ip(data, inner).is_some(), ip);
    assert_eq!(frames::dst_ip(data, inner).is_some(), ip);
}

fn readers_do_not_panic(data: &[u8], inner: &Inner) {
    let port = flow::source_port(flow::hash(data, inner));
    assert!(port >= flow::SOURCE_PORT_MIN);
    let ports = frames::ports(data, inner);
    if let Some(tcp) = Tcp::of(data, inner) {
        assert!(ports.is_none() || ports == Some((tcp.src_port(), tcp.dst_port())));
    }
    if let Some(udp) = Udp::of(data, inner) {
        assert!(ports.is_none() || ports == Some((udp.src_port(), udp.dst_port())));
    }
    guard::authority(data, inner);
    assert!(Ipv4::of(data, inner).is_none_or(|ip| ip.header_len() >= ipv4::LEN_MIN));
    assert!(Ipv6::of(data, inner).is_none_or(|ip| ip.traffic_class() == inner.tos));
}

fn writers_keep_checksums(data: &[u8], inner: &Inner) {
    let mut frame = data.to_vec();
    if l4::fill(&mut frame, inner) {
        assert_eq!(l4::verify(&frame, inner), Some(true));
    }
    let sound = Ipv4::of(&frame, inner).map(|ip| ip.checksum_ok());
    ecn::set(&mut frame, inner, ecn::Ecn::Ce);
    assert_eq!(Ipv4::of(&frame, inner).map(|ip| ip.checksum_ok()), sound);
    let marked = frames::parse_super(&frame).expect("marking moves no offset");
    assert!(inner.proto == 0 && inner.tos == 0 || marked.tos & 3 == 3 || sound.is_none());
}

/// The VXLAN header.
pub fn vxlan(data: &[u8]) {
    let Ok(header) = vxlan::decode(data) else {
        return;
    };
    assert!(header.vni <= Vni::MAX.value());
    if let Ok(vni) = Vni::new(header.vni) {
        let same = vxlan::encode(vni) == data[..vxlan::LEN];
        assert_eq!(same, header.reserved_bits == 0);
    }
    let _ = frames::parse(&data[vxlan::LEN..]);
}

/// ARP and neighbour discovery, read and answered.
pub fn arp_ndp(data: &[u8]) {
    const OWNER: Mac = Mac([2, 0x42, 10, 0, 1, 3]);
    let Ok(inner) = frames::parse(data) else {
        return;
    };
    if let Some(reply) = arp::reply(data, &inner, OWNER) {
        let asked = arp::Arp::parse(data, &inner).expect("only requests are answered");
        let parsed = frames::parse(&reply).expect("replies are whole");
        let said = arp::Arp::parse(&reply, &parsed).expect("replies are ARP");
        assert_eq!(
            (said.sender_ip, said.target_ip),
            (asked.target_ip, asked.sender_ip)
        );
        assert_eq!((said.sender_mac, parsed.vlan), (OWNER, inner.vlan));
    }
    advertisement_is_valid(data, &inner, OWNER);
    // Few random inputs have a right checksum: try again with one.
    let mut mended = data.to_vec();
    l4::fill(&mut mended, &inner);
    advertisement_is_valid(&mended, &inner, OWNER);
}

fn advertisement_is_valid(data: &[u8], inner: &Inner, owner: Mac) {
    let Some(reply) = ndp::advertise(data, inner, owner, false) else {
        return;
    };
    let parsed = frames::parse(&reply).expect("advertisements are whole");
    match (ndp::parse(data, inner), ndp::parse(&reply, &parsed)) {
        (Ok(ndp::Neighbour::Solicitation(asked)), Ok(ndp::Neighbour::Advertisement(said))) => {
            assert_eq!((said.target, said.target_mac), (asked.target, Some(owner)));
            assert_eq!(said.solicited, !asked.is_dad());
        }
        other => panic!("solicitation and advertisement do not match: {other:?}"),
    }
    assert_eq!(ndp::advertise(&reply, &parsed, owner, false), None);
}

/// "Too big" answers; the first two bytes are the MTU.
pub fn icmp_reply(data: &[u8]) {
    let Some((mtu, frame, inner)) = mtu_and_frame(data) else {
        return;
    };
    let mac = Mac([2, 0x42, 10, 0, 1, 1]);
    let v4 = icmp::fragmentation_needed(frame, &inner, mtu, Ipv4Addr::new(10, 0, 1, 1), mac);
    let from = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    let v6 = icmp::packet_too_big(frame, &inner, u32::from(mtu), from, mac);
    for (reply, len_max) in [(v4, icmp::ERROR_V4_LEN_MAX), (v6, icmp::ERROR_V6_LEN_MAX)] {
        let Some(reply) = reply else { continue };
        let parsed = frames::parse(&reply).expect("errors are whole");
        assert!(parsed.end - usize::from(parsed.l3) <= len_max);
        assert_eq!(parsed.end, reply.len());
        assert_eq!(l4::verify(&reply, &parsed), Some(true));
        assert_eq!(
            frames::dst_ip(&reply, &parsed),
            frames::src_ip(frame, &inner)
        );
        assert_eq!((parsed.dst, parsed.vlan), (inner.src, inner.vlan));
        let quoted = &reply[usize::from(parsed.l4) + 8..];
        assert!(frame[usize::from(inner.l3)..inner.end].starts_with(quoted));
        let again = match frames::src_ip(&reply, &parsed) {
            Some(IpAddr::V4(ip)) => icmp::fragmentation_needed(&reply, &parsed, mtu, ip, mac),
            _ => icmp::packet_too_big(&reply, &parsed, u32::from(mtu), from, mac),
        };
        assert_eq!(again, None, "an error was answered with an error");
    }
}

/// IPv4 fragmentation; the first two bytes are the MTU.
pub fn fragment(data: &[u8]) {
    let Some((mtu, frame, inner)) = mtu_and_frame(data) else {
        return;
    };
    let mtu = usize::from(mtu);
    let Ok(pieces) = ipv4::fragment(frame, &inner, mtu) else {
        return;
    };
    let whole = Ipv4::of(frame, &inner).expect("only IPv4 is cut");
    let payload = &frame[usize::from(inner.l3) + whole.header_len()..inner.end];
    let mut at = 0;
    for (i, piece) in pieces.iter().enumerate() {
        let parsed = frames::parse(piece).expect("fragments are whole");
        let view = Ipv4::of(piece, &parsed).expect("fragments are IPv4");
        let carried = &piece[usize::from(parsed.l3) + view.header_len()..];
        let last = i + 1 == pieces.len();
        assert!(piece.len() - usize::from(parsed.l3) <= mtu);
        assert!(pieces.len() == 1 || view.checksum_ok());
        assert_eq!(view.fragment_offset(), whole.fragment_offset() + at);
        assert_eq!(view.more_fragments(), !last || whole.more_fragments());
        assert!(last || carried.len().is_multiple_of(8));
        assert_eq!(carried, &payload[at..at + carried.len()]);
        at += carried.len();
    }
    assert_eq!(at, payload.len());
}

/// Splits an input into an MTU and a frame that parses.
fn mtu_and_frame(data: &[u8]) -> Option<(u16, &[u8], Inner)> {
    let (mtu, frame) = data.split_first_chunk::<2>()?;
    let inner = frames::parse(frame).ok()?;
    Some((u16::from_be_bytes(*mtu), frame, inner))
}

/// Frames of every kind the parser tells apart, each under 200 bytes.
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let (v4, v6) = (FrameBuilder::v4, FrameBuilder::v6);
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    vec![
        v4().tcp(40000, 80)
            .tcp_options(&timestamps)
            .payload_len(64)
            .build(),
        v6().tcp(40000, 80)
            .tcp_options(&timestamps)
            .payload_len(64)
            .build(),
        v4().udp(40000, 53).payload(b"query").padded().build(),
        v6().udp(40000, 53).payload(b"query").build(),
        v4().icmp_echo(7, 1).payload_len(16).build(),
        v6().icmp_echo(7, 1).payload_len(16).build(),
        v4().vlan(100).vlan(200).udp(1, 2).payload(b"tags").build(),
        v4().ip_options(&[0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0])
            .udp(1, 2)
            .payload_len(80)
            .build(),
        v4().fragment(0, true).udp(1, 2).payload_len(80).build(),
        v4().fragment(88, false).raw(17).payload_len(80).build(),
        v6().fragment(0, true).udp(1, 2).payload_len(80).build(),
        v6().extension(0, &[0, 1, 4, 0, 0, 0, 0])
            .extension(43, &[0; 7])
            .udp(1, 2)
            .build(),
        v4().udp(67, 68).payload(&[2, 1, 6, 0]).build(),
        v4().icmp(3, 4, 1450).payload_len(28).build(),
        v6().icmp(134, 0, 0).ttl(255).build(),
        FrameBuilder::new(Mac([2; 6]), Mac([4; 6]))
            .ethertype(0x88cc)
            .payload(b"lldp")
            .build(),
    ]
    .into_iter()
    .chain(arp_ndp_seeds())
    .collect()
}

fn vxlan_seeds() -> Vec<Vec<u8>> {
    let vni = Vni::FIRST_USER;
    let frame = FrameBuilder::v4().icmp_echo(1, 1).build();
    vec![
        [&vxlan::encode(vni)[..], &frame].concat(),
        vec![0x88, 0, 0, 1, 0, 0, 1, 2],
        vec![0, 0, 0, 0, 0, 0, 1, 0],
        vec![8, 0, 0, 0],
    ]
}

fn arp_ndp_seeds() -> Vec<Vec<u8>> {
    let (ip, target) = (Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 1, 3));
    let mac = Mac::from_ipv4(ip);
    let wanted = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
    let group = solicited_node(wanted);
    let ask = |source: Ipv6Addr, options: &[u8]| {
        FrameBuilder::new(mac, multicast_mac(group))
            .ipv6(source, group)
            .ttl(255)
            .icmp(ndp::NEIGHBOUR_SOLICITATION, 0, 0)
            .payload(&[&wanted.octets()[..], options].concat())
            .build()
    };
    let asked = ask(
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        &[1, 1, 2, 0x42, 10, 0, 1, 2],
    );
    let parsed = frames::parse(&asked).expect("a built frame parses");
    let said = ndp::advertise(&asked, &parsed, Mac::from_ipv4(target), true);
    vec![
        arp::request(mac, ip, target),
        arp::request(mac, Ipv4Addr::UNSPECIFIED, target),
        arp::announcement(mac, ip),
        vlan::push(&arp::request(mac, ip, target), vlan::Tci(5)),
        ask(Ipv6Addr::UNSPECIFIED, &[14, 1, 1, 2, 3, 4, 5, 6]),
        said.expect("a valid solicitation is answered"),
        asked,
    ]
}

fn mtu_and_frame_seeds() -> Vec<Vec<u8>> {
    let mtus = [68u16, 100, 1280, 1450].iter().cycle();
    let with_mtu = |(frame, mtu): (Vec<u8>, &u16)| [&mtu.to_be_bytes()[..], &frame].concat();
    frame_seeds().into_iter().zip(mtus).map(with_mtu).collect()
}

/// Inputs near `seed`, the same on every run: bytes flipped, cut, repeated or set to bounds.
///
/// Calls `run` with each of `count` inputs. For tests without a fuzzer.
pub fn mutations(seed: &[u8], count: usize, run: fn(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed.len() as u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % bound.max(1)
    };
    for _ in 0..count {
        let mut data = seed.to_vec();
        for _ in 0..=next(3) {
            let at = next(data.len());
            match (next(5), data.is_empty()) {
                (_, true) => data.push(next(256) as u8),
                (0, _) => data[at] = next(256) as u8,
                (1, _) => data[at] ^= 1 << next(8),
                (2, _) => data[at] = [0, 1, 0x7f, 0x80, 0xff][next(5)],
                (3, _) => data.truncate(at),
                _ => data.extend_from_within(at..),
            }
        }
        run(&data);
    }
}

/// Names of the targets and what each starts from, for the corpus on disk.
pub fn all_seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let seeds = |t: &Target| (t.name, (t.seeds)());
    TARGETS.iter().map(seeds).collect()
}
