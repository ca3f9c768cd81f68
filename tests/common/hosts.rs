//! Hosts as network namespaces with real dataplanes in this process, for tests against the kernel.
//!
//! ```text
//!   w1 ── host 1 bridge ── up0/up1 ── workers ── u1 ──┐
//!                                                     hub (bridge br0)
//!   w2 ── host 2 ...                        ── u2 ────┘
//! ```
//! A host may run the kernel's own vxlan device instead. Everything is named by process id and a
//! counter, and removed on drop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use weft::dataplane::counters::CounterSnapshot;
use weft::dataplane::runtime::{Dataplane, DataplaneConfig, UplinkSource};
use weft::sys::netns::Netns;
use weft::tables::record::{Backing, EndpointRecord, Version};
use weft::tables::{SegmentConfig, SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::{Mac, Vni};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command line by `sh`, and fails the test loudly if it fails.
pub fn sh(line: &str) -> String {
    let output = try_sh(line);
    assert!(
        output.status.success(),
        "`{line}` failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command line by `sh`.
pub fn try_sh(line: &str) -> Output {
    Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("sh runs")
}

/// How hosts are joined.
#[derive(Clone, Copy, Debug)]
pub struct Underlay {
    /// IPv6 VTEPs.
    pub v6: bool,
    /// MTU of the underlay devices.
    pub mtu: u32,
}

impl Default for Underlay {
    fn default() -> Underlay {
        Underlay {
            v6: false,
            mtu: 1500,
        }
    }
}

impl Underlay {
    /// Largest inner packet.
    pub fn mtu_inner(self) -> u32 {
        self.mtu - if self.v6 { 70 } else { 50 }
    }

    /// The VTEP address of host `index`.
    pub fn vtep(self, index: u8) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::from(index)).into()
        } else {
            Ipv4Addr::new(10, 99, 0, index).into()
        }
    }
}

/// A set of hosts on one underlay.
pub struct Hosts {
    pub prefix: String,
    pub underlay: Underlay,
    pub hosts: Vec<Host>,
}

/// One host: an underlay namespace, the overlay's namespace and one workload.
pub struct Host {
    pub index: u8,
    /// Namespace of the underlay.
    pub ns: String,
    /// Namespace of the network.
    pub net: String,
    /// Namespace of the workload.
    pub workload: String,
    pub vtep: IpAddr,
    pub dataplane: Option<Dataplane>,
    pub writer: Option<TableWriter>,
}

pub fn vni() -> Vni {
    Vni::FIRST_USER
}

/// Workload addresses: 10.0.1.N and fd00::N.
pub fn ip4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, index)
}

pub fn ip6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(index))
}

pub fn mac(index: u8) -> Mac {
    Mac::from_ipv4(ip4(index))
}

impl Hosts {
    /// `count` hosts, each with a workload namespace, no tunnel yet.
    pub fn new(count: u8, underlay: Underlay) -> Hosts {
        let prefix = format!(
            "wt{}x{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut set = Hosts {
            prefix: prefix.clone(),
            underlay,
            hosts: Vec::new(),
        };
        let hub = format!("{prefix}hub");
        sh(&format!(
            "ip netns add {hub} && ip -n {hub} link add hub0 type bridge && ip -n {hub} link set hub0 mtu {} up",
            underlay.mtu
        ));
        for index in 1..=count {
            let host = Host {
                index,
                ns: format!("{prefix}h{index}"),
                net: format!("{prefix}n{index}"),
                workload: format!("{prefix}w{index}"),
                vtep: underlay.vtep(index),
                dataplane: None,
                writer: None,
            };
            host.build(&hub, underlay);
            set.hosts.push(host);
        }
        set
    }

    /// Runs the dataplane on host `index` (from 1), knowing the endpoints of all `others`.
    pub fn start_weft(&mut self, index: u8, policy: SegmentPolicy, others: &[u8]) {
        let underlay = self.underlay;
        let mut config = DataplaneConfig::new(underlay.vtep(index));
        config.workers = 1;
        self.start_weft_with(index, policy, others, config);
    }

