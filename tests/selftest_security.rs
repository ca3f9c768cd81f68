//! Attackers on real sockets: an injector on the underlay, a member VTEP that lies, workloads that
//! spoof, flood and loop. Nothing of theirs arrives, each frame is counted under its reason, and
//! traffic passes afterwards.

mod common;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::cases::Cases;
use common::counts::{agree, at_rest, reaches};
use common::hosts::{Hosts, Underlay, ip4, ip6, mac, settled_counters, sh, try_sh, vni};
use common::probe::Probe;
use common::random::{Random, frames_in};
use common::skip::long;
use common::traffic::{tcp_transfer, udp_transfer_beside_floods, within};
use weft::dataplane::counters::CounterSnapshot;
use weft::dataplane::verdict::DropReason;
use weft::tables::store::LEARNED_MAX;
use weft::tables::{SegmentPolicy, TableWriter};
use weft::wire::arp;
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, VnetHdr, Vni, vxlan};

const MARKER: &[u8] = b"this must not arrive";

fn counters(hosts: &Hosts, index: u8) -> CounterSnapshot {
    settled_counters(hosts.host(index).dataplane.as_ref().unwrap())
}

fn writer(hosts: &Hosts, index: u8) -> &TableWriter {
    hosts.host(index).writer.as_ref().unwrap()
}

/// Sends datagrams to a VTEP from a namespace, no faster than they are taken.
struct Injector<'a> {
    hosts: &'a Hosts,
    socket: UdpSocket,
    target: SocketAddr,
    sent: u64,
    first: u64,
}

impl<'a> Injector<'a> {
    /// From host `from`'s namespace (with its VTEP address) to the VTEP of host `to`.
    fn new(hosts: &'a Hosts, from: u8, to: u8) -> Injector<'a> {
        let address = hosts.host(from).vtep;
        let socket = within(&hosts.host(from).ns, || {
            UdpSocket::bind((address, 0)).unwrap()
        });
        Injector {
            hosts,
            socket,
            target: SocketAddr::new(hosts.host(to).vtep, vxlan::PORT),
            sent: 0,
            first: counters(hosts, to).decap_datagrams,
        }
    }

    fn send(&mut self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.target).unwrap();
        self.sent += 1;
        if self.sent.is_multiple_of(512) {
            self.pace();
        }
    }

    /// Datagrams that came to the target, those its kernel dropped among them.
    fn taken(&self) -> u64 {
        let to = self.hosts.hosts.iter().find(|h| h.vtep == self.target.ip());
        let now = to.unwrap().dataplane.as_ref().unwrap().counters();
        now.decap_datagrams + now.underlay_overflow - self.first
    }

    /// Waits for the receiver.
    fn pace(&self) {
        let _lost_ones_are_seen_by_the_case = reaches(|| self.taken(), self.sent);
    }

    /// Waits until all that was sent has been taken. Other hosts' datagrams count too (their router
    /// solicitations), so this also waits for the count to stand still.
    fn settle(&self) {
        self.pace();
        let mut before = 0;
        while before != self.taken() {
            before = self.taken();
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn tunnelled(vni: Vni, frame: &[u8]) -> Vec<u8> {
    [&vxlan::encode(vni)[..], frame].concat()
}

fn udp4(from: u8, to: u8) -> FrameBuilder {
    FrameBuilder::new(mac(from), mac(to))
        .ipv4(ip4(from), ip4(to))
        .udp(7, 7)
        .payload(MARKER)
}

fn udp6(from: u8, to: u8) -> FrameBuilder {
    FrameBuilder::new(mac(from), mac(to))
        .ipv6(ip6(from), ip6(to))
        .udp(7, 7)
        .payload(MARKER)
}

fn has_marker(bytes: &[u8]) -> bool {
    bytes.windows(MARKER.len()).any(|window| window == MARKER)
}

fn stranger(number: u64) -> Mac {
    Mac::from_u64(0x0666_0000_0000 | number)
}

fn neighbour_advertisement(src: Mac, source: Ipv6Addr, target: Ipv6Addr, told: Mac) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(told.0);
    FrameBuilder::new(src, Mac([0x33, 0x33, 0, 0, 0, 1]))
        .ipv6(source, all_nodes)
        .ttl(255)
        .icmp(136, 0, 0x2000_0000)
        .payload(&body)
        .build()
}

fn link_local() -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)
}

/// An ARP frame as of an IEEE 802 network, which Linux takes on Ethernet, too.
fn hardware_type_6(mut frame: Vec<u8>) -> Vec<u8> {
    frame[15] = 6;
    frame
}

/// An ARP reply from the gateway's MAC address to one station, which says that the gateway has `claimed`.
fn arp_of_the_gateway(to: Mac, claimed: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp::request(Mac::from_ipv4(ip4(254)), claimed, ip4(9));
    frame[..6].copy_from_slice(&to.0);
    frame[21] = 2;
    frame
}

