//! The Linux kernel's own VXLAN selftests (`tools/testing/selftests/net`), re-enacted against our
//! dataplane on real namespaces: reserved bits, flooding, learning, TTL, TOS and ECN, tags, VNI
//! filtering. Numbers are the kernel's: exact counts, no duplicates.
//!
//! ```text
//!   w1 ── weft 1 ──┐            the ears are packet sockets on the workloads' links, or on the
//!   w2 ── kernel 2 ┼── hub      hub's port p1, where everything host 1 sends passes
//!   w3 ── weft 3 ──┘
//! ```

mod common;

use std::net::{IpAddr, SocketAddr};

use common::cases::Cases;
use common::hosts::{
    Hosts, Underlay, ip4, ip6, mac, named, record, settled_counters, sh, try_sh, vni,
};
use common::skip::long;
use common::wiretap::{Ear, RawVtep, contains, dissect, header, wire_like};
use weft::dataplane::runtime::{DataplaneConfig, UplinkSource};
use weft::dataplane::verdict::DropReason;
use weft::sys::link;
use weft::tables::fdb::Station;
use weft::tables::{SegmentConfig, SegmentIndex, SegmentPolicy, TableError};
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, Vni};

const BROADCAST: Mac = Mac([0xff; 6]);
const BOTH: [Underlay; 2] = [
    Underlay {
        v6: false,
        mtu: 1500,
    },
    Underlay {
        v6: true,
        mtu: 1500,
    },
];

/// A UDP frame of host `from`'s workload.
fn frame_to(from: u8, dst: Mac, marker: &[u8]) -> Vec<u8> {
    FrameBuilder::new(mac(from), dst)
        .ipv4(ip4(from), ip4(255))
        .udp(4000, 5000)
        .payload(marker)
        .build()
}

fn dropped(hosts: &Hosts, index: u8, reason: DropReason) -> u64 {
    settled_counters(hosts.host(index).dataplane.as_ref().unwrap()).dropped(reason)
}

fn set_policy(hosts: &mut Hosts, index: u8, policy: SegmentPolicy) {
    let mtu = hosts.underlay.mtu_inner();
    let writer = hosts.hosts[usize::from(index) - 1].writer.as_mut().unwrap();
    writer.update_segment(vni(), mtu, policy).unwrap();
}

fn set_vteps(hosts: &mut Hosts, index: u8, vteps: &[IpAddr]) {
    let writer = hosts.hosts[usize::from(index) - 1].writer.as_mut().unwrap();
    writer.set_vteps(vni(), vteps).unwrap();
}

fn strict() -> SegmentPolicy {
    SegmentPolicy::default()
}

// ----- K1: forwarding/vxlan_reserved.sh -----------------------------------------------------------

/// Every bit of the header that is neither the I flag nor the VNI.
fn reserved_bits() -> Vec<u64> {
    let known = u64::from(weft::wire::vxlan::FLAG_VNI) << 56 | 0xffff_ff00;
    let bits = (0..64).map(|bit| 1_u64 << bit);
    bits.filter(|bit| bit & known == 0).collect()
}

