//! Neighbour suppression on real namespaces, after the kernel's `test_bridge_neigh_suppress.sh`: ARP and
//! neighbour solicitations are answered from the table and stay on the node.
//!
//! Host 3 exists in the tables only, so every answer about it comes from them. A probe at the hub hears
//! all that host 1 sends on the underlay.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use common::cases::Cases;
use common::hosts::{Hosts, Underlay, ip4, ip6, mac, record, settled_counters, sh, try_sh, vni};
use common::probe::{Heard, Probe, count_tunnelled};
use weft::dataplane::verdict::DropReason;
use weft::tables::SegmentPolicy;
use weft::wire::arp::{self, Arp, Op};
use weft::wire::frame::FrameBuilder;
use weft::wire::inner::{self, Inner, Kind};
use weft::wire::ndp::{self, Neighbour};
use weft::wire::{Mac, VnetHdr};

struct Bed {
    hosts: Hosts,
    /// Host 1's link to the underlay, heard from the hub.
    wire: Probe,
    /// The workloads' interfaces.
    here: Probe,
    there: Probe,
}

fn bed(underlay: Underlay, policy: SegmentPolicy) -> Bed {
    let mut hosts = Hosts::new(2, underlay);
    hosts.start_weft(1, policy, &[2, 3]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(1, ip6(2).into());
    let wire = Probe::open(&format!("{}hub", hosts.prefix), "p1");
    let here = Probe::open(&hosts.host(1).workload, "eth0");
    let there = Probe::open(&hosts.host(2).workload, "eth0");
    Bed {
        hosts,
        wire,
        here,
        there,
    }
}

impl Bed {
    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters().dropped(reason)
    }

    fn counters(&self) -> weft::dataplane::counters::CounterSnapshot {
        settled_counters(self.hosts.host(1).dataplane.as_ref().unwrap())
    }

    /// Waits until the workload's frames were decided on, and returns what went out on the underlay.
    fn settle(&self) -> Vec<Heard> {
        let mut before = u64::MAX;
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = self.counters().encap_frames;
            if now == before {
                return self.wire.take();
            }
            before = now;
        }
    }

    /// Neighbour questions (not answers) about an address on the underlay.
    fn leaked(&self, about: std::net::IpAddr) -> usize {
        count_tunnelled(&self.settle(), |frame, inner| {
            asks(frame, inner) == Some(about)
        })
    }

    fn arp_answer(&self, target: Ipv4Addr) -> Option<(Arp, Mac)> {
        self.here.wait_for(|heard| {
            let inner = heard.inner()?;
            let arp = Arp::parse(&heard.bytes, &inner).ok()?;
            (arp.op == Op::Reply && arp.sender_ip == target).then_some((arp, inner.dst))
        })
    }

    fn advertisement(&self, target: Ipv6Addr) -> Option<(ndp::Advertisement, Mac)> {
        self.here.wait_for(|heard| {
            let inner = heard.inner()?;
            match ndp::parse(&heard.bytes, &inner) {
                Ok(Neighbour::Advertisement(told)) if told.target == target => {
                    Some((told, inner.dst))
                }
                _ => None,
            }
        })
    }

    fn forget(&self) {
        self.settle();
        self.here.take();
        self.there.take();
    }
}

fn asks(frame: &[u8], inner: &Inner) -> Option<std::net::IpAddr> {
    if let Ok(arp) = Arp::parse(frame, inner) {
        return (arp.op == Op::Request).then_some(arp.target_ip.into());
    }
    match ndp::parse(frame, inner) {
        Ok(Neighbour::Solicitation(asked)) => Some(asked.target.into()),
        _ => None,
    }
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    arp::request(mac(1), ip4(1), target)
}

/// A solicitation of host 1's workload; to the solicited-node group or to one station.
fn solicitation(target: Ipv6Addr, to: Option<Mac>) -> Vec<u8> {
    let last = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(last[13]),
        u16::from_be_bytes([last[14], last[15]]),
    );
    let group_mac = Mac([0x33, 0x33, 0xff, last[13], last[14], last[15]]);
    let mut body = last.to_vec();
    body.extend([1, 1]);
    body.extend(mac(1).0);
    FrameBuilder::new(mac(1), to.unwrap_or(group_mac))
        .ipv6(ip6(1), if to.is_some() { target } else { group })
        .ttl(255)
        .icmp(135, 0, 0)
        .payload(&body)
        .build()
}

