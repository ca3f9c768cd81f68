//! What carries traffic when offloads are missing: every combination the agent may find or be told to
//! use moves the same bytes, both ways, by TCP and UDP over IPv4 and IPv6.

mod common;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::hosts::{Hosts, Underlay, ip4, ip6, sh};
use common::probe::{Cases, long};
use common::traffic::{tcp_transfer, udp_transfer};
use weft::dataplane::runtime::{Dataplane, DataplaneConfig};
use weft::dataplane::verdict::DropReason;
use weft::lab::offloads::OffloadProfile;
use weft::tables::SegmentPolicy;

const TCP_LEN: usize = 32 << 20;
const UDP_COUNT: u32 = 400;

fn config(hosts: &Hosts, index: u8) -> DataplaneConfig {
    let mut config = DataplaneConfig::new(hosts.underlay.vtep(index));
    config.workers = 1;
    config
}

/// Two hosts whose dataplanes run as `change` says.
fn pair(underlay: Underlay, change: impl Fn(&mut DataplaneConfig)) -> Hosts {
    let mut hosts = Hosts::new(2, underlay);
    for (index, other) in [(1, 2), (2, 1)] {
        let mut config = config(&hosts, index);
        change(&mut config);
        hosts.start_weft_with(index, SegmentPolicy::default(), &[other], config);
    }
    hosts
}

fn dataplane(hosts: &Hosts, index: u8) -> &Dataplane {
    hosts.host(index).dataplane.as_ref().unwrap()
}

/// Ping, TCP and UDP both ways. TCP over IPv4 carries `len` bytes each way, the others a part of it.
fn check_traffic(hosts: &Hosts, len: usize) {
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(2, ip6(1).into());
    let before: Vec<_> = [1, 2].map(|i| dataplane(hosts, i).counters()).into();
    for (from, to) in [(1, 2), (2, 1)] {
        let (source, sink) = (&hosts.host(from).workload, &hosts.host(to).workload);
        tcp_transfer(source, sink, ip4(to).into(), len);
        tcp_transfer(source, sink, ip6(to).into(), len / 8);
        let largest = hosts.underlay.mtu_inner() as usize;
        udp_transfer(source, sink, ip4(to).into(), UDP_COUNT, 4..=largest - 28);
        udp_transfer(
            source,
            sink,
            IpAddr::from(ip6(to)),
            UDP_COUNT,
            4..=largest - 48,
        );
        // Fragments of the workload's own.
        let fragmented = (3 * largest).min(60_000);
        udp_transfer(source, sink, ip4(to).into(), 20, fragmented..=fragmented);
    }
    hosts.check_conservation();
    for (index, before) in [1, 2].into_iter().zip(before) {
        let after = dataplane(hosts, index).counters();
        for reason in [
            DropReason::FrameMalformed,
            DropReason::OffloadMalformed,
            DropReason::TooBig,
            DropReason::PathTooSmall,
            DropReason::UnderlayRefused,
            DropReason::InnerMalformed,
            DropReason::UplinkFull,
            DropReason::UplinkRefused,
        ] {
            assert_eq!(
                after.dropped(reason),
                before.dropped(reason),
                "host {index}: {} {}",
                reason.name(),
                hosts.report()
            );
        }
        assert_eq!(
            dataplane(hosts, index).alive(),
            dataplane(hosts, index).worker_count()
        );
    }
}

fn set_profile(hosts: &Hosts, profile: OffloadProfile) {
    for host in &hosts.hosts {
        let index = host.index;
        let ends = [
            (host.ns.clone(), format!("u{index}")),
            (format!("{}hub", hosts.prefix), format!("p{index}")),
        ];
        for (ns, dev) in ends {
            for (name, on) in profile.changes() {
                ethtool(&ns, &dev, name, *on);
            }
        }
    }
}

fn ethtool(ns: &str, dev: &str, name: &str, on: bool) {
    let value = if on { "on" } else { "off" };
    sh(&format!(
        "ip netns exec {ns} ethtool -K {dev} {name} {value}"
    ));
}

#[test]
fn traffic_passes_without_segmentation_or_coalescing() {
    let mut cases = Cases::new("offload config");
    for (segmentation, coalescing) in [(false, true), (true, false), (false, false)] {
        let name = format!("segmentation {segmentation}, receive coalescing {coalescing}");
        cases.run(&name, || {
            let hosts = pair(Underlay::default(), |config| {
                config.segmentation = segmentation;
                config.receive_coalescing = coalescing;
            });
            check_traffic(&hosts, TCP_LEN);
            let status = dataplane(&hosts, 1).offloads();
            assert_eq!(status.segmentation, segmentation);
            assert_eq!(status.receive_coalescing, coalescing);
            let counters = dataplane(&hosts, 1).counters();
            if segmentation {
                assert!(counters.datagrams_sent > 4 * counters.sends);
            } else {
                assert_eq!(counters.datagrams_sent, counters.sends);
            }
        });
    }
}