#[test]
fn an_outsider_on_the_underlay_delivers_nothing_in_any_vni() {
    let mut hosts = Hosts::new(3, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    let mut cases = Cases::new("security outsider");
    let workload = Probe::open(&hosts.host(1).workload, "eth0");
    let vnis: u32 = if long("all 2^24 VNIs") {
        1 << 24
    } else {
        1 << 16
    };
    cases.run(
        format!("{vnis} VNIs from an address that is no VTEP"),
        || {
            let before = counters(&hosts, 1);
            let mut injector = Injector::new(&hosts, 3, 1);
            let frame = udp4(2, 1).build();
            let mut datagram = tunnelled(vni(), &frame);
            for number in 0..vnis {
                datagram[4..7].copy_from_slice(&number.to_be_bytes()[1..]);
                injector.send(&datagram);
            }
            injector.settle();
            let after = counters(&hosts, 1);
            let refused =
                after.dropped(DropReason::UnknownVtep) - before.dropped(DropReason::UnknownVtep);
            let lost = after.underlay_overflow - before.underlay_overflow;
            assert_eq!(refused + lost, u64::from(vnis), "{lost} lost in the kernel");
            assert!(!workload.take().iter().any(|h| has_marker(&h.bytes)));
        },
    );
    cases.run("a VTEP without an agent costs the others nothing", || {
        // Host 3 answers each datagram with "port unreachable".
        let mut record = common::hosts::record(3, hosts.host(3).vtep);
        record.version.counter = 2;
        hosts.hosts[0]
            .writer
            .as_mut()
            .unwrap()
            .upsert_remote(&record)
            .unwrap();
        let here = Probe::open(&hosts.host(1).workload, "eth0");
        let dead = udp4(1, 3).build();
        let before = counters(&hosts, 1);
        std::thread::scope(|scope| {
            let (source, sink) = (&hosts.host(1).workload, &hosts.host(2).workload);
            let live = scope.spawn(|| {
                for _ in 0..8 {
                    udp_transfer_beside_floods(source, sink, ip4(2).into(), 250, 4..=1400);
                }
            });
            while !live.is_finished() {
                here.send(&dead);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let after = counters(&hosts, 1);
        let reason = DropReason::UnderlayUnreachable;
        assert_eq!(after.dropped(reason), before.dropped(reason));
    });
    hosts.check_conservation();
}

#[test]
fn a_member_that_lies_delivers_nothing() {
    let mut hosts = Hosts::new(3, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2, 3]);
    let mut cases = Cases::new("security member");
    let workload = Probe::open(&hosts.host(1).workload, "eth0");
    let own = |frame: Vec<u8>| tunnelled(vni(), &frame);
    let arp_lie = |mut frame: Vec<u8>| {
        frame[21] = 2;
        frame
    };
    let gateway = Mac::from_ipv4(ip4(254));
    let mut no_flag = own(udp4(2, 1).build());
    no_flag[0] = 0;
    let mut reserved = own(udp4(2, 1).build());
    reserved[7] = 1;
    let rows: Vec<(&str, Vec<u8>, DropReason)> = vec![
        (
            "an invented source MAC",
            own(udp4(2, 1).src(stranger(1)).build()),
            DropReason::InnerSpoofedMac,
        ),
        (
            "the receiver's own MAC",
            own(udp4(2, 1).src(mac(1)).build()),
            DropReason::InnerSpoofedMac,
        ),
        (
            "a MAC of another VTEP",
            own(udp4(3, 1).build()),
            DropReason::InnerSpoofedMac,
        ),
        (
            "another VTEP's IPv4",
            own(udp4(2, 1).ipv4(ip4(3), ip4(1)).build()),
            DropReason::InnerSpoofedIp,
        ),
        (
            "the receiver's own IPv4",
            own(udp4(2, 1).ipv4(ip4(1), ip4(1)).build()),
            DropReason::InnerSpoofedIp,
        ),
        (
            "an invented IPv4",
            own(udp4(2, 1).ipv4(Ipv4Addr::new(8, 8, 8, 8), ip4(1)).build()),
            DropReason::InnerSpoofedIp,
        ),
        (
            "another VTEP's IPv6",
            own(udp6(2, 1).ipv6(ip6(3), ip6(1)).build()),
            DropReason::InnerSpoofedIp,
        ),
        (
            "an ARP claim of another's address",
            own(arp_lie(arp::request(mac(2), ip4(3), ip4(1)))),
            DropReason::InnerSpoofedIp,
        ),
        (
            "an ARP claim with another MAC inside",
            own({
                let mut frame = arp::announcement(mac(3), ip4(3));
                frame[6..12].copy_from_slice(&mac(2).0);
                frame
            }),
            DropReason::InnerSpoofedIp,
        ),
        (
            "an ARP claim by hardware type 6, which Linux reads",
            own(hardware_type_6(arp_lie(arp::request(
                mac(2),
                ip4(3),
                ip4(1),
            )))),
            DropReason::InnerSpoofedIp,
        ),
        (
            "the gateway with an ARP claim of another's address",
            own(arp_of_the_gateway(mac(1), ip4(3))),
            DropReason::InnerSpoofedIp,
        ),
        (
            "the gateway with a neighbour advertisement of another's address",
            own(neighbour_advertisement(
                gateway,
                link_local(),
                ip6(3),
                gateway,
            )),
            DropReason::InnerSpoofedIp,
        ),
        (
            "a neighbour advertisement of another's address",
            own(neighbour_advertisement(mac(2), ip6(2), ip6(3), mac(2))),
            DropReason::InnerSpoofedIp,
        ),
        (
            "the gateway with a foreign address",
            own(udp4(2, 1).src(gateway).ipv4(ip4(3), ip4(1)).build()),
            DropReason::InnerSpoofedIp,
        ),
        (
            "a frame for nobody",
            own(udp4(2, 1).dst(stranger(2)).build()),
            DropReason::NotLocal,
        ),
        (
            "a frame for a third node",
            own(udp4(2, 3).build()),
            DropReason::SplitHorizon,
        ),
        (
            "a spanning tree frame",
            own(udp4(2, 1).dst(Mac([1, 0x80, 0xc2, 0, 0, 0])).build()),
            DropReason::InnerLinkLocalControl,
        ),
        (
            "an LLDP frame",
            own(udp4(2, 1).dst(Mac([1, 0x80, 0xc2, 0, 0, 14])).build()),
            DropReason::InnerLinkLocalControl,
        ),
        (
            "an unknown VNI",
            tunnelled(Vni::new(77).unwrap(), &udp4(2, 1).build()),
            DropReason::UnknownVni,
        ),
        ("no I flag", no_flag, DropReason::VxlanNoVni),
        ("a reserved bit", reserved, DropReason::VxlanReservedBits),
        (
            "eight bytes",
            vxlan::encode(vni()).to_vec(),
            DropReason::VxlanShort,
        ),
        (
            "a lying IPv4 length",
            own({
                let mut frame = udp4(2, 1).build();
                frame[16] = 0xff;
                frame
            }),
            DropReason::InnerMalformed,
        ),
    ];
    const EACH: u64 = 100;
    let mut injector = Injector::new(&hosts, 2, 1);
    for (name, datagram, reason) in rows {
        cases.run(name, || {
            let before = counters(&hosts, 1);
            for _ in 0..EACH {
                injector.send(&datagram);
            }
            injector.settle();
            let after = counters(&hosts, 1);
            assert_eq!(
                after.dropped(reason) - before.dropped(reason),
                EACH,
                "{} {}",
                reason.name(),
                hosts.report()
            );
            assert_eq!(after.delivered, before.delivered);
            assert!(!workload.take().iter().any(|h| has_marker(&h.bytes)));
        });
    }
    cases.run("the truth", || {
        injector.send(&own(udp4(2, 1).build()));
        injector.settle();
        assert!(
            workload
                .wait_for(|h| has_marker(&h.bytes).then_some(()))
                .is_some()
        );
    });
    hosts.check_conservation();
}

/// What a workload must not send, with the reason it is counted under.
fn spoofs() -> Vec<(&'static str, Vec<u8>, DropReason)> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let all_nodes_mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let router = |kind| {
        FrameBuilder::new(mac(1), all_nodes_mac)
            .ipv6(link_local(), all_nodes)
            .ttl(255)
            .icmp(kind, 0, 0x4000_0708)
            .payload(&[0; 32])
            .build()
    };
    let gateway = Mac::from_ipv4(ip4(254));
    let mut arp_claim = arp::request(mac(1), ip4(2), ip4(9));
    arp_claim[21] = 2;
    let mut arp_lie = arp::announcement(mac(2), ip4(2));
    arp_lie[6..12].copy_from_slice(&mac(1).0);
    vec![
        (
            "MAC",
            udp4(1, 2).src(stranger(3)).build(),
            DropReason::SpoofedSourceMac,
        ),
        (
            "IPv4",
            udp4(1, 2).ipv4(ip4(3), ip4(2)).build(),
            DropReason::SpoofedSourceIp,
        ),
        (
            "IPv6",
            udp6(1, 2).ipv6(ip6(3), ip6(2)).build(),
            DropReason::SpoofedSourceIp,
        ),
        ("ARP claim", arp_claim, DropReason::SpoofedSourceIp),
        (
            "ARP claim of hardware type 6",
            hardware_type_6(arp::announcement(mac(1), ip4(2))),
            DropReason::SpoofedSourceIp,
        ),
        (
            "ARP claim in the gateway's name",
            arp_of_the_gateway(mac(2), ip4(3)),
            DropReason::SpoofedSourceIp,
        ),
        (
            "neighbour advertisement in the gateway's name",
            neighbour_advertisement(gateway, link_local(), ip6(2), gateway),
            DropReason::SpoofedSourceIp,
        ),
        (
            "ARP with another MAC inside",
            arp_lie,
            DropReason::SpoofedSourceIp,
        ),
        (
            "neighbour advertisement",
            neighbour_advertisement(mac(1), ip6(1), ip6(2), mac(1)),
            DropReason::SpoofedSourceIp,
        ),
        ("router advertisement", router(134), DropReason::RogueRouter),
        ("redirect", router(137), DropReason::RogueRouter),
        (
            "DHCP offer",
            udp4(1, 2).udp(67, 68).payload(&[2; 240]).build(),
            DropReason::RogueDhcp,
        ),
        (
            "DHCPv6 reply",
            udp6(1, 2).udp(547, 546).payload(&[7; 40]).build(),
            DropReason::RogueDhcp,
        ),
    ]
}

#[test]
fn spoofed_frames_of_a_workload_do_not_leave_the_node() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2, 3]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(1, ip6(2).into());
    let wire = Probe::open(&format!("{}hub", hosts.prefix), "p1");
    let workload = Probe::open(&hosts.host(1).workload, "eth0");
    let mut cases = Cases::new("security spoofing");
    let each = 10_000;
    for (name, frame, reason) in spoofs() {
        cases.run(format!("{each} of {name}"), || {
            let before = counters(&hosts, 1);
            let read = || {
                let now = hosts.host(1).dataplane.as_ref().unwrap().counters();
                now.dropped(reason) + now.uplink_overflow
            };
            for number in 1..=each {
                workload.send(&frame);
                if number % 500 == 0 {
                    assert!(
                        reaches(
                            read,
                            before.dropped(reason) + before.uplink_overflow + number
                        ),
                        "{}",
                        hosts.report()
                    );
                }
            }
            let after = counters(&hosts, 1);
            assert_eq!(
                after.dropped(reason) - before.dropped(reason),
                each,
                "{}",
                hosts.report()
            );
            let left = wire.take();
            assert!(
                !left
                    .iter()
                    .flat_map(|h| h.tunnelled())
                    .any(|t| t.frame == frame)
            );
            assert_eq!(wire.drops(), 0);
        });
    }
    cases.run("spanning tree and LLDP", || {
        for last in [0, 14] {
            let frame = udp4(1, 2).dst(Mac([1, 0x80, 0xc2, 0, 0, last])).build();
            for _ in 0..1000 {
                workload.send(&frame);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(!wire.take().iter().any(|h| has_marker(&h.bytes)));
    });
    cases.run("a locked bridge port stops invented MACs before the agent", || {
        let net = &hosts.host(1).net;
        sh(&format!(
            "bridge -n {net} fdb replace {} dev e1 master static && bridge -n {net} link set dev e1 learning off locked on",
            mac(1)
        ));
        let before = counters(&hosts, 1);
        for number in 0..1000 {
            workload.send(&udp4(1, 2).src(stranger(1 << 20 | number)).build());
        }
        hosts.wait_ping(1, ip4(2).into());
        let reason = DropReason::SpoofedSourceMac;
        assert_eq!(counters(&hosts, 1).dropped(reason), before.dropped(reason));
    });
    hosts.wait_ping(1, ip4(2).into());
    hosts.check_conservation();
}

#[test]
fn a_flood_of_mac_addresses_does_not_grow_the_tables() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::interop(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    let mut cases = Cases::new("security MAC flood");
    let count: u64 = if long("a million MAC addresses") {
        1_000_000
    } else {
        100_000
    };
    cases.run(format!("{count} source MACs of a workload"), || {
        // As the host plumbs it: the bridge learns nothing from the workload.
        sh(&format!(
            "bridge -n {} link set dev e2 learning off",
            hosts.host(2).net
        ));
        let (tables, before) = (writer(&hosts, 2).tables(), counters(&hosts, 2));
        let (stations, memory) = (tables.fdb.len(), tables.fdb.memory_len());
        let workload = Probe::open(&hosts.host(2).workload, "eth0");
        let mut frame = udp4(2, 1).build();
        let read = || counters(&hosts, 2).dropped(DropReason::SpoofedSourceMac);
        for number in 1..=count {
            frame[6..12].copy_from_slice(&stranger(number).0);
            workload.send(&frame);
            if number % 500 == 0 {
                assert!(reaches(
                    read,
                    before.dropped(DropReason::SpoofedSourceMac) + number
                ));
            }
        }
        assert_eq!(
            (tables.fdb.len(), tables.fdb.memory_len()),
            (stations, memory)
        );
    });
    cases.run(
        format!("{count} source MACs from a tunnel that is learned from"),
        || {
            let host = &mut hosts.hosts[0];
            let mut writer = host.writer.take().unwrap();
            let fixed = writer.tables().fdb.len();
            let events = host.dataplane.as_ref().unwrap().learned().clone();
            let stop = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        while let Ok(event) = events.recv_timeout(Duration::from_millis(5)) {
                            writer.learn(event.segment, event.mac, event.vtep, event.now_s);
                        }
                    }
                });
                let mut injector = Injector::new(&hosts, 2, 1);
                let mut datagram = tunnelled(vni(), &udp4(2, 1).build());
                for number in 0..count {
                    datagram[8 + 6..8 + 12].copy_from_slice(&stranger(number).0);
                    injector.send(&datagram);
                }
                injector.settle();
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let learned = writer.tables().fdb.len() - fixed;
            println!("    {learned} stations learned");
            assert!(learned <= LEARNED_MAX && learned > 100);
            hosts.hosts[0].writer = Some(writer);
        },
    );
    hosts.wait_ping(1, ip4(2).into());
    hosts.check_conservation();
}

