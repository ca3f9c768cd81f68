//! Path MTU on real namespaces, after the kernel's `pmtu.sh`: the underlay gets smaller under running
//! traffic, and the sender gets the right exception.
//!
//! ```text
//!  client ── w1 ── host 1 ── u1/p1 ── router (the hub) ── p2/u2 ── host 2 ── w2
//! ```
//! The router honours a route MTU, so it answers what is too big with "fragmentation needed" to the
//! VTEP. A client behind the workload makes the routed cases.

mod common;

use std::io::IoSlice;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::cases::Cases;
use common::hosts::{Hosts, Underlay, ip4, ip6, sh, try_sh};
use common::probe::Probe;
use common::traffic::{Trickle, within};
use weft::sys::udp::{Destination, PathMtuDiscovery, UdpOptions, UdpSocket};
use weft::tables::SegmentPolicy;

/// Where the path gets smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    /// Behind the router, both ways.
    Path,
    /// Behind the router, only from host 1 to host 2.
    PathOut,
    /// The VTEP's own device.
    Device,
}

struct Bed {
    hosts: Hosts,
    wire: Probe,
    /// The namespace that sends.
    sender: String,
    underlay: Underlay,
}

const MTU: u32 = 1500;

fn bed(v6: bool, routed: bool) -> Bed {
    let underlay = Underlay { v6, mtu: MTU };
    let mut hosts = Hosts::new(2, underlay);
    let policy = SegmentPolicy {
        spoof_check: !routed,
        ..SegmentPolicy::default()
    };
    hosts.start_weft(1, policy, &[2]);
    hosts.start_weft(2, policy, &[1]);
    make_router_of_hub(&hosts);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(1, ip6(2).into());
    let sender = match routed {
        true => add_client(&hosts),
        false => hosts.host(1).workload.clone(),
    };
    let wire = Probe::open(&format!("{}hub", hosts.prefix), "p1");
    let bed = Bed {
        hosts,
        wire,
        sender,
        underlay,
    };
    bed.set(Where::Path, MTU);
    bed
}

fn make_router_of_hub(hosts: &Hosts) {
    let hub = format!("{}hub", hosts.prefix);
    sh(&format!(
        "ip netns exec {hub} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0"
    ));
    let v6 = hosts.underlay.v6;
    for (index, other) in [(1, 2), (2, 1)] {
        let ns = &hosts.host(index).ns;
        let (vtep, target) = (hosts.host(index).vtep, hosts.host(other).vtep);
        let (router, len, nodad) = match v6 {
            true => (format!("fd99::f{index}"), 128, "nodad"),
            false => (format!("10.99.0.25{index}"), 32, ""),
        };
        sh(&format!(
            "set -e
            ip -n {hub} link set p{index} nomaster
            ip -n {hub} addr add {router}/{len} dev p{index} {nodad}
            ip -n {hub} route add {vtep}/{len} dev p{index}
            ip -n {ns} route add {target}/{len} via {router} dev u{index} onlink"
        ));
    }
}

/// A namespace behind workload 1, which routes for it.
fn add_client(hosts: &Hosts) -> String {
    let (router, far) = (&hosts.host(1).workload, &hosts.host(2).workload);
    let client = format!("{}c", hosts.prefix);
    let mtu = hosts.underlay.mtu_inner();
    sh(&format!(
        "set -e
        ip netns add {client}; ip -n {client} link set lo up
        ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip link add eth0 netns {client} mtu {mtu} type veth peer name in0 netns {router} mtu {mtu}
        ip -n {client} addr add 10.9.1.2/24 dev eth0; ip -n {client} addr add fd09::2/64 dev eth0 nodad
        ip -n {router} addr add 10.9.1.1/24 dev in0; ip -n {router} addr add fd09::1/64 dev in0 nodad
        ip -n {client} link set eth0 up; ip -n {router} link set in0 up
        ip -n {client} route add default via 10.9.1.1; ip -n {client} route add default via fd09::1
        ip -n {far} route add 10.9.1.0/24 via {}; ip -n {far} route add fd09::/64 via {}",
        ip4(1),
        ip6(1)
    ));
    client
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _was_none = try_sh(&format!("ip netns del {}c", self.hosts.prefix));
    }
}

