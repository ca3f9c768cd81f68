//! What carries traffic when offloads are missing: every combination the agent may find or be told to
//! use moves the same bytes, both ways, by TCP and UDP over IPv4 and IPv6.

mod common;

use std::io::IoSlice;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::cases::Cases;
use common::hosts::{
    Hosts, Underlay, add_packet_uplink, add_workload, ip4, ip6, mac, named, plumb_network, record,
    segment, sh, try_sh,
};
use common::probe::{Probe, count_tunnelled, ifindex};
use common::skip::{long, skip};
use common::traffic::{Pattern, tcp_transfer, udp_transfer, within};
use weft::dataplane::runtime::{Dataplane, DataplaneConfig};
use weft::dataplane::verdict::DropReason;
use weft::host::{GsoSizes, Netlink, UplinkKind, jumbo_support};
use weft::lab::offloads::OffloadProfile;
use weft::sys::udp;
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter};

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
        // The links here have the kernel's default sizes, which refuse frames above 64 KiB.
        config.worker.merge.max_len = 65_535;
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
            for (name, on) in profile.switches() {
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
        cases.run(format!("{profile:?}, IPv6 underlay {v6}"), || {
            let hosts = pair(Underlay { v6, mtu: 1500 }, |_| {});
            set_profile(&hosts, profile);
            check_traffic(&hosts, TCP_LEN);
            let status = dataplane(&hosts, 1).offloads();
            println!("    segmentation {}", status.segmentation);
        });
    }
}