#[test]
fn a_loop_made_outside_is_held_to_the_broadcast_rate() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    let mut cases = Cases::new("security loop");
    let (a, b) = (&hosts.host(1).workload, &hosts.host(2).workload);
    sh(&format!(
        "set -e
        ip link add x0 netns {a} mtu 1450 type veth peer name x0 netns {b} mtu 1450
        for n in {a} {b}; do
            ip -n $n link add lb0 type bridge mcast_snooping 0
            ip -n $n link set x0 master lb0 up; ip -n $n link set eth0 master lb0; ip -n $n link set lb0 up
        done"
    ));
    // As the host plumbs it: the bridge learns nothing from workloads, so the loop cannot poison it.
    for (net, index) in [(&hosts.host(1).net, 1), (&hosts.host(2).net, 2)] {
        sh(&format!(
            "bridge -n {net} fdb replace {} dev e{index} master static && bridge -n {net} link set dev e{index} learning off",
            mac(index)
        ));
    }
    cases.run("two workloads bridged behind the agents' backs", || {
        let before = [counters(&hosts, 1), counters(&hosts, 2)];
        let start = Instant::now();
        let probe = Probe::open(a, "eth0");
        for _ in 0..20 {
            probe.send(
                &udp4(1, 2)
                    .dst(Mac::BROADCAST)
                    .ipv4(ip4(1), Ipv4Addr::BROADCAST)
                    .build(),
            );
        }
        std::thread::sleep(Duration::from_millis(2500));
        let elapsed = start.elapsed().as_secs_f64();
        for (index, before) in [1, 2].into_iter().zip(before) {
            let after = counters(&hosts, index);
            let flooded = (after.flooded - before.flooded) as f64;
            let held = after.dropped(DropReason::BumRate);
            println!("    host {index}: {flooded} flooded in {elapsed:.1} s, {held} held back");
            assert!(flooded <= 1000.0 * (elapsed + 1.0) + 50.0);
        }
    });
    cases.run("traffic passes when the loop is gone", || {
        for ns in [a, b] {
            sh(&format!("ip -n {ns} link set eth0 nomaster"));
        }
        let _with_it_goes_the_other_end = try_sh(&format!("ip -n {a} link del x0"));
        hosts.wait_ping(1, ip4(2).into());
        tcp_transfer(a, b, ip4(2).into(), 4 << 20);
    });
    hosts.check_conservation();
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = weft::fuzzing::frame_seeds();
    seeds.retain(|seed| (15..=1464).contains(&seed.len()));
    for (from, to) in [(1, 2), (2, 1)] {
        let tcp = FrameBuilder::new(mac(from), mac(to))
            .ipv4(ip4(from), ip4(to))
            .tcp(5, 6);
        seeds.push(tcp.payload_len(1000).build());
        seeds.push(udp4(from, to).payload_len(900).build());
        seeds.push(udp6(from, to).payload_len(300).build());
        seeds.push(arp::request(mac(from), ip4(from), ip4(to)));
    }
    seeds
}