impl Bed {
    /// Changes the MTU of the path or the device.
    fn set(&self, place: Where, mtu: u32) {
        let hub = format!("{}hub", self.hosts.prefix);
        match place {
            Where::Device => {
                sh(&format!(
                    "ip -n {} link set u1 mtu {mtu}",
                    self.hosts.host(1).ns
                ));
            }
            Where::Path | Where::PathOut => {
                let len = if self.underlay.v6 { 128 } else { 32 };
                let towards: &[u8] = if place == Where::Path { &[1, 2] } else { &[2] };
                for index in towards.iter().copied() {
                    let vtep = self.hosts.host(index).vtep;
                    sh(&format!(
                        "ip -n {hub} route replace {vtep}/{len} dev p{index} mtu lock {mtu}"
                    ));
                }
            }
        }
    }

    /// Makes every kernel forget what it learned about paths.
    fn forget(&self) {
        let mut all = vec![self.sender.clone()];
        for host in &self.hosts.hosts {
            all.extend([host.ns.clone(), host.workload.clone()]);
        }
        for ns in all {
            sh(&format!(
                "ip -n {ns} route flush cache; ip -n {ns} -6 route flush cache"
            ));
        }
    }

    fn inner_mtu(&self, mtu: u32) -> u32 {
        mtu - (MTU - self.underlay.mtu_inner())
    }