fn unicast(mut frame: Vec<u8>, to: Mac) -> Vec<u8> {
    frame[..6].copy_from_slice(&to.0);
    frame
}

const OVER_IPV4: Underlay = Underlay {
    v6: false,
    mtu: 1500,
};
const OVER_IPV6: Underlay = Underlay {
    v6: true,
    mtu: 1500,
};

#[test]
fn known_neighbours_are_answered_here_and_not_asked_for_over_ipv4() {
    strict_cases(OVER_IPV4);
}

#[test]
fn known_neighbours_are_answered_here_and_not_asked_for_over_ipv6() {
    strict_cases(OVER_IPV6);
}

fn strict_cases(underlay: Underlay) {
    let bed = bed(underlay, SegmentPolicy::default());
    let mut cases = Cases::new(format!("neigh strict, IPv6 underlay {}", underlay.v6));
    for (name, host) in [("a running host", 2), ("a host that is down", 3)] {
        cases.run(format!("ARP for {name}"), || {
            bed.forget();
            bed.here.send(&arp_request(ip4(host)));
            let (told, to) = bed.arp_answer(ip4(host)).expect("an answer");
            assert_eq!(
                (told.sender_mac, told.target_mac, to),
                (mac(host), mac(1), mac(1))
            );
            assert_eq!(bed.leaked(ip4(host).into()), 0);
        });
        cases.run(format!("neighbour solicitation for {name}"), || {
            bed.forget();
            bed.here.send(&solicitation(ip6(host), None));
            let (told, to) = bed.advertisement(ip6(host)).expect("an answer");
            assert_eq!((told.target_mac, to), (Some(mac(host)), mac(1)));
            assert!(told.solicited && told.overrides && !told.router);
            assert_eq!(bed.leaked(ip6(host).into()), 0);
        });
    }
    cases.run("the kernel resolves a host that is down", || {
        bed.forget();
        for target in [ip4(3).to_string(), ip6(3).to_string()] {
            bed.hosts.try_exec(1, &format!("ping -c 1 -W 1 {target}"));
            let found = bed
                .hosts
                .exec(1, &format!("ip neigh show to {target} dev eth0"));
            assert!(found.contains(&mac(3).to_string()), "{found}");
        }
        assert_eq!(bed.leaked(ip4(3).into()), 0);
    });
    cases.run(
        "a unicast ARP request reaches its target, which answers",
        || {
            bed.forget();
            bed.here.send(&unicast(arp_request(ip4(2)), mac(2)));
            assert!(bed.arp_answer(ip4(2)).is_some());
            let arrived = bed.there.wait_for(|h| {
                let inner = h.inner()?;
                (asks(&h.bytes, &inner) == Some(ip4(2).into())).then_some(())
            });
            assert!(arrived.is_some(), "the target did not see it");
            assert_eq!(bed.leaked(ip4(2).into()), 1);
        },
    );
    cases.run(
        "a unicast neighbour solicitation reaches its target, which answers",
        || {
            bed.forget();
            bed.here.send(&solicitation(ip6(2), Some(mac(2))));
            assert!(bed.advertisement(ip6(2)).is_some());
            assert_eq!(bed.leaked(ip6(2).into()), 1);
        },
    );
    cases.run("an ARP reply to one station passes", || {
        bed.forget();
        let mut reply = unicast(arp_request(ip4(2)), mac(2));
        reply[21] = 2;
        bed.here.send(&reply);
        let arrived = bed
            .there
            .wait_for(|h| Arp::parse(&h.bytes, &h.inner()?).ok());
        assert_eq!(arrived.map(|arp| arp.op), Some(Op::Reply));
    });
    cases.run(
        "an announcement of its own address stays: the table says it",
        || {
            bed.forget();
            let before = bed.dropped(DropReason::NeighbourLocal);
            bed.here.send(&arp::announcement(mac(1), ip4(1)));
            assert_eq!(bed.leaked(ip4(1).into()), 0);
            assert_eq!(bed.dropped(DropReason::NeighbourLocal), before + 1);
        },
    );
    cases.run("an announcement of another's address is a lie", || {
        bed.forget();
        let before = bed.dropped(DropReason::SpoofedSourceIp);
        bed.here.send(&arp::announcement(mac(1), ip4(2)));
        assert_eq!(bed.leaked(ip4(2).into()), 0);
        assert_eq!(bed.dropped(DropReason::SpoofedSourceIp), before + 1);
    });
    cases.run("unknown addresses are dropped and counted", || {
        bed.forget();
        let before = bed.dropped(DropReason::NeighbourUnknown);
        bed.here.send(&arp_request(ip4(77)));
        bed.here.send(&solicitation(ip6(77), None));
        assert_eq!(bed.leaked(ip4(77).into()), 0);
        assert_eq!(bed.dropped(DropReason::NeighbourUnknown), before + 2);
        assert!(
            bed.here
                .take()
                .iter()
                .all(|h| h.inner().unwrap().kind != Kind::Arp)
        );
    });
    cases.run(
        "the gateway and local workloads answer for themselves",
        || {
            bed.forget();
            let before = bed.dropped(DropReason::NeighbourLocal);
            bed.here.send(&arp_request(ip4(254)));
            bed.here.send(&solicitation(ip6(254), None));
            assert_eq!(bed.leaked(ip4(254).into()), 0);
            assert_eq!(bed.dropped(DropReason::NeighbourLocal), before + 2);
        },
    );
    cases.run("an ARP probe for a taken address is answered", || {
        bed.forget();
        bed.here
            .send(&arp::request(mac(1), Ipv4Addr::UNSPECIFIED, ip4(2)));
        let (told, _) = bed.arp_answer(ip4(2)).expect("an answer");
        assert_eq!(told.sender_mac, mac(2));
        assert_eq!(bed.leaked(ip4(2).into()), 0);
    });
    cases.run("duplicate address detection finds a taken address", || {
        bed.forget();
        assert!(dad_fails(&bed.hosts.host(1).workload, ip6(3)));
        assert_eq!(bed.leaked(ip6(3).into()), 0);
    });
    cases.run("duplicate address detection lets a free address be", || {
        assert!(!dad_fails(&bed.hosts.host(1).workload, ip6(88)));
    });
    cases.run("ten thousand requests: none leaves the node", || {
        bed.forget();
        let before = bed.counters();
        for number in 0..10_000_u32 {
            let known = number % 2 == 0;
            bed.here.send(&arp_request(ip4(if known { 3 } else { 77 })));
        }
        let leaked = count_tunnelled(&bed.settle(), |_, inner| inner.kind == Kind::Arp);
        assert_eq!((leaked, bed.wire.drops()), (0, 0));
        let after = bed.counters();
        let seen = after.answered - before.answered + after.dropped(DropReason::NeighbourUnknown)
            - before.dropped(DropReason::NeighbourUnknown)
            + after.uplink_overflow
            - before.uplink_overflow;
        assert!(seen >= 10_000, "{seen} of 10000 decided");
    });
    bed.hosts.check_conservation();
}