fn still_works(hosts: &Hosts) {
    for index in [1, 2] {
        let dataplane = hosts.host(index).dataplane.as_ref().unwrap();
        assert_eq!(
            dataplane.alive(),
            dataplane.worker_count(),
            "a worker panicked"
        );
    }
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(2, ip6(1).into());
    tcp_transfer(
        &hosts.host(1).workload,
        &hosts.host(2).workload,
        ip4(2).into(),
        4 << 20,
    );
    hosts.check_conservation();
}

/// Bytes of no meaning at all, or a frame of the seeds with some changed; at most `len_max` of them.
fn hostile(random: &mut Random, seeds: &[Vec<u8>], len_max: usize) -> Vec<u8> {
    let mut frame = seeds[random.below(seeds.len())].clone();
    if random.below(5) == 0 {
        let len = random.below(len_max + 1);
        frame = random.bytes(len);
    } else {
        random.mutate(&mut frame, 90);
    }
    frame.truncate(len_max);
    frame
}

/// Datagrams that the sender's kernel took = datagrams read + datagrams the receiver's kernel counts as
/// dropped.
fn datagrams_at_the_udp_port(hosts: &Hosts, random: &mut Random, seeds: &[Vec<u8>], count: u64) {
    let before = at_rest(
        || (counters(hosts, 1), counters(hosts, 2)),
        |(one, two)| (one.decap_datagrams, two.datagrams_sent),
    );
    let mut member = Injector::new(hosts, 2, 1);
    for _ in 0..count {
        let datagram = match random.below(5) {
            0 => hostile(random, seeds, 1472),
            _ => {
                let mut datagram = tunnelled(vni(), &hostile(random, seeds, 1464));
                if random.below(10) == 0 {
                    datagram[random.below(8)] ^= 1 << random.below(8);
                }
                datagram
            }
        };
        member.send(&datagram);
    }
    member.settle();
    agree("datagrams", || {
        // The kernel tells of those it dropped with the next one.
        hosts.wait_ping(2, ip4(1).into());
        // What the workload of host 2 says to that of host 1 comes to the same port.
        let (one, two) = (counters(hosts, 1), counters(hosts, 2));
        let others = two.datagrams_sent - before.1.datagrams_sent;
        let read = one.decap_datagrams - before.0.decap_datagrams;
        let lost = one.underlay_overflow - before.0.underlay_overflow;
        (member.sent + others, read + lost)
    });
    let refused = |c: &CounterSnapshot| c.decap_datagrams - c.delivered;
    let all = refused(&counters(hosts, 1)) - refused(&before.0);
    assert!(all > count / 2, "only {all} of {count} were hostile");
}