/// Sets the super-frame sizes of every link on a workload's way to the agent, as the host layer does.
fn fit_links(hosts: &Hosts, big_ipv6: bool) {
    let mtu = hosts.underlay.mtu_inner();
    let mut sizes = GsoSizes::fit(mtu, UplinkKind::Packet);
    if big_ipv6 {
        sizes = sizes.with_big_ipv6(mtu);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for host in &hosts.hosts {
        let end = format!("e{}", host.index);
        for (ns, devices, sizes) in [
            (
                &host.net,
                vec!["up0", "up1", "br0", &end],
                sizes.for_delivery(),
            ),
            (&host.workload, vec!["eth0"], sizes),
        ] {
            runtime.block_on(async {
                let netlink = Netlink::open(&named(ns)).unwrap();
                for device in devices {
                    let index = ifindex(ns, device);
                    netlink.set_gso(index, sizes).await.unwrap();
                }
            });
        }
    }
}

#[test]
fn super_frames_above_64_kilobytes_carry_the_same_traffic() {
    let mut cases = Cases::new("offload big");
    for (workers, v6) in [(1, false), (2, true)] {
        cases.run(format!("{workers} workers, IPv6 underlay {v6}"), || {
            let hosts = pair(Underlay { v6, mtu: 1500 }, |config| {
                config.workers = workers;
                config.worker.merge.max_len = 190_000;
            });
            fit_links(&hosts, false);
            check_traffic(&hosts, TCP_LEN);
            let counters = dataplane(&hosts, 1).counters();
            let mean = counters.encap_bytes / counters.encap_superframes.max(1);
            println!("    mean super-frame read: {mean} bytes");
            assert!(mean > 66_000, "no BIG super-frames");
        });
    }
}

#[test]
fn super_frames_above_64_kilobytes_carry_ipv6() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let support = runtime.block_on(jumbo_support()).unwrap();
    let Some(jumbo) = support.taken else {
        return skip("this kernel takes no super-frames of TCP over IPv6 above 64 KiB");
    };
    let mut cases = Cases::new("offload big, IPv6");
    for (name, size_at_port) in [("whole", None), ("cut on the way", Some(65_536))] {
        cases.run(name, || {
            let hosts = pair(Underlay::default(), |config| {
                config.worker.merge.max_len = 190_000;
                config.worker.merge.jumbo = Some(jumbo);
            });
            fit_links(&hosts, true);
            for (host, size) in hosts.hosts.iter().zip(size_at_port.into_iter().cycle()) {
                let (ns, port) = (&host.net, format!("e{}", host.index));
                sh(&format!("ip -n {ns} link set {port} gso_max_size {size}"));
            }
            hosts.wait_ping(2, ip6(1).into());
            let before = [1, 2].map(|index| dataplane(&hosts, index).counters());
            let (source, sink) = (&hosts.host(1).workload, &hosts.host(2).workload);
            tcp_transfer(source, sink, ip6(2).into(), TCP_LEN);
            let [sender, receiver] = [1, 2].map(|index| dataplane(&hosts, index).counters());
            let read = sender.encap_bytes - before[0].encap_bytes;
            let mean = read / (sender.encap_superframes - before[0].encap_superframes).max(1);
            let wrote = receiver.delivered_bytes - before[1].delivered_bytes;
            let delivered = wrote / (receiver.deliveries - before[1].deliveries).max(1);
            println!("    mean super-frame read: {mean} bytes, delivered: {delivered} bytes");
            assert!(mean > 66_000, "none above 64 KiB were read");
            assert!(delivered > 66_000, "none above 64 KiB were delivered");
            check_traffic(&hosts, TCP_LEN);
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
        cases.run(format!("TAP uplink with {workers} queues"), || {
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
        let (tap, mut packet) = (config(&hosts, 1), config(&hosts, 2));
        packet.worker.merge.max_len = 65_535;
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
        cases.run(format!("integrity, IPv6 underlay {v6}"), || {
            check_traffic(&hosts, TCP_LEN);
        });
        cases.run(format!("twelve flows, IPv6 underlay {v6}"), || {
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
    let sizes: &[(u32, bool)] = if long("two more sizes of the underlay") {
        &[(9000, false), (9000, true), (1400, true), (65_535, false)]
    } else {
        &[(9000, false), (1400, true)]
    };
    for (mtu, v6) in sizes.iter().copied() {
        cases.run(format!("underlay MTU {mtu}, IPv6 {v6}"), || {
            let hosts = pair(Underlay { v6, mtu }, |_| {});
            check_traffic(&hosts, TCP_LEN);
        });
    }
}

/// Receives `count` datagrams and returns their lengths, and whether they held the bytes of one burst.
fn receive(socket: &UdpSocket, count: usize, sent: &[u8]) -> Vec<usize> {
    socket
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    let (mut buf, mut at, mut lens) = (vec![0; 65_536], 0, Vec::new());
    for _ in 0..count {
        let len = socket.recv(&mut buf).expect("another datagram");
        assert!(buf[..len] == sent[at..at + len], "bytes differ at {at}");
        at += len;
        lens.push(len);
    }
    assert_eq!(at, sent.len());
    lens
}

#[test]
fn a_burst_of_segmented_udp_arrives_in_the_pieces_it_was_cut_into() {
    let hosts = pair(Underlay::default(), |_| {});
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(1, ip6(2).into());
    let (a, b) = (&hosts.host(1).workload, &hosts.host(2).workload);
    let mut cases = Cases::new("offload bursts");
    for (to, from) in [
        (IpAddr::from(ip4(2)), "0.0.0.0:0"),
        (ip6(2).into(), "[::]:0"),
    ] {
        let receiver = within(b, || UdpSocket::bind((to, 0)).unwrap());
        let address = receiver.local_addr().unwrap();
        let sender = within(a, || {
            udp::UdpSocket::bind(from.parse().unwrap(), &udp::UdpOptions::default()).unwrap()
        });
        let destination = udp::Destination::new(address);
        for (count, size, last) in [
            (10, 1400, 1400),
            (10, 1400, 333),
            (2, 1400, 1),
            (64, 500, 500),
            (45, 1380, 7),
            (128, 12, 5),
        ] {
            cases.run(format!("{to}: {count} of {size}, the last {last}"), || {
                let mut bytes = vec![0; (count - 1) * size + last];
                Pattern::new(size as u64).fill(&mut bytes);
                for _ in 0..5 {
                    sender
                        .send(&[IoSlice::new(&bytes)], &destination, Some(size as u16), 0)
                        .unwrap();
                    let mut want = vec![size; count];
                    want[count - 1] = last;
                    assert_eq!(receive(&receiver, count, &bytes), want);
                }
            });
        }
    }
    hosts.check_conservation();
}

/// Namespaces that a test makes beside its hosts.
struct Extra(Vec<String>);

impl Drop for Extra {
    fn drop(&mut self) {
        for name in &self.0 {
            let _gone_already = try_sh(&format!("ip netns del {name}"));
        }
    }
}

#[test]
fn traffic_within_a_node_stays_off_the_underlay() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    let mut cases = Cases::new("offload local");
    let wire = Probe::open(&format!("{}hub", hosts.prefix), "p1");
    let name = |letter: &str| format!("{}{letter}", hosts.prefix);
    let extra = Extra(vec![name("b1"), name("c1"), name("d1")]);
    let [second, net, third] = [0, 1, 2].map(|i| extra.0[i].clone());
    let mtu = hosts.underlay.mtu_inner();
    let first = hosts.host(1).workload.clone();

    cases.run("two workloads of one network on one node", || {
        sh(&format!("ip netns add {second}"));
        add_workload(&hosts.host(1).net, &second, 7, mtu);
        let mut local = record(7, hosts.host(1).vtep);
        local.version.counter = 3;
        let writer = hosts.hosts[0].writer.as_mut().unwrap();
        writer.upsert_local(&local).unwrap();
        tcp_transfer(&first, &second, ip4(7).into(), 4 << 20);
        udp_transfer(&second, &first, ip6(1).into(), 200, 4..=1300);
        let between = count_tunnelled(&wire.take(), |_, inner| {
            [mac(1), mac(7)].contains(&inner.src) && [mac(1), mac(7)].contains(&inner.dst)
        });
        assert_eq!(between, 0, "local frames on the underlay");
    });
    cases.run(
        "two VTEPs on one node reach each other, off the wire",
        || {
            // A second agent beside the first, on an address of its own.
            let host = hosts.host(1);
            let other: IpAddr = [10, 99, 0, 101].into();
            sh(&format!("ip -n {} addr add {other}/24 dev u1", host.ns));
            plumb_network(&net, &third, 8, mtu);
            let (mut writer, tables) = TableWriter::new(4789, 5);
            writer
                .add_segment(segment(hosts.underlay, SegmentPolicy::default()))
                .unwrap();
            writer.upsert_local(&record(8, other)).unwrap();
            writer.upsert_remote(&record(1, host.vtep)).unwrap();
            let mut config = DataplaneConfig::new(other);
            config.workers = 1;
            let started = named(&host.ns).run_in(|| Dataplane::start(config, tables));
            let beside = started
                .unwrap()
                .expect("a second dataplane on another address");
            add_packet_uplink(&beside, SegmentIndex(0), &net);
            let known = hosts.hosts[0].writer.as_mut().unwrap();
            known.upsert_remote(&record(8, other)).unwrap();
            tcp_transfer(&first, &third, ip4(8).into(), 4 << 20);
            udp_transfer(&third, &first, ip4(1).into(), 200, 4..=1300);
            let between = count_tunnelled(&wire.take(), |_, inner| {
                inner.src == mac(8) || inner.dst == mac(8)
            });
            assert_eq!(between, 0, "frames for the same host on the wire");
            assert!(beside.counters().delivered > 100);
            beside.counters().check_conservation().unwrap();
        },
    );
    hosts.check_conservation();
}