#[test]
fn traffic_passes_on_underlays_with_fewer_offloads() {
    let mut cases = Cases::new("offload profiles");
    for (profile, v6) in [
        (OffloadProfile::Ideal, false),
        (OffloadProfile::NoTunnelOffload, true),
        (OffloadProfile::NoSegmentationOffload, false),
        (OffloadProfile::None, false),
        (OffloadProfile::None, true),
    ] {
        cases.run(&format!("{profile:?}, IPv6 underlay {v6}"), || {
            let hosts = pair(Underlay { v6, mtu: 1500 }, |_| {});
            set_profile(&hosts, profile);
            check_traffic(&hosts, TCP_LEN);
            let status = dataplane(&hosts, 1).offloads();
            println!("    segmentation {}", status.segmentation);
        });
    }
}

#[test]
fn segmentation_can_be_switched_under_traffic() {
    let hosts = pair(Underlay::default(), |_| {});
    let mut cases = Cases::new("offload switch");
    cases.run("kill switch, off and on every 20 ms", || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut on = false;
                while !stop.load(Ordering::Relaxed) {
                    for index in [1, 2] {
                        dataplane(&hosts, index).set_segmentation(on);
                    }
                    on = !on;
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            // Ended also when the check fails, or the scope would wait for ever.
            let _end = EndOnDrop(&stop);
            check_traffic(&hosts, TCP_LEN);
        });
    });
    cases.run("the link's offloads change under traffic", || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut on = false;
                while !stop.load(Ordering::Relaxed) {
                    for host in &hosts.hosts {
                        ethtool(&host.ns, &format!("u{}", host.index), "tx", on);
                    }
                    on = !on;
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let _end = EndOnDrop(&stop);
            check_traffic(&hosts, TCP_LEN);
        });
    });
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_tap_carries_the_same_traffic() {
    let mut cases = Cases::new("offload tap");
    for workers in [1, 2] {
        cases.run(&format!("TAP uplink with {workers} queues"), || {
            let mut hosts = Hosts::new(2, Underlay::default());
            for (index, other) in [(1, 2), (2, 1)] {
                let mut config = config(&hosts, index);
                config.workers = workers;
                hosts.start_weft_on_tap(index, SegmentPolicy::default(), &[other], config);
            }
            check_traffic(&hosts, TCP_LEN);
        });
    }
    cases.run("TAP to packet uplink", || {
        let mut hosts = Hosts::new(2, Underlay::default());
        let (tap, packet) = (config(&hosts, 1), config(&hosts, 2));
        hosts.start_weft_on_tap(1, SegmentPolicy::default(), &[2], tap);
        hosts.start_weft_with(2, SegmentPolicy::default(), &[1], packet);
        check_traffic(&hosts, TCP_LEN);
    });
}

#[test]
fn two_workers_share_the_flows_and_keep_each_in_order() {
    let mut cases = Cases::new("offload workers");
    for v6 in [false, true] {
        let hosts = pair(Underlay { v6, mtu: 1500 }, |config| config.workers = 2);
        cases.run(&format!("integrity, IPv6 underlay {v6}"), || {
            check_traffic(&hosts, TCP_LEN);
        });
        cases.run(&format!("twelve flows, IPv6 underlay {v6}"), || {
            // Which worker gets a flow is up to the kernel's hash: another dozen if all fell on one.
            let shared = (0..4).any(|_| {
                twelve_flows(&hosts);
                [1, 2]
                    .iter()
                    .all(|index| both_workers_worked(&hosts, *index))
            });
            assert!(shared, "one worker had all the flows");
            hosts.check_conservation();
        });
    }
}

fn twelve_flows(hosts: &Hosts) {
    std::thread::scope(|scope| {
        for flow in 0..12 {
            let (from, to) = if flow % 2 == 0 { (1, 2) } else { (2, 1) };
            let (source, sink) = (&hosts.host(from).workload, &hosts.host(to).workload);
            let ip = if flow % 4 < 2 {
                IpAddr::from(ip4(to))
            } else {
                ip6(to).into()
            };
            scope.spawn(move || match flow {
                0..4 => tcp_transfer(source, sink, ip, 2 << 20),
                _ => udp_transfer(source, sink, ip, 300, 4..=1300),
            });
        }
    });
}

fn both_workers_worked(hosts: &Hosts, index: u8) -> bool {
    let workers = dataplane(hosts, index).counters_by_worker();
    let shares: Vec<_> = workers
        .iter()
        .map(|c| (c.encap_frames, c.decap_datagrams))
        .collect();
    println!("    host {index}: encap and decap by worker {shares:?}");
    shares
        .iter()
        .all(|(encap, decap)| *encap > 50 && *decap > 50)
}

#[test]
fn jumbo_and_small_underlays_carry_the_same_traffic() {
    let mut cases = Cases::new("offload mtu");
    let sizes: &[(u32, bool)] = if long() {
        &[(9000, false), (9000, true), (1400, true), (65_535, false)]
    } else {
        &[(9000, false), (1400, true)]
    };
    for (mtu, v6) in sizes.iter().copied() {
        cases.run(&format!("underlay MTU {mtu}, IPv6 {v6}"), || {
            let hosts = pair(Underlay { v6, mtu }, |_| {});
            check_traffic(&hosts, TCP_LEN);
        });
    }
    if !long() {
        println!("SKIP (set WEFT_LONG=1): two more sizes");
    }
}