/// What becomes of hostile frames on their way to the uplink's held end, where an ear beside the
/// agent's own socket hears them.
struct UplinkCount {
    mouth: Probe,
    ear: Probe,
    /// Taken by the kernel for sending.
    accepted: u64,
    refused: u64,
    /// Those whose VLAN tag is cut short: the kernel ends them before anybody hears them.
    cut_tags: u64,
    heard: u64,
    /// Those heard, a super-frame as its segments.
    frames: u64,
    most: u64,
}

impl UplinkCount {
    fn open(net: &str) -> UplinkCount {
        UplinkCount {
            mouth: Probe::open(net, "up0"),
            ear: Probe::open(net, "up1"),
            accepted: 0,
            refused: 0,
            cut_tags: 0,
            heard: 0,
            frames: 0,
            most: 1,
        }
    }

    /// Sends one; whether the kernel took it.
    fn send(&mut self, vnet: VnetHdr, frame: &[u8]) -> bool {
        let accepted = self.mouth.send_once(vnet, frame).is_ok();
        let tag = matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]);
        self.accepted += u64::from(accepted);
        self.refused += u64::from(!accepted);
        self.cut_tags += u64::from(accepted && tag && frame.len() < 20);
        accepted
    }

    fn listen(&mut self, buf: &mut [u8]) {
        while let Some(heard) = self.ear.next(buf) {
            let tag = heard.vlan.map(|tci| (tci, 0x8100));
            let frames = frames_in(heard.vnet, &heard.bytes, tag);
            self.heard += 1;
            self.frames += frames;
            self.most = self.most.max(frames);
        }
    }
}

