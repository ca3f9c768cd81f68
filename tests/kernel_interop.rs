//! Traffic between our dataplane and the kernel's VXLAN device, both directions, over every mix of
//! underlay family, checksums, offloads, super-frame sizes and MTU. Every byte is checked.
//!
//! ```text
//!   w1 ── weft 1 ── u1 ── hub ── u2 ── kernel vx0 2 ── w2        w3 ── weft 3 on the same hub
//! ```
//! Over veth a kernel peer sends what a wire never shows: inner checksums that are unfinished, and
//! super-frames of 64 KB as one datagram. With its offloads switched off it sends what a wire shows.

mod common;

use std::net::IpAddr;
use std::time::Instant;

use common::cases::Cases;
use common::hosts::{Hosts, Underlay, ip4, ip6, named, sh};
use common::transfer::{self, Datagrams};
use weft::dataplane::verdict::DropReason;
use weft::host::{GsoSizes, Netlink, UplinkKind};
use weft::tables::SegmentPolicy;

const MEGABYTE: u64 = 1 << 20;
/// Bytes of each checked TCP transfer.
const TRANSFER: u64 = 16 * MEGABYTE;
/// Sizes of inner datagrams: the smallest, around a word, around a minimal frame, up to near the MTU.
const SIZES: &[usize] = &[
    1, 2, 7, 8, 9, 18, 22, 63, 64, 512, 1000, 1200, 1300, 1381, 1382,
];
/// All above the MTU: fragments go another way than whole datagrams, so order holds among either.
const FRAGMENTED: &[usize] = &[1500, 4000, 20_000];
const FRAGMENTED_JUMBO: &[usize] = &[9001, 20_000, 60_000];

/// One way to set up the two sides.
struct Setup {
    name: &'static str,
    v6: bool,
    mtu: u32,
    /// Options of the kernel's VXLAN device.
    kernel: &'static str,
    /// `ethtool -K` features of the kernel's side (`u2`) and of ours (`u1`).
    peer: &'static str,
    ours: &'static str,
    /// Links of our network carry super-frames of 190 KB.
    big: bool,
}

const TUNNEL_OFF: &str = "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
const ALL_OFF: &str = "tx off sg off tso off gso off";

/// All setups, twice: for each family of the underlay.
fn setups(v6: bool) -> Vec<Setup> {
    let zero = if v6 { "udp6zerocsumrx" } else { "noudpcsum" };
    let rows = [
        ("as it comes", 1500, "", "", "", false),
        ("big super-frames of ours", 1500, "", "", "", true),
        ("outer checksum option", 1500, zero, "", "", false),
        (
            "outer checksum option, peer tx off",
            1500,
            zero,
            "tx off",
            "",
            true,
        ),
        ("peer tx off", 1500, "", "tx off", "", true),
        (
            "peer without tunnel segmentation",
            1500,
            "",
            TUNNEL_OFF,
            "",
            true,
        ),
        (
            "peer tso and gso off",
            1500,
            "",
            "tso off gso off",
            "",
            false,
        ),
        ("our underlay without offloads", 1500, "", "", ALL_OFF, true),
        (
            "both underlays without offloads",
            1500,
            "",
            ALL_OFF,
            ALL_OFF,
            true,
        ),
        ("jumbo underlay", 9000, "", "", "", true),
        (
            "jumbo underlay without offloads",
            9000,
            "",
            ALL_OFF,
            ALL_OFF,
            false,
        ),
    ];
    let rows = rows.into_iter();
    rows.map(|(name, mtu, kernel, peer, ours, big)| Setup {
        name,
        v6,
        mtu,
        kernel,
        peer,
        ours,
        big,
    })
    .collect()
}

/// Weft on host 1, the kernel on host 2, weft on host 3.
fn build(setup: &Setup) -> Hosts {
    let underlay = Underlay {
        v6: setup.v6,
        mtu: setup.mtu,
    };
    let mut hosts = Hosts::new(3, underlay);
    for (index, features) in [(1, setup.ours), (2, setup.peer), (3, setup.ours)] {
        if !features.is_empty() {
            let ns = &hosts.host(index).ns;
            sh(&format!(
                "ip netns exec {ns} ethtool -K u{index} {features} >/dev/null"
            ));
        }
    }
    hosts.start_weft(1, SegmentPolicy::default(), &[2, 3]);
    hosts.start_kernel(2, &[1, 3], setup.kernel);
    hosts.start_weft(3, SegmentPolicy::default(), &[1, 2]);
    if setup.big {
        allow_big(&hosts, 1);
        allow_big(&hosts, 3);
    }
    hosts
}

/// Sets the super-frame sizes an agent sets, on all links of a host's network.
fn allow_big(hosts: &Hosts, index: u8) {
    let host = hosts.host(index);
    let sizes = GsoSizes::fit(hosts.underlay.mtu_inner(), UplinkKind::Packet);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let port = format!("e{index}");
    let network = ["br0", "up0", "up1", port.as_str()];
    for (ns, links) in [(&host.workload, &["eth0"][..]), (&host.net, &network)] {
        runtime.block_on(async {
            let netlink = Netlink::open(&named(ns)).unwrap();
            for name in links {
                let found = netlink.link_by_name(name).await.unwrap();
                let link = found.expect("the harness made it");
                netlink.set_gso(link.index, sizes).await.unwrap();
            }
        });
    }
}