#[test]
fn reserved_bits_end_a_frame_one_by_one_unless_tolerated() {
    for underlay in BOTH {
        let mut cases = Cases::new(format!("reserved bits, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(2, underlay);
        hosts.start_weft(1, strict(), &[2]);
        let (raw, ear) = (RawVtep::on(&hosts, 2), Ear::workload(&hosts, 1));
        let to = SocketAddr::new(hosts.host(1).vtep, 4789);
        let plain = header(vni().value());
        let send = |word: u64, marker: &[u8]| {
            raw.send(to, word, &frame_to(2, mac(1), marker), 0);
        };
        cases.run("ten clean frames arrive", || {
            (0..10).for_each(|_| send(plain, b"clean"));
            assert_eq!(ear.hear(10, b"clean").len(), 10);
        });
        assert_eq!(reserved_bits().len(), 39);
        for bit in reserved_bits() {
            cases.run(format!("bit {bit:016x} is refused"), || {
                let before = dropped(&hosts, 1, DropReason::VxlanReservedBits);
                send(plain | bit, b"marked");
                send(plain, b"fence");
                let heard = ear.hear(1, b"e");
                assert_eq!(heard.len(), 1, "only the clean one");
                assert!(contains(&heard[0], b"fence"));
                let after = dropped(&hosts, 1, DropReason::VxlanReservedBits);
                assert_eq!(after - before, 1);
            });
        }
        cases.run("a clear I flag is refused", || {
            send(plain & !(8 << 56), b"marked");
            send(plain, b"fence");
            assert_eq!(ear.hear(1, b"e").len(), 1);
            assert_eq!(dropped(&hosts, 1, DropReason::VxlanNoVni), 1);
        });
        let tolerant = SegmentPolicy {
            strict_reserved_bits: false,
            ..strict()
        };
        set_policy(&mut hosts, 1, tolerant);
        cases.run("all 39 are delivered where they are tolerated", || {
            let before = dropped(&hosts, 1, DropReason::VxlanReservedBits);
            for bit in reserved_bits() {
                send(plain | bit, b"tolerated");
            }
            assert_eq!(ear.hear(39, b"tolerated").len(), 39);
            let after = dropped(&hosts, 1, DropReason::VxlanReservedBits);
            assert_eq!(after, before);
        });
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

// ----- K2: forwarding/vxlan_bridge_1d.sh, _ipv6, _port_8472 ---------------------------------------

/// Weft on 1 and 3, the kernel on 2 and 4, nothing on 5, which is up but refuses; nobody has 77.
fn mixed(underlay: Underlay, port: u16, policy: SegmentPolicy) -> Hosts {
    let mut hosts = Hosts::new(5, underlay);
    for (index, others) in [(1, [2, 3, 4]), (3, [1, 2, 4])] {
        let mut config = DataplaneConfig::new(underlay.vtep(index));
        config.workers = 1;
        config.port = port;
        hosts.start_weft_with(index, policy, &others, config);
    }
    let options = format!("dstport {port}");
    hosts.start_kernel(2, &[1, 3, 4], &options);
    hosts.start_kernel(4, &[1, 2, 3], &options);
    hosts
}

/// Ten frames each: how many came to the workloads of 2, 3 and 4.
fn ten(ears: &[Ear; 3], mouth: &Ear, frame: impl Fn(&[u8]) -> Vec<u8>, want: [usize; 3]) {
    let marker = format!("ten{:x}", weft::sys::clock::now_ns());
    (0..10).for_each(|_| mouth.send(&frame(marker.as_bytes())));
    // The loud ones first: what they heard has passed the others too.
    let mut got = [0; 3];
    let mut order = [0, 1, 2];
    order.sort_by_key(|i| std::cmp::Reverse(want[*i]));
    for i in order {
        got[i] = ears[i].hear(want[i], marker.as_bytes()).len();
    }
    assert_eq!(got, want, "frames at hosts 2, 3, 4");
}

fn flood_cases(underlay: Underlay, port: u16) {
    let name = format!("flood, IPv6 underlay {}, port {port}", underlay.v6);
    let mut cases = Cases::new(name);
    let mut hosts = mixed(underlay, port, strict());
    let ears = [2, 3, 4].map(|index| Ear::workload(&hosts, index));
    let mouth = Ear::workload(&hosts, 1);
    let group = Mac([0x01, 0, 0x5e, 1, 2, 3]);
    let to = |dst: Mac| move |marker: &[u8]| frame_to(1, dst, marker);
    cases.run("broadcast reaches each once", || {
        ten(&ears, &mouth, to(BROADCAST), [10; 3]);
    });
    cases.run("multicast reaches each once", || {
        ten(&ears, &mouth, to(group), [10; 3]);
    });
    for (position, index) in [2, 3, 4].into_iter().enumerate() {
        cases.run(format!("unicast reaches host {index} only"), || {
            let mut want = [0; 3];
            want[position] = 10;
            ten(&ears, &mouth, to(mac(index)), want);
        });
    }
    cases.run("unknown unicast goes nowhere and is counted", || {
        let before = dropped(&hosts, 1, DropReason::UnknownUnicast);
        ten(&ears, &mouth, to(Mac([2, 9, 9, 9, 9, 9])), [0; 3]);
        ten(&ears, &mouth, to(mac(2)), [10, 0, 0]);
        let after = dropped(&hosts, 1, DropReason::UnknownUnicast);
        assert_eq!(after - before, 10);
    });
    let nobody = underlay.vtep(77);
    set_vteps(&mut hosts, 1, &[nobody]);
    cases.run("a remote nobody has takes nothing from the others", || {
        ten(&ears, &mouth, to(BROADCAST), [10; 3]);
        ten(&ears, &mouth, to(mac(4)), [0, 0, 10]);
    });
    set_vteps(&mut hosts, 1, &[nobody, underlay.vtep(5)]);
    for round in 1..=5 {
        cases.run(
            format!("a remote that refuses takes nothing from the others, round {round}"),
            || {
                ten(&ears, &mouth, to(BROADCAST), [10; 3]);
                ten(&ears, &mouth, to(mac(3)), [0, 10, 0]);
            },
        );
    }
    cases.run("what the kernel floods reaches each once", || {
        let from_kernel = Ear::workload(&hosts, 2);
        let ears = [1, 3, 4].map(|index| Ear::workload(&hosts, index));
        let frame = |marker: &[u8]| frame_to(2, BROADCAST, marker);
        ten(&ears, &from_kernel, frame, [10; 3]);
    });
    let interop = SegmentPolicy {
        learning: false,
        ..SegmentPolicy::interop()
    };
    set_policy(&mut hosts, 1, interop);
    cases.run(
        "unknown unicast is flooded where the policy says so",
        || {
            // The kernel floods what it does not know to its bridge; host 3 is strict and does not.
            ten(&ears, &mouth, to(Mac([2, 9, 9, 9, 9, 9])), [10, 0, 10]);
        },
    );
    cases.run("link-local control frames stay", || {
        ten(&ears, &mouth, to(Mac([1, 0x80, 0xc2, 0, 0, 0x0e])), [0; 3]);
        ten(&ears, &mouth, to(mac(2)), [10, 0, 0]);
    });
    cases.run("every frame is accounted for", || {
        hosts.check_conservation()
    });
}

#[test]
fn floods_reach_each_vtep_exactly_once_over_ipv4() {
    flood_cases(BOTH[0], 4789);
}

#[test]
fn floods_reach_each_vtep_exactly_once_over_ipv6() {
    flood_cases(BOTH[1], 4789);
}

#[test]
fn floods_reach_each_vtep_exactly_once_on_port_8472() {
    flood_cases(BOTH[0], 8472);
    if long("port 8472 over IPv6") {
        flood_cases(BOTH[1], 8472);
    }
}

/// Hands what a dataplane saw to its tables, as an agent does; returns the last time.
fn apply_learned(hosts: &mut Hosts, index: u8) -> Option<u32> {
    let host = &mut hosts.hosts[usize::from(index) - 1];
    let (dataplane, writer) = (host.dataplane.as_ref()?, host.writer.as_mut()?);
    let mut last = None;
    for event in dataplane.learned().try_iter() {
        writer.learn(event.segment, event.mac, event.vtep, event.now_s);
        last = Some(event.now_s);
    }
    last
}

/// Where a station is by host 1's table, as the VTEP's address.
fn station(hosts: &Hosts, mac: Mac) -> Option<(IpAddr, bool)> {
    let tables = hosts.host(1).writer.as_ref()?.tables();
    let found = tables.fdb.view().find(SegmentIndex(0), mac)?;
    let vtep = found.vtep()?;
    let address = tables.snapshot().vteps[vtep as usize].addr;
    Some((address, matches!(found, Station::Learned { .. })))
}

fn learning_cases(underlay: Underlay) {
    let mut cases = Cases::new(format!("learning, IPv6 underlay {}", underlay.v6));
    let mut hosts = mixed(underlay, 4789, SegmentPolicy::interop());
    // Only the tunnel learns here: a bridge that knows better would keep frames from the ears.
    for index in [2, 4] {
        let net = &hosts.host(index).net;
        sh(&format!(
            "bridge -n {net} link set dev e{index} learning off && bridge -n {net} link set dev vx0 learning off"
        ));
    }
    let ears = [2, 3, 4].map(|index| Ear::workload(&hosts, index));
    let mouth = Ear::workload(&hosts, 1);
    // Host 3 is ours: it knows its own stations, and delivers no others.
    let flooded = [10, 0, 10];
    let roaming = Mac([2, 0xaa, 0, 0, 0, 1]);
    let to_it = |marker: &[u8]| frame_to(1, roaming, marker);
    let from_it = |marker: &[u8]| {
        FrameBuilder::new(roaming, BROADCAST)
            .ipv4(ip4(200), ip4(255))
            .udp(1, 2)
            .payload(marker)
            .build()
    };
    let (at2, at4) = (underlay.vtep(2), underlay.vtep(4));
    let appear = |at: usize, marker: &[u8]| {
        ears[at].send(&from_it(marker));
        assert_eq!(mouth.hear(1, marker).len(), 1, "host 1 hears it");
    };
    cases.run("an unknown station is flooded for", || {
        ten(&ears, &mouth, to_it, flooded);
    });
    let mut seen_s = 0;
    cases.run("a station is learned and shown", || {
        appear(0, b"here I am");
        seen_s = apply_learned(&mut hosts, 1).expect("an event");
        assert_eq!(station(&hosts, roaming), Some((at2, true)));
        let tables = hosts.host(1).writer.as_ref().unwrap().tables();
        let shown = tables.fdb.entries();
        assert!(shown.iter().any(|(_, mac, _)| *mac == roaming));
    });
    cases.run("a learned station gets its frames alone", || {
        ten(&ears, &mouth, to_it, [10, 0, 0]);
    });
    cases.run("a station that moves is learned anew", || {
        appear(2, b"moved");
        seen_s = apply_learned(&mut hosts, 1).expect("an event");
        assert_eq!(station(&hosts, roaming), Some((at4, true)));
        ten(&ears, &mouth, to_it, [0, 0, 10]);
    });
    cases.run("a forgotten station is flooded for", || {
        let writer = hosts.hosts[0].writer.as_mut().unwrap();
        assert!(writer.forget(SegmentIndex(0), roaming));
        assert_eq!(station(&hosts, roaming), None);
        ten(&ears, &mouth, to_it, flooded);
        apply_learned(&mut hosts, 1);
    });
    cases.run(
        "a station ages out when its time has come, not before",
        || {
            appear(0, b"back again");
            let seen_s = apply_learned(&mut hosts, 1).expect("an event");
            let writer = hosts.hosts[0].writer.as_mut().unwrap();
            writer.age(seen_s + 299, 300);
            assert_eq!(station(&hosts, roaming), Some((at2, true)));
            let writer = hosts.hosts[0].writer.as_mut().unwrap();
            assert!(writer.age(seen_s + 301, 300) >= 1);
            assert_eq!(station(&hosts, roaming), None);
            ten(&ears, &mouth, to_it, flooded);
            apply_learned(&mut hosts, 1);
        },
    );
    cases.run(
        "a published station cannot be taken over by a frame",
        || {
            let published = weft::tables::EndpointRecord {
                mac: roaming,
                endpoint: "published".into(),
                ips: vec![ip4(200).into()],
                ..record(2, at2)
            };
            let writer = hosts.hosts[0].writer.as_mut().unwrap();
            writer.upsert_remote(&published).unwrap();
            appear(2, b"I am it");
            apply_learned(&mut hosts, 1);
            assert_eq!(station(&hosts, roaming), Some((at2, false)));
            ten(&ears, &mouth, to_it, [10, 0, 0]);
            let writer = hosts.hosts[0].writer.as_mut().unwrap();
            writer.remove(vni(), "published").unwrap();
            assert_eq!(station(&hosts, roaming), None);
        },
    );
    let deaf = SegmentPolicy {
        learning: false,
        ..SegmentPolicy::interop()
    };
    set_policy(&mut hosts, 1, deaf);
    cases.run("nothing is learned with learning off", || {
        appear(0, b"off");
        assert_eq!(apply_learned(&mut hosts, 1), None);
        assert_eq!(station(&hosts, roaming), None);
        ten(&ears, &mouth, to_it, flooded);
    });
    cases.run("every frame is accounted for", || {
        hosts.check_conservation()
    });
}

#[test]
fn stations_are_learned_moved_forgotten_and_aged_over_ipv4() {
    learning_cases(BOTH[0]);
}

#[test]
fn stations_are_learned_moved_forgotten_and_aged_over_ipv6() {
    learning_cases(BOTH[1]);
}

// ----- K2 and K18: TTL, TOS and ECN of the outer header; l2_tos_ttl_inherit.sh --------------------

/// What the inner frame is.
#[derive(Clone, Copy, Debug)]
enum InnerKind {
    Ipv4,
    Ipv6,
    Arp,
}

/// A unicast frame from host 1's workload to host 2's, TTL 17.
fn inner_frame(kind: InnerKind, tag: Option<u16>, tos: u8, marker: &[u8]) -> Vec<u8> {
    let frame = FrameBuilder::new(mac(1), mac(2)).tos(tos).ttl(17);
    let mut bytes = match kind {
        InnerKind::Ipv4 => {
            let frame = frame.ipv4(ip4(1), ip4(2)).udp(4000, 5000);
            frame.payload(marker).build()
        }
        InnerKind::Ipv6 => {
            let frame = frame.ipv6(ip6(1), ip6(2)).udp(4000, 5000);
            frame.payload(marker).build()
        }
        InnerKind::Arp => {
            let ends = [&mac(1).0[..], &ip4(1).octets(), &mac(2).0, &ip4(2).octets()];
            let reply = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &ends.concat(), marker];
            frame.ethertype(0x0806).payload(&reply.concat()).build()
        }
    };
    // By hand, as a single tag of either kind is wanted.
    if let Some(tpid) = tag {
        bytes.splice(12..12, [tpid.to_be_bytes(), 5_u16.to_be_bytes()].concat());
    }
    bytes
}

/// Sends one frame from host 1 and reads it off the underlay.
fn on_the_wire(mouth: &Ear, wire: &Ear, frame: &[u8], marker: &[u8]) -> common::wiretap::Outer {
    mouth.send(frame);
    let heard = wire.hear(1, marker);
    assert_eq!(heard.len(), 1, "one packet on the wire");
    let outer = dissect(&heard[0], 4789).expect("a VXLAN packet");
    assert_eq!(outer.inner, frame, "the inner frame is untouched");
    outer
}

#[test]
fn outer_ttl_tos_and_ecn_follow_the_policy() {
    let inherit = SegmentPolicy {
        inherit_dscp: true,
        ..strict()
    };
    let kinds = [InnerKind::Ipv4, InnerKind::Ipv6, InnerKind::Arp];
    for underlay in BOTH {
        let mut cases = Cases::new(format!("outer header, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(2, underlay);
        wire_like(&hosts.host(1).ns, "u1");
        hosts.start_weft(1, strict(), &[2]);
        hosts.start_weft(2, strict(), &[1]);
        let (mouth, wire) = (Ear::workload(&hosts, 1), Ear::underlay(&hosts, 1));
        let vtep = hosts.host(1).vtep;
        for (policy, name) in [(strict(), "fixed"), (inherit, "inherit")] {
            set_policy(&mut hosts, 1, policy);
            for kind in kinds {
                for tag in [None, Some(0x8100), Some(0x88a8)] {
                    cases.run(format!("{kind:?} in {name}, tag {tag:x?}"), || {
                        let frame = inner_frame(kind, tag, 0xb8, b"look");
                        let outer = on_the_wire(&mouth, &wire, &frame, b"look");
                        outer.check(vtep, vni().value());
                        let inherits = policy.inherit_dscp && !matches!(kind, InnerKind::Arp);
                        assert_eq!(outer.tos, if inherits { 0xb8 } else { 0 });
                    });
                }
            }
            for ecn in 0..4 {
                for kind in [InnerKind::Ipv4, InnerKind::Ipv6] {
                    cases.run(format!("ECN {ecn} of {kind:?} in {name}"), || {
                        let frame = inner_frame(kind, None, 0x28 | ecn, b"look");
                        let outer = on_the_wire(&mouth, &wire, &frame, b"look");
                        outer.check(vtep, vni().value());
                        assert_eq!(outer.tos & 3, ecn, "RFC 6040 normal mode copies");
                        let dscp = if policy.inherit_dscp { 0x28 } else { 0 };
                        assert_eq!(outer.tos & 0xfc, dscp);
                    });
                }
            }
        }
        for inner_ttl in [1, 64, 255] {
            cases.run(format!("an inner TTL of {inner_ttl} stays inside"), || {
                let frame = FrameBuilder::new(mac(1), mac(2)).ttl(inner_ttl);
                let frame = frame.ipv4(ip4(1), ip4(2)).udp(4000, 5000);
                let frame = frame.payload(b"look").build();
                let outer = on_the_wire(&mouth, &wire, &frame, b"look");
                outer.check(vtep, vni().value());
            });
        }
        // Like the kernel's `ttl auto`: what the underlay's namespace says.
        let ns = &hosts.host(1).ns;
        let knob = match underlay.v6 {
            true => "net.ipv6.conf.u1.hop_limit",
            false => "net.ipv4.ip_default_ttl",
        };
        sh(&format!("ip netns exec {ns} sysctl -qw {knob}=33"));
        for kind in kinds {
            cases.run(format!("the underlay's TTL around {kind:?}"), || {
                let frame = inner_frame(kind, None, 0, b"look");
                let outer = on_the_wire(&mouth, &wire, &frame, b"look");
                assert_eq!(outer.ttl, 33);
            });
        }
        sh(&format!("ip netns exec {ns} sysctl -qw {knob}=64"));
        cases.run(
            "frames of one flow keep their source port, flows differ",
            || {
                let mut ports = std::collections::BTreeSet::new();
                for flow in 0..32 {
                    let frame = FrameBuilder::new(mac(1), mac(2)).ipv4(ip4(1), ip4(2));
                    let frame = frame.udp(6000 + flow, 5000).payload(b"flow").build();
                    (0..3).for_each(|_| mouth.send(&frame));
                    let heard = wire.hear(3, &frame);
                    let of_flow = heard.iter().map(|f| dissect(f, 4789).unwrap().source_port);
                    let of_flow: std::collections::BTreeSet<u16> = of_flow.collect();
                    assert_eq!(of_flow.len(), 1, "{of_flow:?}");
                    ports.extend(of_flow);
                }
                assert!(ports.len() >= 8, "{} ports for 32 flows", ports.len());
            },
        );
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

/// Where the outer UDP header's checksum is in an underlay frame.
fn outer_checksum(underlay: Underlay) -> std::ops::Range<usize> {
    let at = 14 + if underlay.v6 { 40 } else { 20 } + 6;
    at..at + 2
}

#[test]
fn outer_checksums_are_zero_or_right_and_over_ipv6_right() {
    for underlay in BOTH {
        let mut cases = Cases::new(format!("checksums, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(2, underlay);
        wire_like(&hosts.host(2).ns, "u2");
        hosts.start_weft(1, strict(), &[2]);
        let (raw, ear) = (RawVtep::on(&hosts, 2), Ear::workload(&hosts, 1));
        // A packet as host 2 sends it, to be sent on by hand with another checksum.
        let (sent, last_hop) = (Ear::underlay(&hosts, 2), Ear::underlay(&hosts, 1));
        let to = SocketAddr::new(hosts.host(1).vtep, 4789);
        let frame = frame_to(2, mac(1), b"summed");
        raw.send(to, header(vni().value()), &frame, 0);
        assert_eq!(ear.hear(1, b"summed").len(), 1);
        let packet = sent.hear(1, b"summed").pop().expect("it was sent");
        let at = outer_checksum(underlay);
        let right = [packet[at.start], packet[at.start + 1]];
        let wrong = [right[0], right[1] ^ 1];
        for (name, checksum, comes) in [
            ("right", right, true),
            ("wrong", wrong, false),
            ("zero", [0, 0], !underlay.v6),
        ] {
            cases.run(format!("a {name} checksum"), || {
                let mut changed = packet.clone();
                changed[at.clone()].copy_from_slice(&checksum);
                last_hop.send(&changed);
                // What was sent after it has come: so would it have.
                last_hop.send(&packet);
                let want = 1 + usize::from(comes);
                assert_eq!(ear.hear(want, b"summed").len(), want);
            });
        }
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

/// RFC 6040 figure 4: the inner field that comes out for (inner, outer); none is a drop.
fn ecn_out(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (0, 3) => None,
        (0, _) => Some(0),
        (_, 3) => Some(3),
        (2, 1) => Some(1),
        (same, _) => Some(same),
    }
}

#[test]
fn all_sixteen_ecn_pairs_come_out_as_rfc_6040_says() {
    for underlay in BOTH {
        let mut cases = Cases::new(format!("ECN out, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(2, underlay);
        hosts.start_weft(1, strict(), &[2]);
        let (raw, ear) = (RawVtep::on(&hosts, 2), Ear::workload(&hosts, 1));
        let to = SocketAddr::new(hosts.host(1).vtep, 4789);
        for v6 in [false, true] {
            for (inner, outer) in (0..16).map(|i| (i / 4, i % 4)) {
                cases.run(format!("inner {inner} outer {outer}, IPv6 {v6}"), || {
                    let before = dropped(&hosts, 1, DropReason::EcnCongestion);
                    let frame = FrameBuilder::new(mac(2), mac(1)).tos(0xb8 | inner);
                    let frame = if v6 {
                        frame.ipv6(ip6(2), ip6(1))
                    } else {
                        frame.ipv4(ip4(2), ip4(1))
                    };
                    let frame = frame.udp(1, 2).payload(b"congested").build();
                    // The outer DSCP must not leak in.
                    raw.send(to, header(vni().value()), &frame, 0x28 | outer);
                    let fence = frame_to(2, mac(1), b"congested fence");
                    raw.send(to, header(vni().value()), &fence, 0);
                    let want = ecn_out(inner, outer);
                    let heard = ear.hear(1 + usize::from(want.is_some()), b"congested");
                    let after = dropped(&hosts, 1, DropReason::EcnCongestion);
                    match want {
                        None => {
                            assert_eq!(heard.len(), 1, "only the fence");
                            assert_eq!(after - before, 1);
                        }
                        Some(ecn) => {
                            assert_eq!(heard.len(), 2);
                            assert_eq!(after, before);
                            check_tos(&heard[0], v6, 0xb8 | ecn);
                        }
                    }
                });
            }
        }
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

/// Reads the TOS of a frame by pnet, and checks the header's checksum.
fn check_tos(frame: &[u8], v6: bool, want: u8) {
    use pnet::packet::{ipv4, ipv6};
    let tos = if v6 {
        ipv6::Ipv6Packet::new(&frame[14..])
            .unwrap()
            .get_traffic_class()
    } else {
        let ip = ipv4::Ipv4Packet::new(&frame[14..]).unwrap();
        assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
        ip.get_dscp() << 2 | ip.get_ecn()
    };
    assert_eq!(tos, want);
}

// ----- K3: vxlan_bridge_1q.sh, q_in_vni.sh: tagged frames -----------------------------------------

#[test]
fn tagged_frames_pass_intact_between_weft_and_the_kernel() {
    for underlay in BOTH {
        let mut cases = Cases::new(format!("tags, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(3, underlay);
        hosts.start_weft(1, strict(), &[2, 3]);
        hosts.start_kernel(2, &[1, 3], "");
        hosts.start_weft(3, strict(), &[1, 2]);
        let ears = [1, 2, 3].map(|index| Ear::workload(&hosts, index));
        // 802.1Q, 802.1ad, both, a priority tag, the highest id with a priority.
        let tags: [(&str, &[u16]); 5] = [
            ("802.1Q", &[0x8100, 10]),
            ("802.1ad", &[0x88a8, 20]),
            ("Q in Q", &[0x88a8, 20, 0x8100, 10]),
            ("priority tag", &[0x8100, 0xa000]),
            ("id 4094", &[0x8100, 0x6ffe]),
        ];
        for (name, words) in tags {
            for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1)] {
                for unicast in [true, false] {
                    let title = format!("{name}, {from} to {to}, unicast {unicast}");
                    cases.run(title, || {
                        let dst = if unicast { mac(to) } else { BROADCAST };
                        let mut frame = FrameBuilder::new(mac(from), dst)
                            .ipv4(ip4(from), ip4(to))
                            .udp(4000, 5000)
                            .payload_len(700)
                            .payload(&[b"tagged".repeat(100), vec![from, to]].concat())
                            .build();
                        let tag: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
                        frame.splice(12..12, tag);
                        let ear = &ears[usize::from(to) - 1];
                        ears.iter().for_each(Ear::clear);
                        ears[usize::from(from) - 1].send(&frame);
                        let heard = ear.hear(1, b"tagged");
                        assert_eq!(heard.len(), 1);
                        assert_eq!(heard[0], frame);
                    });
                }
            }
        }
        let untagged = SegmentPolicy {
            carry_vlan: false,
            ..strict()
        };
        set_policy(&mut hosts, 1, untagged);
        let mut frame = frame_to(1, mac(2), b"no tags");
        frame.splice(12..12, [0x81, 0, 0, 10]);
        cases.run("a network without tags keeps them in", || {
            ears[0].send(&frame);
            ears[0].send(&frame_to(1, mac(2), b"no tags, fence"));
            assert_eq!(ears[1].hear(1, b"no tags").len(), 1);
            assert_eq!(dropped(&hosts, 1, DropReason::TaggedFrame), 1);
        });
        cases.run("a network without tags keeps them out", || {
            let mut frame = frame_to(2, mac(1), b"no tags");
            frame.splice(12..12, [0x81, 0, 0, 10]);
            ears[1].send(&frame);
            ears[1].send(&frame_to(2, mac(1), b"no tags, fence"));
            assert_eq!(ears[0].hear(1, b"no tags").len(), 1);
            assert_eq!(dropped(&hosts, 1, DropReason::InnerTaggedFrame), 1);
        });
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

/// A frame that names its network, tags and sender, of a flow of its own, so that none is joined with
/// another.
fn tagged_frame(number: u32, from: u8, unicast: bool, words: &[u16], flow: u16) -> Vec<u8> {
    let dst = if unicast { mac(3 - from) } else { BROADCAST };
    let marker = format!("<tagged {number} {from} {unicast} {words:x?} {flow}>");
    let mut frame = FrameBuilder::new(mac(from), dst)
        .ipv4(ip4(from), ip4(3 - from))
        .udp(1000 + flow, 5000)
        .payload(marker.as_bytes())
        .build();
    let tags: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    frame.splice(12..12, tags);
    frame
}

#[test]
fn tagged_frames_of_two_networks_pass_at_once_and_do_not_cross() {
    let numbers = [7101, 7102];
    // The same tags in both networks: none, 802.1Q, 802.1ad, both, a priority tag.
    let tags: [&[u16]; 5] = [
        &[],
        &[0x8100, 10],
        &[0x88a8, 10],
        &[0x88a8, 20, 0x8100, 10],
        &[0x8100, 0xa000],
    ];
    for underlay in BOTH {
        let mut cases = Cases::new(format!(
            "two tagged networks, IPv6 underlay {}",
            underlay.v6
        ));
        let mut hosts = Hosts::new(2, underlay);
        let mut tenants = Vec::new();
        for index in [1, 2] {
            hosts.start_weft(index, strict(), &[]);
            for number in numbers {
                let tenant = add_tenant(&mut hosts, index, number, &[1, 2]);
                tenants.push((index, number, tenant));
            }
        }
        let of = |number: u32, from: u8| {
            let rounds = (0..10).flat_map(|round| (0..tags.len()).map(move |tag| (round, tag)));
            rounds.flat_map(move |(round, tag)| {
                let flow = round * 10 + tag as u16;
                [true, false].map(|unicast| tagged_frame(number, from, unicast, tags[tag], flow))
            })
        };
        // In turns: each frame is among those of the other network and of the other direction.
        let mut mouths: Vec<_> = tenants.iter().map(|t| (&t.2.ear, of(t.1, t.0))).collect();
        for _ in 0..100 {
            for (ear, frames) in &mut mouths {
                ear.send(&frames.next().expect("a hundred each"));
            }
        }
        for (index, number, tenant) in &tenants {
            cases.run(format!("VNI {number} at host {index}"), || {
                let mut want: Vec<_> = of(*number, 3 - index).collect();
                let mut heard = tenant.ear.hear(want.len(), b"<tagged ");
                want.sort();
                heard.sort();
                assert_eq!(heard.len(), want.len());
                assert!(heard == want, "not what was sent in this network");
            });
        }
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}

// ----- K4: test_vxlan_vnifiltering.sh; isolation --------------------------------------------------

/// One more network of a host: a namespace with the uplink alone, in which the test is the bridge.
struct Tenant {
    ns: String,
    ear: Ear,
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _gone_already = try_sh(&format!("ip netns del {}", self.ns));
    }
}

/// Adds network `number` with its own VNI to a running weft host; its only station has the addresses
/// of the host's workload, the same in each network.
fn add_tenant(hosts: &mut Hosts, index: u8, number: u32, members: &[u8]) -> Tenant {
    let underlay = hosts.underlay;
    let ns = format!("{}t{index}v{number}", hosts.prefix);
    let mtu = underlay.mtu_inner();
    sh(&format!(
        "set -e
        ip netns add {ns}
        ip netns exec {ns} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n {ns} link add up0 mtu {mtu} type veth peer name up1 mtu {mtu}
        ip -n {ns} link set up0 arp off up
        ip -n {ns} link set up1 arp off promisc on up"
    ));
    let ear = Ear::on(&ns, "up0");
    let tenant = Tenant { ns, ear };
    let host = &mut hosts.hosts[usize::from(index) - 1];
    let writer = host.writer.as_mut().unwrap();
    let segment = writer
        .add_segment(tenant_config(number, mtu))
        .expect("a new VNI");
    let of = |other: u8| weft::tables::EndpointRecord {
        vni: Vni::new(number).unwrap(),
        ..record(other, underlay.vtep(other))
    };
    writer.upsert_local(&of(index)).unwrap();
    for other in members.iter().filter(|other| **other != index) {
        writer.upsert_remote(&of(*other)).unwrap();
    }
    let netns = named(&tenant.ns);
    let ifindex = netns.run_in(|| link::index_of("up1").unwrap()).unwrap();
    let source = UplinkSource::Packet {
        netns: &netns,
        ifindex,
    };
    let dataplane = host.dataplane.as_ref().unwrap();
    dataplane.add_uplink(segment, source).unwrap();
    tenant
}

fn tenant_config(number: u32, mtu: u32) -> SegmentConfig {
    SegmentConfig {
        vni: Vni::new(number).unwrap(),
        network: format!("network{number}"),
        mtu,
        subnets: vec!["10.0.1.0/24".parse().unwrap()],
        gateways: vec![ip4(254).into()],
        gateway_mac: mac(254),
        policy: strict(),
    }
}

/// `count` networks on three hosts, with the same addresses in each: every station sends to everyone
/// it can name, and hears exactly what was sent in its own network.
fn isolation_cases(underlay: Underlay, count: u32) {
    let mut cases = Cases::new(format!(
        "isolation of {count} networks, IPv6 underlay {}",
        underlay.v6
    ));
    let mut hosts = Hosts::new(4, underlay);
    let numbers: Vec<u32> = (0..count).map(|i| 5000 + i * 257).collect();
    let mut tenants = Vec::new();
    for index in 1..=3 {
        hosts.start_weft(index, strict(), &[]);
        for number in &numbers {
            let tenant = add_tenant(&mut hosts, index, *number, &[1, 2, 3]);
            tenants.push((index, *number, tenant));
        }
    }
    let sent = |from: u8, number: u32, to: &str| format!("<{number} {from} {to}>");
    for (index, number, tenant) in &tenants {
        let flood = sent(*index, *number, "all");
        tenant
            .ear
            .send(&frame_to(*index, BROADCAST, flood.as_bytes()));
        for other in (1..=3).filter(|other| other != index) {
            let marker = sent(*index, *number, &other.to_string());
            let frame = frame_to(*index, mac(other), marker.as_bytes());
            tenant.ear.send(&frame);
        }
    }
    for (index, number, tenant) in &tenants {
        cases.run(format!("host {index} in VNI {number}"), || {
            let heard = tenant.ear.hear(4, b"<");
            for other in (1..=3).filter(|other| other != index) {
                for to in ["all".to_owned(), index.to_string()] {
                    let marker = sent(other, *number, &to);
                    let count = heard.iter().filter(|f| contains(f, marker.as_bytes()));
                    assert_eq!(count.count(), 1, "{marker}");
                }
            }
            assert_eq!(heard.len(), 4, "and nothing else");
        });
    }
    refusal_cases(&mut cases, &mut hosts, &tenants, &numbers);
    cases.run("every frame is accounted for", || {
        hosts.check_conservation()
    });
}

/// What a VTEP may not: use a VNI twice, reach an unknown one, reach one it is no member of.
fn refusal_cases(
    cases: &mut Cases,
    hosts: &mut Hosts,
    tenants: &[(u8, u32, Tenant)],
    numbers: &[u32],
) {
    let underlay = hosts.underlay;
    for number in numbers.iter().take(2) {
        cases.run(format!("VNI {number} in use is refused"), || {
            let writer = hosts.hosts[0].writer.as_mut().unwrap();
            let again = writer.add_segment(tenant_config(*number, 1450));
            let taken = TableError::VniTaken(Vni::new(*number).unwrap());
            assert_eq!(again, Err(taken));
        });
    }
    let raw = RawVtep::on(hosts, 4);
    let to = SocketAddr::new(underlay.vtep(1), 4789);
    let intruder = |number: u32| {
        raw.send(to, header(number), &frame_to(4, BROADCAST, b"intruder"), 0);
    };
    let none_hears = || {
        for (_, number, tenant) in tenants.iter().filter(|(index, ..)| *index == 1) {
            assert_eq!(tenant.ear.hear(0, b"intruder").len(), 0, "VNI {number}");
        }
    };
    let arrives = |hosts: &Hosts, reason, count: u64| {
        let start = std::time::Instant::now();
        while dropped(hosts, 1, reason) < count && start.elapsed() < common::wiretap::PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(dropped(hosts, 1, reason), count, "{reason:?}");
    };
    cases.run("a stranger reaches no VNI", || {
        numbers.iter().for_each(|number| intruder(*number));
        arrives(hosts, DropReason::UnknownVtep, numbers.len() as u64);
        none_hears();
    });
    // A member of the first network only.
    let member = weft::tables::EndpointRecord {
        vni: Vni::new(numbers[0]).unwrap(),
        ..record(4, underlay.vtep(4))
    };
    let writer = hosts.hosts[0].writer.as_mut().unwrap();
    writer.upsert_remote(&member).unwrap();
    cases.run("an unknown VNI is not delivered", || {
        for number in [0, 1, 4096, 9999, 0xff_ffff] {
            intruder(number);
        }
        arrives(hosts, DropReason::UnknownVni, 5);
        none_hears();
    });
    cases.run("a member of one VNI reaches no other", || {
        numbers.iter().for_each(|number| intruder(*number));
        arrives(hosts, DropReason::NotMember, numbers.len() as u64 - 1);
        for (index, number, tenant) in tenants {
            let own = usize::from(*index == 1 && *number == numbers[0]);
            let heard = tenant.ear.hear(own, b"intruder").len();
            assert_eq!(heard, own, "host {index} VNI {number}");
        }
    });
}

#[test]
fn networks_with_equal_addresses_do_not_hear_each_other() {
    isolation_cases(BOTH[0], 4);
    isolation_cases(BOTH[1], 4);
    if long("32 networks, all pairs") {
        isolation_cases(BOTH[0], 32);
    }
}

#[test]
fn each_vni_has_its_own_remotes() {
    for underlay in BOTH {
        let mut cases = Cases::new(format!("remotes by VNI, IPv6 underlay {}", underlay.v6));
        let mut hosts = Hosts::new(3, underlay);
        let plan: [(u32, &[u8]); 4] = [
            (7001, &[1, 2, 3]),
            (7002, &[1, 2]),
            (7003, &[1, 3]),
            (7004, &[1]),
        ];
        for index in 1..=3 {
            // The hosts' first network is not looked at; its workload would be counted.
            sh(&format!(
                "ip -n {} link set eth0 down",
                hosts.host(index).workload
            ));
            hosts.start_weft(index, strict(), &[]);
        }
        let mut tenants = Vec::new();
        for (number, members) in plan {
            for index in members {
                let tenant = add_tenant(&mut hosts, *index, number, members);
                tenants.push((*index, number, tenant));
            }
        }
        for (number, members) in plan {
            cases.run(format!("VNI {number} floods to {members:?}"), || {
                let mouth = tenants.iter().find(|t| t.0 == 1 && t.1 == number).unwrap();
                let marker = format!("<{number}>");
                let before = dropped(&hosts, 1, DropReason::NoVtep);
                for _ in 0..10 {
                    mouth.2.ear.send(&frame_to(1, BROADCAST, marker.as_bytes()));
                }
                for (index, at, tenant) in tenants.iter().filter(|t| t.0 != 1) {
                    let want = if *at == number { 10 } else { 0 };
                    let heard = tenant.ear.hear(want, marker.as_bytes()).len();
                    assert_eq!(heard, want, "host {index} VNI {at}");
                }
                if members.len() == 1 {
                    let after = dropped(&hosts, 1, DropReason::NoVtep);
                    assert_eq!(after - before, 10);
                }
            });
        }
        cases.run("every frame is accounted for", || {
            hosts.check_conservation()
        });
    }
}