/// Frames that the kernel took at the uplink = frames that came out at its other end + the link's drops;
/// and those that came out = frames read + frames the kernel dropped at the agent's socket.
fn frames_at_the_uplink(
    hosts: &Hosts,
    random: &mut Random,
    seeds: &[Vec<u8>],
    count: u64,
    offloads: bool,
) {
    let net = &hosts.host(1).net;
    // Nothing but what is sent here comes to the uplink.
    sh(&format!("ip -n {net} link set e1 down"));
    let passed = || {
        let (sent, came) = (
            packets(net, "up0", "tx_dropped"),
            packets(net, "up1", "rx_packets"),
        );
        (came, came + sent)
    };
    let (links, before) = at_rest(
        || (passed(), counters(hosts, 1)),
        |(links, one)| (*links, one.encap_frames),
    );
    let agent = || hosts.host(1).dataplane.as_ref().unwrap().counters();
    let read = || {
        let now = agent();
        let overflow = now.uplink_overflow - before.uplink_overflow;
        (now.encap_frames - before.encap_frames, overflow)
    };
    let mut uplink = UplinkCount::open(net);
    let mut buf = vec![0; 256 << 10];
    while uplink.accepted < count {
        let frame = hostile(random, seeds, 1464);
        if frame.len() < 14 {
            continue; // less than an Ethernet header is the kernel's to refuse
        }
        let vnet = match random.below(3) {
            0 if offloads => random.vnet(),
            _ => VnetHdr::default(),
        };
        let accepted = uplink.send(vnet, &frame);
        assert!(uplink.refused < 2 * count, "the kernel refuses most");
        if accepted && uplink.accepted.is_multiple_of(500) {
            uplink.listen(&mut buf);
            let _slower_is_no_failure = reaches(|| read().0 + read().1, uplink.frames);
        }
    }
    agree("frames heard", || {
        uplink.listen(&mut buf);
        (passed().0 - links.0, uplink.heard + uplink.cut_tags)
    });
    assert_eq!(uplink.ear.drops(), 0, "the ear hears all");
    let out = passed().1 - links.1;
    println!(
        "    {} accepted, {} heard as {} frames, {:?} read and overflown",
        uplink.accepted,
        uplink.heard,
        uplink.frames,
        read()
    );
    match offloads {
        false => assert_eq!(uplink.accepted, out),
        // The kernel cuts some super-frames itself.
        true => assert!(uplink.accepted <= out, "{} of {}", out, uplink.accepted),
    }
    let settled = reaches(|| read().0 + read().1, uplink.frames);
    let (read, overflow) = read();
    let lost = uplink.frames - read;
    // A super-frame that overflows is one of the kernel's count.
    assert!(
        overflow <= lost && lost <= overflow * uplink.most,
        "{} came, {read} read, {overflow} overflown, settled {settled}",
        uplink.frames
    );
    sh(&format!("ip -n {net} link set e1 up"));
}