    /// One echo of a packet of `len` bytes with DF; what ping said, and whether it was answered.
    fn ping_df(&self, to: IpAddr, len: u32) -> (bool, String) {
        let payload = len - if to.is_ipv4() { 28 } else { 48 };
        let out = try_sh(&format!(
            "ip netns exec {} ping -c 1 -W 0.5 -M do -s {payload} {to}",
            self.sender
        ));
        let said = [out.stdout, out.stderr].concat();
        (
            out.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// The path MTU the sender's kernel believes in, if it learned one.
    fn exception(&self, to: IpAddr) -> Option<u32> {
        let route = sh(&format!("ip -n {} route get {to}", self.sender));
        let mut words = route.split_whitespace();
        words.find(|word| *word == "mtu")?;
        words.next()?.parse().ok()
    }

    /// Widens the path and waits until full packets pass again.
    fn widen(&self, place: Where, to: IpAddr) -> Duration {
        self.set(place, MTU);
        self.forget();
        let start = Instant::now();
        while !self.ping_df(to, self.underlay.mtu_inner()).0 {
            assert!(
                start.elapsed() < Duration::from_secs(6),
                "{to}: a wider path is not noticed {}",
                self.hosts.report()
            );
            self.forget();
        }
        start.elapsed()
    }

    fn too_big_messages(&self) -> u64 {
        let dataplane = self.hosts.host(1).dataplane.as_ref().unwrap();
        dataplane.counters().icmp_too_big
    }

    /// No outer packet heard is, or can become, a fragment.
    fn check_wire(&self) -> usize {
        let heard = self.wire.take();
        let tunnelled: Vec<_> = heard.iter().filter(|h| !h.tunnelled().is_empty()).collect();
        let fragments = heard
            .iter()
            .filter(|h| h.inner().is_none_or(|i| i.fragment));
        assert_eq!(fragments.count(), 0, "outer fragments");
        assert!(!tunnelled.iter().any(|h| h.may_be_fragmented()));
        tunnelled.len()
    }
}

/// One row: the path to `to` shrinks to `mtu` at `place`.
fn shrink(bed: &Bed, to: IpAddr, place: Where, mtu: u32) {
    let inner = bed.inner_mtu(mtu);
    bed.widen(place, to);
    let trickle = Trickle::start(&bed.sender, &bed.hosts.host(2).workload, to);
    assert!(trickle.time_for(1 << 20) < Duration::from_secs(5));

    // A running connection recovers.
    bed.set(place, mtu);
    let stalled = trickle.time_for(512 << 10);
    trickle.stop();
    println!("    TCP after {} ms", stalled.as_millis());
    assert!(
        stalled < Duration::from_secs(2),
        "TCP stood still for {stalled:?} {}",
        bed.hosts.report()
    );
    assert_eq!(bed.exception(to), Some(inner));

    // Sizes are exact.
    // One may be late on a busy machine.
    let passed = (0..3).any(|_| bed.ping_df(to, inner).0);
    assert!(passed, "{inner} bytes do not pass");
    let (passed, said) = bed.ping_df(to, inner + 1);
    assert!(!passed && said.contains(&inner.to_string()), "{said}");

    // A sender that forgot is told again, by the gateway.
    bed.forget();
    let told = (0..3).find_map(|_| {
        let (passed, said) = bed.ping_df(to, bed.underlay.mtu_inner());
        assert!(!passed, "a packet larger than the path was answered");
        let mtu = [format!("mtu = {inner}"), format!("mtu={inner}")];
        mtu.iter().any(|m| said.contains(m)).then_some(said)
    });
    let told = told.expect("ping is told the MTU");
    let gateway = if to.is_ipv4() {
        ip4(254).to_string()
    } else {
        ip6(254).to_string()
    };
    assert!(told.to_lowercase().contains(&gateway), "{told}");
    assert_eq!(bed.exception(to), Some(inner));

    // Long datagrams that may be fragmented pass from a fresh start: IPv4 the second time at the
    // latest, as the agent fragments them; IPv6 the third time, as only the sender may. The way back
    // stays wide: it would need as many tries again.
    bed.widen(place, to);
    bed.set(
        if place == Where::Path {
            Where::PathOut
        } else {
            place
        },
        mtu,
    );
    let tries = if to.is_ipv4() { 2 } else { 3 };
    let ping = format!(
        "ip netns exec {} ping -c 1 -W 0.5 -s 10000 {to}",
        bed.sender
    );
    let passed = (0..tries).any(|_| try_sh(&ping).status.success());
    assert!(passed, "10000 bytes do not pass {}", bed.hosts.report());
}

/// The rows of one outer family with the sender in one place.
fn table(suite: &'static str, v6: bool, routed: bool, places: &[Where]) {
    let bed = bed(v6, routed);
    let outer = if v6 { "IPv6" } else { "IPv4" };
    let mut cases = Cases::new(suite);
    for place in places {
        for to in [IpAddr::from(ip4(2)), ip6(2).into()] {
            let inner = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            cases.run(format!("{inner} in {outer}, {place:?} to 1400"), || {
                shrink(&bed, to, *place, 1400);
                let count = bed.check_wire();
                assert!(count > 0, "nothing was heard on the wire");
                bed.hosts.check_conservation();
            });
            bed.set(*place, MTU);
        }
    }
    if !routed && !v6 {
        cases.run("a path that shrinks twice", || {
            let to = ip4(2).into();
            bed.widen(Where::Path, to);
            for mtu in [1400, 1300] {
                bed.set(Where::Path, mtu);
                let reached = (0..4).any(|_| {
                    bed.ping_df(to, bed.underlay.mtu_inner());
                    bed.exception(to) == Some(bed.inner_mtu(mtu)) || {
                        bed.ping_df(to, bed.inner_mtu(mtu) + 1);
                        bed.exception(to) == Some(bed.inner_mtu(mtu))
                    }
                });
                assert!(reached, "{mtu}: {:?}", bed.exception(to));
            }
        });
        cases.run(
            "a sender that does not listen is told ten times a second",
            || {
                deaf_sender(&bed);
            },
        );
        cases.run("a wider path is noticed", || {
            let noticed = bed.widen(Where::Path, ip4(2).into());
            println!("    after {} ms", noticed.as_millis());
        });
    }
    bed.check_wire();
    bed.hosts.check_conservation();
}

/// Sends DF datagrams that ignore what the kernel learned about the path.
fn deaf_sender(bed: &Bed) {
    let options = UdpOptions {
        path_mtu_discovery: PathMtuDiscovery::Probe,
        ..UdpOptions::default()
    };
    let any = "0.0.0.0:0".parse().unwrap();
    let socket = within(&bed.sender, || UdpSocket::bind(any, &options).unwrap());
    let to = Destination::new((ip4(2), 9).into());
    let (start, before) = (Instant::now(), bed.too_big_messages());
    let datagram = vec![0; bed.underlay.mtu_inner() as usize - 28];
    while start.elapsed() < Duration::from_millis(1500) {
        for _ in 0..50 {
            let _icmp_errors_come_back = socket.send(&[IoSlice::new(&datagram)], &to, None, 0);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    let told = bed.too_big_messages() - before;
    assert!((5..=30).contains(&told), "{told} messages in 1.5 s");
}

#[test]
fn bridged_workloads_over_ipv4() {
    table(
        "pmtu bridged v4",
        false,
        false,
        &[Where::Path, Where::Device],
    );
}

#[test]
fn bridged_workloads_over_ipv6() {
    table(
        "pmtu bridged v6",
        true,
        false,
        &[Where::Path, Where::Device],
    );
}

#[test]
fn routed_clients_over_ipv4() {
    table("pmtu routed v4", false, true, &[Where::Path]);
}

#[test]
fn routed_clients_over_ipv6() {
    table("pmtu routed v6", true, true, &[Where::Path]);
}