/// Adds an address as the kernel does it with duplicate address detection; true if it was found taken.
fn dad_fails(ns: &str, address: Ipv6Addr) -> bool {
    sh(&format!("ip -n {ns} addr add {address}/64 dev eth0"));
    let start = Instant::now();
    let mut state = String::new();
    while start.elapsed() < Duration::from_secs(5) {
        state = sh(&format!("ip -n {ns} -6 addr show dev eth0 to {address}"));
        if state.contains("dadfailed") || !state.contains("tentative") {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    try_sh(&format!("ip -n {ns} addr del {address}/64 dev eth0"));
    state.contains("dadfailed")
}

#[test]
fn answers_follow_the_table() {
    let mut bed = bed(OVER_IPV4, SegmentPolicy::default());
    let mut cases = Cases::new("neigh table");
    let ask = |bed: &Bed| {
        bed.forget();
        bed.here.send(&arp_request(ip4(3)));
        bed.settle();
        let heard = bed.here.take();
        heard.iter().any(|h| {
            let arp = h.inner().and_then(|i| Arp::parse(&h.bytes, &i).ok());
            arp.is_some_and(|arp| arp.sender_ip == ip4(3))
        })
    };
    cases.run("known", || assert!(ask(&bed)));
    cases.run("removed", || {
        let writer = bed.hosts.hosts[0].writer.as_mut().unwrap();
        writer.remove(vni(), "endpoint3").unwrap();
        assert!(!ask(&bed));
    });
    cases.run("back behind another VTEP", || {
        let vtep = bed.hosts.underlay.vtep(2);
        let mut moved = record(3, vtep);
        moved.version.counter = 9;
        let writer = bed.hosts.hosts[0].writer.as_mut().unwrap();
        writer.upsert_remote(&moved).unwrap();
        assert!(ask(&bed));
    });
    bed.hosts.check_conservation();
}

#[test]
fn an_interop_network_asks_the_others_for_what_it_does_not_know() {
    interop_cases(OVER_IPV4);
    interop_cases(OVER_IPV6);
}

fn interop_cases(underlay: Underlay) {
    let bed = bed(underlay, SegmentPolicy::interop());
    let mut cases = Cases::new(format!("neigh interop, IPv6 underlay {}", underlay.v6));
    cases.run("known addresses are answered here", || {
        bed.forget();
        bed.here.send(&arp_request(ip4(3)));
        assert!(bed.arp_answer(ip4(3)).is_some());
        assert_eq!(bed.leaked(ip4(3).into()), 0);
    });
    for (name, frame, about) in [
        (
            "ARP for an unknown address",
            arp_request(ip4(77)),
            ip4(77).into(),
        ),
        (
            "solicitation for an unknown address",
            solicitation(ip6(77), None),
            ip6(77).into(),
        ),
        (
            "announcement of the own address",
            arp::announcement(mac(1), ip4(1)),
            ip4(1).into(),
        ),
    ] {
        cases.run(format!("{name} is flooded"), || {
            bed.forget();
            bed.here.send(&frame);
            // To the VTEPs of hosts 2 and 3; there is nobody to take the latter's.
            let arrived = bed.there.wait_for(|h| {
                let inner = h.inner()?;
                (asks(&h.bytes, &inner) == Some(about)).then_some(())
            });
            assert!(
                arrived.is_some(),
                "host 2 did not get it {}",
                bed.hosts.report()
            );
            assert!(bed.leaked(about) >= 1);
        });
    }
    bed.hosts.check_conservation();
}

#[test]
fn questions_on_a_vlan_of_the_workloads_are_left_to_its_stations() {
    let bed = bed(OVER_IPV4, SegmentPolicy::default());
    let mut cases = Cases::new("neigh vlan");
    let vlan = 10;
    for (name, target) in [("an address the table has", ip4(3)), ("another", ip4(77))] {
        cases.run(
            format!("tagged ARP for {name} is carried, not answered"),
            || {
                bed.forget();
                let mut frame = arp_request(target);
                frame.splice(12..12, [0x81, 0, 0, vlan]);
                bed.here.try_send(VnetHdr::default(), &frame).unwrap();
                let arrived = bed.there.wait_for(|h| {
                    let inner = inner::parse(&h.bytes).ok()?;
                    let tag = h.vlan.or(inner.vlan)?;
                    let asked = Arp::parse(&h.bytes, &inner).ok()?.target_ip;
                    (tag == u16::from(vlan) && asked == target).then_some(())
                });
                assert!(arrived.is_some(), "{}", bed.hosts.report());
                assert!(
                    !bed.here
                        .take()
                        .iter()
                        .any(|h| h.inner().is_some_and(|i| i.kind == Kind::Arp))
                );
            },
        );
    }
    bed.hosts.check_conservation();
}