#[test]
fn random_and_mutated_frames_break_nothing() {
    let count: u64 = if long("a million frames each way") {
        1_000_000
    } else {
        50_000
    };
    let seeds = seeds();
    let mut cases = Cases::new("security fuzz");
    for (kind, policy) in [
        ("strict", SegmentPolicy::default()),
        ("interop", SegmentPolicy::interop()),
    ] {
        let mut hosts = Hosts::new(3, Underlay::default());
        hosts.start_weft(1, policy, &[2]);
        hosts.start_weft(2, policy, &[1]);
        hosts.wait_ping(1, ip4(2).into());
        let mut random = Random(kind.len() as u64);
        let works = |hosts: &Hosts| {
            if !policy.spoof_check {
                // Where everybody is trusted, lies about addresses arrive.
                for index in [1, 2] {
                    hosts.exec(index, "ip neigh flush dev eth0");
                }
            }
            still_works(hosts);
        };
        cases.run(format!("{count} datagrams at the UDP port, {kind}"), || {
            datagrams_at_the_udp_port(&hosts, &mut random, &seeds, count);
            works(&hosts);
        });
        for (what, offloads) in [("plain frames", false), ("frames with offloads", true)] {
            cases.run(
                format!("{} {what} at the uplink, {kind}", count / 2),
                || {
                    frames_at_the_uplink(&hosts, &mut random, &seeds, count / 2, offloads);
                    works(&hosts);
                },
            );
        }
    }
}

/// A second network on hosts 1 and 2 with the same addresses, and its namespaces.
struct SecondNetwork {
    names: Vec<String>,
}

const SECOND: u32 = 4098;

impl SecondNetwork {
    fn workload(&self, index: u8) -> &str {
        &self.names[usize::from(index) * 2 - 1]
    }

    fn new(hosts: &mut Hosts) -> SecondNetwork {
        let mut made = SecondNetwork { names: Vec::new() };
        for index in [1_u8, 2] {
            let (net, workload) = (
                format!("{}m{index}", hosts.prefix),
                format!("{}y{index}", hosts.prefix),
            );
            made.names.extend([net.clone(), workload.clone()]);
            common::hosts::plumb_network(&net, &workload, index, hosts.underlay.mtu_inner());
            let underlay = hosts.underlay;
            let host = &mut hosts.hosts[usize::from(index) - 1];
            let writer = host.writer.as_mut().unwrap();
            let mut config = common::hosts::segment(underlay, SegmentPolicy::default());
            config.vni = Vni::new(SECOND).unwrap();
            config.network = "second".into();
            let segment = writer.add_segment(config).unwrap();
            for other in [1, 2] {
                let mut record = common::hosts::record(other, underlay.vtep(other));
                record.vni = Vni::new(SECOND).unwrap();
                record.network = "second".into();
                if other == index {
                    writer.upsert_local(&record).unwrap();
                } else {
                    writer.upsert_remote(&record).unwrap();
                }
            }
            common::hosts::add_packet_uplink(host.dataplane.as_ref().unwrap(), segment, &net);
        }
        made
    }
}

impl Drop for SecondNetwork {
    fn drop(&mut self) {
        for name in &self.names {
            let _gone_already = try_sh(&format!("ip netns del {name}"));
        }
    }
}