/// Both addresses of a host's workload.
fn addresses(index: u8) -> [IpAddr; 2] {
    [ip4(index).into(), ip6(index).into()]
}

/// Nothing was dropped for a reason that would be a fault of ours or of the peer's.
fn check_clean(hosts: &Hosts) {
    let faults = [
        DropReason::FrameTruncated,
        DropReason::FrameMalformed,
        DropReason::OffloadMalformed,
        DropReason::SpoofedSourceIp,
        DropReason::TooBig,
        DropReason::PathTooSmall,
        DropReason::UnderlayUnreachable,
        DropReason::UnderlayRefused,
        DropReason::DatagramTruncated,
        DropReason::UnknownVtep,
        DropReason::NotMember,
        DropReason::VxlanShort,
        DropReason::VxlanNoVni,
        DropReason::VxlanReservedBits,
        DropReason::UnknownVni,
        DropReason::InnerMalformed,
        DropReason::InnerSpoofedMac,
        DropReason::InnerSpoofedIp,
        DropReason::EcnCongestion,
        DropReason::UplinkRefused,
    ];
    for host in &hosts.hosts {
        let Some(dataplane) = &host.dataplane else {
            continue;
        };
        let counters = dataplane.counters();
        let found = faults
            .iter()
            .filter(|reason| counters.dropped(**reason) > 0);
        let found: Vec<_> = found
            .map(|reason| (reason.name(), counters.dropped(*reason)))
            .collect();
        assert!(found.is_empty(), "host {}: {found:?}", host.index);
    }
}

/// Pings of exact inner packet sizes that may not be fragmented, and one byte too many.
fn ping_sizes(hosts: &Hosts, from: u8, to: u8) {
    let mtu = hosts.underlay.mtu_inner() as usize;
    for (address, headers) in addresses(to).into_iter().zip([28, 48]) {
        for inner in [64, 65, 127, 128, 576, 1280, mtu - 1, mtu] {
            let size = inner - headers;
            let line = format!("ping -c 1 -W 5 -M do -s {size} {address}");
            let output = hosts.try_exec(from, &line);
            assert!(output.status.success(), "{inner} bytes to {address}");
        }
        let size = mtu + 1 - headers;
        let line = format!("ping -c 1 -W 0.1 -M do -s {size} {address}");
        let output = hosts.try_exec(from, &line);
        assert!(!output.status.success(), "one byte above the MTU passed");
    }
}

/// Every kind of traffic between two hosts, from the first to the second and back.
fn traffic(cases: &mut Cases, hosts: &Hosts, setup: &str, pair: [u8; 2]) {
    let [a, b] = pair;
    cases.run(format!("{setup}, {a} and {b}: ping"), || {
        for (from, to) in [(a, b), (b, a)] {
            for address in addresses(to) {
                hosts.wait_ping(from, address);
            }
        }
    });
    for (from, to) in [(a, b), (b, a)] {
        cases.run(format!("{setup}, {from} to {to}: sizes"), || {
            ping_sizes(hosts, from, to);
        });
        for address in addresses(to) {
            let title = |what: &str| format!("{setup}, {from} to {address}: {what}");
            cases.run(title("TCP"), || {
                let took = transfer::tcp(hosts, from, to, address, TRANSFER);
                println!("{} MB in {took:?}", TRANSFER / MEGABYTE);
            });
            cases.run(title("UDP"), || {
                transfer::udp(hosts, from, to, address, Datagrams::Plain(SIZES), 300);
            });
            cases.run(title("segmented UDP"), || {
                let kind = Datagrams::Segmented(1200);
                transfer::udp(hosts, from, to, address, kind, 21 * 40);
            });
            cases.run(title("fragmented UDP"), || {
                let sizes = if hosts.underlay.mtu > 1500 {
                    FRAGMENTED_JUMBO
                } else {
                    FRAGMENTED
                };
                transfer::udp(hosts, from, to, address, Datagrams::Plain(sizes), 60);
            });
        }
    }
}

/// Runs setups against the kernel; `kind` tells tests apart.
fn interop(kind: &str, setups: impl Iterator<Item = Setup>) {
    let mut cases = Cases::new(kind);
    for setup in setups {
        let start = Instant::now();
        let hosts = build(&setup);
        traffic(&mut cases, &hosts, setup.name, [1, 2]);
        cases.run(format!("{}: nothing is lost", setup.name), || {
            hosts.check_conservation();
            check_clean(&hosts);
        });
        println!("{}: {:?}", setup.name, start.elapsed());
    }
    cases.finish();
}

#[test]
fn the_kernel_and_we_understand_each_other_over_ipv4() {
    interop("kernel over IPv4", setups(false).into_iter());
}

#[test]
fn the_kernel_and_we_understand_each_other_over_ipv6() {
    interop("kernel over IPv6", setups(true).into_iter());
}

#[test]
fn two_of_us_understand_each_other() {
    let mut cases = Cases::new("weft to weft");
    for v6 in [false, true] {
        let setups = setups(v6).into_iter();
        let ours =
            setups.filter(|s| s.kernel.is_empty() && (s.peer.is_empty() || s.peer == s.ours));
        for setup in ours {
            let hosts = build(&setup);
            let name = format!("{}, IPv6 underlay {v6}", setup.name);
            traffic(&mut cases, &hosts, &name, [1, 3]);
            cases.run(format!("{name}: nothing is lost"), || {
                hosts.check_conservation();
                check_clean(&hosts);
            });
        }
    }
    cases.finish();
}