    /// The same with a configuration of one's own.
    pub fn start_weft_with(
        &mut self,
        index: u8,
        policy: SegmentPolicy,
        others: &[u8],
        config: DataplaneConfig,
    ) {
        let underlay = self.underlay;
        let host = &mut self.hosts[usize::from(index) - 1];
        host.plumb_uplink(underlay);
        let (mut writer, tables) = TableWriter::new(config.port, 1);
        let gateway = Ipv4Addr::new(10, 0, 1, 254);
        let segment = SegmentConfig {
            vni: vni(),
            network: "network".into(),
            mtu: underlay.mtu_inner(),
            subnets: vec!["10.0.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            gateways: vec![gateway.into(), ip6(254).into()],
            gateway_mac: Mac::from_ipv4(gateway),
            policy,
        };
        writer.add_segment(segment).unwrap();
        writer
            .upsert_local(&record(index, underlay.vtep(index)))
            .unwrap();
        for other in others {
            writer
                .upsert_remote(&record(*other, underlay.vtep(*other)))
                .unwrap();
        }
        let netns = named(&host.ns);
        let started = netns
            .run_in(move || Dataplane::start(config, tables))
            .unwrap();
        let dataplane = started.expect("the dataplane starts");
        let net = named(&host.net);
        let ifindex: u32 = sh(&format!(
            "ip netns exec {} cat /sys/class/net/up1/ifindex",
            host.net
        ))
        .trim()
        .parse()
        .unwrap();
        dataplane
            .add_uplink(
                SegmentIndex(0),
                UplinkSource::Packet {
                    netns: &net,
                    ifindex,
                },
            )
            .unwrap();
        host.dataplane = Some(dataplane);
        host.writer = Some(writer);
    }

    /// Runs the kernel's VXLAN on host `index`, knowing all `others`; `options` go to `ip link add`.
    pub fn start_kernel(&mut self, index: u8, others: &[u8], options: &str) {
        let (underlay, host) = (self.underlay, &self.hosts[usize::from(index) - 1]);
        let (ns, net) = (&host.ns, &host.net);
        let port = if options.contains("dstport") {
            ""
        } else {
            "dstport 4789"
        };
        sh(&format!(
            "ip -n {ns} link add vx0 type vxlan id {} {port} local {} nolearning {options} && ip -n {ns} link set vx0 netns {net} && ip -n {net} link set vx0 mtu {} master br0 up",
            vni(),
            host.vtep,
            underlay.mtu_inner(),
        ));
        for other in others {
            let vtep = underlay.vtep(*other);
            sh(&format!(
                "bridge -n {net} fdb append 00:00:00:00:00:00 dev vx0 dst {vtep}"
            ));
            sh(&format!(
                "bridge -n {net} fdb append {} dev vx0 dst {vtep}",
                mac(*other)
            ));
        }
    }

    /// The host of this number, from 1.
    pub fn host(&self, index: u8) -> &Host {
        &self.hosts[usize::from(index) - 1]
    }

    /// Runs a command in the workload of a host.
    pub fn exec(&self, index: u8, command: &str) -> String {
        sh(&format!(
            "ip netns exec {} {command}",
            self.host(index).workload
        ))
    }

    /// Runs a command in the workload of a host; the caller looks at how it ended.
    pub fn try_exec(&self, index: u8, command: &str) -> Output {
        try_sh(&format!(
            "ip netns exec {} {command}",
            self.host(index).workload
        ))
    }

    /// Pings from one workload to an address until it answers, for at most five seconds.
    pub fn wait_ping(&self, from: u8, to: IpAddr) {
        let ping = format!("ping -c 1 -W 1 {to}");
        let answered = (0..25).any(|_| {
            let ok = self.try_exec(from, &ping).status.success();
            if !ok {
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            ok
        });
        assert!(
            answered,
            "{to} does not answer host {from}'s workload: {}",
            self.report()
        );
    }

    /// Counters of all dataplanes, for messages.
    pub fn report(&self) -> String {
        let rows = self.hosts.iter().filter_map(|h| {
            Some(format!(
                "\nhost {}: {:?}",
                h.index,
                h.dataplane.as_ref()?.counters()
            ))
        });
        rows.collect()
    }

    /// Every frame of every host is accounted for.
    pub fn check_conservation(&self) {
        for dataplane in self.hosts.iter().filter_map(|h| h.dataplane.as_ref()) {
            settled_counters(dataplane);
        }
    }
}

/// Counters of a dataplane at rest: read again while a worker is between two counters of one frame.
/// Counters read mid-way may have a frame as come in and not yet as dropped.
pub fn settled_counters(dataplane: &Dataplane) -> CounterSnapshot {
    for _ in 0..500 {
        let counters = dataplane.counters();
        if counters.check_conservation().is_ok() {
            return counters;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let counters = dataplane.counters();
    panic!("{:?}", counters.check_conservation());
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.dataplane.take();
        }
        let mut names: Vec<String> = vec![format!("{}hub", self.prefix)];
        for host in &self.hosts {
            names.extend([host.ns.clone(), host.net.clone(), host.workload.clone()]);
        }
        for name in names {
            let _gone_already = try_sh(&format!("ip netns del {name}"));
        }
    }
}

impl Host {
    fn build(&self, hub: &str, underlay: Underlay) {
        let Host {
            index,
            ns,
            net,
            workload,
            ..
        } = self;
        let (mtu, mtu_inner) = (underlay.mtu, underlay.mtu_inner());
        let (prefix, nodad) = if underlay.v6 { (64, "nodad") } else { (24, "") };
        let (ip4, ip6, mac) = (ip4(*index), ip6(*index), mac(*index));
        sh(&format!(
            "set -e
            for n in {ns} {net} {workload}; do ip netns add $n; ip -n $n link set lo up; done
            ip netns exec {net} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
            ip netns exec {workload} sysctl -qw net.ipv6.conf.default.router_solicitations=0
            for k in iptables ip6tables arptables; do ip netns exec {net} sysctl -qw net.bridge.bridge-nf-call-$k=0 2>/dev/null || true; done
            ip link add u{index} netns {ns} mtu {mtu} type veth peer name p{index} netns {hub} mtu {mtu}
            ip -n {hub} link set p{index} master hub0 mtu {mtu} up
            ip -n {ns} addr add {vtep}/{prefix} dev u{index} {nodad}
            ip -n {ns} link set u{index} up
            ip -n {net} link add br0 type bridge mcast_snooping 0
            ip -n {net} link set br0 mtu {mtu_inner} up
            ip link add eth0 netns {workload} mtu {mtu_inner} address {mac} type veth peer name e{index} netns {net} mtu {mtu_inner}
            ip -n {net} link set e{index} master br0 up
            ip -n {workload} addr add {ip4}/24 dev eth0
            ip -n {workload} addr add {ip6}/64 dev eth0 nodad
            ip -n {workload} link set eth0 up",
            vtep = self.vtep,
        ));
    }

    fn plumb_uplink(&self, underlay: Underlay) {
        let (net, mtu) = (&self.net, underlay.mtu_inner());
        sh(&format!(
            "set -e
            ip -n {net} link add up0 mtu {mtu} type veth peer name up1 mtu {mtu}
            ip -n {net} link set up0 master br0 up
            bridge -n {net} link set dev up0 learning off
            ip -n {net} link set up1 arp off promisc on up"
        ));
    }
}

/// The record of a host's workload.
pub fn record(index: u8, vtep: IpAddr) -> EndpointRecord {
    EndpointRecord {
        network: "network".into(),
        vni: vni(),
        endpoint: format!("endpoint{index}"),
        mac: mac(index),
        ips: vec![ip4(index).into(), ip6(index).into()],
        vtep,
        node: format!("host{index}"),
        name: format!("workload{index}"),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version {
            epoch: 1,
            counter: 1,
        },
    }
}

pub fn named(name: &str) -> Netns {
    Netns::open(format!("/run/netns/{name}")).expect("the namespace exists")
}

impl Hosts {
    /// Like [`Hosts::start_weft_with`], on a TAP in place of the veth pair: the fallback uplink.
    pub fn start_weft_on_tap(
        &mut self,
        index: u8,
        policy: SegmentPolicy,
        others: &[u8],
        mut config: DataplaneConfig,
    ) {
        let mtu = self.underlay.mtu_inner();
        // A TAP takes no frame above 64 KiB.
        config.worker.merge.max_len = 65_535;
        self.start_weft_with(index, policy, others, config);
        let host = self.host(index);
        let dataplane = host.dataplane.as_ref().expect("it was started");
        dataplane.remove_uplink(SegmentIndex(0)).unwrap();
        let queues = named(&host.net)
            .run_in(|| weft::sys::tap::Tap::open("tap0", dataplane.worker_count()))
            .unwrap()
            .unwrap();
        sh(&format!(
            "set -e
            ip -n {net} link del up0
            ip -n {net} link set tap0 mtu {mtu} master br0 up
            bridge -n {net} link set dev tap0 learning off
            ip -n {workload} link set eth0 gso_max_segs 44 gso_max_size 65536",
            net = host.net,
            workload = host.workload,
        ));
        dataplane
            .add_uplink(SegmentIndex(0), UplinkSource::Tap(queues))
            .unwrap();
    }
}

/// The segment of the tests' network.
pub fn segment(underlay: Underlay, policy: SegmentPolicy) -> SegmentConfig {
    let gateway = Ipv4Addr::new(10, 0, 1, 254);
    SegmentConfig {
        vni: vni(),
        network: "network".into(),
        mtu: underlay.mtu_inner(),
        subnets: vec!["10.0.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        gateways: vec![gateway.into(), ip6(254).into()],
        gateway_mac: Mac::from_ipv4(gateway),
        policy,
    }
}

/// Makes a further network namespace with its workload (number `index` in its subnet) and uplink.
pub fn plumb_network(net: &str, workload: &str, index: u8, mtu: u32) {
    sh(&format!(
        "set -e
        for n in {net} {workload}; do ip netns add $n; ip -n $n link set lo up; done
        ip netns exec {net} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n {net} link add br0 type bridge mcast_snooping 0
        ip -n {net} link set br0 mtu {mtu} up
        ip -n {net} link add up0 mtu {mtu} type veth peer name up1 mtu {mtu}
        ip -n {net} link set up0 master br0 up
        bridge -n {net} link set dev up0 learning off
        ip -n {net} link set up1 arp off promisc on up"
    ));
    add_workload(net, workload, index, mtu);
}

/// Puts a workload's namespace, which exists, on the bridge of a network.
pub fn add_workload(net: &str, workload: &str, index: u8, mtu: u32) {
    let (ip4, ip6, mac) = (ip4(index), ip6(index), mac(index));
    sh(&format!(
        "set -e
        ip link add eth0 netns {workload} mtu {mtu} address {mac} type veth peer name e{index} netns {net} mtu {mtu}
        ip -n {net} link set e{index} master br0 up
        ip -n {workload} addr add {ip4}/24 dev eth0
        ip -n {workload} addr add {ip6}/64 dev eth0 nodad
        ip -n {workload} link set eth0 up"
    ));
}

/// Gives a dataplane the packet uplink of a network's namespace.
pub fn add_packet_uplink(dataplane: &Dataplane, segment: SegmentIndex, net: &str) {
    let ifindex = super::probe::ifindex(net, "up1");
    let netns = &named(net);
    dataplane
        .add_uplink(segment, UplinkSource::Packet { netns, ifindex })
        .unwrap();
}