#[test]
fn networks_with_equal_addresses_never_see_each_others_frames() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    let second = SecondNetwork::new(&mut hosts);
    let mut cases = Cases::new("security networks");
    let rooms = [
        [
            hosts.host(1).workload.clone(),
            hosts.host(2).workload.clone(),
        ],
        [second.workload(1).to_owned(), second.workload(2).to_owned()],
    ];
    for (number, [a, _]) in rooms.iter().enumerate() {
        cases.run(format!("network {number} works"), || {
            let passed = (0..20).any(|_| {
                try_sh(&format!("ip netns exec {a} ping -c 1 -W 1 {}", ip4(2)))
                    .status
                    .success()
            });
            assert!(passed, "{}", hosts.report());
        });
    }
    cases.run("every marker stays in its network", || {
        let probes = rooms
            .clone()
            .map(|pair| pair.map(|ns| Probe::open(&ns, "eth0")));
        let marker = |network: usize| format!("only for network {network}").into_bytes();
        for _ in 0..200 {
            for (network, pair) in probes.iter().enumerate() {
                for (index, probe) in [(1, &pair[0]), (2, &pair[1])] {
                    let other = 3 - index;
                    let unicast = udp4(index, other).payload(&marker(network));
                    let broadcast = unicast.clone().dst(Mac::BROADCAST);
                    probe.send(&unicast.build());
                    probe.send(&broadcast.ipv4(ip4(index), Ipv4Addr::BROADCAST).build());
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(200));
        for (network, pair) in probes.iter().enumerate() {
            for probe in pair {
                let heard = probe.take();
                let hears = |which: usize| {
                    let marker = marker(which);
                    let holds = |bytes: &[u8]| bytes.windows(marker.len()).any(|w| w == marker);
                    heard.iter().filter(|h| holds(&h.bytes)).count()
                };
                assert!(hears(network) >= 200, "{} of its own", hears(network));
                assert_eq!(hears(1 - network), 0, "leaked into network {network}");
            }
        }
    });
    cases.run("a node that left a network cannot send to it", || {
        // Host 2 stays a VTEP of the first network only.
        let writer = hosts.hosts[0].writer.as_mut().unwrap();
        writer
            .remove(Vni::new(SECOND).unwrap(), "endpoint2")
            .unwrap();
        let before = counters(&hosts, 1).dropped(DropReason::NotMember);
        let mut injector = Injector::new(&hosts, 2, 1);
        let datagram = tunnelled(Vni::new(SECOND).unwrap(), &udp4(2, 1).build());
        (0..50).for_each(|_| injector.send(&datagram));
        injector.settle();
        // What the node's own workload multicasts is refused like the rest.
        assert!(counters(&hosts, 1).dropped(DropReason::NotMember) >= before + 50);
    });
    hosts.check_conservation();
}

#[test]
fn every_frame_of_a_flood_is_accounted_for() {
    let mut hosts = Hosts::new(2, Underlay::default());
    for (index, other) in [(1, 2), (2, 1)] {
        let vtep = hosts.underlay.vtep(index);
        let mut config = weft::dataplane::runtime::DataplaneConfig::new(vtep);
        config.workers = 1;
        // One skb per datagram, or the kernel's overflow counter would count super-frames.
        config.segmentation = false;
        hosts.start_weft_with(index, SegmentPolicy::default(), &[other], config);
    }
    hosts.wait_ping(1, ip4(2).into());
    let mut cases = Cases::new("security overload");
    let (a, b) = (
        hosts.host(1).workload.clone(),
        hosts.host(2).workload.clone(),
    );
    // Bound and never read: the stopped receiver.
    let _stopped = within(&b, || UdpSocket::bind((ip4(2), 4000)).unwrap());
    let floods = if long("ten floods") { 10 } else { 2 };
    cases.run(
        "a flood at full speed to a receiver that has stopped",
        || {
            for round in 0..floods {
                // The last round loses the receiver's uplink in mid-flood.
                flood(&hosts, &a, round + 1 == floods);
            }
        },
    );
    cases.run("others get through beside a flood", || {
        udp_transfer_beside_floods(&b, &a, IpAddr::from(ip4(1)), 500, 4..=1000);
    });
    hosts.check_conservation();
}

fn packets(ns: &str, dev: &str, which: &str) -> u64 {
    let path = format!("/sys/class/net/{dev}/statistics/{which}");
    sh(&format!("ip netns exec {ns} cat {path}"))
        .trim()
        .parse()
        .unwrap()
}

fn flood(hosts: &Hosts, from: &str, lose_uplink: bool) {
    let (net1, net2) = (&hosts.host(1).net, &hosts.host(2).net);
    let came = || packets(net1, "up1", "rx_packets");
    let links = || (came(), packets(net2, "up1", "tx_packets"));
    let (before, links_before) = at_rest(
        || ((counters(hosts, 1), counters(hosts, 2)), links()),
        |((one, two), links)| (*links, one.encap_frames, two.deliveries),
    );
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = within(from, || UdpSocket::bind((ip4(1), 0)).unwrap());
                for _ in 0..60_000 {
                    let _may_be_full = socket.send_to(&[9; 200], (ip4(2), 4000));
                }
            });
        }
        if lose_uplink {
            std::thread::sleep(Duration::from_millis(30));
            let dataplane = hosts.host(2).dataplane.as_ref().unwrap();
            dataplane
                .remove_uplink(weft::tables::SegmentIndex(0))
                .unwrap();
        }
    });
    if lose_uplink {
        let dataplane = hosts.host(2).dataplane.as_ref().unwrap();
        common::hosts::add_packet_uplink(dataplane, weft::tables::SegmentIndex(0), net2);
    }
    // The kernel tells of drops with the next datagram, and the agent asks each second.
    let balanced = (0..20).any(|_| {
        hosts.wait_ping(1, ip4(2).into());
        std::thread::sleep(Duration::from_millis(300));
        balance(hosts, &before, links_before, links()).is_ok()
    });
    let outcome = balance(hosts, &before, links_before, links());
    println!("    {outcome:?}");
    assert!(balanced, "{outcome:?} {}", hosts.report());
}

/// Frames at the uplink of host 1 = read + overflow; datagrams = received + overflow; frames delivered =
/// frames at the uplink of host 2.
fn balance(
    hosts: &Hosts,
    before: &(CounterSnapshot, CounterSnapshot),
    links_before: (u64, u64),
    links: (u64, u64),
) -> Result<String, String> {
    let (one, two) = (counters(hosts, 1), counters(hosts, 2));
    let read = one.encap_frames - before.0.encap_frames;
    let overflow = one.uplink_overflow - before.0.uplink_overflow;
    let sent = one.datagrams_sent - before.0.datagrams_sent;
    let received = two.decap_datagrams - before.1.decap_datagrams;
    let lost = two.underlay_overflow - before.1.underlay_overflow;
    let gone = two.dropped(DropReason::UplinkGone) - before.1.dropped(DropReason::UplinkGone);
    let deliveries = two.deliveries - before.1.deliveries + two.answered - before.1.answered;
    let rows = [
        ("uplink", links.0 - links_before.0, read + overflow),
        ("underlay", sent, received + lost),
        ("delivery", links.1 - links_before.1, deliveries),
    ];
    for dataplane in hosts.hosts.iter().filter_map(|h| h.dataplane.as_ref()) {
        dataplane.counters().check_conservation()?;
    }
    let said = format!("{rows:?}, overflow {overflow} and {lost}, uplink gone {gone}");
    match rows.iter().all(|(_, came, went)| came == went) {
        true => Ok(said),
        false => Err(said),
    }
}

#[test]
fn spoof_rows_are_distinct() {
    let frames: HashSet<_> = spoofs().into_iter().map(|(_, frame, _)| frame).collect();
    assert_eq!(frames.len(), spoofs().len());
}
